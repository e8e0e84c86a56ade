"""Save LoRA and Save Embedding: into ComfyUI's own folders, where its nodes and prompts find the files."""

import logging

from comfy_api.latest import io

from ..trainers.checkpoint import DTYPES, lora_metadata, save_lora
from ..trainers.embedding_file import embedding_file_name, save_embedding
from ..trainers.token_prompts import embedding_prompt
from ..trainers.weight_files import safetensors_name
from . import host_files
from .sockets import EmbeddingSocket, ReportSocket

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
                _overwrite(),
            ],
            outputs=[io.String.Output("path", tooltip="The file as Load LoRA lists it.")],
        )

    @classmethod
    def execute(cls, lora, filename, report=None, dtype="float16", overwrite=False) -> io.NodeOutput:
        wanted = host_files.model_file("loras", safetensors_name(filename))
        metadata = lora_metadata(lora, wanted.stem, report)
        path = save_lora(lora, wanted, DTYPES[dtype], metadata, overwrite)
        logger.info("Save LoRA: %s", path)
        listed = path.relative_to(host_files.models_root("loras")).as_posix()
        return io.NodeOutput(listed, ui={"text": [listed], "path": [str(path)]})


class SaveEmbedding(io.ComfyNode):
    """Save a learnt token where prompts find it as embedding:NAME. Never replaces a file unless you say so."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EdgeTune_SaveEmbedding",
            display_name="Save Embedding",
            category="training/EdgeTune",
            description=cls.__doc__,
            search_aliases=["save embedding", "textual inversion", "export embedding", "safetensors"],
            is_output_node=True,
            inputs=[
                EmbeddingSocket.Input("embedding", tooltip="The embedding output of a trainer."),
                io.String.Input(
                    "filename",
                    default="",
                    tooltip="Name inside the embeddings folder, sub-folders allowed; .safetensors is added. Prompts "
                    "call the token by it. Empty: the token's own name. If it is taken, a number is added to the new "
                    "file's name.",
                ),
                _overwrite(),
            ],
            outputs=[io.String.Output("path", tooltip="The file inside the embeddings folder.")],
        )

    @classmethod
    def execute(cls, embedding, filename, overwrite=False) -> io.NodeOutput:
        wanted = host_files.model_file("embeddings", embedding_file_name(filename, embedding))
        path = save_embedding(embedding, wanted, overwrite)
        logger.info("Save Embedding: %s", path)
        listed = path.relative_to(host_files.models_root("embeddings"))
        prompt = embedding_prompt(listed.with_suffix("").as_posix())
        return io.NodeOutput(listed.as_posix(), ui={"text": [listed.as_posix(), prompt], "path": [str(path)]})


def _overwrite() -> io.Input:
    return io.Boolean.Input(
        "overwrite",
        default=False,
        optional=True,
        advanced=True,
        tooltip="Replace a file of the same name instead of adding a number.",
    )
