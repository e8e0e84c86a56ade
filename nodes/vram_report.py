"""VRAM Report: where the bytes of a run were, beside the plan and the paper."""

from comfy_api.latest import io, ui

from ..trainers.memory_plots import memory_image
from ..trainers.memory_view import memory_json, memory_text, memory_view
from ..trainers.plan import Plan
from ..trainers.report import Report
from .sockets import ReportSocket


class VRAMReport(io.ComfyNode):
    """Shows what a training run held in memory, when, and what for: weights, LoRA, activations. Beside it stand the
    plan, where there is one, and the figure of the method's paper, where it has one. Also draws the plan of a run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EdgeTune_VRAMReport",
            display_name="VRAM Report",
            category="training/EdgeTune",
            description=cls.__doc__,
            search_aliases=["memory", "vram", "peak memory", "out of memory", "profiler"],
            is_output_node=True,
            inputs=[
                ReportSocket.Input("report", tooltip="The report of a trainer, or the plan of Plan VRAM."),
                io.Combo.Input(
                    "format", options=["text", "json"], default="text", optional=True, tooltip="Form of the text."
                ),
            ],
            outputs=[io.Image.Output("plot"), io.String.Output("text")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, report, format: str = "text") -> io.NodeOutput:
        if not isinstance(report, Report | Plan):
            raise ValueError(
                f"report: got {type(report).__name__}, which has no memory in it; connect the report of a trainer or "
                f"the plan of Plan VRAM"
            )
        text = memory_json(report) if format == "json" else memory_text(report)
        plot = memory_image(memory_view(report))
        return io.NodeOutput(plot, text, ui=ui.PreviewImage(plot, cls=cls).as_dict() | {"text": [text]})
