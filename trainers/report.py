"""What a run did and what it cost, as a record that reads as text and as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from .config import HollowConfig, SelectiveConfig, TokenConfig
from .hollow import HollowTrained
from .memory import Phase, PhaseMeter
from .run import StepReport, first_and_last
from .timeline import Span
from .token_inversion import TokenTrained
from .token_prompts import embedding_prompt

MIB = 2**20


class LoadedModel(NamedTuple):
    """A model that ComfyUI held on the device beside the one that was trained."""

    name: str
    bytes: int


class Circumstances(NamedTuple):
    """What a run was given, as a report says it."""

    base_model: str  # as detected: sd_v1, sd_v2, sdxl_base_v1-0
    prediction_type: str  # epsilon or v_prediction
    instance_prompt: str
    resolution: int  # pixels of a side of the full-size images
    device: str
    dtype: str  # of the U-Net's computation; the LoRA is float32
    other_models: tuple[LoadedModel, ...] = ()  # there when the run began; ComfyUI unloads them before the steps
    architecture: str = ""  # ComfyUI's name of it: SD15, SD20, SDXL, SSD1B
    planned_peak_bytes: int | None = None
    chosen: str = ""  # settings that the plan chose to keep to the budget, and what they cost
    waiting_bytes: int = 0  # of the model's own weights, off the device while quantised ones stood in for them


@dataclass(frozen=True)
class HollowRecord:
    """What a hollowed run left out, and what stood in for it."""

    left_out: str  # names of blocks
    share: float  # of the U-Net's parameters, 0-1
    left_out_bytes: int  # that were off the device while steps ran
    cache_samples: int
    cache_bytes: int
    cache_reused: bool  # it was there from a run before

    def __str__(self) -> str:
        source = "from a run before" if self.cache_reused else "written in this run"
        return (
            f"left out: {self.left_out}, {self.share:.1%} of the U-Net, {_mib(self.left_out_bytes)}\n"
            f"cache: {self.cache_samples:,} samples, {_mib(self.cache_bytes)} on disk, {source}"
        )


@dataclass(frozen=True)
class TokenRecord:
    """Which token a run of textual inversion left, and why that one."""

    prompt: str  # how prompts call it
    vectors: int  # in each text encoder
    kept_step: int  # after which it was as it is; 0 is before the first
    steps_asked: int
    stopped_early: bool
    fixed_noise: Mapping[str, float]  # loss at "first", "kept" and "last"; empty without evaluations
    candidates_batched: bool  # the tokens of a step ran as one batch

    def __str__(self) -> str:
        kept = f"kept: the token after step {self.kept_step:,}"
        if self.stopped_early:
            kept += f"; stopped before step {self.steps_asked:,}, nothing new was better"
        lines = [f"token: {self.prompt}, {self.vectors} vector{'s' * (self.vectors > 1)}", kept]
        if self.fixed_noise:
            first, best, last = (self.fixed_noise[name] for name in ("first", "kept", "last"))
            lines.append(f"loss under fixed noise: {first:.5f} at first, {best:.5f} kept, {last:.5f} at last")
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """One finished training run. Bytes are of tensors on the training device; None means not measured."""

    method: str
    base_model: str  # this and the next five as in Circumstances
    prediction_type: str
    instance_prompt: str
    resolution: int
    device: str
    dtype: str
    steps: int
    steps_bp: int
    steps_zo: int
    seconds: float  # wall time of the whole run, encoding and loading included
    peak_bytes: int  # the highest of the bp and zo phases
    planned_peak_bytes: int | None
    inference_peak_bytes: int | None  # one forward pass at full size, before the LoRA is there
    phases: tuple[Phase, ...]
    loss: Mapping[str, Mapping[str, float]]  # "first" and "last" (means of 10 steps), over all steps and by kind
    settings: Mapping[str, object]
    files: tuple[str, ...] = ()
    hollow: HollowRecord | None = None  # of the Hollowed Net Trainer
    measurement: str = ""  # what the bytes of tensors are
    process_peak_bytes: int | None = None  # resident set of ComfyUI's process while phases ran
    other_models: tuple[LoadedModel, ...] = ()  # as in Circumstances, like the next two
    architecture: str = ""
    chosen: str = ""  # as in Circumstances
    waiting_bytes: int = 0
    timeline: tuple[Span, ...] = ()
    token: TokenRecord | None = None  # of Quantize + ZO Textual Inversion
    end: str = ""  # "stopped at step 40 of 1000"; empty where the run came to its end
    saved: str = ""  # where the run is kept and how to go on from it, or why it is not

    def to_json(self) -> str:
        """The record as a JSON object, phases, spans and models as objects too."""
        named = ("phases", "other_models", "timeline")
        record = asdict(self) | {name: [item._asdict() for item in getattr(self, name)] for name in named}
        record["loss"] = {**record["loss"].pop("all"), **record["loss"]}  # first and last of all steps, then by kind
        return json.dumps(record, indent=2)

    def summary(self) -> str:
        """One line for the log."""
        return f"{self._headline()}, loss {self.loss['all']['first']:.4f} -> {self.loss['all']['last']:.4f}"

    def _headline(self) -> str:
        planned = f" (planned {_mib(self.planned_peak_bytes)})" if self.planned_peak_bytes else ""
        how = f"without {self.hollow.share:.1%}" if self.hollow else f"{self.steps_bp} BP, {self.steps_zo} ZO"
        return (
            f"{self.method}: {self.end or f'{self.steps} steps'} ({how}) in {self.seconds:.1f} s on "
            f"{self.device} in {self.dtype}, peak {_mib(self.peak_bytes)}{planned}"
        )

    def __str__(self) -> str:
        lines = [self._headline(), f"prompt: {self.instance_prompt}", f"base model: {self.base_model}"]
        if self.chosen:
            lines.append(f"chosen to keep to the budget: {self.chosen}")
        if self.saved:
            lines.append(f"saved: {self.saved}")
        for record in (self.hollow, self.token):
            lines += str(record).splitlines() if record else []
        if self.inference_peak_bytes:
            ratio = self.peak_bytes / self.inference_peak_bytes
            lines.append(
                f"one forward pass needs {_mib(self.inference_peak_bytes)}: training took {ratio:.2f} times that"
            )
        lines.append("")
        lines += [_phase_line(phase) for phase in self.phases]
        if self.process_peak_bytes:
            lines.append(f"ComfyUI's process took up to {_mib(self.process_peak_bytes)}, all else in it included")
        if self.waiting_bytes:
            lines.append(f"the model's own weights, {_mib(self.waiting_bytes)}, waited off the device")
        lines += [f"loaded when the run began: {model.name}, {_mib(model.bytes)}" for model in self.other_models]
        lines.append("")
        lines += [f"loss {kind:<4} {values['first']:.4f} -> {values['last']:.4f}" for kind, values in self.loss.items()]
        lines.append("")
        lines += [f"{name} = {value}".rstrip() for name, value in self.settings.items()]
        return "\n".join(lines)


def selective_report(
    config: SelectiveConfig, history: Sequence[StepReport], meter: PhaseMeter, given: Circumstances
) -> Report:
    """The report of a finished selective run."""
    return _report("Selective BP/ZO", asdict(config), history, meter, given)


def hollow_report(config: HollowConfig, trained: HollowTrained, meter: PhaseMeter, given: Circumstances) -> Report:
    """The report of a finished hollowed run."""
    cut, cache = trained.cut, trained.cache
    record = HollowRecord(cut.name, cut.share, cut.leaving_bytes, cache.samples, cache.file_bytes, cache.is_reused)
    return replace(_report("Hollowed Net", asdict(config), trained.steps, meter, given), hollow=record)


def token_report(config: TokenConfig, trained: TokenTrained, meter: PhaseMeter, given: Circumstances) -> Report:
    """The report of a finished run of textual inversion."""
    losses = [evaluation.loss for evaluation in trained.evaluations]
    record = TokenRecord(
        prompt=embedding_prompt(config.token),
        vectors=config.num_vectors,
        kept_step=trained.best_step,
        steps_asked=config.steps,
        stopped_early=len(trained.steps) < config.steps,
        fixed_noise={"first": losses[0], "kept": min(losses), "last": losses[-1]} if losses else {},
        candidates_batched=trained.is_batched,
    )
    return replace(
        _report("Quantize + ZO Textual Inversion", asdict(config), trained.steps, meter, given), token=record
    )


def _report(
    method: str,
    settings: Mapping[str, object],
    history: Sequence[StepReport],
    meter: PhaseMeter,
    given: Circumstances,
) -> Report:
    steps_zo = sum(step.kind == "zo" for step in history)
    return Report(
        method=method,
        **given._asdict(),
        steps=len(history),
        steps_bp=len(history) - steps_zo,
        steps_zo=steps_zo,
        seconds=meter.elapsed_s(),
        peak_bytes=max(meter.peak_bytes("bp"), meter.peak_bytes("zo")),
        inference_peak_bytes=meter.peak_bytes("inference") or None,
        phases=tuple(meter.phases()),
        loss=first_and_last(history),
        settings=settings,
        measurement=meter.measurement,
        process_peak_bytes=max((phase.process_peak_bytes for phase in meter.phases()), default=None),
        timeline=meter.timeline(),
    )


def _phase_line(phase: Phase) -> str:
    line = f"{phase.name:<10} {phase.seconds:8.1f} s   peak {_mib(phase.peak_bytes)}"
    return line + (f", reserved {_mib(phase.reserved_peak_bytes)}" if phase.reserved_peak_bytes else "")


def _mib(size: int) -> str:
    return f"{size / MIB:,.0f} MiB"
