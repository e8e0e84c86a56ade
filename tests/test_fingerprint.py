"""A fingerprint tells whether weights, photos or settings are the same, and nothing else."""

import pytest
import tiny
import torch
from pack.trainers.fingerprint import fingerprint, weight_checksums


def mark(unet, tensors=(), **settings) -> str:
    return fingerprint(unet, tensors, settings)


@pytest.fixture
def unet():
    return tiny.tiny_model("sd1").model.diffusion_model


def test_the_same_weights_loaded_again_are_the_same(unet):
    assert mark(unet) == mark(tiny.tiny_model("sd1").model.diffusion_model)
    assert mark(unet) != mark(tiny.tiny_model("sd1", seed=1).model.diffusion_model)
    assert mark(unet) != mark(tiny.tiny_model("sd1", dtype=torch.bfloat16).model.diffusion_model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [(1,), (3, 5), (64, 33)], ids=str)
def test_any_one_changed_bit_counts(dtype, size):
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(torch.ones(size, dtype=dtype))
    before = weight_checksums(layer)
    for index in (0, layer.weight.numel() // 2, -1):
        with torch.no_grad():
            layer.weight.view(-1)[index] = 1 + torch.finfo(dtype).eps
            assert weight_checksums(layer) != before
            layer.weight.view(-1)[index] = 1
    assert weight_checksums(layer) == before


def test_how_a_weight_lies_in_memory_does_not_count():
    layer, other = torch.nn.Module(), torch.nn.Module()
    values = torch.randn(2, 8, 3, 3)
    layer.weight = torch.nn.Parameter(values)
    other.weight = torch.nn.Parameter(values.to(memory_format=torch.channels_last))
    assert weight_checksums(layer) == weight_checksums(other)


def test_tensors_and_settings_count(unet):
    one = torch.arange(6.0)
    marks = [
        mark(unet),
        mark(unet, [one]),
        mark(unet, [one.view(2, 3)]),
        mark(unet, [one + 1]),
        mark(unet, [one, None]),
        mark(unet, [one], seed=1),
        mark(unet, [one], seed=2),
    ]
    assert len(set(marks)) == len(marks) and mark(unet, [one], seed=2) == marks[-1]
