"""Hollowed Net Trainer: schema, and the few lines that run it."""

import logging

from comfy_api.latest import io

from ..trainers.activations import DTYPES
from ..trainers.config import SAMPLING, HollowConfig
from ..trainers.hollow import train_hollow
from ..trainers.hollow_forward import MODES, whole
from ..trainers.memory import PhaseMeter
from ..trainers.report import hollow_report
from . import host, host_hollow, host_preview, host_saves, host_two_path, host_ui
from .host_planned import budget, planned_run, preset
from .host_weights import OFFLOAD_DEVICE
from .training import encoded_facts, finished, lora_so_far, models, more_lora, more_memory, more_steps, outputs, seed

logger = logging.getLogger(__name__)

NAME = "hollowed"  # of its saved runs
WHOLE = " The left-out part comes back for it, so where that would need more memory than the run, none is drawn."


class HollowedNetTrainer(io.ComfyNode):
    """Learn a LoRA of your subject on a U-Net whose centre is left out, so that neither its weights nor its gradients
    take memory."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EdgeTune_HollowedNetTrainer",
            display_name="Hollowed Net Trainer",
            category="training/EdgeTune",
            description=cls.__doc__,
            search_aliases=["train lora", "dreambooth", "personalize", "hollowed net", "low memory training"],
            inputs=[
                *models(),
                *_learning(),
                *_hollow(),
                *more_lora("of the same size"),
                *more_steps(),
                *_more_hollow(),
                *more_memory(),
                *host_saves.inputs(),
                budget("gradient_checkpointing, quantization and hollow_fraction"),
                *host_preview.inputs("the instance prompt of the subject", WHOLE),
                preset("feed-forward layers and min_snr_gamma 5 where they fit"),
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
        run = planned_run(node_id, HollowConfig(**settings), model, subject)
        config, meter = run.config, PhaseMeter(model.load_device)
        with run.saved(NAME, subject, save_every, resume, lora_so_far) as saves:
            examples = [example.high for example in host.encode_subject(model, clip, vae, subject, 1.0, meter)]
            saves.check("encoded", encoded_facts(examples))
            every = preview_every if run.plan.has_room_for_pictures else 0
            if every < preview_every:
                logger.warning("preview_every: no pictures, for which this run would need more than was planned")
            prompt, latent = preview_prompt or subject.instance_prompt, examples[0].latent
            previews_on = host_preview.of_lora(every, prompt, model, clip, vae, latent, meter)
            with host.trainable(model, config.quantization) as network:
                previews = previews_on(network, lambda: whole(network.unet, network.device))
                trained = train_hollow(
                    network,
                    examples,
                    config,
                    host.lora_names(model),
                    meter,
                    run.on_step(previews),
                    cache_path=host_hollow.cache_path(),
                    offload_device=OFFLOAD_DEVICE,
                    on_cached=host_ui.cache_reporter(node_id),
                    saves=saves,
                )
        report = hollow_report(config, trained, meter, run.circumstances(subject, network.waiting_bytes))
        logger.info("%s", report.hollow)
        patched = (
            host_two_path.with_two_paths(model, trained.lora, trained.cut, config.mode)
            if config.sampling == "two-path"
            else host.with_lora(model, trained.lora)
        )
        return finished(node_id, (patched, trained.lora), trained.steps, report, saves, previews.batch())


def _learning() -> list[io.Input]:
    return [
        io.Int.Input(
            "steps",
            default=1000,
            min=1,
            max=100_000,
            tooltip="Updates of the LoRA. How many the paper takes is not known.",
        ),
        io.Int.Input(
            "rank",
            default=128,
            min=1,
            max=1024,
            tooltip="Size of the LoRA. 128 in the paper; 4 makes a small file and needs less memory.",
        ),
        io.Float.Input(
            "learning_rate",
            default=1e-4,
            min=1e-6,
            max=1.0,
            step=1e-6,
            tooltip="Of AdamW. The paper's is not known; DreamBooth LoRA recipes use 0.0001.",
        ),
    ]


def _hollow() -> list[io.Input]:
    return [
        io.Float.Input(
            "hollow_fraction",
            default=0.39,
            min=0.01,
            max=0.99,
            step=0.01,
            tooltip="How much of the U-Net to leave out, by parameters. Blocks leave in pairs around its middle, so "
            "the nearest possible share is taken, and the report names it. In the paper the subject was learnt as "
            "well as with the whole U-Net up to about 0.39.",
        ),
        io.Int.Input(
            "cache_samples",
            default=1000,
            min=1,
            max=100_000,
            tooltip="Photos under noise for which the left-out part is run beforehand, one forward pass and about "
            "0.7 MB of disk each (SD 1.5 at 512 px). Fewer start sooner and are seen again and again. Never more are "
            "stored than the steps use.",
        ),
        seed(),
    ]


def _more_hollow() -> list[io.Input]:
    return [
        io.Combo.Input(
            "mode",
            options=list(MODES),
            default="absolute",
            optional=True,
            advanced=True,
            tooltip="absolute puts the stored output in the place of the left-out part, as the paper does. residual "
            "adds what that part adds to its input; it measured no better.",
        ),
        io.Combo.Input(
            "sampling",
            options=list(SAMPLING),
            default="plain",
            optional=True,
            advanced=True,
            tooltip="What the model output does. plain is the whole U-Net with the LoRA in it, as Load LoRA makes it. "
            "two-path is the paper's: the left-out part without the LoRA, the rest with it, at 1.2 to 1.3 times the "
            "arithmetic.",
        ),
        io.Combo.Input(
            "cache_dtype",
            options=list(DTYPES),
            default="float16",
            optional=True,
            advanced=True,
            tooltip="Precision of what is stored. float32 takes twice the disk, and values too large for float16.",
        ),
    ]
