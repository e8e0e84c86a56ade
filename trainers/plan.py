"""What a run will take before it starts, as a record that reads as text and as JSON. planning.py makes it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

from .config import HollowConfig, SelectiveConfig, TokenConfig
from .report import LoadedModel

MIB = 2**20
GIB = 2**30  # what a budget calls a GB, as graphics cards do
STEPS = ("bp", "zo")  # phases whose peak a report calls the run's
METHODS = {
    SelectiveConfig: "Selective BP/ZO",
    HollowConfig: "Hollowed Net",
    TokenConfig: "Quantize + ZO Textual Inversion",
}
# What a CUDA process takes beside tensors: its context with the libraries' workspaces, and gaps in the allocator's
# blocks, as a share of the peak. Rules of thumb: no GPU was at hand to measure them.
CUDA_CONTEXT_BYTES = 512 * MIB
CUDA_GAPS = 0.05


class PlannedPhase(NamedTuple):
    """Peak bytes of one kind of work, and what they are."""

    name: str  # as memory.Phase has it: inference, cache, bp, zo, evaluation
    peak_bytes: int
    weights_bytes: int  # of the U-Net, as far as it is on the device
    learnt_bytes: int  # a LoRA or a token, with what its optimizer keeps
    other_bytes: int  # the text encoder where it stays, a stored activation
    work_bytes: int  # activations, gradients, and what else a step makes


class Change(NamedTuple):
    """One setting that the plan chose instead of its default."""

    setting: str
    default: object
    chosen: object

    def __str__(self) -> str:
        return f"{self.setting} = {self.chosen} instead of {self.default}"


def allowance(peak_bytes: int) -> int:
    """What to leave free on a CUDA device beside tensors of that peak."""
    return CUDA_CONTEXT_BYTES + round(CUDA_GAPS * peak_bytes)


@dataclass(frozen=True)
class Plan:
    """One planned run. Bytes are of tensors on the training device."""

    method: str  # as in Report, like the next four
    base_model: str
    resolution: int
    device: str
    dtype: str
    phases: tuple[PlannedPhase, ...]
    allowance_bytes: int  # for what tensors do not account for: CUDA's context, gaps in its allocator; 0 on the CPU
    free_bytes: int | None  # once ComfyUI has unloaded other models; None: not known
    budget_bytes: int | None  # the user's limit
    other_models: tuple[LoadedModel, ...]  # on the device at this moment
    settings: Mapping[str, object]
    changes: tuple[Change, ...] = ()  # what was chosen to keep to the budget
    slower: float = 1.0  # estimated time of the run as chosen, over that with the settings it was asked for; budget.py
    preset: str = ""  # that chose them, presets.py: slower is then over the preset's own settings
    advice: str = ""  # what would make it fit
    architecture: str = ""  # as in Report

    @property
    def peak_bytes(self) -> int:
        """The highest of the bp and zo phases: what a report's peak_bytes is to be compared with."""
        return max((phase.peak_bytes for phase in self.phases if phase.name in STEPS), default=0)

    @property
    def inference_peak_bytes(self) -> int | None:
        """One forward pass at full size, before the run changes the network."""
        return next((phase.peak_bytes for phase in self.phases if phase.name == "inference"), None)

    @property
    def has_room_for_pictures(self) -> bool:
        """Whether the whole network draws, beside what is learnt, in no more memory than the run needs anyway."""
        learnt = max((phase.learnt_bytes for phase in self.phases if phase.name in STEPS), default=0)
        return (self.inference_peak_bytes or 0) + learnt <= self.needed_bytes - self.allowance_bytes

    @property
    def needed_bytes(self) -> int:
        """The highest of all phases, and the allowance."""
        return max(phase.peak_bytes for phase in self.phases) + self.allowance_bytes

    @property
    def fits(self) -> bool | None:
        """Whether there is room for it; None where neither free memory nor a budget is known."""
        rooms = [room for room in (self.free_bytes, self.budget_bytes) if room is not None]
        return self.needed_bytes <= min(rooms) if rooms else None

    @property
    def choice(self) -> str:
        """What was chosen and what it costs; empty if nothing was."""
        changes = ", ".join(map(str, self.changes))
        if self.preset:
            longer = f"; about {self.slower:.2f} times as long as with memory for all" if self.slower > 1 else ""
            return f"preset {self.preset}: {changes or 'nothing to change'}{longer}"
        return f"{changes}; the cheapest in time that fits, about {self.slower:.2f} times as long" if changes else ""

    def to_json(self) -> str:
        """The record as a JSON object, phases, models and changes as objects too."""
        named = {
            name: [item._asdict() for item in getattr(self, name)] for name in ("phases", "other_models", "changes")
        }
        derived = ("peak_bytes", "inference_peak_bytes", "needed_bytes", "fits")
        return json.dumps(asdict(self) | named | {name: getattr(self, name) for name in derived}, indent=2)

    def summary(self) -> str:
        """One line for the log and the node."""
        return f"{self.method}: planned {_mib(self.peak_bytes)}{self._verdict()}"

    def _verdict(self) -> str:
        found = []
        for room, words in ((self.budget_bytes, "of the budget"), (self.free_bytes, "free")):
            if room is not None:
                found.append(
                    f"{'fits into' if self.needed_bytes <= room else 'does not fit into'} {_mib(room)} {words}"
                )
        return "".join(f", {words}" for words in found)

    def __str__(self) -> str:
        lines = [
            self.summary(),
            f"base model: {self.base_model}, {self.resolution} px, {self.dtype}, {self.device}",
            "",
        ]
        lines.append(f"{'MiB':<12}{'peak':>8}{'weights':>9}{'learnt':>8}{'other':>8}{'work':>8}")
        for phase in self.phases:
            cells = zip(phase[1:], (8, 9, 8, 8, 8), strict=True)
            lines.append(f"{phase.name:<12}" + "".join(f"{size / MIB:>{width},.0f}" for size, width in cells))
        lines.append("")
        if self.inference_peak_bytes:
            lines.append(f"{self.peak_bytes / self.inference_peak_bytes:.2f} times what one forward pass takes")
        if self.allowance_bytes:
            lines.append(f"CUDA's own context and gaps in its memory, an allowance: {_mib(self.allowance_bytes)}")
        if self.choice:
            lines.append(self.choice if self.preset else f"chosen to keep to the budget: {self.choice}")
        lines += [self.advice] if self.advice else []
        lines += [f"loaded now: {model.name}, {_mib(model.bytes)}" for model in self.other_models]
        lines += ["", *(f"{name} = {value}" for name, value in self.settings.items())]
        return "\n".join(lines)


def _mib(size: int) -> str:
    return f"{size / MIB:,.0f} MiB"
