"""Save Embedding: the file is the token in memory to the bit, in ComfyUI and in diffusers, and replaces no other."""

from pathlib import Path

import folder_paths
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from pack.nodes.files import SaveEmbedding
from pack.nodes.host_embeddings import with_token
from pack.trainers.embedding_file import Embedding
from safetensors import safe_open
from safetensors.torch import load_file
from test_checkpoint import report
from test_token_host import NAME, TEXTS, parts, stock, token
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


@pytest.fixture
def embeddings(tmp_path, monkeypatch) -> Path:
    """The first of two folders in which ComfyUI looks for embeddings; neither exists yet."""
    folder, second = tmp_path / "models" / "embeddings", tmp_path / "more embeddings"
    extensions = folder_paths.folder_names_and_paths["embeddings"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "embeddings", ([str(folder), str(second)], extensions))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return folder


def save(embedding: Embedding, filename: str = "", **options):
    with torch.inference_mode():  # as ComfyUI runs nodes
        return SaveEmbedding.EXECUTE_NORMALIZED(embedding=embedding, filename=filename, **options)


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_file_and_memory_give_the_same_bits_through_the_stock_node(kind, embeddings):
    vectors = token(kind)
    save(Embedding(NAME, vectors))
    with_file = tiny.tiny_clip(kind)
    for part in parts(with_file.tokenizer):
        part.embedding_directory = folder_paths.get_folder_paths("embeddings")
    for text in TEXTS:
        got, expected = stock(with_file, text), stock(with_token(tiny.tiny_clip(kind), NAME, vectors), text)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize(
    "kind, keys", [("sd1", {"emb_params"}), ("sd2", {"emb_params"}), ("sdxl", {"clip_l", "clip_g"})]
)
def test_the_file_has_the_keys_other_programs_read(kind, keys, embeddings):
    vectors = token(kind)
    state = load_file(embeddings / save(Embedding(NAME, vectors)).result[0])
    assert state.keys() == keys
    for key, vector in vectors.items():
        assert torch.equal(state[key if kind == "sdxl" else "emb_params"], vector)


def test_the_path_is_what_comfyui_lists_and_the_text_how_prompts_call_it(embeddings):
    vectors = token("sd1")
    for filename, listed in (("", NAME), ("pets/rex", "pets/rex"), ("pets\\rex2.safetensors", "pets/rex2")):
        output = save(Embedding(NAME, vectors), filename)
        assert output.result == (f"{listed}.safetensors",)
        assert f"{listed}.safetensors" in folder_paths.get_filename_list("embeddings")
        assert output.ui["text"] == [f"{listed}.safetensors", f"embedding:{listed}"]
        assert Path(output.ui["path"][0]).is_file()


def test_a_taken_name_gets_a_number_also_if_another_kind_of_file_has_it(embeddings):
    embeddings.mkdir(parents=True)
    (embeddings / f"{NAME}.pt").write_bytes(b"of the user")
    names = [save(Embedding(NAME, token("sd1"))).result[0] for _ in range(2)]
    assert names == [f"{NAME}_2.safetensors", f"{NAME}_3.safetensors"]
    assert save(Embedding(NAME, token("sd1", seed=1)), f"{NAME}_2", overwrite=True).result == (names[0],)
    assert torch.equal(load_file(embeddings / names[0])["emb_params"], token("sd1", seed=1)["clip_l"])
    assert (embeddings / f"{NAME}.pt").read_bytes() == b"of the user"


@pytest.mark.parametrize("filename", ["../dog", "/tmp/dog", "my dog", "a dir/dog", "1.5", "nul", "(dog"])
def test_names_that_leave_the_folder_or_break_prompts_are_refused(filename, embeddings):
    with pytest.raises(ValueError, match="^filename: got "):
        save(Embedding(NAME, token("sd1")), filename)
    assert not embeddings.exists()


def test_values_that_are_not_finite_are_refused(embeddings):
    with pytest.raises(ValueError, match="embedding: emb_params has values that are not finite"):
        save(Embedding(NAME, {"clip_l": torch.full((1, 768), torch.nan)}))
    assert not embeddings.exists()


def test_the_file_says_what_it_is(embeddings):
    for kind, given, architecture in (
        ("sd1", report(base_model="sd_v1"), "stable-diffusion-v1/textual-inversion"),
        ("sdxl", None, "unknown/textual-inversion"),
    ):
        with safe_open(embeddings / save(Embedding(NAME, token(kind), given), kind).result[0], "pt") as file:
            metadata = file.metadata()
        assert (metadata["modelspec.title"], metadata["modelspec.architecture"]) == (kind, architecture)
        assert ("edgetune.report" in metadata) == (given is not None)
    widths = {"clip_l": torch.zeros(1, 768), "clip_g": torch.zeros(1, 1280)}
    with safe_open(embeddings / save(Embedding("xl", widths)).result[0], "pt") as file:
        assert file.metadata()["modelspec.architecture"] == "stable-diffusion-xl-v1-base/textual-inversion"


def test_diffusers_reads_the_same_token(embeddings, tmp_path):
    """The text embedding of its load_textual_inversion() is ComfyUI's, on the same weights."""
    clip, vectors = tiny.tiny_clip("sd1"), {"clip_l": token("sd1")["clip_l"]}
    path = embeddings / save(Embedding(NAME, vectors)).result[0]
    tokenizer = clip.tokenizer.clip_l.tokenizer
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer.name_or_path)
    config = tiny.TEXT_CONFIG | {"vocab_size": 49408, "max_position_embeddings": 77, "hidden_act": "quick_gelu"}
    encoder = CLIPTextModel(CLIPTextConfig(**config, eos_token_id=49407)).eval()
    state = clip.cond_stage_model.clip_l.transformer.state_dict()
    prefix = "" if any(name.startswith("text_model.") for name in encoder.state_dict()) else "text_model."  # 5: none
    encoder.load_state_dict(
        {name.removeprefix(prefix): v for name, v in state.items() if name.startswith("text_model.")}
    )
    pipeline = StableDiffusionPipeline(
        vae=None,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=None,
        scheduler=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.load_textual_inversion(str(path), token=f"<{NAME}>")
    prompt = pipeline.maybe_convert_prompt(f"a photo of a <{NAME}> on a table", tokenizer)
    ids = tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.inference_mode():
        got = encoder(ids).last_hidden_state
    expected, _ = stock(with_token(clip, NAME, vectors), f"a photo of a embedding:{NAME} on a table")
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
