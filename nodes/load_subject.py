"""Load Subject Images: the photos every trainer of the pack learns from."""

from comfy_api.latest import io, ui

from ..trainers.captions import CAPTIONS
from ..trainers.crops import CROPS
from ..trainers.photo_files import folder_fingerprint
from ..trainers.photo_report import photo_report
from ..trainers.photos import (
    MAX_RESOLUTION,
    MIN_RESOLUTION,
    SubjectSettings,
    image_batch,
    load_subject,
    shaded_batch,
    subject_from_images,
)
from .host_files import PhotoFolder, photo_folder, photo_folders
from .sockets import SubjectSocket

IMAGES_INPUT = "(images input)"
SHOWN = 16  # photos on the node after a run
UNCONNECTED = "unconnected"  # ComfyUI passes None for a connected input before it has run, and nothing for an open one


class LoadSubjectImages(io.ComfyNode):
    """Load 3 to 6 photos of one dog, toy or shoe, make them ready for training, and report what was done to each."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EdgeTune_LoadSubjectImages",
            display_name="Load Subject Images",
            category="training/EdgeTune",
            description=cls.__doc__,
            search_aliases=["dreambooth", "training images", "load photos", "load dataset", "instance images"],
            inputs=[*_needed(), *_more(), *_masks()],
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(cls, folder, images=UNCONNECTED) -> bool | str:
        if images is not UNCONNECTED or folder is None:  # None: connected too, so known only in execute
            return True
        try:
            _chosen_folder(folder)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder, **_) -> str:
        try:
            return folder_fingerprint(photo_folder(folder).path)
        except (ValueError, OSError):  # no folder to watch; execute says so if it needs one
            return ""

    @classmethod
    def execute(cls, folder, images=None, masks=None, **options) -> io.NodeOutput:
        settings = SubjectSettings(**options)
        if images is None:
            chosen = _chosen_folder(folder)
            loaded = load_subject(chosen.path, settings, chosen.root, masks)
            source = f"folder {folder}"
        else:
            loaded = subject_from_images(images, settings, masks)
            source = "the connected images" + (f" (folder {folder} not read)" if folder != IMAGES_INPUT else "")
        report = photo_report(loaded, settings, source)
        images = image_batch(loaded.subject)
        shown = ui.PreviewImage(shaded_batch(loaded.subject)[:SHOWN], cls=cls).as_dict() | {"text": [report]}
        return io.NodeOutput(loaded.subject, images, report, ui=shown)


def _chosen_folder(name: str) -> PhotoFolder:
    if name == IMAGES_INPUT:
        raise ValueError(
            f"folder: got {name!r}, but nothing is connected to images; connect images, "
            "or choose the sub-folder of ComfyUI's input folder that holds the photos"
        )
    return photo_folder(name)


def _needed() -> list[io.Input]:
    return [
        io.Combo.Input(
            "folder",
            options=[IMAGES_INPUT, *photo_folders()],
            tooltip="A folder inside ComfyUI's input folder. All photos in it are used: JPEG, PNG, WebP, BMP, "
            "TIFF, GIF, AVIF, and HEIC where pillow-heif is installed. Names that end in [pocket] are toys "
            "that come with the pack, made for Load Pocket Model at 128 pixels. "
            f"{IMAGES_INPUT} takes the connected images instead.",
        ),
        io.String.Input(
            "instance_prompt",
            default="a photo of a sks dog",
            tooltip="What the photos show: a rare word that will mean your subject (sks), "
            "then the word for its kind (dog).",
        ),
        io.Int.Input(
            "resolution",
            default=512,
            min=MIN_RESOLUTION,
            max=MAX_RESOLUTION,
            step=8,
            tooltip="Side of the training images in pixels. 512 for SD 1.5, 768 for SD 2.1, 1024 for SDXL, "
            "128 for the pocket model; less saves memory.",
        ),
    ]


def _more() -> list[io.Input]:
    return [
        io.Image.Input(
            "images",
            optional=True,
            tooltip="Photos from other nodes. When connected, they are used and the folder is not read.",
        ),
        io.String.Input(
            "class_prompt",
            optional=True,
            default="",
            tooltip='The same without the rare word ("a photo of a dog"). Only some trainers use it; may stay empty.',
        ),
        io.Combo.Input(
            "captions",
            optional=True,
            options=list(CAPTIONS),
            default="auto",
            tooltip="auto: 01.txt describes 01.jpg where there is one, else the instance prompt. "
            "text files: every photo must have one. Connected images always take the instance prompt.",
        ),
        io.Combo.Input(
            "crop",
            optional=True,
            options=list(CROPS),
            default="center",
            tooltip="center: the square in the middle. smart: the square with most detail. "
            "none: the whole photo at about the same number of pixels, edges repeated to a multiple of 8.",
        ),
        io.Boolean.Input(
            "flip",
            optional=True,
            default=False,
            tooltip="Also learn every photo mirrored. Leave it off for subjects with text or with a left and a right.",
        ),
    ]


def _masks() -> list[io.Input]:
    return [
        io.Mask.Input(
            "masks",
            optional=True,
            tooltip="Where the subject is in each photo: white there, black elsewhere; one mask for each, in "
            "the order of the photos. Without it 01.mask.png is the mask of 01.jpg, where there is one, else "
            "the photo's transparency is. Load Image's mask of a cut-out photo is the other way round: put "
            "Invert Mask between.",
        ),
        io.Float.Input(
            "background_weight",
            optional=True,
            default=0.1,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="How much what masks leave out counts in training; what they cover counts 1. 1 reads no masks.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        SubjectSocket.Output("subject", tooltip="Photos and captions for the EdgeTune trainers."),
        io.Image.Output(
            "images",
            tooltip="The photos as the trainers see them. With crop none, the smaller ones get their edge "
            "pixels repeated up to the largest; in subject they keep their size.",
        ),
        io.String.Output(
            "report",
            tooltip="For each photo: original size, what was done, upscaled, mask, exact duplicate, caption.",
        ),
    ]
