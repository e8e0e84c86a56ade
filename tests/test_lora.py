"""Laws of injection: a fresh LoRA changes nothing, and taking it out leaves the very U-Net that was there."""

import pytest
import tiny
import torch
from pack.nodes import host
from pack.trainers.lora import TARGETS, injected

NORMAL = {"rank": 4, "alpha": 4.0, "target_modules": "attention", "seed": 3}


@pytest.fixture(params=tiny.KINDS)
def model(request):
    return tiny.tiny_model(request.param)


@pytest.fixture
def unet(model):
    with host.trainable(model) as network:
        yield network.unet


def test_taking_it_out_is_the_identity(unet):
    modules = dict(unet.named_modules())
    weights = {name: (p, p.clone(), p.requires_grad) for name, p in unet.named_parameters()}
    attributes = set(vars(unet))

    with injected(unet, **NORMAL) as lora:
        assert lora.parameters()
        assert all(p.dtype == torch.float32 and p.requires_grad for p in lora.parameters())
        frozen = {id(p) for p, _, _ in weights.values()}
        assert not any(p.requires_grad for p in unet.parameters() if id(p) in frozen)

    after = dict(unet.named_modules())
    assert after.keys() == modules.keys() and all(after[name] is modules[name] for name in modules)
    assert set(vars(unet)) == attributes
    for name, p in unet.named_parameters():
        same, value, requires_grad = weights[name]
        assert p is same and torch.equal(p, value) and p.requires_grad == requires_grad


def test_it_is_taken_out_when_the_block_raises(unet):
    modules = dict(unet.named_modules())
    with pytest.raises(KeyboardInterrupt), injected(unet, **NORMAL):
        raise KeyboardInterrupt
    assert dict(unet.named_modules()) == modules


def test_a_fresh_lora_changes_nothing(model):
    with host.trainable(model) as network, torch.no_grad():
        x, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
        y = torch.randn(1, tiny.WIDTH + 1536) if network.unet.num_classes else None
        condition = host.Condition(torch.randn(1, 77, host._token_width(network.unet)), y)
        before = network.predict(x, t, condition)
        with injected(network.unet, **NORMAL):
            assert torch.equal(network.predict(x, t, condition), before)


def test_the_seed_alone_decides_the_start(unet):
    def factors(seed):
        with injected(unet, **NORMAL | {"seed": seed}) as lora:
            return [p.clone() for p in lora.parameters()]

    state = torch.get_rng_state()
    first = factors(3)
    torch.randn(5)
    again, other = factors(3), factors(4)
    torch.set_rng_state(state)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_global_generator_is_left_as_found(unet):
    state = torch.get_rng_state()
    with injected(unet, **NORMAL):
        pass
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind, attentions", [("sd1", 16), ("sd2", 16), ("sdxl", 17), ("ssd1b", 13)])
def test_targets_are_what_their_names_say(kind, attentions):
    """A transformer block has two attentions of four layers, and two feed-forward layers."""
    per_block = {"attention": 8, "cross-attention": 4, "attention and feed-forward": 10}
    model = tiny.tiny_model(kind)
    blocks = sum(name.endswith(".attn1") for name, _ in model.model.diffusion_model.named_modules())
    assert blocks == attentions
    with host.trainable(model) as network:
        for targets in TARGETS:
            with injected(network.unet, **NORMAL | {"target_modules": targets}) as lora:
                assert len(lora.layers) == blocks * per_block[targets]
                assert lora.layers.keys() <= host.lora_names(model).keys()
