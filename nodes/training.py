"""What the trainer nodes have in common: inputs, outputs, and how a finished run is handed over."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from comfy_api.latest import io, ui
from torch import Tensor

from ..trainers.checkpoint import lora_metadata
from ..trainers.fingerprint import sketch
from ..trainers.lora import TARGETS
from ..trainers.objective import Sample
from ..trainers.quantize import QUANTIZATIONS
from ..trainers.report import Report
from ..trainers.resume import Saves
from ..trainers.run import StepReport
from ..trainers.saving import Product
from . import host_ui
from .sockets import ReportSocket, SubjectSocket, loss_map

logger = logging.getLogger(__name__)


def outputs() -> list[io.Output]:
    """The LoRA in all its forms, and the story of the run."""
    return [
        io.Model.Output("model", tooltip="The model with the new LoRA at strength 1, ready for KSampler."),
        io.LoraModel.Output("lora", tooltip="For Save LoRA, or core's Load LoRA Model at another strength."),
        *story(),
    ]


def story() -> list[io.Output]:
    """How the run went."""
    return [
        io.LossMap.Output("loss", tooltip="For core's Plot Loss Graph."),
        ReportSocket.Output("report", tooltip="Time, steps, losses and peak memory. Preview as Text shows it."),
    ]


def finished(
    node_id: str | None,
    results: tuple,
    steps: Sequence[StepReport],
    report: Report,
    saves: Saves,
    pictures: Tensor | None = None,
) -> io.NodeOutput:
    """What was learnt, losses and report as outputs of the run, which is also told to the log and to the browser.

    pictures that were drawn on the way, (N, H, W, 3), stay on the node.
    """
    if saves.last and saves.last.step == len(steps):
        words = f"{saves.last.name} in the output folder's edgetune, as resume takes it"
        report = replace(report, saved=words, files=(str(saves.last.product),))
    else:
        report = replace(report, saved=saves.story)
    if saves.is_stopped:
        report = replace(report, end=f"stopped at step {len(steps)} of {steps[-1].steps}")
    logger.info(report.summary())
    host_ui.send_done(node_id, report.summary())
    shown = {} if pictures is None else ui.PreviewImage(pictures).as_dict()
    return io.NodeOutput(
        *results,
        loss_map([step.loss for step in steps]),
        report,
        ui={"text": [str(report)], "report": [report.to_json()]} | shown,
    )


def lora_so_far(lora: Mapping[str, Tensor]) -> Product:
    """The LoRA of a run that is not over, as a file."""
    return Product(lora, lora_metadata(lora, "edgetune", None))


def encoded_facts(examples: Sequence[Sample]) -> dict[str, list[float]]:
    """What tells whether photos and captions were encoded as in the run to go on from."""
    clip = {"clip (by what it makes of the captions)": sketch(example.context for example in examples)}
    return latent_facts([example.latent for example in examples]) | clip


def latent_facts(latents: Sequence[Tensor]) -> dict[str, list[float]]:
    """The same for photos alone."""
    return {"vae (by what it makes of the photos)": sketch(latents)}


def models(change: str = "It is trained in place and left", clip: str = "Used once, before training") -> list[io.Input]:
    """What is trained, and on what; how the model changes, and what the clip is for."""
    return [
        io.Model.Input("model", tooltip=f"SD 1.x, SD 2.x, SDXL or SSD-1B. {change} as it was."),
        io.Clip.Input("clip", tooltip=f"The text encoder of the same checkpoint. {clip}."),
        io.Vae.Input("vae", tooltip="The VAE of the same checkpoint. Used once, before training."),
        SubjectSocket.Input("subject", tooltip="From Load Subject Images."),
    ]


def seed(result: str = "LoRA") -> io.Input:
    """The last of the inputs that are always shown."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=2**64 - 1,
        # fixed: a second Run of an unchanged graph is then served from ComfyUI's cache, not trained anew
        control_after_generate=io.ControlAfterGenerate.fixed,
        tooltip=f"Of everything random in the run. The same seed on the same machine gives the same {result}.",
    )


def more_lora(batch: str) -> list[io.Input]:
    """Advanced: of the LoRA and the batch; batch says what the photos of one have in common."""
    return [
        io.Float.Input(
            "alpha",
            default=0.0,
            min=0.0,
            max=1024.0,
            optional=True,
            advanced=True,
            tooltip="The LoRA acts with strength alpha / rank. 0 stands for alpha = rank.",
        ),
        io.Combo.Input(
            "target_modules",
            options=list(TARGETS),
            default="attention",
            optional=True,
            advanced=True,
            tooltip="Which layers of the U-Net get a LoRA. The paper and DreamBooth LoRA use attention.",
        ),
        io.Int.Input(
            "batch_size",
            default=1,
            min=1,
            max=64,
            optional=True,
            advanced=True,
            tooltip=f"Photos per step, {batch}. Memory grows with it.",
        ),
    ]


def more_steps() -> list[io.Input]:
    """Advanced: of a step of backpropagation."""
    return [
        io.Float.Input(
            "weight_decay",
            default=1e-2,
            min=0.0,
            max=1.0,
            step=1e-4,
            optional=True,
            advanced=True,
            tooltip="Of AdamW, in BP steps. 0.01 is its default.",
        ),
        io.Float.Input(
            "max_grad_norm",
            default=1.0,
            min=0.0,
            max=1e3,
            step=0.1,
            optional=True,
            advanced=True,
            tooltip="Longer gradients are cut to this length in BP steps. 0 turns it off.",
        ),
        io.Float.Input(
            "min_snr_gamma",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.1,
            optional=True,
            advanced=True,
            tooltip="Weighs timesteps by signal to noise, cut at this value (min-SNR, arXiv:2303.09556, uses 5). "
            "0 turns it off.",
        ),
        io.Boolean.Input(
            "gradient_checkpointing",
            default=False,
            optional=True,
            advanced=True,
            tooltip="Compute each block's activations again in the backward pass: less memory, slower BP steps.",
        ),
    ]


def more_memory() -> list[io.Input]:
    """Advanced: what the network itself takes while it is trained."""
    return [
        io.Combo.Input(
            "quantization",
            options=list(QUANTIZATIONS),
            default="none",
            optional=True,
            advanced=True,
            tooltip="Precision of the model's own weights while the run lasts; afterwards they are what they were. "
            "int8 takes about half the memory of 16 bit and is off by 0.6% in most layers, int4 about a third and by "
            "8%. Steps take longer by the time that turning weights back takes, one layer at a time.",
        ),
    ]
