"""ComfyUI's side: what is refused and in which words, how photos are encoded, and that the MODEL is left as it was."""

from functools import cache
from importlib import import_module

import comfy.supported_models
import pytest
import tiny
import torch
from comfy import model_management, sampler_helpers, samplers
from comfy.model_patcher import CoreModelPatcher
from comfy.sd import VAE
from comfy.taesd.taesd import TAESD
from comfy_extras import nodes_clip_sdxl, nodes_model_advanced
from node_runs import run_node
from pack.nodes import host
from pack.nodes.train_selective import SelectiveTrainer
from pack.trainers.config import SelectiveConfig
from pack.trainers.lora import injected
from pack.trainers.memory import PhaseMeter
from pack.trainers.objective import Condition, denoising_loss
from pack.trainers.photos import Photo, Subject, downscaled

import nodes  # ComfyUI's, not ours

CPU = torch.device("cpu")
WITH_Y = ("sdxl", "ssd1b")
every_kind = pytest.mark.parametrize("kind", tiny.KINDS)
tiny_clip, tiny_vae = cache(tiny.tiny_clip), cache(tiny.tiny_vae)  # nothing changes them


def photo(seed: int, caption: str, height: int = 64, width: int = 64) -> Photo:
    image = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))
    return Photo(f"{seed}.png", image, caption)


def subject(*photos: Photo, flip: bool = False) -> Subject:
    return Subject(photos or (photo(0, "a sks dog"),), "a sks dog", "a dog", 64, flip)


def encode(kind: str, photos: Subject, ratio: float = 0.5, model=None, clip=None, vae=None) -> list:
    model, clip, vae = model or tiny.tiny_model(kind), clip or tiny_clip(kind), vae or tiny_vae()
    with torch.inference_mode():  # as ComfyUI runs nodes
        return host.encode_subject(model, clip, vae, photos, ratio, PhaseMeter(CPU))


def weights(model) -> dict:
    return {name: p.detach().clone() for name, p in model.model.diffusion_model.named_parameters()}


def assert_same_bits(model, before: dict) -> None:
    after = weights(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def random_lora(model) -> dict:
    """A LoRA on every attention layer that visibly acts."""
    generator = torch.Generator().manual_seed(1)
    with host.trainable(model) as network, injected(network.unet, 4, 4.0, "attention", 0) as lora:
        for factor in lora.parameters():
            factor.data = torch.randn(factor.shape, generator=generator) * 0.02
        return lora.state_dict(host.lora_names(model))


def test_a_model_without_a_u_net_is_refused():
    sizes = dict(hidden_size=32, num_heads=2, depth=1, depth_single_blocks=1, axes_dim=[4, 6, 6], theta=10_000)
    channels = dict(in_channels=16, out_channels=16, vec_in_dim=8, context_in_dim=16, mlp_ratio=2.0, patch_size=2)
    rest = dict(image_model="flux", guidance_embed=False, qkv_bias=True, txt_ids_dims=[], dtype=torch.float32)
    config = comfy.supported_models.Flux(sizes | channels | rest)
    config.set_inference_dtype(torch.float32, None)
    flux = CoreModelPatcher(config.get_model({}, device=CPU), CPU, CPU)
    with pytest.raises(ValueError, match="model: got Flux, needs to be a Stable Diffusion 1.x, 2.x or XL"):
        host.model_facts(flux)


def test_an_inpainting_model_is_refused(monkeypatch):
    monkeypatch.setitem(tiny.COMMON, "in_channels", 9)
    with pytest.raises(ValueError, match="model: .* takes 9 channels where 4 .* inpainting .* plain text-to-image"):
        host.model_facts(tiny.tiny_model("sd1"))


def test_a_quantised_model_is_refused(monkeypatch):
    monkeypatch.setattr(comfy.supported_models.SD15, "quant_config", {"mixed_ops": True}, raising=False)
    with pytest.raises(ValueError, match="model: its layers are quantised; load the float16, bfloat16 or float32"):
        host.model_facts(tiny.tiny_model("sd1"))


discrete = nodes_model_advanced.ModelSamplingDiscrete().patch


@pytest.mark.parametrize("sampling, name", [("lcm", "LCM"), ("x0", "X0"), ("img_to_img", "IMG_TO_IMG")])
def test_a_model_with_another_objective_is_refused_by_name(sampling, name):
    (model,) = discrete(tiny.tiny_model("sd1"), sampling, False)
    with pytest.raises(ValueError, match=rf"model: its sampling \(.*\b{name}\b.*\) is not one .* needs eps- or v-"):
        host.model_facts(model)


def test_a_model_with_continuous_noise_levels_is_refused():
    edm = nodes_model_advanced.ModelSamplingContinuousEDM().patch(tiny.tiny_model("sdxl"), "edm", 80.0, 0.002)[0]
    with pytest.raises(ValueError, match=r"model: its sampling \(ModelSamplingContinuousEDM.* discrete timesteps"):
        host.model_facts(edm)


@pytest.mark.parametrize("zsnr", [False, True])
@pytest.mark.parametrize("sampling, prediction_type", [("eps", "epsilon"), ("v_prediction", "v_prediction")])
def test_a_patched_schedule_is_the_one_that_is_trained(sampling, prediction_type, zsnr):
    (model,) = discrete(tiny.tiny_model("sd1"), sampling, zsnr)
    assert host.model_facts(model).prediction_type == prediction_type
    with host.trainable(model) as network:
        assert network.scheduler.config.prediction_type == prediction_type
        sigmas = (1 / network.scheduler.alphas_cumprod.double() - 1).sqrt()
    torch.testing.assert_close(
        sigmas[:-1].float(), model.get_model_object("model_sampling").sigmas[:-1], rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("kind, other, got, needed", [("sd1", "sdxl", 64, 32), ("sdxl", "sd1", 32, 64)])
def test_the_clip_of_another_model_is_refused(kind, other, got, needed):
    with pytest.raises(ValueError, match=f"clip: its tokens are {got} wide, the model needs {needed}; connect"):
        encode(kind, subject(), clip=tiny_clip(other))


def test_the_vae_of_another_model_is_refused():
    with torch.inference_mode():
        vae = VAE(sd=TAESD(latent_channels=16).state_dict(), dtype=torch.float32)
    with pytest.raises(ValueError, match="vae: it makes latents of 16 channels, the model needs 4; connect the VAE"):
        encode("sd1", subject(), vae=vae)


@every_kind
def test_latents_are_those_of_vae_encode_as_the_model_takes_them(kind):
    model, vae = tiny.tiny_model(kind), tiny_vae()
    wide = photo(1, "a sks dog", height=64, width=96)
    (example,) = encode(kind, subject(wide), 0.5, model=model, vae=vae)
    small = downscaled(wide.image, 0.5)
    assert small.shape == (32, 48, 3)
    for sample, image in ((example.high, wide.image), (example.low, small)):
        with torch.inference_mode():
            (latent,) = nodes.VAEEncode().encode(vae, image[None])
            expected = model.model.process_latent_in(latent["samples"])[0]
        torch.testing.assert_close(sample.latent, expected.clone())
    assert example.high.latent.shape == (4, 8, 12) and example.low.latent.shape == (4, 4, 6)


@every_kind
def test_everything_encoded_is_a_normal_tensor_on_the_cpu(kind):
    (example,) = encode(kind, subject())
    for tensor in (*example.high, *example.low):
        if tensor is not None:
            assert not tensor.is_inference() and tensor.device == CPU and tensor.dtype == torch.float32
    assert (example.high.vector is not None) == (kind in WITH_Y)


def test_at_ratio_one_a_photo_is_encoded_once():
    (example,) = encode("sd1", subject(), ratio=1.0)
    assert example.low is example.high


def test_flips_double_the_examples_and_mirror_the_photos():
    photos = [photo(0, "a sks dog"), photo(1, "a sks dog asleep", width=96)]
    plain, doubled = encode("sd1", subject(*photos)), encode("sd1", subject(*photos, flip=True))
    mirrors = encode("sd1", subject(*(p._replace(image=p.image.flip(1)) for p in photos)))
    assert len(doubled) == 4
    for example, expected in zip(doubled, plain + mirrors, strict=True):
        assert torch.equal(example.high.latent, expected.high.latent)
        assert torch.equal(example.low.latent, expected.low.latent)
        assert torch.equal(example.high.context, expected.high.context)


@every_kind
def test_a_caption_is_encoded_once_and_as_clip_text_encode_does(kind):
    clip = tiny_clip(kind)
    calls = []
    encoder = clip.cond_stage_model.get_submodule("clip_h" if kind == "sd2" else "clip_l")
    handle = encoder.register_forward_hook(lambda *_: calls.append(1))
    captions = ["a sks dog", "a sks dog asleep", "a sks dog"]
    photos = [photo(seed, caption) for seed, caption in enumerate(captions)]
    examples = encode(kind, subject(*photos, flip=True), clip=clip)
    handle.remove()
    assert len(calls) == 2
    for caption, example in zip(captions, examples, strict=False):
        with torch.inference_mode():
            (cond,) = nodes.CLIPTextEncode().encode(clip, caption)
        for sample in example:
            torch.testing.assert_close(sample.context, cond[0][0][0].clone())


@pytest.mark.parametrize("kind", WITH_Y)
def test_the_size_conditioning_is_core_s_own(kind):
    """The low-resolution photo says that it was the full size once, and what it is now, (height, width) 64x96."""
    model, clip = tiny.tiny_model(kind), tiny_clip(kind)
    (example,) = encode(kind, subject(photo(0, "a sks dog", 64, 96)), 0.5, model=model, clip=clip)
    for sample, (height, width) in ((example.high, (64, 96)), (example.low, (32, 48))):
        prompts = dict(text_g="a sks dog", text_l="a sks dog")
        sizes = dict(width=96, height=64, crop_w=0, crop_h=0, target_width=width, target_height=height)
        with torch.inference_mode():
            cond = nodes_clip_sdxl.CLIPTextEncodeSDXL.EXECUTE_NORMALIZED(clip, **sizes, **prompts).result[0]
            conds = sampler_helpers.convert_cond(cond)
            conds = samplers.encode_model_conds(model.model.extra_conds, conds, sample.latent[None], CPU, "positive")
        torch.testing.assert_close(sample.vector, conds[0]["model_conds"]["y"].cond[0].clone())


@every_kind
def test_training_weights_are_normal_and_the_same_bits(kind):
    model = tiny.tiny_model(kind)
    before = weights(model)
    assert all(p.is_inference() for p in model.model.diffusion_model.parameters())  # as loaders make them
    with torch.inference_mode(), host.trainable(model) as network:
        assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
        assert not any(p.is_inference() or p.requires_grad for p in network.unet.parameters())
        assert network.unet is model.model.diffusion_model
    assert_same_bits(model, before)
    assert not any(p.is_inference() for p in model.model.diffusion_model.parameters())


def test_inference_mode_comes_back_also_after_an_error():
    with torch.inference_mode():
        with pytest.raises(KeyboardInterrupt), host.trainable(tiny.tiny_model("sd1")):
            raise KeyboardInterrupt
        assert torch.is_inference_mode_enabled()


def bp_gradients(model) -> list:
    """Gradients of one BP step's loss with a LoRA on the model, as the trainer would take it."""
    generator = torch.Generator().manual_seed(3)
    with torch.inference_mode(), host.trainable(model) as network:
        x0, noise = torch.randn(2, 1, 4, 8, 8, generator=generator)
        context = torch.randn(1, 77, host._token_width(network.unet), generator=generator)
        vector = torch.randn(1, tiny.WIDTH + 1536, generator=generator) if network.unet.num_classes else None
        with injected(network.unet, 4, 4.0, "attention", 0) as lora:
            loss = denoising_loss(network, x0, noise, torch.tensor([400]), Condition(context, vector))
            return list(torch.autograd.grad(loss.mean(), lora.parameters()))


@every_kind
def test_a_lora_that_is_already_on_takes_part_and_comes_off_without_a_trace(kind):
    """Training sees W + A; when everything is unloaded the weights are W, bit for bit."""
    model = tiny.tiny_model(kind)
    before = weights(model)
    patched = host.with_lora(model, random_lora(model))
    with torch.inference_mode():
        model_management.load_models_gpu([patched], force_full_load=True)
    on_top, plain = bp_gradients(patched), bp_gradients(model)
    assert any((a - b).abs().max() > 1e-6 for a, b in zip(plain, on_top, strict=True))
    model_management.unload_all_models()
    assert_same_bits(model, before)


PATCHES = {
    "FreeU": ("nodes_freelunch.FreeU_V2", (1.3, 1.4, 0.9, 0.2)),
    "SAG": ("nodes_sag.SelfAttentionGuidance", (0.5, 2.0)),
    "PAG": ("nodes_pag.PerturbedAttentionGuidance", (3.0,)),
    "ToMe": ("nodes_tomesd.TomePatchModel", (0.3,)),
    "Deep Shrink": ("nodes_model_downscale.PatchModelAddDownscale", (3, 2.0, 0.0, 0.35, True, "bicubic", "bicubic")),
}


@pytest.mark.slow
@pytest.mark.parametrize("patch", PATCHES)
def test_patches_for_the_sampler_do_not_disturb_training(patch):
    """Core's nodes that change how a model samples may sit before the trainer; the network learns without them."""
    model = tiny.tiny_model("sd1")
    (module, node), settings = PATCHES[patch][0].split("."), PATCHES[patch][1]
    patched = getattr(import_module(f"comfy_extras.{module}"), node).EXECUTE_NORMALIZED(model, *settings).result[0]
    for with_patch, plain in zip(bp_gradients(patched), bp_gradients(model), strict=True):
        torch.testing.assert_close(with_patch, plain)


@pytest.mark.parametrize("kind", tiny.SD1_FIRST)
def test_the_node_trains_inside_comfyui_and_its_outputs_plug_in(kind):
    model, clip, vae = tiny.tiny_model(kind), tiny_clip(kind), tiny_vae()
    before = weights(model)
    photos = subject(photo(0, "a sks dog"), photo(1, "a sks dog asleep", width=96), flip=True)
    settings = dict(steps=4, rank=2, learning_rate=1e-2, strategy="random", zo_perturbations=1, alpha=4.0, seed=5)
    output = run_node(SelectiveTrainer, model=model, clip=clip, vae=vae, subject=photos, **settings)
    trained, lora, loss, report = output.result

    assert len(loss["loss"]) == report.steps == report.steps_bp + report.steps_zo == 4
    assert report.settings == vars(SelectiveConfig(**settings))
    assert [phase.name for phase in report.phases][:2] == ["encode", "inference"]
    assert (report.instance_prompt, report.resolution, report.dtype) == ("a sks dog", 64, "float32")
    assert output.ui == {"text": [str(report)], "report": [report.to_json()]}
    assert len(trained.patches) == len(lora) // 3 and not model.patches
    assert all(not value.is_inference() and not value.requires_grad for value in lora.values())

    images = {}
    with torch.inference_mode():
        for name, patcher in {"without": model, "trained": trained, "lora": host.with_lora(model, lora)}.items():
            (cond,) = nodes.CLIPTextEncode().encode(clip, "a sks dog")
            (empty,) = nodes.EmptyLatentImage().generate(64, 64)
            images[name] = nodes.KSampler().sample(patcher, 3, 2, 1.0, "euler", "normal", cond, cond, empty)[0][
                "samples"
            ]
    assert torch.equal(images["trained"], images["lora"])
    assert (images["trained"] - images["without"]).abs().max() > 1e-3
    model_management.unload_all_models()
    assert_same_bits(model, before)
