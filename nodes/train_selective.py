"""Selective BP/ZO Trainer: schema, and the few lines that run it."""

import logging

from comfy_api.latest import io

from ..trainers.config import SelectiveConfig
from ..trainers.lora import TARGETS
from ..trainers.memory import PhaseMeter
from ..trainers.report import selective_report
from ..trainers.schedule import STRATEGIES
from ..trainers.selective import train_selective
from . import host, host_ui
from .sockets import ReportSocket, SubjectSocket, loss_map

logger = logging.getLogger(__name__)


class SelectiveTrainer(io.ComfyNode):
    """Learn a LoRA of your subject: backpropagation on small images, forward-only steps on full-size ones."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EdgeTune_SelectiveTrainer",
            display_name="Selective BP/ZO Trainer",
            category="training/EdgeTune",
            description=cls.__doc__,
            search_aliases=["train lora", "dreambooth", "personalize", "DTAP", "MeZO", "low memory training"],
            inputs=[*_models(), *_learning(), *_choice(), *_more_lora(), *_more_steps()],
            outputs=[
                io.Model.Output("model", tooltip="The model with the new LoRA at strength 1, ready for KSampler."),
                io.LoraModel.Output("lora", tooltip="For Save LoRA, or core's Load LoRA Model at another strength."),
                io.LossMap.Output("loss", tooltip="For core's Plot Loss Graph."),
                ReportSocket.Output("report", tooltip="Time, steps, losses and peak memory. Preview as Text shows it."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, clip, vae, subject, **settings) -> io.NodeOutput:
        config = SelectiveConfig(**settings)
        facts = host.model_facts(model)
        meter = PhaseMeter(facts.device)
        examples = host.encode_subject(model, clip, vae, subject, config.low_res_ratio, meter)
        on_step = host_ui.step_reporter(cls.hidden.unique_id, config.steps)
        with host.trainable(model) as network:
            trained = train_selective(network, examples, config, host.lora_names(model), meter, on_step)
        report = selective_report(
            config,
            trained.steps,
            meter,
            base_model=facts.base_version,
            prediction_type=facts.prediction_type,
            instance_prompt=subject.instance_prompt,
            resolution=subject.resolution,
            device=facts.device_name,
            dtype=str(facts.dtype).removeprefix("torch."),
        )
        logger.info(report.summary())
        host_ui.send_done(cls.hidden.unique_id, report.summary())
        return io.NodeOutput(
            host.with_lora(model, trained.lora),
            trained.lora,
            loss_map([step.loss for step in trained.steps]),
            report,
            ui={"text": [str(report)], "report": [report.to_json()]},
        )


def _models() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="SD 1.x, SD 2.x, SDXL or SSD-1B. It is trained in place and left as it was."),
        io.Clip.Input("clip", tooltip="The text encoder of the same checkpoint. Used once, before training."),
        io.Vae.Input("vae", tooltip="The VAE of the same checkpoint. Used once, before training."),
        SubjectSocket.Input("subject", tooltip="From Load Subject Images."),
    ]


def _learning() -> list[io.Input]:
    return [
        io.Int.Input("steps", default=1000, min=1, max=100_000, tooltip="Updates of the LoRA. 1000 in the paper."),
        io.Int.Input("rank", default=4, min=1, max=1024, tooltip="Size of the LoRA. 4 in the paper."),
        io.Float.Input(
            "learning_rate",
            default=1e-4,
            min=1e-6,
            max=1.0,
            step=1e-6,
            tooltip="Of AdamW, in BP steps. The paper gives none. DreamBooth LoRA recipes use 0.0001, and on a small "
            "U-Net it was the highest that left other subjects nearly alone (tests/bench/defaults.py).",
        ),
        io.Float.Input(
            "zo_learning_rate",
            default=1e-2,
            min=1e-6,
            max=10.0,
            step=1e-6,
            tooltip="Of plain SGD, in ZO steps. The paper gives none. On a small U-Net with 4 perturbations "
            "0.3 learnt most and 1 diverged (tests/bench/defaults.py); 0.01 keeps a distance from that.",
        ),
        io.Float.Input(
            "zo_epsilon",
            default=1e-2,
            min=1e-5,
            max=1.0,
            step=1e-5,
            tooltip="How far a ZO step moves the LoRA to either side to feel the slope. The paper gives none. Slopes "
            "at 0.01 are off by 0.3% in float32, by 6% in float16; bfloat16 wants 0.03 (tests/bench/defaults.py).",
        ),
        io.Int.Input(
            "zo_perturbations",
            default=4,
            min=1,
            max=256,
            tooltip="Random directions a ZO step averages over, two forward passes each. The paper gives none.",
        ),
    ]


def _choice() -> list[io.Input]:
    return [
        io.Float.Input(
            "low_res_ratio",
            default=0.5,
            min=0.25,
            max=1.0,
            step=0.005,  # the canvas rounds to the decimals of the step, and 0.625 has to survive
            tooltip="Side of the images in BP steps over the full side: less is faster and smaller. 0.5, 0.625 and "
            "0.75 in the paper.",
        ),
        io.Float.Input(
            "k",
            default=0.05,
            min=0.0,
            max=10.0,
            step=0.001,
            tooltip="How sharply BP gives way to ZO around the midpoint, per timestep. 0.05 in the paper.",
        ),
        io.Int.Input(
            "t_mid",
            default=750,
            min=0,
            max=1000,
            tooltip="Timestep at which BP and ZO are equally likely halfway through the run. 750 in the paper.",
        ),
        io.Combo.Input(
            "strategy",
            options=list(STRATEGIES),
            default="dtap",
            tooltip="dtap is the paper's method; the others are its comparisons. bp_high is a plain LoRA training "
            "at full size, bp_low one at low_res_ratio.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**64 - 1,
            # fixed: a second Run of an unchanged graph is then served from ComfyUI's cache, not trained anew
            control_after_generate=io.ControlAfterGenerate.fixed,
            tooltip="Of everything random in the run. The same seed on the same machine gives the same LoRA.",
        ),
    ]


def _more_lora() -> list[io.Input]:
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
            tooltip="Photos per step, of the same size, at one timestep. Memory grows with it.",
        ),
    ]


def _more_steps() -> list[io.Input]:
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
