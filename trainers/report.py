"""What a run did and what it cost, as a record that reads as text and as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from .config import SelectiveConfig
from .memory import Phase, PhaseMeter
from .selective import StepReport, first_and_last

MIB = 2**20


@dataclass(frozen=True)
class Report:
    """One finished training run. Bytes are of tensors on the training device; None means not measured."""

    method: str
    base_model: str  # as detected: sd_v1, sd_v2, sdxl_base_v1-0
    prediction_type: str  # epsilon or v_prediction
    instance_prompt: str
    resolution: int  # pixels of a side of the full-size images
    device: str
    dtype: str  # of the U-Net's computation; the LoRA is float32
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

    def to_json(self) -> str:
        """The record as a JSON object, phases as objects too."""
        record = asdict(self) | {"phases": [phase._asdict() for phase in self.phases]}
        record["loss"] = {**record["loss"].pop("all"), **record["loss"]}  # first and last of all steps, then by kind
        return json.dumps(record, indent=2)

    def summary(self) -> str:
        """One line for the log."""
        return (
            f"{self.method}: {self.steps} steps ({self.steps_bp} BP, {self.steps_zo} ZO) in {self.seconds:.1f} s on "
            f"{self.device} in {self.dtype}, peak {_mib(self.peak_bytes)}, "
            f"loss {self.loss['all']['first']:.4f} -> {self.loss['all']['last']:.4f}"
        )

    def __str__(self) -> str:
        lines = [self.summary(), f"prompt: {self.instance_prompt}", f"base model: {self.base_model}"]
        if self.inference_peak_bytes:
            ratio = self.peak_bytes / self.inference_peak_bytes
            lines.append(
                f"one forward pass needs {_mib(self.inference_peak_bytes)}: training took {ratio:.2f} times that"
            )
        lines.append("")
        lines += [f"{p.name:<10} {p.seconds:8.1f} s   peak {_mib(p.peak_bytes)}" for p in self.phases]
        lines.append("")
        lines += [f"loss {kind:<4} {values['first']:.4f} -> {values['last']:.4f}" for kind, values in self.loss.items()]
        lines.append("")
        lines += [f"{name} = {value}" for name, value in self.settings.items()]
        return "\n".join(lines)


def selective_report(
    config: SelectiveConfig,
    history: Sequence[StepReport],
    meter: PhaseMeter,
    *,
    base_model: str,
    prediction_type: str,
    instance_prompt: str,
    resolution: int,
    device: str,
    dtype: str,
) -> Report:
    """The report of a finished selective run."""
    phases = meter.phases()
    steps_zo = sum(step.kind == "zo" for step in history)
    return Report(
        method="Selective BP/ZO",
        base_model=base_model,
        prediction_type=prediction_type,
        instance_prompt=instance_prompt,
        resolution=resolution,
        device=device,
        dtype=dtype,
        steps=len(history),
        steps_bp=len(history) - steps_zo,
        steps_zo=steps_zo,
        seconds=meter.elapsed_s(),
        peak_bytes=max(meter.peak_bytes("bp"), meter.peak_bytes("zo")),
        planned_peak_bytes=None,
        inference_peak_bytes=meter.peak_bytes("inference") or None,
        phases=tuple(phases),
        loss=first_and_last(history),
        settings=asdict(config),
    )


def _mib(size: int) -> str:
    return f"{size / MIB:,.0f} MiB"
