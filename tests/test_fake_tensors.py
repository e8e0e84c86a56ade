"""A network without bytes: trainers run on it as on a real one, take none, and leave nothing of it behind."""

import resource
from dataclasses import replace

import pytest
import tiny
import torch
from full_size import CPU, blank_photo, full_size_network
from pack.nodes import host
from pack.trainers.config import SelectiveConfig
from pack.trainers.fake_tensors import faked
from pack.trainers.memory import PhaseMeter
from pack.trainers.objective import Example
from pack.trainers.selective import train_selective
from test_selective import example
from torch._subclasses.fake_tensor import FakeTensor

CONFIG = SelectiveConfig(steps=2, rank=4, zo_perturbations=1)


def peaks(network, photos: Example, names, config) -> dict[str, int]:
    meter = PhaseMeter(CPU)
    train_selective(network, [photos], config, names, meter, lambda step: None)
    return {phase.name: phase.peak_bytes for phase in meter.phases()}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["bp_high", "bp_low", "zo_high"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_run_on_fake_tensors_takes_what_a_real_one_takes(dtype, strategy):
    """Phase by phase, to the byte. Strategies that draw a number for each step have no number to draw here."""
    model, photos, config = tiny.tiny_model("sd1", dtype=dtype), example("sd1"), replace(CONFIG, strategy=strategy)
    with host.trainable(model) as network:
        names = host.lora_names(model)
        with faked(network) as fake:
            counted = peaks(fake, photos, names, config)
        measured = peaks(network, photos, names, config)
    assert counted == measured
    assert min(measured.values()) > 0


def test_the_network_s_tensors_are_fake_inside_and_its_own_afterwards():
    with host.trainable(tiny.tiny_model("sd1")) as network:
        before = dict(network.unet.state_dict(keep_vars=True))
        bits = {name: tensor.clone() for name, tensor in before.items()}
        with pytest.raises(KeyboardInterrupt), faked(network) as fake:
            assert all(isinstance(tensor, FakeTensor) for tensor in fake.unet.state_dict(keep_vars=True).values())
            assert fake.scheduler is not network.scheduler
            raise KeyboardInterrupt
        after = network.unet.state_dict(keep_vars=True)
    assert all(after[name] is tensor for name, tensor in before.items())
    assert all(torch.equal(after[name], tensor) for name, tensor in bits.items())


@pytest.mark.slow
def test_a_full_size_network_takes_no_memory():
    """SDXL's weights alone would be 4.8 GiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    network, photo = full_size_network("sdxl", torch.bfloat16), blank_photo("sdxl", 1024)
    names = {name: name for name, _ in network.unet.named_modules()}
    with faked(network) as fake:
        counted = peaks(fake, Example(photo, photo), names, SelectiveConfig(steps=2, rank=4, strategy="bp_high"))
    assert counted["bp"] > 5 * 2**30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB, that is 1 GiB
