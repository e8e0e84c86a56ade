"""The race on the pocket world: what its racers learn is what ComfyUI draws with, and times are read as they should."""

import sys
from pathlib import Path

import pytest
import torch
from comfy import model_management
from pack.nodes import host, host_token

sys.path.insert(0, str(Path(__file__).resolve().parent / "bench"))
import race_ours  # noqa: E402
import race_peers  # noqa: E402
import race_tables  # noqa: E402
from toys import load_world  # noqa: E402


@pytest.fixture(scope="module")
def world():
    return load_world()


@pytest.fixture(scope="module")
def subject() -> race_ours.Subject:
    return race_ours.Subject([], torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)))


def test_a_lora_of_diffusers_is_one_of_comfyui(world, subject):
    """Its forward pass in diffusers is that of the MODEL it is drawn with."""
    parts = race_peers._Parts(subject, 0)
    run = race_peers.diffusers_lora(world, subject, 0, [2])
    (snapshot,) = run.snapshots
    assert snapshot.step == 2 and run.peak_bytes > sum(p.nbytes for p in parts.unet.parameters())
    patched = host.with_lora(world.model, snapshot.learnt)
    assert len(patched.patches) == len(snapshot.learnt) // 3
    generator = torch.Generator().manual_seed(1)
    x, context = torch.randn(1, 4, 16, 16, generator=generator), torch.randn(1, 77, 128, generator=generator)
    t = torch.tensor([500])
    with torch.inference_mode():
        without = parts.unet(x, t, context).sample
    parts.unet.load_lora_adapter(_diffusers(snapshot.learnt, parts.unet), prefix=None)
    with torch.inference_mode():
        model_management.load_models_gpu([patched], force_full_load=True)
        got = patched.model.diffusion_model(x, t.float(), context=context)
        expected = parts.unet(x, t, context).sample
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert (got - without).abs().max() > 1e-3  # ten times the tolerance


def _diffusers(learnt: dict, unet) -> dict:
    """kohya's names back."""
    names = {"lora_unet_" + name.replace(".", "_"): name for name, _ in unet.named_modules()}
    factors = {"lora_down": "lora_A", "lora_up": "lora_B"}
    pairs = [(key.split(".", 1), value) for key, value in learnt.items() if key.endswith(".weight")]
    return {f"{names[m]}.{factors[f.removesuffix('.weight')]}.weight": value for (m, f), value in pairs}


def test_core_gives_its_lora_after_every_step_asked_for(world, subject):
    run = race_peers.core(rank=1, gradient_checkpointing=False)(world, subject, 0, [1, 2])
    first, last = run.snapshots
    assert (first.step, last.step) == (1, 2) and 0 < first.seconds < last.seconds
    assert first.learnt.keys() == last.learnt.keys()
    assert any(not torch.equal(first.learnt[key], last.learnt[key]) for key in last.learnt)
    assert host.with_lora(world.model, last.learnt).patches


def test_the_token_starts_as_the_same_word_for_all(world, subject):
    parts = race_peers._Parts(subject, 0)
    (word,) = parts.tokenizer(race_ours.WORD, add_special_tokens=False).input_ids
    row = parts.text_encoder.get_input_embeddings().weight[word].detach()
    with host.trainable(world.model), host_token.text_encoder(world.clip, race_ours.TOKEN_NAME) as encoder:
        vectors = encoder.initial_vectors(race_ours.WORD, 1)
    assert vectors.keys() == {"clip_l"} and torch.equal(vectors["clip_l"][0], row)


def test_time_to_a_score_lies_on_the_line_between_snapshots():
    def row(racer, step, seconds, identity):
        return dict(racer=racer, subject="a", seed="0", step=step, seconds=seconds, identity=identity)

    racer = race_tables.DIFFUSERS
    rows = [row("untrained", "0", "0", "0.2"), row(racer, "1", "10", "0.4"), row(racer, "2", "20", "0.8")]
    groups = race_tables.by_racer(rows)
    goals = {0.1: 0.0, 0.3: 5.0, 0.4: 10.0, 0.5: 12.5, 0.9: None}
    found = {goal: race_tables.seconds_to(goal, groups, racer, ("a", "0")) for goal in goals}
    assert found == pytest.approx(goals)
