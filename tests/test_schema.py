"""The nodes' faces: names, order and defaults are a contract with saved workflows and with the configs."""

import asyncio
import math
from dataclasses import fields

import pytest
from comfy_api.latest import io
from pack.nodes import EdgeTune
from pack.nodes.dtap_preview import DTAPPreview
from pack.nodes.train_embedding import ZOTextualInversion
from pack.nodes.train_hollow import HollowedNetTrainer
from pack.nodes.train_selective import SelectiveTrainer
from pack.trainers.activations import DTYPES
from pack.trainers.config import SAMPLING, TOKEN_CHOICES, HollowConfig, SelectiveConfig, TokenConfig
from pack.trainers.hollow_forward import MODES
from pack.trainers.lora import TARGETS
from pack.trainers.schedule import STRATEGIES

NODES = asyncio.run(EdgeTune().get_node_list())
TRAINERS = [(SelectiveTrainer, SelectiveConfig), (HollowedNetTrainer, HollowConfig), (ZOTextualInversion, TokenConfig)]
TRAINER_INPUTS = ["model", "clip", "vae", "subject"]
NOT_LEARNING = [
    "save_every",
    "resume",
    "preview_every",
    "preview_prompt",
]  # inputs that change nothing of what is learnt: not in the config
TRAINER_OUTPUTS = {"model": "MODEL", "lora": "LORA_MODEL", "loss": "LOSS_MAP", "report": "EDGETUNE_REPORT"}
CHOICES = {
    "strategy": list(STRATEGIES),
    "target_modules": list(TARGETS),
    "mode": list(MODES),
    "sampling": list(SAMPLING),
    "cache_dtype": list(DTYPES),
    **{name: list(choices) for name, choices in TOKEN_CHOICES.items()},
}
PARTNERS = {"t_low": {"t_high": 1000}, "t_high": {"t_low": 0}}  # one limits the other

# node id -> display name, required inputs, optional inputs, outputs: the table of the design, in its order.
TABLE = {
    "EdgeTune_LoadSubjectImages": (
        "Load Subject Images",
        ["folder", "instance_prompt", "resolution"],
        ["images", "class_prompt", "captions", "crop", "flip"],
        {"subject": "EDGETUNE_SUBJECT", "images": "IMAGE", "report": "STRING"},
    ),
    "EdgeTune_SelectiveTrainer": (
        "Selective BP/ZO Trainer",
        TRAINER_INPUTS
        + ["steps", "rank", "learning_rate", "zo_learning_rate", "zo_epsilon", "zo_perturbations"]
        + ["low_res_ratio", "k", "t_mid", "strategy", "seed"],
        [],
        TRAINER_OUTPUTS,
    ),
    "EdgeTune_HollowedNetTrainer": (
        "Hollowed Net Trainer",
        TRAINER_INPUTS + ["steps", "rank", "learning_rate", "hollow_fraction", "cache_samples", "seed"],
        [],
        TRAINER_OUTPUTS,
    ),
    "EdgeTune_ZOTextualInversion": (
        "Quantize + ZO Textual Inversion",
        TRAINER_INPUTS
        + ["token", "initial_word", "steps", "learning_rate", "quantization", "zo_perturbations", "zo_epsilon"]
        + ["t_low", "t_high", "seed"],
        [],
        {
            "clip": "CLIP",
            "embedding": "EDGETUNE_EMBEDDING",
            "prompt": "STRING",
            "loss": "LOSS_MAP",
            "report": "EDGETUNE_REPORT",
        },
    ),
    "EdgeTune_DTAPPreview": (
        "DTAP Scheduler Preview",
        ["steps", "t_max", "t_mid", "k"],
        ["low_res_ratio", "zo_perturbations"],
        {"plot": "IMAGE", "summary": "STRING"},
    ),
    "EdgeTune_PlanVRAM": (
        "Plan VRAM",
        ["model", "method", "resolution"],
        ["budget_gb"],
        {"plan": "EDGETUNE_REPORT", "text": "STRING"},
    ),
    "EdgeTune_VRAMReport": ("VRAM Report", ["report"], [], {"plot": "IMAGE", "text": "STRING"}),
    "EdgeTune_SaveLoRA": ("Save LoRA", ["lora", "filename"], ["report"], {"path": "STRING"}),
    "EdgeTune_SaveEmbedding": ("Save Embedding", ["embedding", "filename"], [], {"path": "STRING"}),
    "EdgeTune_EvaluateSubject": (
        "Evaluate Subject",
        ["images", "subject"],
        ["clip_vision"],
        {"text": "STRING", "scores": "EDGETUNE_REPORT", "sheet": "IMAGE"},
    ),
    "EdgeTune_LoadPocketModel": ("Load Pocket Model", [], [], {"model": "MODEL", "clip": "CLIP", "vae": "VAE"}),
}


def schema(node: type[io.ComfyNode]) -> io.Schema:
    return node.GET_SCHEMA()


def inputs(node: type[io.ComfyNode]) -> dict[str, io.Input]:
    return {item.id: item for item in schema(node).inputs}


every_node = pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
every_trainer = pytest.mark.parametrize("node, config", TRAINERS, ids=lambda item: item.__name__)
every_input = pytest.mark.parametrize(
    "item", [pytest.param(item, id=f"{node.__name__}-{name}") for node in NODES for name, item in inputs(node).items()]
)


@every_node
def test_a_node_is_as_the_design_says(node):
    found = schema(node)
    display_name, required, optional, outputs = TABLE[found.node_id]
    assert (found.display_name, found.category) == (display_name, "training/EdgeTune")
    assert [item.id for item in found.inputs if not item.optional] == required
    assert [item.id for item in found.inputs if item.id in optional] == optional
    assert [item.id for item in found.inputs][: len(required)] == required  # optional ones stand behind
    assert [(item.id, item.io_type) for item in found.outputs] == list(outputs.items())


def test_no_two_nodes_share_a_name():
    assert len({schema(node).node_id for node in NODES}) == len({schema(node).display_name for node in NODES})
    assert len({schema(node).node_id for node in NODES}) == len(NODES)


@every_node
def test_a_node_says_what_it_does(node):
    assert schema(node).description.strip()
    assert node.__name__ == schema(node).node_id.removeprefix("EdgeTune_")


@every_input
def test_every_input_has_a_tooltip(item):
    assert item.tooltip and item.tooltip.strip()


@every_input
def test_every_default_is_a_value_the_widget_allows(item):
    default = getattr(item, "default", None)
    if isinstance(item, (io.Int.Input, io.Float.Input)):
        assert item.min is not None and item.max is not None
        assert item.min <= default <= item.max and math.isfinite(item.max)
    if isinstance(item, io.Combo.Input):
        assert item.options and default in [None, *item.options]


@every_input
def test_the_widget_does_not_round_its_own_steps_away(item):
    """The canvas keeps p decimals of a number, p = -floor(log10(step)) (frontend 1.47, useFloatWidget), whatever
    `round` says: a step of 0.125 would turn 0.625 into 0.6."""
    if isinstance(item, io.Float.Input):
        decimals = max(0, -math.floor(math.log10(item.step or 0.5)))
        for value in (item.step or 0.5, item.default, item.min):
            assert math.isclose(round(value, decimals), value, rel_tol=1e-6, abs_tol=1e-12)


@pytest.mark.parametrize("node", [SelectiveTrainer, DTAPPreview], ids=lambda node: node.__name__)
def test_the_paper_s_ratios_survive_the_widget(node):
    item = inputs(node)["low_res_ratio"]
    decimals = max(0, -math.floor(math.log10(item.step)))
    assert [round(ratio, decimals) for ratio in (0.5, 0.625, 0.75)] == [0.5, 0.625, 0.75]


@every_trainer
def test_a_trainer_offers_the_fields_of_its_config(node, config):
    """Same names, same order, same defaults; a new field of the config has to become an input."""
    offered = list(inputs(node).values())
    assert [item.id for item in offered[: len(TRAINER_INPUTS)]] == TRAINER_INPUTS
    settings = [item for item in offered[len(TRAINER_INPUTS) :] if item.id not in NOT_LEARNING]
    assert [(item.id, item.default) for item in settings] == [(field.name, field.default) for field in fields(config)]
    assert [type(item.default) for item in settings] == [type(field.default) for field in fields(config)]


@every_trainer
def test_a_trainer_offers_the_choices_its_config_takes(node, config):
    for name, choices in CHOICES.items():
        if name in inputs(node):
            assert inputs(node)[name].options == choices
            for choice in choices:
                config(**{name: choice})


@every_trainer
def test_the_config_takes_whatever_the_widgets_allow(node, config):
    """Nothing that can be dialled in is refused afterwards."""
    for item in inputs(node).values():
        if isinstance(item, (io.Int.Input, io.Float.Input)) and item.id not in NOT_LEARNING:
            for value in (item.min, item.max):
                assert getattr(config(**PARTNERS.get(item.id, {}), **{item.id: value}), item.id) == value


@every_trainer
def test_advanced_inputs_are_optional_and_the_other_way_round(node, config):
    assert all(bool(item.advanced) == bool(item.optional) for item in inputs(node).values())
