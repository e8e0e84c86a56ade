"""Load Pocket Model: MODEL, CLIP and VAE as stock nodes want them, and what is said when the file is not whole.

True of any weights: nothing here depends on what the model has learnt.
"""

import random
from pathlib import Path

import folder_paths
import pytest
import torch
from comfy.model_patcher import CoreModelPatcher
from comfy_extras import nodes_train
from pack.nodes import host
from pack.nodes.files import SaveLoRA
from pack.nodes.host_pocket import load_pocket
from pack.nodes.load_pocket_model import LoadPocketModel
from pack.trainers.config import SelectiveConfig
from pack.trainers.memory import LiveBytes, PhaseMeter
from pack.trainers.photos import Photo, Subject
from pack.trainers.pocket import captions, text, weights, world
from pack.trainers.pocket.grounds import GROUNDS
from pack.trainers.pocket.shapes import SHAPES
from pack.trainers.selective import train_selective
from safetensors.torch import load_file, save_file
from torch import Tensor

import nodes  # ComfyUI's, not ours

HELP = Path(__file__).resolve().parents[1] / "web" / "docs" / "EdgeTune_LoadPocketModel.md"
PROMPT = "a photo of a sks toy"


@pytest.fixture(scope="module")
def pocket():
    """MODEL, CLIP and VAE."""
    with torch.inference_mode():  # as ComfyUI runs nodes
        return LoadPocketModel.execute().result


@pytest.fixture
def loras(tmp_path, monkeypatch) -> Path:
    """The only folder in which ComfyUI looks for LoRAs."""
    extensions = folder_paths.folder_names_and_paths["loras"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], extensions))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


def picture(side: int = 128) -> Tensor:
    """An IMAGE, (1, side, side, 3)."""
    return torch.rand(1, side, side, 3, generator=torch.Generator().manual_seed(0))


def ids(clip, prompt: str) -> list[int]:
    (tokens,) = clip.tokenize(prompt)["l"]
    return [token for token, _ in tokens]


def unet_weights(model) -> dict[str, Tensor]:
    return {name: p.detach().cpu().clone() for name, p in model.model.diffusion_model.named_parameters()}


# The model


def test_it_can_be_loaded_again_as_core_does_for_deep_clones(pocket):
    patchers = [pocket[0], pocket[1].patcher, pocket[2].patcher]
    for patcher in patchers:
        assert isinstance(patcher, CoreModelPatcher)
        again = patcher.clone(force_deepcopy=True)
        assert again.model is not patcher.model
        state, expected = again.model.state_dict(), patcher.model.state_dict()
        assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)


@torch.inference_mode()
def test_comfyui_reserves_enough_memory_for_the_vae(pocket):
    """Its figures are those of the large autoencoder."""
    vae = pocket[2]
    network, pixels = vae.first_stage_model.to(vae.device), picture().movedim(-1, 1).to(vae.device, vae.vae_dtype)
    with LiveBytes() as encoding:
        latent = network.encode(pixels)
    with LiveBytes() as decoding:
        network.decode(latent)
    assert latent.shape == (1, 4, 16, 16)
    assert encoding.peak < vae.memory_used_encode(pixels.shape, vae.vae_dtype) < 2**30
    assert decoding.peak < vae.memory_used_decode(latent.shape, vae.vae_dtype) < 2**30


def test_a_lora_is_trained_on_it_saved_and_loaded_by_load_lora(pocket, loras, caplog):
    model, clip, vae = pocket
    before = unet_weights(model)
    subject = Subject((Photo("1.png", picture(64)[0], PROMPT),), PROMPT, "a toy", 64, False)
    config = SelectiveConfig(steps=2, strategy="bp_high", learning_rate=1e-2)
    with torch.inference_mode():
        meter = PhaseMeter(host.model_facts(model).device)
        examples = host.encode_subject(model, clip, vae, subject, config.low_res_ratio, meter)
        with host.trainable(model) as network:
            names = host.lora_names(model)
            lora = train_selective(network, examples, config, names, meter, lambda step: None).lora
        (name,) = SaveLoRA.execute(lora=lora, filename="toy").result
        loaded, _ = nodes.LoraLoader().load_lora(model, clip, name, 1.0, 1.0)
    assert len(loaded.patches) == len(lora) // 3 > 0
    assert not [record for record in caplog.records if "not loaded" in record.getMessage().lower()]
    after = unet_weights(model)
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.slow
@torch.inference_mode()
def test_core_trains_it_too(pocket):
    model, clip, vae = pocket
    defaults = {
        item.id: [item.default] for item in nodes_train.TrainLoraNode.GET_SCHEMA().inputs if hasattr(item, "default")
    }
    (latent,), (positive,) = nodes.VAEEncode().encode(vae, picture()), nodes.CLIPTextEncode().encode(clip, PROMPT)
    settings = defaults | {"steps": [1], "training_dtype": ["none"], "lora_dtype": ["fp32"]}
    trained = nodes_train.TrainLoraNode.execute(model=[model], latents=[latent], positive=[positive], **settings)
    lora, losses, steps = trained.result
    assert steps == 1 and len(losses["loss"]) == 1 and lora


# Words


def test_every_known_word_has_the_tokens_that_comfyui_gives_it(pocket):
    for word, tokens in text.WORDS.items():
        assert ids(pocket[1], word)[1 : len(tokens) + 2] == [*tokens, text.END], word
    assert set(captions.vocabulary()) <= set(text.WORDS)


def test_captions_are_tokenised_as_comfyui_does(pocket):
    rng = random.Random(0)
    drawn = [captions.caption(world.random_scene(rng), rng).replace(f"{captions.ANY_WORD} ", "") for _ in range(100)]
    assert text.tokens(drawn).tolist() == [ids(pocket[1], caption) for caption in drawn]


def test_words_of_no_caption_have_the_rows_they_were_born_with(pocket):
    """So that their norms are distributed as those of the whole table are before training."""
    table = pocket[1].cond_stage_model.clip_l.transformer.get_input_embeddings().weight.cpu()
    unseen = torch.ones(len(table), dtype=torch.bool)
    unseen[text.learnt_ids()] = False
    assert torch.equal(table[unseen].half(), text.seeded_table().half()[unseen])
    sks, typical = ids(pocket[1], "sks")[1], text.ROW_DEVIATION * text.WIDTH**0.5
    assert unseen[sks] and 0.75 * typical < table[sks].float().norm() < 1.25 * typical


def test_an_embedding_of_its_width_is_taken_from_comfyui_s_folder(pocket, tmp_path, monkeypatch):
    tokenizer = pocket[1].tokenizer.clip_l
    assert tokenizer.embedding_directory == folder_paths.get_folder_paths("embeddings")
    monkeypatch.setattr(tokenizer, "embedding_directory", [str(tmp_path)])
    save_file({"emb_params": torch.ones(2, text.WIDTH)}, tmp_path / "mine.safetensors")
    _, first, second, end, *_ = ids(pocket[1], "embedding:mine")
    assert first.shape == second.shape == (text.WIDTH,) and end == text.END


def test_the_help_names_everything_the_model_can_draw():
    for word in [*SHAPES, *world.COLOURS, *world.MATERIALS, *GROUNDS]:
        assert word in HELP.read_text(encoding="utf-8")


# The file

CHANGES = {
    "U-Net without": (lambda state: state.pop("unet.conv_in.weight"), r"input_blocks\.0\.0\.weight"),
    "text without": (lambda state: state.pop(f"text_encoder.{weights.ROWS}"), r"token_embedding\.rows"),
    "VAE without": (lambda state: state.pop("vae.decoder.layers.18.bias"), r"taesd_decoder\.19\.bias"),
    "VAE with more": (lambda state: state.update({"vae.more": torch.zeros(1)}), "more"),
    "other shape": (lambda state: state.update({"unet.conv_out.bias": torch.zeros(5)}), r"out\.2\.bias.*\[5\]"),
    "other part": (lambda state: state.update({"clip.weight": torch.zeros(1)}), "clip"),
}


@pytest.mark.parametrize("change, words", CHANGES.values(), ids=CHANGES)
def test_a_tensor_missing_or_left_over_is_named_with_the_file(tmp_path, change, words):
    state = load_file(weights.FILE)
    change(state)
    save_file(state, tmp_path / "changed.safetensors")
    with pytest.raises(RuntimeError, match=f"changed.safetensors .* damaged: .*{words}.* `git checkout"):
        load_pocket(tmp_path / "changed.safetensors")


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\n", None], ids=["empty", "LFS", "cut"]
)
def test_a_damaged_file_is_named_with_the_way_back(tmp_path, content):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(weights.FILE.read_bytes()[:-1000] if content is None else content)
    with pytest.raises(
        RuntimeError, match=r"broken.safetensors \([\d,]+ bytes\) are damaged: .* install the pack again"
    ):
        load_pocket(path)


def test_a_missing_file_is_named_with_the_way_back(tmp_path):
    with pytest.raises(
        RuntimeError, match="missing: there is no file .*nowhere.safetensors. Get it back .*git checkout"
    ):
        load_pocket(tmp_path / "nowhere.safetensors")
