"""What quantised runs of full-size models take, planned on fake tensors: the ceilings we set ourselves."""

from dataclasses import replace

import pytest
import torch
from full_size import blank_photo, full_size_network
from pack.trainers.config import HollowConfig, SelectiveConfig
from pack.trainers.planning import planned_phases

GIB = 2**30
# BP steps at half size; the inference phase is the forward pass at full size that a ZO step is made of.
SELECTIVE = SelectiveConfig(low_res_ratio=0.5, strategy="bp_low", gradient_checkpointing=True, quantization="int8")
HOLLOW = HollowConfig(rank=128, hollow_fraction=0.39, gradient_checkpointing=True, quantization="int8")


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, side_px, config, ceiling",
    [
        ("sd15", 512, SELECTIVE, 0.95),
        ("sd15", 512, replace(SELECTIVE, gradient_checkpointing=False), 1.15),
        ("sd21", 512, HOLLOW, 1.1),
        ("ssd1b", 1024, SELECTIVE, 1.55),
        ("sdxl", 1024, SELECTIVE, 2.8),
    ],
    ids=["sd15", "sd15, not checkpointed", "sd21 hollowed, rank 128", "ssd1b", "sdxl"],
)
def test_an_int8_run_stays_under_its_ceiling(kind, side_px, config, ceiling):
    network = full_size_network(kind, torch.bfloat16)
    phases = planned_phases(network, lambda ratio: blank_photo(kind, int(side_px * ratio)), config)
    found = {phase.name: round(phase.peak_bytes / GIB, 3) for phase in phases}
    assert max(found.values()) <= ceiling, found
