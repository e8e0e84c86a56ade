"""Plan VRAM: what a run would take, before there is a subject, and with nothing loaded."""

import logging

from comfy_api.latest import io

from ..trainers.config import OFF, PRESETS, TOKEN_CHOICES, HollowConfig, SelectiveConfig, TokenConfig
from ..trainers.crops import MULTIPLE
from ..trainers.lora import TARGETS
from ..trainers.photos import MAX_RESOLUTION, MIN_RESOLUTION
from ..trainers.presets import settled_or_advised
from ..trainers.quantize import QUANTIZATIONS
from ..trainers.schedule import STRATEGIES
from . import host_plan
from .sockets import ReportSocket

logger = logging.getLogger(__name__)

METHODS = {
    "Selective BP/ZO Trainer": SelectiveConfig,
    "Hollowed Net Trainer": HollowConfig,
    "Quantize + ZO Textual Inversion": TokenConfig,
}
DEFAULT = "default"  # of the method, where methods differ


class PlanVRAM(io.ComfyNode):
    """Shows whether a training run fits into memory, and what would make it fit, before you start it. The trainer's own
    steps run on tensors that hold nothing: it takes seconds, loads nothing, and does not touch the model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EdgeTune_PlanVRAM",
            display_name="Plan VRAM",
            category="training/EdgeTune",
            description=cls.__doc__,
            search_aliases=["memory", "vram", "budget", "out of memory", "low memory training"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model you want to train: SD 1.x, SD 2.x, SDXL or SSD-1B."),
                io.Combo.Input(
                    "method", options=list(METHODS), default=next(iter(METHODS)), tooltip="The trainer to plan for."
                ),
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=MIN_RESOLUTION,
                    max=MAX_RESOLUTION,
                    step=MULTIPLE,
                    tooltip="Pixels of a side of the photos, as in Load Subject Images.",
                ),
                *_settings(),
                *_token(),
                io.Float.Input(
                    "budget_gb",
                    default=0.0,
                    min=0.0,
                    max=1024.0,
                    step=0.01,
                    optional=True,
                    tooltip="Memory the run may take, 1 GB being 1,024 MiB; on a GPU its own context counts. The plan "
                    "chooses settings as the trainers do with this budget. 0 sets no limit.",
                ),
                io.Combo.Input(
                    "format", options=["text", "json"], default="text", optional=True, tooltip="Form of the text."
                ),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default=OFF,
                    optional=True,
                    tooltip="As on the trainers, which also set the steps by the number of photos.",
                ),
            ],
            outputs=[
                ReportSocket.Output("plan", tooltip="For VRAM Report, which draws it."),
                io.String.Output("text", tooltip="The plan in words, or as JSON."),
            ],
        )

    @classmethod
    def execute(cls, model, method, resolution, clip=None, budget_gb=0.0, format="text", **settings) -> io.NodeOutput:
        if resolution % MULTIPLE:
            raise ValueError(f"resolution: got {resolution}, needs to be a multiple of {MULTIPLE}")
        config = _config(METHODS[method], settings | {"budget_gb": budget_gb})
        planner = host_plan.Planner(
            model, host_plan.facts_for(model, config), (resolution, resolution), resolution, clip
        )
        plan = settled_or_advised(config, planner)
        logger.info(plan.summary())
        text = plan.to_json() if format == "json" else str(plan)
        return io.NodeOutput(plan, text, ui={"text": [text]})


def _config(kind: type, settings: dict) -> SelectiveConfig | HollowConfig | TokenConfig:
    """The method's settings; what it does not have, and what is left to its own default, is left out."""
    names = kind.__dataclass_fields__
    chosen = {name: value for name, value in settings.items() if name in names and value not in (DEFAULT, 0)}
    return kind(**chosen)


def _settings() -> list[io.Input]:
    """Those that make a run larger or smaller, of the LoRA trainers."""
    return [
        _whole("rank", 1024, "Size of the LoRA. 0: the trainer's default, 4 or 128."),
        _whole("batch_size", 64, "Photos per step. 0: the default, 1."),
        io.Float.Input(
            "low_res_ratio",
            default=SelectiveConfig.low_res_ratio,
            min=0.25,
            max=1.0,
            step=0.005,
            optional=True,
            tooltip="Of the Selective BP/ZO Trainer.",
        ),
        io.Combo.Input(
            "strategy",
            options=list(STRATEGIES),
            default=SelectiveConfig.strategy,
            optional=True,
            tooltip="Of the Selective BP/ZO Trainer.",
        ),
        io.Float.Input(
            "hollow_fraction",
            default=HollowConfig.hollow_fraction,
            min=0.01,
            max=0.99,
            step=0.01,
            optional=True,
            tooltip="Of the Hollowed Net Trainer.",
        ),
        io.Combo.Input(
            "target_modules",
            options=list(TARGETS),
            default=SelectiveConfig.target_modules,
            optional=True,
            tooltip="Which layers get a LoRA.",
        ),
        io.Boolean.Input(
            "gradient_checkpointing",
            default=False,
            optional=True,
            tooltip="Of the two LoRA trainers.",
        ),
        io.Combo.Input(
            "quantization",
            options=[DEFAULT, *QUANTIZATIONS],
            default=DEFAULT,
            optional=True,
            tooltip="Precision of the model's weights while the run lasts. default: the trainer's own, which is none "
            "for a LoRA and int8 for a token.",
        ),
    ]


def _token() -> list[io.Input]:
    """Those of textual inversion."""
    return [
        _whole(
            "zo_perturbations", 256, "Of Quantize + ZO Textual Inversion: more make a larger batch. 0: its default."
        ),
        io.Combo.Input(
            "candidates",
            options=list(TOKEN_CHOICES["candidates"]),
            default=TokenConfig.candidates,
            optional=True,
            tooltip="Of Quantize + ZO Textual Inversion. auto is planned as a batch.",
        ),
        io.Combo.Input(
            "difference",
            options=list(TOKEN_CHOICES["difference"]),
            default=TokenConfig.difference,
            optional=True,
            tooltip="Of Quantize + ZO Textual Inversion: central makes a larger batch.",
        ),
        io.Clip.Input(
            "clip",
            optional=True,
            tooltip="For Quantize + ZO Textual Inversion, where the text encoder stays on the device and counts.",
        ),
    ]


def _whole(name: str, largest: int, tooltip: str) -> io.Input:
    return io.Int.Input(name, default=0, min=0, max=largest, optional=True, tooltip=tooltip)
