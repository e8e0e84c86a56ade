"""A trained LoRA means the same to ComfyUI's own loaders and to diffusers as it does to the MODEL it was trained on."""

from pathlib import Path
from typing import NamedTuple

import comfy.model_management
import comfy.samplers
import folder_paths
import pytest
import tiny
import torch
from comfy.utils import load_torch_file, unet_to_diffusers
from comfy_extras import nodes_train
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from pack.nodes import host
from pack.nodes.files import SaveLoRA
from pack.nodes.sockets import loss_map
from pack.trainers.config import SelectiveConfig
from pack.trainers.memory import PhaseMeter
from pack.trainers.objective import Example, Sample
from pack.trainers.selective import train_selective
from torch import Tensor

import nodes  # ComfyUI's, not ours

# A learning rate high enough that a few steps are seen, and alpha != rank so that the scale counts.
CONFIG = SelectiveConfig(
    steps=6, learning_rate=1e-2, zo_learning_rate=1e-5, strategy="random", zo_perturbations=1, rank=4, alpha=2.0
)
WITH_Y = ("sdxl", "ssd1b")
CASES = [(kind, "attention") for kind in tiny.KINDS] + [("sdxl", "attention and feed-forward")]


class Case(NamedTuple):
    """A tiny checkpoint and the LoRA that was trained on it."""

    kind: str
    model: object
    clip: object
    vae: object
    lora: dict[str, Tensor]
    layers: int
    without: Tensor  # what the model samples, see image()
    in_process: Tensor  # what our MODEL output samples


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request) -> Case:
    kind, targets = request.param
    model = tiny.tiny_model(kind)
    generator = torch.Generator().manual_seed(0)
    width = tiny.WIDTH * (2 if kind in WITH_Y else 1)
    vector = torch.randn(tiny.WIDTH + 1536, generator=generator) if kind in WITH_Y else None
    sample = Sample(torch.randn(4, 8, 8, generator=generator), torch.randn(77, width, generator=generator), vector)
    config = SelectiveConfig(**vars(CONFIG) | {"target_modules": targets})
    with host.trainable(model) as network:
        names = host.lora_names(model)
        meter = PhaseMeter(torch.device("cpu"))
        lora = train_selective(network, [Example(sample, sample)], config, names, meter, lambda step: None).lora
    clip, vae = tiny.tiny_clip(kind), tiny.tiny_vae()
    without = image(model, clip, vae)
    return Case(kind, model, clip, vae, lora, len(lora) // 3, without, image(host.with_lora(model, lora), clip, vae))


@pytest.fixture
def loras(tmp_path, monkeypatch) -> Path:
    """The only folder in which ComfyUI looks for LoRAs."""
    folder = tmp_path / "loras"
    extensions = folder_paths.folder_names_and_paths["loras"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder)], extensions))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return folder


@torch.inference_mode()
def image(model, clip, vae) -> Tensor:
    """What Empty Latent, CLIP Text Encode, KSampler and VAE Decode make of them, (1, 64, 64, 3)."""
    (positive,) = nodes.CLIPTextEncode().encode(clip, "a photo of a sks dog")
    (negative,) = nodes.CLIPTextEncode().encode(clip, "")
    (empty,) = nodes.EmptyLatentImage().generate(64, 64)
    (latent,) = nodes.KSampler().sample(model, 3, 3, 2.0, "euler", "normal", positive, negative, empty)
    return nodes.VAEDecode().decode(vae, latent)[0]


def difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def saved(case: Case, dtype: str) -> str:
    return SaveLoRA.execute(lora=case.lora, filename=f"pets/{case.kind}", dtype=dtype).result[0]


def assert_all_loaded(caplog) -> None:
    assert not [record for record in caplog.records if "loaded" in record.getMessage().lower()]


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float16", 0.5 / 255)])
def test_load_lora_makes_the_image_of_the_model_output(case, loras, caplog, dtype, tolerance):
    name = saved(case, dtype)
    (loaded,) = nodes.LoraLoaderModelOnly().load_lora_model_only(case.model, name, 1.0)
    assert_all_loaded(caplog)
    assert len(loaded.patches) == case.layers
    assert difference(image(loaded, case.clip, case.vae), case.in_process) <= tolerance
    assert difference(case.without, case.in_process) > 20 / 255  # it acts


def test_load_lora_with_clip_changes_the_model_alone(case, loras, caplog):
    name = saved(case, "float32")
    model, clip = nodes.LoraLoader().load_lora(case.model, case.clip, name, 1.0, 1.0)
    assert_all_loaded(caplog)
    assert len(model.patches) == case.layers and not clip.patcher.patches
    assert difference(image(model, clip, case.vae), case.in_process) <= 1e-5


def test_taking_the_lora_off_gives_the_first_image_back(case):
    assert torch.equal(image(host.with_lora(case.model, case.lora), case.clip, case.vae), case.in_process)
    assert torch.equal(image(case.model, case.clip, case.vae), case.without)


@pytest.mark.parametrize("bypass", [False, True], ids=["patched", "bypass"])
def test_load_lora_model_takes_the_lora_output(case, caplog, bypass):
    loaded = nodes_train.LoraModelLoader.execute(case.model, case.lora, 1.0, bypass=bypass).result[0]
    assert_all_loaded(caplog)
    assert difference(image(loaded, case.clip, case.vae), case.in_process) <= 1e-3


def test_core_save_lora_takes_the_lora_output(case, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    nodes_train.SaveLoRA.execute(case.lora, "loras/ours")
    (file,) = tmp_path.rglob("*.safetensors")
    state = load_torch_file(str(file))
    assert state.keys() == case.lora.keys()
    assert all(torch.equal(state[key], value) for key, value in case.lora.items())


@pytest.mark.parametrize("losses", [[0.5], [0.5] * 7, [0.0], [1.0, 0.25, 0.5]], ids=["one", "flat", "zero", "curve"])
def test_core_plots_our_losses(losses, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    plot = nodes_train.LossGraphNode.PREPARE_CLASS_CLONE(None)
    assert plot.execute(loss_map(losses), "loss").ui.as_dict()["images"]
    assert len(list(tmp_path.glob("*.png"))) == 1


def test_diffusers_computes_the_same_with_the_base_weights_and_with_our_file(case, loras):
    """An independent implementation with the very same weights, and its own loader of the saved file."""
    base = comfy_eps(case, case.model)  # which also takes the LoRA off the weights that the twin copies
    unet = diffusers_twin(case.model)
    torch.testing.assert_close(diffusers_eps(case, unet), base, atol=1e-4, rtol=0)

    file = loras / saved(case, "float32")
    loader = StableDiffusionXLLoraLoaderMixin if case.kind in WITH_Y else StableDiffusionLoraLoaderMixin
    state, alphas = loader.lora_state_dict(file.as_posix(), unet_config=unet.config)
    assert len(state) == 2 * case.layers and len(alphas) == case.layers
    loader.load_lora_into_unet(state, alphas, unet)

    patched = comfy_eps(case, host.with_lora(case.model, case.lora))
    torch.testing.assert_close(diffusers_eps(case, unet), patched, atol=1e-4, rtol=0)
    assert difference(patched, base) > 0.02  # 200 times the tolerance


class Probe(NamedTuple):
    """One input of a denoiser, in the words of both sides."""

    x_t: Tensor
    t: Tensor
    context: Tensor
    pooled: Tensor
    sizes: Tensor  # (B, 6): height, width, crops, target height and width


def probe(case: Case) -> Probe:
    generator = torch.Generator().manual_seed(5)
    width = case.model.model.model_config.unet_config["context_dim"]
    return Probe(
        torch.randn(2, 4, 16, 24, generator=generator),
        torch.tensor([3, 700]),
        torch.randn(2, 77, width, generator=generator),
        torch.randn(2, tiny.WIDTH, generator=generator),
        torch.tensor([[96, 64, 8, 16, 48, 32], [512, 768, 0, 0, 256, 384]]),
    )


@torch.inference_mode()
def comfy_eps(case: Case, patcher) -> Tensor:
    """The raw output of ComfyUI's U-Net with the patcher's patches in its weights."""
    comfy.model_management.load_models_gpu([patcher], force_full_load=True)
    given = probe(case)
    y = {}
    if case.kind in WITH_Y:
        sizes = torch.stack([patcher.model.embedder(row.float()).flatten() for row in given.sizes])
        y = {"y": torch.cat([given.pooled, sizes], 1)}
    return patcher.model.diffusion_model(given.x_t, given.t.float(), context=given.context, **y)


@torch.no_grad()
def diffusers_eps(case: Case, unet: UNet2DConditionModel) -> Tensor:
    given = probe(case)
    added = {"text_embeds": given.pooled, "time_ids": given.sizes} if case.kind in WITH_Y else None
    return unet(given.x_t, given.t, given.context, added_cond_kwargs=added).sample


def diffusers_twin(patcher) -> UNet2DConditionModel:
    """diffusers' U-Net of the same topology with copies of the same weights."""
    config = patcher.model.model_config.unet_config
    widths = [config["model_channels"] * factor for factor in config["channel_mult"]]
    per_head = config["num_head_channels"]
    heads = [config["num_heads"] if per_head == -1 else width // per_head for width in widths]
    down = _by_block(config["transformer_depth"], config["num_res_blocks"])
    up = _by_block(config["transformer_depth_output"][::-1], [count + 1 for count in config["num_res_blocks"]])
    sdxl = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": config["adm_in_channels"],
    }
    unet = UNet2DConditionModel(
        block_out_channels=widths,
        layers_per_block=config["num_res_blocks"],
        attention_head_dim=heads,  # diffusers' word for the number of heads
        cross_attention_dim=config["context_dim"],
        use_linear_projection=config["use_linear_in_transformer"],
        down_block_types=["CrossAttnDownBlock2D" if any(depths) else "DownBlock2D" for depths in down],
        up_block_types=["CrossAttnUpBlock2D" if any(depths) else "UpBlock2D" for depths in up],
        mid_block_type="UNetMidBlock2D" if config["transformer_depth_middle"] < 0 else "UNetMidBlock2DCrossAttn",
        transformer_layers_per_block=[max(1, *depths) for depths in down],
        reverse_transformer_layers_per_block=[depths if any(depths) else 1 for depths in up],
        **(sdxl if config["adm_in_channels"] else {}),
    )
    names = unet_to_diffusers(config)
    weights = patcher.model.diffusion_model.state_dict()
    unet.load_state_dict({name: weights[names[name]].clone() for name in unet.state_dict()})
    return unet.eval()


def _by_block(depths: list[int], counts: list[int]) -> list[list[int]]:
    rest = iter(depths)
    return [[next(rest) for _ in range(count)] for count in counts]
