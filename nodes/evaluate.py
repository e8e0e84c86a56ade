"""Evaluate Subject: is it my dog, and does it follow the prompt?"""

import logging
from functools import partial

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..trainers.evaluation import prompt_cosines, prompts_for, subject_scores
from ..trainers.evaluation_sheet import contact_sheet
from ..trainers.image_features import pocket_features
from ..trainers.photos import Subject
from . import host_vision
from .sockets import ReportSocket, SubjectSocket

logger = logging.getLogger(__name__)

FEATURES = ("auto", "clip vision", "efficientnet", "pocket judges")
UNCONNECTED = object()
OWN = {
    "efficientnet": ("EfficientNet-Lite0", host_vision.small_features),
    "pocket judges": ("pocket judges", pocket_features),
}


class EvaluateSubject(io.ComfyNode):
    """Score how near pictures come to a subject's photos, and to their prompt: means, intervals, a contact sheet."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EdgeTune_EvaluateSubject",
            display_name="Evaluate Subject",
            category="training/EdgeTune",
            description=cls.__doc__,
            search_aliases=["DINO", "CLIP-I", "CLIP-T", "DreamBooth metrics", "similarity", "subject fidelity"],
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="Generated pictures, such as VAE Decode gives them."),
                SubjectSocket.Input("subject", tooltip="From Load Subject Images: the photos to compare with."),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="From Load CLIP Vision. A CLIP ViT gives CLIP-I, a DINOv2 gives DINO, which looks more at "
                    "which thing it is and less at what kind.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="For the prompt's score (CLIP-T): the text encoder of clip_vision's CLIP, from Load CLIP.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="What the pictures shall show, without the rare word: a photo of a dog on the beach. One "
                    "line, or a line for each picture. Empty: the prompt is not scored.",
                ),
                io.Combo.Input(
                    "features",
                    options=list(FEATURES),
                    default="auto",
                    optional=True,
                    tooltip="What compares. auto: clip_vision where it is connected, else efficientnet, which needs "
                    "two small packages and no download. pocket judges know the pocket model's toys and nothing else.",
                ),
                io.Combo.Input(
                    "format", options=["text", "json"], default="text", optional=True, tooltip="Form of the text."
                ),
            ],
            outputs=[
                io.String.Output("text", tooltip="Means with 95% intervals, and a line for each picture."),
                ReportSocket.Output("scores", tooltip="The same as a record."),
                io.Image.Output("sheet", tooltip="The photos, and the pictures with their scores. * marks the best."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, prompt="", features="auto", clip_vision=UNCONNECTED, clip=UNCONNECTED) -> bool | str:
        """What is missing is said before anything runs, not after a training. None is what another node gives."""
        try:
            if features is not None:
                _check_features(features, clip_vision is not UNCONNECTED)
            if prompt and prompt.strip():
                _check_connected(clip_vision=clip_vision is not UNCONNECTED, clip=clip is not UNCONNECTED)
        except (ValueError, host_vision.MissingPackage) as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, images, subject, clip_vision=None, clip=None, prompt="", features="auto", format="text"
    ) -> io.NodeOutput:
        name, of_pictures, of_photos = _features(features, clip_vision, images, subject)
        prompts = prompts_for(prompt, len(images)) if prompt.strip() else []
        along_prompt = _prompt_cosines(clip_vision, clip, images, prompts) if prompts else None
        names = [photo.name for photo in subject.photos]
        scores = subject_scores(name, of_pictures, of_photos, names, along_prompt, prompts)
        sheet = contact_sheet([photo.image for photo in subject.photos], images, scores)
        logger.info("Evaluate Subject: %s", scores.summary())
        text = scores.to_json() if format == "json" else str(scores)
        return io.NodeOutput(text, scores, sheet, ui=ui.PreviewImage(sheet, cls=cls).as_dict() | {"text": [text]})


def _check_features(features: str, has_vision: bool) -> str:
    """One of FEATURES but auto. Raises where it is none of them, or needs what is not there."""
    if features == "auto":
        features = "clip vision" if has_vision else "efficientnet"
    if features not in FEATURES:
        raise ValueError(f"features: got {features!r}, needs to be one of {', '.join(FEATURES)}")
    if features == "clip vision" and not has_vision:
        raise ValueError("clip_vision: features is clip vision, but nothing is connected; connect Load CLIP Vision")
    if features == "efficientnet":
        host_vision.check_packages()
    return features


def _check_connected(**sockets: bool) -> None:
    for socket, is_connected in sockets.items():
        if not is_connected:
            raise ValueError(
                f"{socket}: nothing is connected, but prompt is not empty; the prompt's score needs the vision model "
                f"and the text encoder of one CLIP. Connect both, or leave prompt empty"
            )


def _features(features: str, clip_vision, images: Tensor, subject: Subject) -> tuple[str, Tensor, Tensor]:
    """Whose features, those of the pictures and those of the photos, which may differ in size."""
    features = _check_features(features, clip_vision is not None)
    if features == "clip vision":
        name, function = host_vision.vision_name(clip_vision), partial(host_vision.vision_features, clip_vision)
    else:
        name, function = OWN[features]
    photos, pictures = torch.cat([function(photo.image[None]) for photo in subject.photos]), function(images)
    for what, found in (("photos of the subject", photos), ("images", pictures)):
        if not torch.isfinite(found).all():
            raise ValueError(
                f"{name}: its features of the {what} are not finite numbers; the file of the vision model is damaged, "
                f"or the pictures are"
            )
    return name, pictures, photos


def _prompt_cosines(clip_vision, clip, images: Tensor, prompts: list[str]) -> list[float]:
    _check_connected(clip_vision=clip_vision is not None, clip=clip is not None)
    pictures = host_vision.vision_features(clip_vision, images)
    return prompt_cosines(pictures, host_vision.text_features(clip, prompts, pictures.shape[1]))
