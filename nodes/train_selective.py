"""Selective BP/ZO Trainer: schema, and the few lines that run it."""

from comfy_api.latest import io

from ..trainers.config import SelectiveConfig
from ..trainers.memory import PhaseMeter
from ..trainers.report import selective_report
from ..trainers.schedule import STRATEGIES
from ..trainers.selective import train_selective
from . import host, host_preview, host_saves
from .host_planned import budget, planned_run, preset
from .training import encoded_facts, finished, lora_so_far, models, more_lora, more_memory, more_steps, outputs, seed

NAME = "selective"  # of its saved runs


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
            inputs=[
                *models(),
                *_learning(),
                *_choice(),
                *more_lora("of the same size, at one timestep"),
                *more_steps(),
                *more_memory(),
                *host_saves.inputs(),
                *host_preview.inputs("the instance prompt of the subject"),
                budget("gradient_checkpointing, quantization and low_res_ratio"),
                preset("strategy bp_high, rank 16, feed-forward layers and min_snr_gamma 5 where they fit"),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        vae,
        subject,
        save_every=100,
        resume=host_saves.OFF,
        preview_every=0,
        preview_prompt="",
        **settings,
    ) -> io.NodeOutput:
        node_id = cls.hidden.unique_id
        run = planned_run(node_id, SelectiveConfig(**settings), model, subject)
        config, meter = run.config, PhaseMeter(model.load_device)
        with run.saved(NAME, subject, save_every, resume, lora_so_far) as saves:
            examples = host.encode_subject(model, clip, vae, subject, config.low_res_ratio, meter)
            saves.check("encoded", encoded_facts([example.high for example in examples]))
            prompt, latent = preview_prompt or subject.instance_prompt, examples[0].high.latent
            previews_on = host_preview.of_lora(preview_every, prompt, model, clip, vae, latent, meter)
            with host.trainable(model, config.quantization) as network:
                previews = previews_on(network)
                names, on_step = host.lora_names(model), run.on_step(previews)
                trained = train_selective(network, examples, config, names, meter, on_step, saves)
        given = run.circumstances(subject, network.waiting_bytes)
        report = selective_report(config, trained.steps, meter, given)
        patched = host.with_lora(model, trained.lora)
        return finished(node_id, (patched, trained.lora), trained.steps, report, saves, previews.batch())


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
        seed(),
    ]
