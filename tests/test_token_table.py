"""A table of words in RAM: the same rows, no parameter meanwhile, and itself again afterwards."""

import pytest
import tiny
import torch
from pack.nodes import host
from pack.nodes.host_embeddings import embedding_table
from pack.nodes.host_token import text_encoder
from pack.trainers.token_table import looked_up_in_ram
from test_token_host import NAME

CPU = torch.device("cpu")


def table() -> torch.nn.Embedding:
    return torch.nn.Embedding(100, 8, dtype=torch.float16).requires_grad_(False)


def test_rows_are_the_same_bits_and_the_table_is_no_parameter():
    words, ids = table(), torch.tensor([[3, 99, 3]])
    before, weight = words(ids), words.weight
    with looked_up_in_ram([words], CPU) as size:
        assert size == weight.nbytes == 1600
        assert not list(words.parameters()) and torch.equal(words(ids), before)
    assert words.weight is weight and "forward" not in vars(words) and torch.equal(words(ids), before)


def test_a_table_elsewhere_comes_back_there_and_rows_go_to_the_device():
    """The meta device stands for a GPU: a tensor on it has a device and no values."""
    words = table()
    with looked_up_in_ram([words], torch.device("meta")):
        assert words(torch.tensor([1])).device.type == "meta"
    assert words.weight.device == CPU


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_it_is_back_after_an_error(error):
    tables = [table(), table()]
    weights = [words.weight for words in tables]
    with pytest.raises(error), looked_up_in_ram(tables, CPU):
        raise error
    assert all(words.weight is weight for words, weight in zip(tables, weights, strict=True))


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_the_text_encoder_has_no_table_on_its_device(kind, quantization):
    clip, model = tiny.tiny_clip(kind), tiny.tiny_model(kind)
    keys = {"sd1": ["clip_l"], "sdxl": ["clip_l", "clip_g"]}[kind]
    weights = [embedding_table(clip.cond_stage_model, key).weight.detach().clone() for key in keys]
    with host.trainable(model, quantization), text_encoder(clip, NAME, quantization) as encoder:
        names = [name for name, _ in encoder.module.named_parameters()]
        assert not [name for name in names if "token_embedding" in name]
        assert encoder.waiting_bytes >= sum(weight.nbytes for weight in weights)
    for key, weight in zip(keys, weights, strict=True):
        assert torch.equal(embedding_table(clip.cond_stage_model, key).weight, weight)
