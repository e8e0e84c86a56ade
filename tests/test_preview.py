"""Pictures drawn during training: the sampler against a second one, and training that does not notice."""

import numpy as np
import pytest
import tiny
import torch
from diffusers import DDIMScheduler
from pack.nodes import host, host_preview
from pack.nodes.host_pocket import load_pocket
from pack.trainers.config import HollowConfig, SelectiveConfig
from pack.trainers.hollow import train_hollow
from pack.trainers.hollow_forward import whole
from pack.trainers.memory import PhaseMeter
from pack.trainers.objective import Condition, Network, noise_scheduler
from pack.trainers.photos import SubjectSettings, load_subject
from pack.trainers.pocket.subjects import PHOTOS
from pack.trainers.preview import GUIDANCE, STEPS, draw_latent
from pack.trainers.selective import train_selective

SHAPE = (4, 8, 8)


def exact_network(x0: torch.Tensor, prediction_type: str) -> Network:
    """A denoiser that knows the picture behind the noise, for the schedule of SD 1."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    scheduler = noise_scheduler(torch.cumprod(1 - betas, 0), prediction_type)

    def predict(x_t, t, condition):
        alpha = scheduler.alphas_cumprod[int(t)] ** 0.5
        noise = (x_t - alpha * x0) / (1 - alpha**2) ** 0.5
        return noise if prediction_type == "epsilon" else alpha * noise - (1 - alpha**2) ** 0.5 * x0

    return Network(torch.nn.Identity(), predict, scheduler, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_sampler_finds_the_picture_that_the_denoiser_knows(prediction_type):
    x0 = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1))
    nothing = Condition(torch.zeros(1, 1, 1))
    drawn = draw_latent(exact_network(x0, prediction_type), nothing, nothing, SHAPE)
    assert (drawn - x0).abs().max() < 0.15  # what noise the last of few steps leaves


def test_the_global_generator_is_not_touched():
    before = torch.get_rng_state()
    nothing = Condition(torch.zeros(1, 1, 1))
    drawn = [draw_latent(exact_network(torch.ones(1, *SHAPE), "epsilon"), nothing, nothing, SHAPE) for _ in range(2)]
    assert torch.equal(*drawn)
    assert torch.equal(torch.get_rng_state(), before)


def test_it_draws_what_diffusers_draws_with_both_passes_in_one_batch():
    with torch.inference_mode():
        model, clip = tiny.tiny_model("sd1"), tiny.tiny_clip("sd1")
        contexts = [host._encode_prompt(model, clip, text)[0] for text in ("a photo of a dog", "")]
    with host.trainable(model) as network:
        contexts = [context.clone().float() for context in contexts]
        drawn = draw_latent(network, *map(Condition, contexts), SHAPE, seed=3)

        scheduler = DDIMScheduler.from_config(network.scheduler.config, clip_sample=False, timestep_spacing="trailing")
        scheduler.set_timesteps(STEPS)
        latent = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))[None]
        both = Condition(torch.cat(contexts))
        with torch.no_grad():
            for t in scheduler.timesteps:
                guided, without = network.predict(latent.repeat(2, 1, 1, 1), t.repeat(2), both).chunk(2)
                latent = scheduler.step(without + GUIDANCE * (guided - without), t, latent).prev_sample
    torch.testing.assert_close(drawn, latent, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def pocket():
    with torch.inference_mode():
        return load_pocket()


def trained(pocket, every: int, steps: int = 5):
    """A short run on the pocket model, with a picture every so many steps; and the pictures, the meter, the steps."""
    model, clip, vae = pocket
    subject = load_subject(PHOTOS / "robot", SubjectSettings("a photo of a sks toy", 128), PHOTOS).subject
    config = SelectiveConfig(steps=steps, zo_perturbations=1, low_res_ratio=0.5, k=0.01, t_mid=500)
    meter, kinds = PhaseMeter(model.load_device), []
    with torch.inference_mode():
        examples = host.encode_subject(model, clip, vae, subject, config.low_res_ratio, meter)
        conditions = host_preview.encoded(model, clip, ["a photo of a sks toy", ""], examples[0].high.latent, meter)
        with host.trainable(model) as network:
            shape = examples[0].high.latent.shape
            draw = host_preview.Drawer(model, vae, network, shape, meter, lambda: conditions)
            previews = host_preview.Previews(every, draw)

            def on_step(step):
                kinds.append(step.kind)
                previews(step)

            lora = train_selective(network, examples, config, host.lora_names(model), meter, on_step).lora
    return lora, previews, meter, kinds


def test_training_gives_the_same_bits_with_and_without_pictures(pocket):
    plain, *_ = trained(pocket, every=0)
    lora, previews, meter, kinds = trained(pocket, every=3)
    assert set(kinds) == {"bp", "zo"}
    assert plain.keys() == lora.keys() and all(torch.equal(plain[key], lora[key]) for key in plain)
    assert previews.batch().shape == (1, 128, 128, 3)
    peaks = {phase.name: phase.peak_bytes for phase in meter.phases()}
    assert peaks.pop("preview") <= max(peaks.values())  # the run needs no more than it does without pictures


@pytest.mark.slow
def test_a_hollowed_run_draws_with_the_whole_network_and_learns_the_same(pocket, tmp_path):
    """A picture before anything is learnt is the model's own, and what is left out is gone again afterwards."""
    model, clip, vae = pocket
    subject = load_subject(PHOTOS / "robot", SubjectSettings("a photo of a sks toy", 128), PHOTOS).subject
    config = HollowConfig(steps=3, rank=4, cache_samples=3, learning_rate=1e-9)
    learnt, drawn = [], []
    with torch.inference_mode():
        for every in (0, 2):
            meter = PhaseMeter(model.load_device)
            examples = [example.high for example in host.encode_subject(model, clip, vae, subject, 1.0, meter)]
            prompts, shape = ["a photo of a sks toy", ""], examples[0].latent.shape
            conditions = host_preview.encoded(model, clip, prompts, examples[0].latent, meter)
            with host.trainable(model) as network:

                def inside(network=network):
                    return whole(network.unet, network.device)

                own = host_preview.Drawer(model, vae, network, shape, meter, lambda c=conditions: c)()
                draw = host_preview.Drawer(model, vae, network, shape, meter, lambda c=conditions: c, inside)
                previews = host_preview.Previews(every, draw)
                places = dict(cache_path=tmp_path / "cache.bin", offload_device=network.device)
                names = host.lora_names(model)
                learnt.append(train_hollow(network, examples, config, names, meter, previews, **places).lora)
                drawn += previews.pictures
    assert learnt[0].keys() == learnt[1].keys()
    assert all(torch.equal(learnt[0][key], learnt[1][key]) for key in learnt[0])
    (picture,) = drawn
    assert np.abs(np.asarray(picture, int) - np.asarray(own, int)).max() <= 1


def test_a_picture_that_fails_stops_the_pictures_and_nothing_else(caplog):
    def draw():
        tries.append(1)
        raise RuntimeError("no memory")

    tries = []
    previews = host_preview.Previews(1, draw)
    report = type("Step", (), {"step": 1})
    assert [previews(report) for _ in range(3)] == [None] * 3
    assert len(tries) == 1 and "no memory" in caplog.text
    assert previews.batch() is None


def test_a_cancel_while_a_picture_is_drawn_is_a_cancel():
    from comfy.model_management import InterruptProcessingException

    def draw():
        raise InterruptProcessingException

    with pytest.raises(InterruptProcessingException):
        host_preview.Previews(1, draw)(type("Step", (), {"step": 1}))


def test_what_is_decoded_is_the_photo_that_was_encoded(pocket):
    model, clip, vae = pocket
    photo = load_subject(PHOTOS / "robot", SubjectSettings("a photo of a sks toy", 128), PHOTOS).subject.photos[0]
    with torch.inference_mode():
        latent = model.model.process_latent_in(host._latent(model, vae, photo.image))
        picture = host_preview._decoder(model, vae)(latent)
    difference = torch.from_numpy(np.asarray(picture, np.float32) / 255) - photo.image
    assert difference.abs().mean() < 0.05
