"""Textual inversion for tests: on tiny models through ComfyUI's text encoders, and on a quadratic."""

from collections.abc import Iterator
from contextlib import contextmanager

import tiny
import torch
from pack.nodes import host
from pack.nodes.host_token import text_encoder, token_examples
from pack.trainers.config import TokenConfig
from pack.trainers.memory import PhaseMeter
from pack.trainers.objective import Condition, Network, noise_scheduler
from pack.trainers.token_inversion import TokenTrained, train_token
from pack.trainers.token_steps import TokenExample
from torch import Tensor, nn

CPU = torch.device("cpu")
CAPTIONS = ("a photo of a embedding:my_dog", "embedding:my_dog on a table")
PLENTY = 2**40  # bytes


class Setting:
    """What train_token() is given."""

    def __init__(self, network: Network, text_encoder: nn.Module, examples: list[TokenExample], initial: dict):
        self.network, self.text_encoder, self.examples, self.initial = network, text_encoder, examples, initial

    def train(
        self, config: TokenConfig, on_step=lambda step: None, meter=None, free_bytes=PLENTY, saves=None
    ) -> TokenTrained:
        meter = meter or PhaseMeter(CPU)
        network, encoder = self.network, self.text_encoder
        return train_token(
            network, encoder, self.examples, self.initial, config, meter, on_step, lambda: free_bytes, saves
        )


@contextmanager
def tiny_setting(
    kind: str, *, model=None, clip=None, photos: int = 2, side: int = 8, count: int = 1, **options
) -> Iterator:
    """Photos of noise, two captions for each, a token that starts as a dog."""
    model, clip = model or tiny.tiny_model(kind, **options), clip or tiny.tiny_clip(kind)
    generator = torch.Generator().manual_seed(0)
    latents = [torch.randn(4, side, side, generator=generator) for _ in range(photos)]
    with host.trainable(model) as network, text_encoder(clip, "my_dog") as encoder:
        examples = token_examples(model, network, encoder, latents, [CAPTIONS] * photos)
        yield Setting(network, encoder.module, examples, encoder.initial_vectors("dog", count))


def quadratic_setting(width: int = 12, start: Tensor | None = None, goal: Tensor | None = None) -> Setting:
    """A network whose loss is mean((token - goal)^2), whatever noise and timestep are."""
    scheduler = noise_scheduler(torch.linspace(0.99, 0.01, 1000), "epsilon")
    alphas = scheduler.alphas_cumprod
    goal = torch.linspace(-1, 1, width) if goal is None else goal

    def predict(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        noise = x_t / (1 - alphas[t]).sqrt().view(-1, 1, 1, 1)  # since the photo is all zeros
        return noise + (condition.context[:, 0] - goal).view(-1, 1, 1, width)

    network = Network(nn.PReLU(), predict, scheduler, torch.float32, CPU)
    example = TokenExample(torch.zeros(1, 1, width), [lambda vectors: Condition(vectors["clip_l"])])
    initial = {"clip_l": torch.zeros(1, width) if start is None else start[None]}
    return Setting(network, nn.PReLU(), [example], initial)
