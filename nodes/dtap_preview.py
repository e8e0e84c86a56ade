"""DTAP Scheduler Preview: what a selective run would do and cost, before it is started."""

import json

from comfy_api.latest import io, ui

from ..trainers.plots import schedule_image
from ..trainers.schedule import LABELS, STRATEGIES, Expected, bp_name, expected_steps


class DTAPPreview(io.ComfyNode):
    """Shows when a Selective BP/ZO run trains by backpropagation on small images (BP-low) and when by zeroth-order
    steps on full-size ones (ZO-high), how many of each to expect, and what the run costs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EdgeTune_DTAPPreview",
            display_name="DTAP Scheduler Preview",
            category="training/EdgeTune",
            description=cls.__doc__,
            search_aliases=["training schedule", "timestep sampling", "BP-low", "ZO-high", "noise schedule"],
            is_output_node=True,
            inputs=[
                io.Int.Input("steps", default=1000, min=1, max=100_000, tooltip="Training steps of the run."),
                io.Int.Input(
                    "t_max",
                    default=1000,
                    min=1,
                    max=10_000,
                    tooltip="Timesteps of the model; 1000 for Stable Diffusion.",
                ),
                io.Int.Input(
                    "t_mid",
                    default=750,
                    min=0,
                    max=10_000,
                    tooltip="Timestep at which both kinds of step are equally likely; dtap: halfway through the run. "
                    "Lower means more ZO-high steps.",
                ),
                io.Float.Input(
                    "k",
                    default=0.05,
                    min=-10.0,
                    max=10.0,
                    step=0.001,
                    tooltip="How sharply the choice changes around the midpoint, per timestep.",
                ),
                io.Float.Input(
                    "low_res_ratio",
                    default=0.5,
                    min=0.25,
                    max=1.0,
                    step=0.005,
                    optional=True,
                    tooltip="Side of the small images over the side of the full-size ones. For the cost only.",
                ),
                io.Int.Input(
                    "zo_perturbations",
                    default=4,
                    min=1,
                    max=64,
                    optional=True,
                    tooltip="Perturbations of a ZO-high step, two forward passes each. For the cost only.",
                ),
                io.Combo.Input(
                    "strategy",
                    options=list(STRATEGIES),
                    default="dtap",
                    optional=True,
                    tooltip="How the kind of a step is chosen. dtap is the paper's method, the others its comparisons.",
                ),
                io.Combo.Input(
                    "format", options=["text", "json"], default="text", optional=True, tooltip="Form of the summary."
                ),
            ],
            outputs=[io.Image.Output("plot"), io.String.Output("summary")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls,
        steps: int,
        t_max: int,
        t_mid: int,
        k: float,
        low_res_ratio: float = 0.5,
        zo_perturbations: int = 4,
        strategy: str = "dtap",
        format: str = "text",
    ) -> io.NodeOutput:
        schedule = dict(strategy=strategy, steps=steps, k=k, t_mid=t_mid, t_max=t_max)
        expected = expected_steps(**schedule)
        cost = expected.forward_equivalents(zo_perturbations, low_res_ratio)
        settings = schedule | dict(low_res_ratio=low_res_ratio, zo_perturbations=zo_perturbations)
        summary = _as_json(expected, cost, settings) if format == "json" else _as_text(expected, cost, steps)
        plot = schedule_image(**schedule)
        return io.NodeOutput(plot, summary, ui=ui.PreviewImage(plot, cls=cls).as_dict() | {"text": [summary]})


def _as_text(expected: Expected, cost: float, steps: int) -> str:
    bp, zo = expected.rounded()
    first_10, first_50 = (step or "never" for step in (expected.first_step_10, expected.first_step_50))
    return (
        f"{LABELS[expected.strategy]}, {steps} steps: {bp} {bp_name(expected.strategy)} and {zo} ZO-high expected.\n"
        f"Cost: about {cost:,.0f} full-size forward passes; backpropagation at full size takes {3 * steps:,}.\n"
        f"First step with a 10% chance of ZO-high: {first_10}; with 50%: {first_50}."
    )


def _as_json(expected: Expected, cost: float, settings: dict) -> str:
    record = expected._asdict() | {"forward_equivalents": cost, "settings": settings}
    return json.dumps(record, indent=2)
