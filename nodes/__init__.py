"""The list of our nodes, as ComfyUI asks for it."""

from comfy_api.latest import ComfyExtension, io

from . import host_runs, host_saves
from .dtap_preview import DTAPPreview
from .evaluate import EvaluateSubject
from .files import SaveEmbedding, SaveLoRA
from .load_pocket_model import LoadPocketModel
from .load_subject import LoadSubjectImages
from .plan_vram import PlanVRAM
from .train_embedding import ZOTextualInversion
from .train_hollow import HollowedNetTrainer
from .train_selective import SelectiveTrainer
from .vram_report import VRAMReport


class EdgeTune(ComfyExtension):
    async def on_load(self) -> None:
        host_runs.add_routes()
        host_saves.add_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            LoadSubjectImages,
            SelectiveTrainer,
            HollowedNetTrainer,
            ZOTextualInversion,
            SaveLoRA,
            SaveEmbedding,
            PlanVRAM,
            VRAMReport,
            DTAPPreview,
            EvaluateSubject,
            LoadPocketModel,
        ]
