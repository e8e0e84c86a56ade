"""Sampling along two paths: with a fresh LoRA the base model bit for bit, with a trained one what training computed."""

import pytest
import tiny
import torch
from comfy import model_management, sample
from comfy_extras import nodes_freelunch
from pack.nodes import host, host_two_path
from pack.trainers.bypass import adapters, bypassed
from pack.trainers.hollow_cuts import Cut, cuts, nearest_cut
from pack.trainers.hollow_forward import centre_activation, hollowed
from pack.trainers.lora import injected
from test_hollow_trainer import assert_unchanged, state
from test_selective import Cancelled

CPU = torch.device("cpu")
every_kind = pytest.mark.parametrize("kind", tiny.KINDS)
every_mode = pytest.mark.parametrize("mode", ["absolute", "residual"])


def cut_of(model, mode: str = "absolute") -> Cut:
    usable = [cut for cut in cuts(model.model.diffusion_model) if mode == "absolute" or cut.has_residual]
    return nearest_cut(usable, 0.39)


def lora_of(model, cut: Cut, is_trained: bool) -> dict:
    """As the trainer makes it: on the kept layers alone."""
    generator = torch.Generator().manual_seed(1)
    with host.trainable(model) as network, hollowed(network.unet, cut, "absolute"):
        with injected(network.unet, 4, 8.0, "attention", 0) as lora:
            if is_trained:
                for factor in lora.parameters():
                    factor.data = torch.randn(factor.shape, generator=generator) * 0.2
            return lora.state_dict(host.lora_names(model))


def given(kind: str, batch: int = 2) -> dict:
    """Inputs of one prediction, as a sampler makes them for a batch of CFG; halves of the latents are odd."""
    generator = torch.Generator().manual_seed(2)
    is_sdxl = kind in ("sdxl", "ssd1b")
    inputs = {
        "x": torch.randn(batch, 4, 10, 6, generator=generator),
        "timesteps": torch.tensor([37.0, 911.0])[:batch],
        "context": torch.randn(batch, 5, tiny.WIDTH * (2 if is_sdxl else 1), generator=generator),
        "y": torch.randn(batch, tiny.WIDTH + 1536, generator=generator) if is_sdxl else None,
    }
    return inputs


def predict(model, inputs: dict, control: dict | None = None, **patches) -> torch.Tensor:
    """One run of the U-Net as a sampler calls it."""
    options = model.model_options["transformer_options"] | {"wrappers": model.wrappers}
    own = options.get("patches", {})
    options["patches"] = {name: own.get(name, []) + patches.get(name, []) for name in own | patches}
    options["optimized_attention_override"] = host._sdpa
    with torch.inference_mode():
        model_management.load_models_gpu([model], force_full_load=True)
        return model.model.diffusion_model(**inputs, control=control, transformer_options=options)


@every_kind
def test_a_fresh_lora_gives_the_base_model_bit_for_bit(kind):
    model = tiny.tiny_model(kind)
    for cut in [cut for cut in cuts(model.model.diffusion_model) if cut.lora_layers][::3]:
        two_paths = host_two_path.with_two_paths(model, lora_of(model, cut, False), cut, "absolute")
        assert torch.equal(predict(two_paths, given(kind)), predict(model, given(kind)))


@pytest.mark.slow
@every_mode
@every_kind
def test_a_trained_one_gives_what_training_computed(kind, mode):
    model = tiny.tiny_model(kind)
    cut, inputs = cut_of(model, mode), given(kind)
    lora = lora_of(model, cut, True)
    two_paths = host_two_path.with_two_paths(model, lora, cut, mode)
    options = {"optimized_attention_override": host._sdpa}
    with host.trainable(model) as network, torch.no_grad():
        run = lambda: network.unet(**inputs, transformer_options=options.copy())  # noqa: E731
        activation = centre_activation(network.unet, cut, mode, run)
        with hollowed(network.unet, cut, mode) as hollow, injected(network.unet, 4, 8.0, "attention", 0) as peft:
            names = host.lora_names(model)
            for name, layer in peft.layers.items():
                layer.lora_A["edgetune"].weight.data = lora[f"{names[name]}.lora_down.weight"]
                layer.lora_B["edgetune"].weight.data = lora[f"{names[name]}.lora_up.weight"]
            hollow.activation = activation
            expected = run()
    got = predict(two_paths, inputs)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert (got - predict(model, inputs)).abs().max() > 1e-3
    assert (
        got - predict(host.with_lora(model, lora), inputs)
    ).abs().max() > 1e-4  # the centre, too, sees the LoRA there


def test_another_lora_in_the_weights_acts_in_both_paths():
    model = tiny.tiny_model("sd1")
    cut, inputs = cut_of(model), given("sd1")
    patched = host.with_lora(model, lora_of(model, cuts(model.model.diffusion_model)[0], True))
    before = state(model)
    two_paths = host_two_path.with_two_paths(patched, lora_of(model, cut, False), cut, "absolute")
    assert torch.equal(predict(two_paths, inputs), predict(patched, inputs))
    assert not torch.equal(predict(two_paths, inputs), predict(model, inputs))
    model_management.unload_all_models()
    assert_unchanged(model, before)


@every_mode
def test_control_and_patches_act_once_and_where_they_should(mode):
    """With a fresh LoRA, a ControlNet and FreeU give what they give on the base model; so does a patch by number."""
    model = nodes_freelunch.FreeU_V2.EXECUTE_NORMALIZED(tiny.tiny_model("sd1"), 1.3, 1.4, 0.9, 0.2).result[0]
    cut, inputs, shapes = cut_of(model, mode), given("sd1"), {"input": [], "middle": [], "output": []}

    def note(kind):
        def patch(h, *rest):
            shapes[kind].append(rest[0].shape if kind == "output" else h.shape)
            return (h, rest[0]) if kind == "output" else h

        return patch

    predict(model, inputs, input_block_patch=[note("input")], output_block_patch=[note("output")])
    generator = torch.Generator().manual_seed(3)
    outputs = [torch.randn(shape, generator=generator) * 0.3 for shape in reversed(shapes["output"])]
    inputs_ = [torch.randn(shape, generator=generator) * 0.3 for shape in reversed(shapes["input"])]
    middle = [torch.randn(shapes["input"][-1], generator=generator) * 0.3]

    def control():
        return {"input": list(inputs_), "middle": list(middle), "output": list(outputs)}

    def by_number(h, skip, options):
        return (h * 1.1, skip) if options["block"] in (("output", 0), ("output", 10)) else (h, skip)

    two_paths = host_two_path.with_two_paths(model, lora_of(model, cut, False), cut, mode)
    expected = predict(model, inputs, control(), output_block_patch=[by_number])
    got = predict(two_paths, inputs, control(), output_block_patch=[by_number])
    torch.testing.assert_close(got, expected, atol=0 if mode == "absolute" else 1e-4, rtol=0)
    assert (expected - predict(model, inputs)).abs().max() > 1e-2


def ksample(model, kind: str = "sd1", callback=None) -> torch.Tensor:
    inputs = given(kind, batch=1)
    with torch.inference_mode():
        conds = [[[inputs["context"] * scale, {}]] for scale in (1.0, 0.5)]
        latent = torch.zeros(1, 4, 8, 8)
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(4))
        settings = dict(steps=3, cfg=3.0, sampler_name="euler", scheduler="normal", seed=1)
        return sample.sample(
            model, noise, positive=conds[0], negative=conds[1], latent_image=latent, callback=callback, **settings
        ).clone()


def test_a_sampler_with_cfg_runs_on_it_and_nothing_is_left_behind():
    model = tiny.tiny_model("sd1")
    cut = cut_of(model)
    fresh, trained = (
        host_two_path.with_two_paths(model, lora_of(model, cut, is_trained), cut, "absolute")
        for is_trained in (False, True)
    )
    plain = ksample(model)
    before = state(model)
    assert torch.equal(ksample(fresh), plain)
    assert (ksample(trained) - plain).abs().max() > 1e-2
    assert torch.equal(ksample(trained.clone()), ksample(trained))
    assert_unchanged(model, before)
    assert torch.equal(ksample(model), plain)


@pytest.mark.parametrize("call", [1, 2, 5])
def test_a_cancel_in_either_path_leaves_nothing_behind(call):
    model = tiny.tiny_model("sd1")
    cut, layer = cut_of(model), model.model.diffusion_model.input_blocks[1][1]
    two_paths = host_two_path.with_two_paths(model, lora_of(model, cut, True), cut, "absolute")
    plain = ksample(model)
    before, calls = state(model), iter(range(1, 100))

    def cancel(*_):
        if next(calls) == call:
            raise Cancelled

    handle = layer.register_forward_hook(cancel)
    with pytest.raises(Cancelled):
        ksample(two_paths)
    handle.remove()
    assert_unchanged(model, before)
    (wrapper,) = two_paths.wrappers["outer_sample"][host_two_path.KEY]
    assert wrapper.__self__._copies is None
    assert torch.equal(ksample(model), plain)


def test_adapters_are_found_by_their_keys_and_scaled():
    model = tiny.tiny_model("sd1")
    cut = cut_of(model)
    lora = lora_of(model, cut, True)
    names = host.lora_names(model)
    found = adapters(lora, names)
    assert len(found) == cut.lora_layers == len(lora) // 3
    for name, adapter in found.items():
        torch.testing.assert_close(adapter.up, lora[f"{names[name]}.lora_up.weight"] * 2)


@every_kind
def test_a_bypass_is_what_core_s_patched_weights_are(kind):
    model = tiny.tiny_model(kind)
    lora, inputs = lora_of(model, cuts(model.model.diffusion_model)[0], True), given(kind)
    patched = predict(host.with_lora(model, lora), inputs)
    model_management.unload_all_models()
    with bypassed(model.model.diffusion_model, adapters(lora, host.lora_names(model))):
        torch.testing.assert_close(predict(model, inputs), patched, atol=1e-3, rtol=1e-3)
    assert not any(module._forward_hooks for module in model.model.diffusion_model.modules())
