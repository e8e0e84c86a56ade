"""What a run learns and its optimizer's memory of it, as a state that can be saved and taken up again."""

from collections.abc import Mapping, Sequence
from threading import Event

import torch
from torch import Tensor, nn


class Learnt:
    """Parameters, their optimizer, and the scaler of their loss."""

    def __init__(
        self,
        params: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
    ):
        self.params, self.optimizer, self.scaler = params, optimizer, scaler
        self.touched = touched = Event()  # set once a step begins to change parameters or moments
        optimizer.register_step_pre_hook(lambda *_: touched.set())  # a reference to self would keep it all alive

    def state(self) -> dict[str, Tensor]:
        """Copies on the CPU."""
        state = {f"parameter.{i}": _copy(parameter) for i, parameter in enumerate(self.params)}
        for i, moments in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{i}.{name}": _copy(value) for name, value in moments.items()}
        scale = self.scaler.state_dict() if self.scaler else {}  # empty where it is disabled
        return state | {f"scaler.{name}": torch.tensor(value, dtype=torch.float64) for name, value in scale.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take in what state() gave in a run of the same settings."""
        moments, scale = {}, {}
        for name, value in state.items():
            part, _, rest = name.partition(".")
            if part == "optimizer":
                i, _, moment = rest.partition(".")
                moments.setdefault(int(i), {})[moment] = value
            elif part == "scaler":
                scale[rest] = value.item()
        with torch.no_grad():
            for i, parameter in enumerate(self.params):
                parameter.copy_(state[f"parameter.{i}"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if scale and self.scaler:
            whole = ("growth_interval", "_growth_tracker")
            self.scaler.load_state_dict({name: int(x) if name in whole else x for name, x in scale.items()})


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
