"""Laws of the hollowed U-Net: with the centre's own tensor it is the full one, in values and in gradients."""

import pytest
import tiny
import torch
from pack.nodes import host
from pack.trainers.backprop import checkpointed
from pack.trainers.hollow_cuts import Cut, cuts, nearest_cut
from pack.trainers.hollow_forward import MODES, centre_activation, hollowed
from pack.trainers.lora import injected
from pack.trainers.objective import Condition, Network

pytestmark = pytest.mark.slow

LORA = {"rank": 2, "alpha": 2.0, "target_modules": "attention", "seed": 3}


@pytest.fixture(scope="module", params=tiny.KINDS)
def network(request):
    with host.trainable(tiny.tiny_model(request.param)) as network:
        yield network


def given(network: Network, batch: int = 2) -> tuple:
    """Latents whose halves are odd, timesteps and a condition: upsampling has to ask the skips for their size."""
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(2, 5, host._token_width(network.unet), generator=generator)
    vector = torch.randn(2, tiny.WIDTH + 1536, generator=generator) if network.unet.num_classes else None
    x_t = torch.randn(2, 4, 10, 6, generator=generator)
    condition = Condition(context[:batch], None if vector is None else vector[:batch])
    return x_t[:batch], torch.tensor([37, 911])[:batch], condition


def full_forward(network: Network, inputs: tuple, patch):
    """The whole U-Net with ComfyUI's own patch on what enters the output blocks: (h, skip, options) -> (h, skip)."""
    x_t, t, condition = inputs
    options = {"optimized_attention_override": host._sdpa, "patches": {"output_block_patch": [patch]}}
    return network.unet(x_t, t.float(), condition.context, condition.vector, transformer_options=options)


def own_activation(network: Network, cut: Cut, mode: str, inputs: tuple) -> torch.Tensor:
    return centre_activation(network.unet, cut, mode, lambda: network.predict(*inputs))


def variants(unet) -> list[tuple[Cut, str]]:
    """Every cut in every mode it can have."""
    return [(cut, mode) for cut in cuts(unet) for mode in MODES if mode == "absolute" or cut.has_residual]


def middle_cut(unet) -> Cut:
    return nearest_cut(cuts(unet), 0.39)


def snapshot(unet) -> tuple:
    modules = list(unet.named_modules())
    parameters = [(name, p, p.requires_grad, p._version) for name, p in unet.named_parameters()]
    return modules, [(name, id(p), *rest) for name, p, *rest in parameters], sorted(vars(unet)), list(unet._modules)


def test_every_kept_output_block_keeps_its_skip(network):
    """Followed through ComfyUI's own forward: which input block made the skip that an output block takes."""
    made, took = [], []

    def after_input(h, options):
        made.append(h)
        return h

    def before_output(h, skip, options):
        took.append(next(i for i, tensor in enumerate(made) if tensor is skip))
        return h, skip

    x_t, t, condition = given(network)
    options = {"patches": {"input_block_patch": [after_input], "output_block_patch": [before_output]}}
    with torch.no_grad():
        network.unet(x_t, t.float(), condition.context, condition.vector, transformer_options=options)
    names = [f"input_blocks.{i}" for i in range(len(made))] + [f"output_blocks.{j}" for j in range(len(took))]
    for cut in cuts(network.unet):
        stays = set(names) - set(cut.leaving)
        for j, i in enumerate(took):
            assert (f"output_blocks.{j}" in stays) == (f"input_blocks.{i}" in stays)


def test_with_the_centre_s_own_tensor_the_forward_is_the_full_one(network):
    inputs, middle = given(network), middle_cut(network.unet)
    with torch.no_grad():
        whole = network.predict(*inputs)
        for cut, mode in variants(network.unet):
            activation = own_activation(network, cut, mode, inputs)
            with hollowed(network.unet, cut, mode) as hollow:
                hollow.activation = activation
                torch.testing.assert_close(network.predict(*inputs), whole, atol=1e-5, rtol=0)
                if cut == middle:  # that it is used at all
                    hollow.activation = activation.flip(1)
                    assert (network.predict(*inputs) - whole).abs().max() > 1e-3


def test_the_tensor_is_the_one_comfyui_s_own_patch_sees(network):
    inputs, seen = given(network), []

    def keep(h, skip, options):
        seen.append((h, skip))
        return h, skip

    with torch.no_grad():
        full_forward(network, inputs, keep)
    for cut, mode in variants(network.unet):
        h, skip = seen[len(seen) - cut.kept]
        expected = h if mode == "absolute" else h - skip
        assert torch.equal(own_activation(network, cut, mode, inputs), expected)
        assert (skip.shape[1], h.shape[1]) == (cut.channels_in, cut.channels_out)


def test_a_batch_is_cached_as_its_samples_are(network):
    cut = middle_cut(network.unet)
    together = own_activation(network, cut, "absolute", given(network))
    alone = own_activation(network, cut, "absolute", given(network, batch=1))
    torch.testing.assert_close(together[:1], alone, atol=1e-4, rtol=0)


def test_factors_get_the_gradient_of_the_full_network_with_the_centre_held_constant(network):
    inputs = given(network, batch=1)
    direction = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1))
    trainable_variants = [(cut, mode) for cut, mode in variants(network.unet) if cut.lora_layers]
    with injected(network.unet, **LORA | {"target_modules": "cross-attention"}) as lora:
        params = trained(lora)
        for cut, mode in trainable_variants:
            held = CentreHeldConstant(network.unet, cut, mode)
            loss = (full_forward(network, inputs, held) * direction).sum()
            expected = torch.autograd.grad(loss, params, allow_unused=True)
            with hollowed(network.unet, cut, mode) as hollow:
                hollow.activation = held.activation
                loss = (network.predict(*inputs) * direction).sum()
                got = torch.autograd.grad(loss, params, allow_unused=True)
            for name, one, other in zip(factor_names(lora), got, expected, strict=True):
                assert (one is None) == (other is None) == name.startswith(prefixes(cut))
                if one is not None:
                    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


class CentreHeldConstant:
    """A patch for full_forward: no gradient goes into the centre; activation is then what the centre gave."""

    def __init__(self, unet, cut: Cut, mode: str):
        self.block, self.mode = ("output", len(unet.output_blocks) - cut.kept), mode

    def __call__(self, h, skip, options):
        if options["block"] != self.block:
            return h, skip
        entered = skip if self.mode == "residual" else 0.0  # the first kept block's skip is what entered the centre
        self.activation = (h - entered).detach()
        return entered + self.activation, skip


def trained(lora) -> list[torch.nn.Parameter]:
    """The factors, B no longer zero: with B = 0 the gradient of A would be zero whatever the network does."""
    generator = torch.Generator().manual_seed(2)
    for factor in lora.parameters():
        factor.data = torch.randn(factor.shape, generator=generator) * 0.1
    return lora.parameters()


def factor_names(lora) -> list[str]:
    return [name for name in lora.layers for _ in "AB"]


def prefixes(cut: Cut) -> tuple[str, ...]:
    return tuple(f"{block}." for block in cut.leaving)


def test_a_lora_injected_inside_sits_on_the_kept_blocks_alone_and_starts_at_the_full_network(network):
    cut, inputs = middle_cut(network.unet), given(network)
    targets = {name for name, _ in network.unet.named_modules() if name.endswith((".to_q", ".to_k", ".to_v"))}
    weights = {id(p) for p in network.unet.parameters()}
    with torch.no_grad():
        whole = network.predict(*inputs)
    activation = own_activation(network, cut, "absolute", inputs)
    with hollowed(network.unet, cut, "absolute") as hollow, injected(network.unet, **LORA) as lora:
        hollow.activation = activation
        assert {name for name in targets if not name.startswith(prefixes(cut))} < lora.layers.keys()
        assert not any(name.startswith(prefixes(cut)) for name in lora.layers)
        assert len(lora.layers) == cut.lora_layers
        on_device = sum(p.numel() for p in network.unet.parameters() if id(p) in weights)
        assert on_device == cut.parameters - cut.leaving_parameters
        assert sum(p.numel() for block in hollow.centre for p in block.parameters()) == cut.leaving_parameters
        torch.testing.assert_close(network.predict(*inputs).detach(), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_checkpointing_gives_the_same_gradients(network, mode):
    cut, inputs = middle_cut(network.unet), given(network)
    if mode == "residual" and not cut.has_residual:
        cut = cuts(network.unet)[0]
    activation = own_activation(network, cut, mode, inputs)
    with hollowed(network.unet, cut, mode) as hollow, injected(network.unet, **LORA) as lora:
        hollow.activation, params = activation, trained(lora)
        plain = torch.autograd.grad(network.predict(*inputs).square().sum(), params)
        with checkpointed(network.unet):
            recomputed = torch.autograd.grad(network.predict(*inputs).square().sum(), params)
    torch.testing.assert_close(recomputed, plain)


def test_afterwards_the_unet_is_the_very_one_from_before(network):
    inputs, before = given(network), snapshot(network.unet)
    with torch.no_grad():
        whole = network.predict(*inputs)
    for cut in cuts(network.unet):
        own_activation(network, cut, "absolute", inputs)
        assert snapshot(network.unet) == before
        with hollowed(network.unet, cut, "absolute"):
            assert snapshot(network.unet) != before
        assert snapshot(network.unet) == before
    with torch.no_grad():
        assert torch.equal(network.predict(*inputs), whole)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_or_a_cancel_puts_everything_back(network, error):
    def cancelled(*_):
        raise error

    before = snapshot(network.unet)
    for cut in cuts(network.unet):
        with pytest.raises(error), hollowed(network.unet, cut, "absolute"):
            cancelled()
        with pytest.raises(error):
            centre_activation(network.unet, cut, "absolute", lambda: full_forward(network, given(network), cancelled))
        assert snapshot(network.unet) == before
    with pytest.raises(error), hollowed(network.unet, middle_cut(network.unet), "absolute"):
        with injected(network.unet, **LORA):
            cancelled()
    assert snapshot(network.unet) == before


def test_a_residual_is_refused_by_name_where_channels_differ(network):
    refused = [cut for cut in cuts(network.unet) if not cut.has_residual]
    assert refused
    for cut in refused:
        for use in (lambda cut: hollowed(network.unet, cut, "residual").__enter__(), lambda cut: run(network, cut)):
            with pytest.raises(ValueError, match=f"residual cannot be had without {cut.name} .*{cut.channels_in} chan"):
                use(cut)


def run(network: Network, cut: Cut) -> None:
    centre_activation(network.unet, cut, "residual", lambda: pytest.fail("the network ran"))


def test_an_unknown_mode_is_refused(network):
    with pytest.raises(ValueError, match="mode: got 'relative', needs to be one of absolute, residual"):
        with hollowed(network.unet, middle_cut(network.unet), "relative"):
            pytest.fail("the block ran")


def test_a_missing_or_ill_shaped_activation_is_refused(network):
    cut, inputs = middle_cut(network.unet), given(network)
    activation = own_activation(network, cut, "absolute", inputs)
    with torch.no_grad(), hollowed(network.unet, cut, "absolute") as hollow:
        for bad in (None, activation[:1], activation[..., :1], activation[:, :1]):
            hollow.activation = bad
            with pytest.raises(ValueError, match=r"activation of the hollowed U-Net: got .*, needs \(2, "):
                network.predict(*inputs)


def test_a_unet_without_a_middle_is_hollowed_too(monkeypatch):
    """As KOALA's."""
    monkeypatch.setitem(tiny.UNETS, "ssd1b", tiny.UNETS["ssd1b"] | {"transformer_depth_middle": -2})
    with host.trainable(tiny.tiny_model("ssd1b")) as network, torch.no_grad():
        before, inputs, smallest = snapshot(network.unet), given(network), cuts(network.unet)[0]
        assert network.unet.middle_block is None and smallest.name == "input_blocks 8, output_blocks 0"
        whole, activation = network.predict(*inputs), own_activation(network, smallest, "absolute", inputs)
        with hollowed(network.unet, smallest, "absolute") as hollow:
            hollow.activation = activation
            torch.testing.assert_close(network.predict(*inputs), whole, atol=1e-5, rtol=0)
        assert snapshot(network.unet) == before and network.unet.middle_block is None
