"""Live bytes against sums done by hand."""

import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
from pack.trainers.memory import LiveBytes

X, W1, W2 = (64, 32), (32, 128), (128, 16)  # a chain of two products
CONTEXTS = (nullcontext, torch.no_grad, torch.inference_mode)
MODES = pytest.mark.parametrize("mode", CONTEXTS, ids=lambda mode: mode.__name__)


def size(*shape: int, itemsize: int = 4) -> int:
    return itemsize * torch.Size(shape).numel()


RESIDENT = size(*X) + size(*W1) + size(*W2)
HIDDEN, OUTPUT = size(64, 128), size(64, 16)


def chain(requires_grad: bool = False) -> list[torch.Tensor]:
    return [torch.ones(shape, requires_grad=requires_grad) for shape in (X, W1, W2)]


@MODES
def test_a_chain_of_products_costs_its_results(mode):
    x, w1, w2 = chain()
    with mode(), LiveBytes([x, w1, w2]) as meter:
        assert meter.live == meter.peak == RESIDENT
        hidden = x @ w1
        assert meter.live == RESIDENT + HIDDEN
        output = hidden @ w2
        assert meter.live == meter.peak == RESIDENT + HIDDEN + OUTPUT
        del hidden
        assert meter.live == RESIDENT + OUTPUT
        del output
        assert (meter.live, meter.peak) == (RESIDENT, RESIDENT + HIDDEN + OUTPUT)


def test_a_meter_does_not_live_as_long_as_the_weights_it_saw():
    weight = torch.ones(4)
    with LiveBytes([weight]) as meter:
        pass
    seen = weakref.ref(meter)
    del meter
    gc.collect()
    assert seen() is None and weight.sum() == 4


@MODES
def test_a_view_costs_nothing_and_keeps_its_storage(mode):
    with mode(), LiveBytes() as meter:
        base = torch.zeros(100, 10)
        views = [
            base.T,
            base.view(10, 100),
            base[3:],
            base.expand(5, 100, 10),
            base.detach(),
            base.unflatten(0, (50, 2)),
        ]
        base.add_(1).clamp_(max=3)
        assert meter.live == meter.peak == size(100, 10)
        del base
        assert meter.live == size(100, 10)
        copy = views[0].contiguous()
        assert meter.live == 2 * size(100, 10)
        del views, copy
        assert meter.live == 0


def test_residents_that_share_a_storage_count_once():
    x = torch.zeros(8, 8, dtype=torch.float16)
    with LiveBytes([x, x, x.T, x[0]]) as meter:
        assert meter.live == size(8, 8, itemsize=2)


@MODES
def test_what_is_freed_on_the_way_is_not_added_up(mode):
    with mode(), LiveBytes() as meter:
        x = torch.zeros(1000)
        for _ in range(20):
            x = x + 1
        assert (meter.live, meter.peak) == (size(1000), 2 * size(1000))


def test_tensors_made_before_count_from_when_they_are_touched():
    """A view of one comes out of an operation, and its storage is alive; what no operation returns stays unseen."""
    x, unseen = torch.zeros(100), torch.zeros(1000)
    with LiveBytes() as meter:
        assert meter.live == 0
        view = x[:10]
        assert meter.live == size(100)
    assert view.numel() == 10 and unseen.numel() == 1000


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int8, torch.bool], ids=str)
def test_bytes_follow_the_dtype(dtype):
    with LiveBytes() as meter:
        x = torch.zeros(33, dtype=dtype)
        assert meter.live == 33 * x.element_size()


def test_several_results_of_one_operation_all_count():
    with LiveBytes() as meter:
        values, indices = torch.arange(10.0).sort()
        assert meter.live == values.numel() * 4 + indices.numel() * 8
        assert meter.peak == meter.live + 10 * 4  # arange's result, that sort read


def test_a_backward_pass_costs_activations_and_gradients():
    """Backward through two products: h is kept for w2's gradient; dh stands beside it, then w1's gradient."""
    x, w1, w2 = chain(requires_grad=True)
    scalar = size(1)
    with LiveBytes([x, w1, w2]) as meter:
        loss = (x.detach() @ w1 @ w2).sum()
        assert meter.live == RESIDENT + HIDDEN + scalar  # the output itself is not needed
        loss.backward()
        assert meter.live == RESIDENT + scalar + size(*W1) + size(*W2)
        assert meter.peak == RESIDENT + 2 * scalar + 2 * HIDDEN + size(*W2)


def test_a_forward_pass_without_gradients_keeps_no_activations():
    """Ten layers deep, two results alive at a time; with gradients all ten stay."""
    weights = [torch.ones(64, 64, requires_grad=True) for _ in range(10)]

    def peak(mode) -> int:
        with mode(), LiveBytes(weights) as meter:
            x = torch.ones(64, 64)
            for weight in weights:
                x = x @ weight
            return meter.peak - 10 * size(64, 64)

    assert peak(torch.inference_mode) == 2 * size(64, 64)
    assert peak(torch.enable_grad) == 11 * size(64, 64)


def test_two_meters_in_one_another_agree():
    with LiveBytes() as outer, LiveBytes() as inner:
        x = torch.zeros(100)
        assert outer.live == inner.live == size(*x.shape)


def test_tensors_that_outlive_the_meter_do_no_harm():
    with LiveBytes() as meter:
        x = torch.zeros(100)
    y = x + 1  # not counted any more
    del x
    assert (meter.live, meter.peak, y.numel()) == (0, size(100), 100)
