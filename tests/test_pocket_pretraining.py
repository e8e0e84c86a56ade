"""Pretraining of the pocket model: parts against closed forms, stopping and going on, and a short run from scratch."""

import logging
import sys

import pytest
import torch
from pack.trainers.pocket import autoencoder as ae
from pack.trainers.pocket import diffusion, fit, pretrain
from pack.trainers.pocket.text import LearntRows, embeddings, learnt_ids, new_text_encoder, seeded_table
from pack.trainers.pocket.weights import load_weights, save_weights
from torch import nn


class Exact(nn.Module):
    """Predicts what it is told to."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, noisy, t, text):
        return type("Output", (), {"sample": self.answer(noisy, t)})


def test_late_blocks_change_nothing_before_they_are_trained():
    autoencoder = ae.new_autoencoder(0)
    pictures = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = ae.decode(autoencoder, ae.encode(autoencoder, pictures))
        with ae.lean(autoencoder):
            lean = ae.decode(autoencoder, ae.encode(autoencoder, pictures))
            assert not any(hasattr(autoencoder.encoder.layers[i], "fuse") for i in ae.LATE_BLOCKS["encoder"])
        assert all(hasattr(autoencoder.encoder.layers[i], "fuse") for i in ae.LATE_BLOCKS["encoder"])
    torch.testing.assert_close(whole, lean)


def test_the_decoder_loss_leaves_the_encoder_alone():
    autoencoder = ae.new_autoencoder(0)
    ae.decoder_loss(autoencoder, torch.rand(1, 3, 32, 32), torch.Generator().manual_seed(0)).backward()
    assert all(p.grad is None for p in autoencoder.encoder.parameters())
    assert all(p.grad is not None for p in autoencoder.decoder.parameters())


def test_psnr_of_a_known_error():
    a = torch.zeros(2, 3, 8, 8)
    torch.testing.assert_close(ae.psnr(a, a + 0.1), torch.full((2,), 20.0))


def test_the_loss_of_a_perfect_guess_is_zero_and_of_none_is_the_weight():
    """A model that knows the picture knows the noise; one that says 0 pays each step's weight, between 0 and 20."""
    latents = torch.randn(256, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    alpha_bar = diffusion.scheduler().alphas_cumprod

    def noise_in(noisy, t):
        share = alpha_bar[t].view(-1, 1, 1, 1)
        return (noisy - share.sqrt() * latents) / (1 - share).sqrt()

    text = torch.zeros(256, 77, 128)
    perfect = diffusion.noise_loss(Exact(noise_in), text, latents, torch.Generator().manual_seed(1))
    assert perfect.item() < 1e-4
    silent = diffusion.noise_loss(Exact(lambda x, t: 0 * x), text, latents, torch.Generator().manual_seed(1))
    t = torch.randint(1000, (256,), generator=torch.Generator().manual_seed(1))
    snr = alpha_bar[t] / (1 - alpha_bar[t])
    weight = torch.minimum((snr + 1) / snr, 5 / snr).clamp(max=20)
    assert silent.item() == pytest.approx(weight.mean().item(), rel=0.05)


def test_only_words_of_captions_are_learnt():
    rows = LearntRows(learnt_ids())
    ids = torch.tensor([learnt_ids()[3], 1234])
    assert 1234 not in learnt_ids()
    with torch.no_grad():
        rows.rows += 1
    torch.testing.assert_close(rows(ids), rows.whole()[ids])
    torch.testing.assert_close(rows(ids)[0], seeded_table()[ids[0]] + 1)
    torch.testing.assert_close(rows(ids)[1], seeded_table()[1234])


def test_saved_weights_come_back(tmp_path):
    unet, text, autoencoder = diffusion.new_unet(1), new_text_encoder(1), ae.new_autoencoder(1)
    save_weights(tmp_path / "w.safetensors", unet, text, autoencoder)
    parts = load_weights(tmp_path / "w.safetensors")
    for part, module in (("unet", unet), ("vae", autoencoder)):
        assert parts[part].keys() == module.state_dict().keys()
        for name, tensor in module.state_dict().items():
            torch.testing.assert_close(parts[part][name], tensor.half(), rtol=0, atol=0)
    table = parts["text_encoder"]["text_model.embeddings.token_embedding.weight"]
    assert table.shape == (49408, 128) and torch.equal(table[1234], seeded_table()[1234].half())


def test_training_can_go_on_from_a_file(tmp_path):
    modules = pretrain.new_modules(1)
    with torch.no_grad():
        embeddings(modules.text_encoder).token_embedding.rows += 1
    save_weights(tmp_path / "w.safetensors", *modules)
    again = pretrain.trained_modules(tmp_path / "w.safetensors")
    for old, new in zip(modules, again, strict=True):
        trained = {name: p for name, p in new.named_parameters() if p.requires_grad}
        assert trained.keys() == {name for name, p in old.named_parameters() if p.requires_grad}
        for name, p in old.named_parameters():
            torch.testing.assert_close(trained[name].data, p.half().float(), rtol=0, atol=0)


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "SAVE_EVERY_S", 0)

    def run(file, stop_at=None):
        torch.manual_seed(0)
        modules = nn.ModuleDict({"a": nn.Linear(3, 3)})

        def loss_of(step, generator):
            if step == stop_at:
                raise KeyboardInterrupt
            return modules["a"](torch.randn(4, 3, generator=generator)).square().mean()

        fit.fit(modules, loss_of, 8, 1e-2, tmp_path / file, seed=3, warm_up=2)
        return modules["a"].weight

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("stopped", stop_at=5)
    assert torch.equal(run("stopped"), whole)


@pytest.mark.slow
def test_fifty_steps_from_scratch_learn_something(tmp_path, monkeypatch, caplog):
    """The command of the card, short: all parts run, the losses fall, and a second call has little to do."""
    steps = ["--autoencoder-steps", "50", "--unet-steps", "50", "--decoder-steps", "4"]
    size = ["--pictures", "96", "--latents", "96", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["pretrain", str(tmp_path), *steps, *size])
    monkeypatch.setattr(fit, "LOG_EVERY", 10)
    monkeypatch.setattr(diffusion, "BATCH", 8)
    caplog.set_level(logging.INFO)
    pretrain.main()
    losses = [record.args[3] for record in caplog.records if "step %d of" in record.msg]
    autoencoder, unet = losses[:5], losses[5:10]
    assert autoencoder[-1] < 0.5 * autoencoder[0]
    assert unet[-1] < 0.9 * unet[0]
    file = tmp_path / "pocket.safetensors"
    assert file.stat().st_size < 40e6
    assert {"unet", "text_encoder", "vae"} == set(load_weights(file))
    first = file.read_bytes()
    assert list(tmp_path.glob("samples_*.png"))

    caplog.clear()
    pretrain.main()
    assert not [record for record in caplog.records if "step %d of" in record.msg]
    assert file.read_bytes() == first
