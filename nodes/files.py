"""Save LoRA: into ComfyUI's own loras folder, where Load LoRA lists it."""

import logging

from comfy_api.latest import io

from ..trainers.checkpoint import DTYPES, lora_metadata, save_lora
from ..trainers.weight_files import safetensors_name
from . import host_files
from .sockets import ReportSocket

logger = logging.getLogger(__name__)


class SaveLoRA(io.ComfyNode):
    """Save a trained LoRA with its metadata where Load LoRA finds it. Never replaces a file unless you say so."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EdgeTune_SaveLoRA",
            display_name="Save LoRA",
            category="training/EdgeTune",
            description=cls.__doc__,
            search_aliases=["save lora", "export lora", "kohya", "safetensors"],
            is_output_node=True,
            inputs=[
                io.LoraModel.Input("lora", tooltip="The lora output of a trainer."),
                io.String.Input(
                    "filename",
                    default="edgetune/my_subject",
                    tooltip="Name inside the loras folder, sub-folders allowed; .safetensors is added. If it is taken, "
                    "a number is added to the new file's name.",
                ),
                ReportSocket.Input(
                    "report", optional=True, tooltip="Prompt, settings and figures of the run go into the file."
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="float16",
                    optional=True,
                    advanced=True,
                    tooltip="float16 is what every program reads; float32 keeps every bit.",
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Replace a file of the same name instead of adding a number.",
                ),
            ],
            outputs=[io.String.Output("path", tooltip="The file as Load LoRA lists it.")],
        )

    @classmethod
    def execute(cls, lora, filename, report=None, dtype="float16", overwrite=False) -> io.NodeOutput:
        wanted = host_files.lora_file(safetensors_name(filename))
        metadata = lora_metadata(lora, wanted.stem, report)
        path = save_lora(lora, wanted, DTYPES[dtype], metadata, overwrite)
        logger.info("Save LoRA: %s", path)
        listed = path.relative_to(host_files.loras_root()).as_posix()
        return io.NodeOutput(listed, ui={"text": [listed], "path": [str(path)]})
