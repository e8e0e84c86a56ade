"""The objective against ComfyUI's sampler, diffusers' scheduler and closed forms."""

import pytest
import tiny
import torch
from pack.nodes import host
from pack.trainers.objective import Condition, Sample, collate, denoising_loss


@pytest.fixture(params=[(kind, v) for kind in tiny.KINDS for v in (False, True)], ids=str)
def model(request):
    kind, v_prediction = request.param
    return tiny.tiny_model(kind, v_prediction=v_prediction)


def inputs(network, batch=2):
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, batch, 4, 8, 8, generator=generator).unbind()
    context = torch.randn(batch, 77, host._token_width(network.unet), generator=generator)
    y = torch.randn(batch, tiny.WIDTH + 1536, generator=generator) if network.unet.num_classes else None
    return x0, noise, torch.tensor([37, 911])[:batch], Condition(context, y)


def test_the_loss_is_that_of_comfyui_s_own_denoiser(model):
    """ComfyUI's apply_model returns x0; its error there must be ours in eps or v, by the sampler's own formulas."""
    sampling = model.get_model_object("model_sampling")
    with host.trainable(model) as network, torch.no_grad():
        x0, noise, t, condition = inputs(network)
        ours = denoising_loss(network, x0, noise, t, condition)
        sigma = sampling.sigma(t)
        x_t = sampling.noise_scaling(sigma, noise.clone(), x0)
        y = {} if condition.vector is None else {"y": condition.vector}
        predicted_x0 = model.model.apply_model(x_t, sigma, c_crossattn=condition.context, **y)
    # d x0 / d eps = -sigma; d x0 / d v = -sigma / sqrt(1 + sigma^2)
    v = network.scheduler.config.prediction_type == "v_prediction"
    factor = sigma / (1 + sigma**2).sqrt() if v else sigma
    theirs = ((predicted_x0 - x0) / factor.view(-1, 1, 1, 1)).square().flatten(1).mean(1)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_the_schedule_is_the_model_s_own(model):
    sigmas = model.get_model_object("model_sampling").sigmas
    with host.trainable(model) as network:
        alphas = network.scheduler.alphas_cumprod
    torch.testing.assert_close(((1 - alphas) / alphas).sqrt(), sigmas, rtol=1e-4, atol=0)


def test_a_patched_schedule_is_followed():
    """Core's ModelSamplingDiscrete node with zero terminal SNR replaces model_sampling on a clone."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    (patched,) = ModelSamplingDiscrete().patch(tiny.tiny_model("sd1"), "v_prediction", True)
    with host.trainable(patched) as network:
        assert network.scheduler.config.prediction_type == "v_prediction"
        assert network.scheduler.alphas_cumprod[-1] < 1e-6


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_are_the_closed_form(model, gamma):
    with host.trainable(model) as network, torch.no_grad():
        x0, noise, t, condition = inputs(network)
        weights = denoising_loss(network, x0, noise, t, condition, gamma) / denoising_loss(
            network, x0, noise, t, condition
        )
    alpha = network.scheduler.alphas_cumprod[t]
    snr = alpha / (1 - alpha)
    below = snr + 1 if network.scheduler.config.prediction_type == "v_prediction" else snr
    torch.testing.assert_close(weights, snr.clamp(max=gamma) / below, rtol=1e-3, atol=1e-6)


def test_prompts_of_unequal_length_batch_without_changing_the_answer():
    """Repeating a prompt's tokens leaves cross-attention as it was, so a batch is its images one by one."""
    with host.trainable(tiny.tiny_model("sd1")) as network, torch.no_grad():
        samples = [Sample(torch.randn(4, 8, 8), torch.randn(length, tiny.WIDTH)) for length in (77, 154)]
        noise, t = torch.randn(2, 4, 8, 8), torch.tensor([37, 911])
        together = denoising_loss(network, *_stacked(samples, noise, t))
        alone = [
            denoising_loss(network, *_stacked([samples[i]], noise[i : i + 1], t[i : i + 1])).item() for i in range(2)
        ]
    assert together.tolist() == pytest.approx(alone, rel=1e-4)


def _stacked(samples, noise, t):
    latents, condition = collate(samples)
    return latents, noise, t, condition
