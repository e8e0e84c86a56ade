"""What textual inversion takes: what is counted is what a run takes, and full-size models stay under the ceilings."""

import pytest
import tiny
import torch
from pack.nodes import host, host_token
from pack.trainers.config import TokenConfig
from pack.trainers.memory import PhaseMeter
from pack.trainers.token_inversion import train_token
from token_bytes import CAPTION, NAME, counted, token_memory

GIB = 2**30
STEP = TokenConfig(steps=1, candidates="one_by_one", eval_samples=1, subspace="off")


@pytest.mark.slow
@pytest.mark.parametrize("kind, quantization", [("sd1", "int8"), ("sdxl", "none")])
def test_what_is_counted_is_what_a_run_takes(kind, quantization):
    """Live bytes of the trainer on real tensors."""
    model, clip, meter = tiny.tiny_model(kind), tiny.tiny_clip(kind), PhaseMeter(torch.device("cpu"))
    config = TokenConfig(**vars(STEP) | {"quantization": quantization})
    with host.trainable(model) as network:
        memory = counted(model, clip, network, 16, config)
    with (
        host.trainable(model, quantization) as network,
        host_token.text_encoder(clip, NAME, quantization) as encoder,
    ):
        examples = host_token.token_examples(model, network, encoder, [torch.zeros(4, 16, 16)], [[CAPTION]])
        initial = encoder.initial_vectors("dog", 1)
        train_token(network, encoder.module, examples, initial, config, meter, lambda step: None, lambda: 0)
    assert memory.total == max(meter.peak_bytes("zo"), meter.peak_bytes("evaluation"))
    assert memory.unet + memory.text_encoder + memory.work == memory.total and memory.work > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind, side_px, ceiling", [("sd15", 512, 1.0), ("sdxl", 1024, 3.4)])
def test_full_size_models_stay_under_their_ceilings(kind, side_px, ceiling):
    """int8, candidates one by one; waiting originals and the table of words apart."""
    assert token_memory(kind, side_px, STEP).total <= ceiling * GIB
