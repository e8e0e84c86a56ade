"""The forward pass on a GPU, as far as it can be checked without one: fake tensors refuse to mix devices."""

import pytest
import tiny
import torch
from pack.nodes import host
from pack.trainers.lora import injected
from pack.trainers.objective import Network
from pack.trainers.selective import Draw, _Loss
from test_selective import example
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter

CUDA = torch.device("cuda", 0)


def on_fake_cuda(network: Network, patcher) -> Network:
    """The network with weights of no storage on a GPU that need not exist, predicting as host.py makes it predict."""
    for module in network.unet.modules():
        for name, p in list(module._parameters.items()):
            if p is not None:
                module._parameters[name] = Parameter(torch.empty(p.shape, device=CUDA), requires_grad=p.requires_grad)
    return network._replace(predict=host._predictor(patcher), device=CUDA)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_photos_prompts_and_noise_from_the_cpu_meet_the_model_on_its_device(kind):
    model = tiny.tiny_model(kind)
    photo = example(kind)
    draw = Draw([photo], 500, is_zo=False, noise_seed=0, probe_seeds=[])
    with host.trainable(model) as network, injected(network.unet, 4, 4.0, "attention", 0) as lora:
        with FakeTensorMode(allow_non_fake_inputs=True):
            network = on_fake_cuda(network, model)
            assert all(p.device == CUDA for p in lora.parameters())
            loss = _Loss(network, [photo.high], draw, min_snr_gamma=5.0)()
            assert loss.device == CUDA and loss.requires_grad
