"""Where the bytes of a run were, or will be: a report and a plan as the same bars, time line and table."""

import json
from collections.abc import Iterator
from typing import NamedTuple

from .memory import BY_COUNTING, Phase
from .plan import STEPS, Plan, PlannedPhase
from .published import Published, published
from .report import LoadedModel, Report
from .timeline import Span

MIB = 2**20
NAMES = {
    "encode": "encoding photos",
    "inference": "one forward pass",
    "cache": "storing the centre",
    "bp": "BP steps",
    "zo": "ZO steps",
    "evaluation": "evaluation",
}


class Bar(NamedTuple):
    """Peak bytes of one phase, and what they were."""

    phase: str
    weights: int  # of the network, and of a text encoder that stays
    learnt: int  # a LoRA or a token, with what its optimizer keeps
    work: int  # activations, gradients, and what else a step makes
    allowance: int = 0  # of a plan: what CUDA takes beside tensors

    @property
    def peak(self) -> int:
        """Of tensors."""
        return self.weights + self.learnt + self.work


class MemoryView(NamedTuple):
    """What a picture and a table show of a report or a plan."""

    title: str
    origin: str  # of the bytes, in words
    bars: tuple[Bar, ...]
    planned: int | None  # the peak, where it is not what the bars show
    published: Published | None
    spans: tuple[Span, ...] = ()
    has_process: bool = False  # whether the process's memory is the device's
    limits: tuple[tuple[str, int], ...] = ()  # budget and free memory, with their names
    process_peak: int | None = None
    other_models: tuple[LoadedModel, ...] = ()


def memory_view(record: Report | Plan) -> MemoryView:
    """Of a finished run, or of one to come."""
    if isinstance(record, Plan):
        limits = (("budget", record.budget_bytes), ("free memory", record.free_bytes))
        return MemoryView(
            title=_title(record, "planned "),
            origin="planned on tensors without storage",
            bars=tuple(_planned_bar(phase, record.allowance_bytes) for phase in record.phases),
            planned=None,
            published=_published(record),
            limits=tuple((name, size) for name, size in limits if size is not None),
            other_models=record.other_models,
        )
    return MemoryView(
        title=_title(record, ""),
        origin=f"measured: {record.measurement}",
        bars=tuple(_measured_bars(record.phases)),
        planned=record.planned_peak_bytes,
        published=_published(record),
        spans=record.timeline,
        has_process=record.measurement == BY_COUNTING,
        process_peak=record.process_peak_bytes,
        other_models=record.other_models,
    )


def memory_text(record: Report | Plan) -> str:
    """The view as a table to read."""
    view = memory_view(record)
    lines = [view.title, f"{record.device}; {view.origin}", ""]
    lines.append(f"{'MiB':<20}{'peak':>8}{'weights':>9}{'learnt':>8}{'work':>8}")
    for bar in view.bars:
        cells = zip((bar.peak, bar.weights, bar.learnt, bar.work), (8, 9, 8, 8), strict=True)
        lines.append(
            f"{NAMES.get(bar.phase, bar.phase):<20}" + "".join(f"{_mib(size):>{width}}" for size, width in cells)
        )
    if view.bars and view.bars[0].allowance:
        lines.append(f"and {_mib(view.bars[0].allowance)} MiB for CUDA's context and gaps in its memory, an allowance")
    lines.append("")
    if view.planned:
        lines.append(
            f"planned {_mib(view.planned)} MiB: measured was {record.peak_bytes / view.planned:.3f} times that"
        )
    if view.published:
        ratio = record.peak_bytes / view.published.bytes
        lines.append(
            f"{view.published.source} has {_mib(view.published.bytes)} MiB ({view.published.run}): "
            f"this is {ratio:.2f} times that"
        )
    if isinstance(record, Plan):
        lines += [record.summary(), *(f"chosen: {change}" for change in record.changes)]
        lines += [record.advice] if record.advice else []
    if view.process_peak:
        lines.append(f"ComfyUI's process: up to {_mib(view.process_peak)} MiB, all else in it included")
    lines += [f"loaded beside it: {model.name}, {_mib(model.bytes)} MiB" for model in view.other_models]
    return "\n".join(lines)


def memory_json(record: Report | Plan) -> str:
    """The report's or the plan's JSON, with the paper's figure as "published"."""
    found = _published(record)
    return json.dumps(json.loads(record.to_json()) | {"published": found._asdict() if found else None}, indent=2)


def _title(record: Report | Plan, word: str) -> str:
    where = f"{record.architecture or record.base_model}, {record.resolution} px, {record.dtype}"
    return f"{record.method} on {where}: {word}peak {_mib(record.peak_bytes)} MiB"


def _published(record: Report | Plan) -> Published | None:
    return published(record.method, record.architecture, record.resolution, record.settings)


def _planned_bar(phase: PlannedPhase, allowance: int) -> Bar:
    weights = phase.weights_bytes + phase.other_bytes
    return Bar(phase.name, weights, phase.learnt_bytes, phase.work_bytes, allowance)


def _measured_bars(phases: tuple[Phase, ...]) -> Iterator[Bar]:
    """What a step is given is the same in all kinds of step; what they hold beside it was learnt."""
    given = min((phase.given_bytes for phase in phases if phase.name in STEPS), default=0)
    for phase in phases:
        weights = given if phase.name in STEPS else phase.held_bytes
        yield Bar(phase.name, weights, phase.held_bytes - weights, phase.peak_bytes - phase.held_bytes)


def _mib(size: int) -> str:
    return f"{size / MIB:,.0f}"
