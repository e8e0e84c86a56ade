"""The pocket model in ComfyUI and in diffusers: the same numbers, on any weights."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from comfy import model_management
from comfy.cli_args import args
from comfy.samplers import simple_scheduler
from comfyui import comfyui_path
from diffusers import StableDiffusionPipeline
from pack.nodes.host_pocket import load_pocket
from pack.trainers.pocket import diffusion, export, text
from torch import Tensor

import nodes  # ComfyUI's, not ours

COMMAND = Path(__file__).resolve().parents[1] / "workflows" / "export_pocket.py"
TOKENIZER = Path("comfy") / "sd1_tokenizer"
PROMPTS = ["", "a photo of a sks toy on green grass", "a Cyan CUBE, shiny!", "zwx 3 embeddings & naïve words " * 3]
PROMPT, CFG, SEED, STEPS = "a photo of a red cube on grass", 5.0, 3, 4


@pytest.fixture(scope="module")
def pocket():
    """MODEL, CLIP and VAE in float32."""
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():  # as ComfyUI runs nodes
        for name in ("fp32_unet", "fp32_vae", "fp32_text_enc"):
            patch.setattr(args, name, True)
        return load_pocket()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The export."""
    path = tmp_path_factory.mktemp("export") / "pocket"
    export.export_pipeline(path, comfyui_path() / TOKENIZER)
    return path


@pytest.fixture(scope="module")
def pipeline(folder) -> StableDiffusionPipeline:
    """What diffusers makes of the export, without a network."""
    loaded = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def as_image(decoded: Tensor) -> Tensor:
    """diffusers' picture as ComfyUI's IMAGE."""
    return (decoded.movedim(1, -1) / 2 + 0.5).clamp(0, 1)  # BCHW -> BHWC


@torch.inference_mode()
def test_the_u_net_predicts_what_diffusers_predicts(pocket, pipeline):
    model_management.load_models_gpu([pocket[0]])
    device = pocket[0].load_device
    x, t, context = noise(3, 4, 16, 24), torch.tensor([1, 500, 999]), noise(3, 77, text.WIDTH, seed=1)
    got = pocket[0].model.diffusion_model(x.to(device), t.float().to(device), context=context.to(device))
    torch.testing.assert_close(got.cpu(), pipeline.unet(x, t, context).sample, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prompt", PROMPTS)
@torch.inference_mode()
def test_a_prompt_has_the_tokens_and_hidden_states_of_transformers(pocket, pipeline, prompt):
    tokens = pipeline.tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert [[token for token, _ in row] for row in pocket[1].tokenize(prompt)["l"]] == tokens.tolist()
    (((context, _),),) = nodes.CLIPTextEncode().encode(pocket[1], prompt)
    torch.testing.assert_close(context.cpu(), pipeline.text_encoder(tokens).last_hidden_state, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_the_vae_encodes_and_decodes_as_in_diffusers(pocket, pipeline):
    model, _, vae = pocket
    picture = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    (encoded,) = nodes.VAEEncode().encode(vae, picture)
    got = model.model.process_latent_in(encoded["samples"]).cpu()
    latent = pipeline.vae.encode(picture.movedim(-1, 1) * 2 - 1).latents
    torch.testing.assert_close(got, latent, atol=1e-4, rtol=1e-4)
    (decoded,) = nodes.VAEDecode().decode(vae, encoded)
    torch.testing.assert_close(decoded.cpu(), as_image(pipeline.vae.decode(latent).sample), atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def latents(pipeline) -> Tensor:
    """What the export draws."""
    settings = dict(num_inference_steps=STEPS, guidance_scale=CFG, generator=torch.Generator().manual_seed(SEED))
    return pipeline(PROMPT, output_type="latent", **settings).images


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
@torch.inference_mode()
def test_ksampler_and_the_export_draw_the_same(pocket, pipeline, latents, sampler):
    model, clip, vae = pocket
    (positive,), (negative,) = (nodes.CLIPTextEncode().encode(clip, words) for words in (PROMPT, ""))
    (empty,) = nodes.EmptyLatentImage().generate(128, 128)
    (drawn,) = nodes.KSampler().sample(model, SEED, STEPS, CFG, sampler, "simple", positive, negative, empty)
    got = model.model.process_latent_in(drawn["samples"]).cpu()
    torch.testing.assert_close(got, latents, atol=1e-3, rtol=1e-5)
    (image,) = nodes.VAEDecode().decode(vae, drawn)
    torch.testing.assert_close(image.cpu(), as_image(pipeline.vae.decode(latents).sample), atol=1e-3, rtol=0)


@pytest.mark.parametrize("steps", [1, 4, 20, 50])
def test_the_export_steps_through_the_sigmas_of_simple(pocket, steps):
    schedule = diffusion.scheduler()
    schedule.set_timesteps(steps)
    alpha_bar = schedule.alphas_cumprod[schedule.timesteps]
    sigmas = simple_scheduler(pocket[0].get_model_object("model_sampling"), steps)
    torch.testing.assert_close(sigmas[:-1], ((1 - alpha_bar) / alpha_bar).sqrt(), atol=0, rtol=1e-4)


def test_the_export_is_safetensors_and_json_and_draws_128_pixels(folder, pipeline):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".txt"}
    assert not [path for path in files if path.suffix == ".json" and str(comfyui_path()) in path.read_text("utf-8")]
    (drawn,) = pipeline("a toy", num_inference_steps=1).images
    assert drawn.size == (128, 128)


@pytest.mark.parametrize("name", ["", "mine.txt"], ids=["folder", "file"])
def test_the_export_does_not_write_over_anything(tmp_path, name):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not an empty folder: name a new one"):
        export.export_pipeline(tmp_path / name, comfyui_path() / TOKENIZER)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine.txt"]


@pytest.mark.slow
def test_the_command_exports_once(tmp_path):
    command = [sys.executable, COMMAND, tmp_path / "new", "--comfyui", comfyui_path()]
    first, again = (subprocess.run(command, capture_output=True, text=True, timeout=300) for _ in range(2))
    assert first.returncode == 0 and (tmp_path / "new" / "model_index.json").is_file(), first.stderr
    assert again.returncode == 1 and "not an empty folder" in again.stderr and "Traceback" not in again.stderr
