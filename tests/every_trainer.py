"""All trainers under one form, for what has to hold of each of them: on a small U-Net of ComfyUI's, or on a toy."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import tiny
import torch
from pack.nodes import host
from pack.trainers.config import HollowConfig, SelectiveConfig, TokenConfig
from pack.trainers.hollow import train_hollow
from pack.trainers.memory import PhaseMeter
from pack.trainers.objective import Condition, Example, Network, Sample, noise_scheduler
from pack.trainers.resume import Saves
from pack.trainers.schedule import STRATEGIES
from pack.trainers.selective import train_selective
from pack.trainers.token_steps import TokenExample
from test_selective import example
from token_runs import quadratic_setting, tiny_setting
from torch import Tensor, nn

CPU = torch.device("cpu")
STEPS = 6
SELECTIVE = SelectiveConfig(steps=STEPS, zo_perturbations=2, learning_rate=1e-3, t_mid=500)
HOLLOWED = HollowConfig(
    steps=STEPS, rank=2, cache_samples=4, learning_rate=1e-3, target_modules="cross-attention", hollow_fraction=0.3
)
TOKEN = TokenConfig(steps=STEPS, learning_rate=1e-2, subspace_size=3, eval_every=2, eval_samples=1)


class ToyUNet(nn.Module):
    """Two layers that a LoRA goes into; not linear in them."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.block = nn.ModuleDict({"attn1": nn.ModuleDict({name: nn.Linear(4, 4) for name in ("to_q", "to_v")})})
        for parameter in self.parameters():
            parameter.requires_grad_(False).copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        layers, h = self.block["attn1"], x.movedim(1, -1)
        return torch.tanh(layers["to_q"](h) * layers["to_v"](h)).movedim(-1, 1)


def toy_network() -> Network:
    unet = ToyUNet()

    def predict(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return unet(x_t) + t.view(-1, 1, 1, 1) / 1000

    return Network(unet, predict, noise_scheduler(torch.linspace(0.99, 0.01, 1000), "epsilon"), torch.float32, CPU)


TOY_NAMES = {f"block.attn1.{name}": f"lora_unet_{name}" for name in ("to_q", "to_v")}


def _weighed(photo: Sample | TokenExample, weight: float | None) -> Sample | TokenExample:
    return photo if weight is None else photo._replace(weight=torch.full(photo.latent.shape[1:], weight))


@dataclass(frozen=True)
class Trainer:
    """One trainer, with the settings of a short run."""

    name: str
    config: SelectiveConfig | HollowConfig | TokenConfig
    is_toy: bool = True

    def run(
        self,
        folder: Path,
        saves: Saves | None = None,
        on_step: Callable = lambda step: None,
        model=None,
        weight: float | None = None,
        **changes,
    ) -> tuple[dict[str, Tensor], list]:
        """What is learnt, and the steps. A model given is a MODEL, or the toy's U-Net; the cache is in the folder.

        weight is that of every place of the photos in the loss.
        """
        config, meter = replace(self.config, **changes), PhaseMeter(CPU)
        photos = [Example(*(_weighed(size, weight) for size in example("mini", seed, 8))) for seed in range(2)]
        if isinstance(config, TokenConfig):
            with self._setting(model) as setting:
                setting.examples = [_weighed(photo, weight) for photo in setting.examples]
                trained = setting.train(config, on_step, meter, saves=saves)
            return trained.vectors, trained.steps
        with self._network(model) as (network, names):
            if isinstance(config, SelectiveConfig):
                trained = train_selective(network, photos, config, names, meter, on_step, saves)
            else:
                highs, places = [p.high for p in photos], dict(cache_path=folder / "cache.bin", offload_device=CPU)
                trained = train_hollow(network, highs, config, names, meter, on_step, **places, saves=saves)
        return trained.lora, trained.steps

    @contextmanager
    def _setting(self, model) -> Iterator:
        if self.is_toy:
            yield quadratic_setting()
        else:
            with tiny_setting("mini", model=model) as setting:
                yield setting

    @contextmanager
    def _network(self, model) -> Iterator:
        if self.is_toy:
            yield toy_network(), TOY_NAMES
        else:
            model = model or tiny.tiny_model("mini")
            with host.trainable(model) as network:
                yield network, host.lora_names(model)


TOYS = [
    *(Trainer(f"selective {strategy}", replace(SELECTIVE, strategy=strategy)) for strategy in STRATEGIES),
    *(Trainer(f"token zo {name}", replace(TOKEN, subspace=name)) for name in ("published", "confined", "off")),
    Trainer("token gradient", replace(TOKEN, method="gradient")),
]
ON_U_NETS = [
    Trainer("selective on a U-Net", replace(SELECTIVE, strategy="random", target_modules="cross-attention"), False),
    Trainer("hollowed", HOLLOWED, False),
    Trainer("token zo on a U-Net", TOKEN, False),
    Trainer("token gradient on a U-Net", replace(TOKEN, method="gradient"), False),
]
