"""From a folder of photos to pictures, a LoRA and a report, with one command.

    python workflows/demo.py --photos FOLDER --checkpoint FILE

Sets up what it needs inside the checkout, starts ComfyUI, uploads the photos through its API, runs a workflow from
workflows/api/, and says where the results are. Every option can be left out.
"""

import argparse
import contextlib
import importlib.util
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import prompts
import runtime
from runtime import ROOT, SetupError, say

EXAMPLE_PHOTOS = ROOT.parent / "shared" / "dreambooth" / "dog6"
PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic"}
STANDIN = "edgetune_standin.safetensors"
STANDIN_SETTINGS = {"resolution": 256, "steps": 24}
STANDIN_SAMPLING = {("KSampler", "steps"): 8}
WITH_STEPS = (
    "EdgeTune_SelectiveTrainer",
    "EdgeTune_HollowedNetTrainer",
    "EdgeTune_ZOTextualInversion",
    "EdgeTune_DTAPPreview",
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder with 3 to 6 photos of one subject")
    parser.add_argument("--token", default="sks dog", help='rare word and kind of the subject (default: "sks dog")')
    parser.add_argument("--prompt", help='what to draw (default: "a photo of a TOKEN on a beach")')
    parser.add_argument("--checkpoint", help="name in ComfyUI's models/checkpoints, or a path to a file")
    parser.add_argument("--steps", type=int, help="training steps")
    parser.add_argument("--resolution", type=int, help="side of the training images and of the pictures, in pixels")
    parser.add_argument("--workflow", default="train_and_compare", help="name of a file in workflows/api/")
    parser.add_argument(
        "--out", type=Path, help="folder for the results (default: in ComfyUI's output folder; with --server, here)"
    )
    parser.add_argument("--server", help="address of a running ComfyUI with this pack, for example http://host:8188")
    parser.add_argument("--python", type=Path, help="Python of the ComfyUI that COMFYUI_PATH names (default: this one)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # leave through the with blocks, so that the server ends too
            signal.signal(getattr(signal, name), lambda *_: sys.exit(143))
    try:
        prompt = prompts.read_workflow(arguments.workflow)
        comfyui = set_up(arguments)
        run_demo(arguments, prompt, comfyui)
    except (RuntimeError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("Stopped.")


def set_up(arguments: argparse.Namespace) -> Path | None:
    """The ComfyUI to start, or None when one runs already. Returns only in a Python that has what is needed."""
    if arguments.server:
        if importlib.util.find_spec("aiohttp") is None:
            runtime.continue_in(runtime.ensure_environment("client", runtime.CLIENT))
        return None
    comfyui = runtime.find_comfyui() or runtime.fetch_comfyui()
    if comfyui == runtime.COMFYUI:
        python = runtime.ensure_environment("comfyui", runtime.comfyui_requirements(comfyui))
    else:
        python = arguments.python or Path(sys.executable)
    runtime.continue_in(python)
    if importlib.util.find_spec("aiohttp") is None:
        raise SetupError(f"{python} has no aiohttp, so it is not the Python of {comfyui}: name that with --python")
    say(f"ComfyUI: {comfyui}")
    return comfyui


def run_demo(arguments: argparse.Namespace, prompt: prompts.Prompt, comfyui: Path | None) -> None:
    """Start or find the server, run the workflow, show what it made."""
    from results import collect, run_prompt, summarise  # they need aiohttp, which is there only now

    run_name = time.strftime("edgetune_demo_%Y%m%d-%H%M%S")
    with tempfile.TemporaryDirectory(prefix="edgetune-demo-") as scratch:
        with open_server(arguments, comfyui, Path(scratch)) as client:
            checkpoint = None
            if prompts.has(prompt, "CheckpointLoaderSimple"):
                checkpoint = choose_checkpoint(client, arguments.checkpoint, comfyui, Path(scratch))
            if prompts.has(prompt, "EdgeTune_LoadSubjectImages"):
                upload(client, find_photos(arguments.photos, comfyui, Path(scratch)), run_name)
            fill(prompt, arguments, checkpoint, run_name)
            started = time.monotonic()
            entry = run_prompt(client, prompt)
            seconds = time.monotonic() - started
            folder = arguments.out or (comfyui / "output" if comfyui else Path.cwd()) / run_name
            found = collect(client, prompt, entry, folder)
    summarise(found, seconds)
    if checkpoint == STANDIN:
        say("The checkpoint was the stand-in with random weights: its pictures are noise. Name a real one to see more.")


@contextlib.contextmanager
def open_server(arguments: argparse.Namespace, comfyui: Path | None, scratch: Path) -> Iterator:
    """A client of the named server, or of one that runs as long as the demo does."""
    from client import Client, Server, has_accelerator

    if comfyui is None:
        client = Client(arguments.server)
        client.system_stats()
        yield client
        return
    custom_nodes, log = [], None
    if comfyui == runtime.COMFYUI:
        runtime.link_pack(comfyui / "custom_nodes")
        log = comfyui / "edgetune_demo.log"
    elif comfyui / "custom_nodes" != ROOT.parent:
        custom_nodes = [runtime.link_pack(scratch / "custom_nodes").parent]
    models = {"checkpoints": offer_checkpoint(arguments.checkpoint, scratch / "checkpoints")}
    say("Starting ComfyUI, which takes some 15 seconds" + (f"; its log is {log}" if log else ""))
    flags = ["--disable-api-nodes"]
    if not has_accelerator():
        flags += ["--cpu", "--use-pytorch-cross-attention"]  # faster than the default on a CPU
    with Server(comfyui, custom_nodes=custom_nodes, models=models, log=log, arguments=flags) as server:
        yield server.client


def offer_checkpoint(named: str | None, folder: Path) -> Path:
    """A folder of checkpoints beside ComfyUI's own, in which a checkpoint that was named by its path can be found."""
    folder.mkdir()
    if named and Path(named).is_file():
        try:
            (folder / Path(named).name).symlink_to(Path(named).resolve())
        except OSError:  # Windows asks for a right to make links
            return Path(named).resolve().parent
    return folder


def choose_checkpoint(client, named: str | None, comfyui: Path | None, scratch: Path) -> str:
    """Name of the checkpoint to load: the one asked for, else one that is there, else the stand-in, made now."""
    names = client.options("CheckpointLoaderSimple", "ckpt_name")
    if named:
        name = Path(named).name if Path(named).is_file() else named
        if name not in names:
            raise SetupError(f"The server has no checkpoint {named}. It has: {', '.join(names) or 'none'}")
        return name
    real = [name for name in names if name != STANDIN]
    if real:
        say(f"Checkpoint: {real[0]} (choose with --checkpoint; there are {len(real)})")
        return real[0]
    if comfyui is None:
        raise SetupError("The server has no checkpoints")
    say(
        "No checkpoint found, so a small stand-in with RANDOM WEIGHTS is used: every step runs, the pictures are noise."
    )
    if STANDIN not in names:
        make_standin(comfyui, scratch)
    return STANDIN


def make_standin(comfyui: Path, scratch: Path) -> None:
    """Write the stand-in into the fetched ComfyUI, where it stays, or beside a ComfyUI of the user's."""
    is_ours = comfyui == runtime.COMFYUI
    path = (comfyui / "models" / "checkpoints" if is_ours else scratch / "checkpoints") / STANDIN
    command = [sys.executable, Path(__file__).with_name("standin.py"), path, "--comfyui", comfyui]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise SetupError(f"The stand-in could not be made:\n{result.stderr}")


def upload(client, photos: list[Path], folder: str) -> None:
    say(f"Uploading {len(photos)} photos from {photos[0].parent} to the input folder {folder}")
    for photo in photos:
        client.upload_image(photo, folder)


def find_photos(named: Path | None, comfyui: Path | None, scratch: Path) -> list[Path]:
    """The photos to learn from: those named, else the example photos, else crops of ComfyUI's example picture."""
    folder = named or EXAMPLE_PHOTOS
    if named and not named.is_dir():
        raise SetupError(f"--photos {named} is not a folder")
    if folder.is_dir():
        photos = sorted(path for path in folder.iterdir() if path.suffix.lower() in PHOTO_SUFFIXES)
        if not photos:
            raise SetupError(f"There are no photos in {folder}")
        return photos
    if comfyui is None:
        raise SetupError("--photos is needed with --server")
    say("No --photos, so four crops of ComfyUI's example picture are used.")
    return crop_example(comfyui / "input" / "example.png", scratch / "photos")


def crop_example(picture: Path, folder: Path) -> list[Path]:
    """Four overlapping squares of a picture, as files."""
    from PIL import Image

    folder.mkdir()
    image = Image.open(picture).convert("RGB")
    side = min(image.size) * 3 // 4
    corners = [(x, y) for x in (0, image.width - side) for y in (0, image.height - side)]
    paths = [folder / f"crop{i}.png" for i in range(len(corners))]
    for (x, y), path in zip(corners, paths, strict=True):
        image.crop((x, y, x + side, y + side)).save(path)
    return paths


def fill(prompt: prompts.Prompt, arguments: argparse.Namespace, checkpoint: str | None, run_name: str) -> None:
    """Put what was asked for into the workflow; what was not named stays as the workflow has it."""
    settings = dict(STANDIN_SETTINGS) if checkpoint == STANDIN else {}
    settings |= {name: value for name in ("steps", "resolution") if (value := getattr(arguments, name)) is not None}
    values = {
        ("CheckpointLoaderSimple", "ckpt_name"): checkpoint,
        ("EdgeTune_LoadSubjectImages", "folder"): run_name,
        ("EdgeTune_LoadSubjectImages", "instance_prompt"): f"a photo of a {arguments.token}",
    }
    if checkpoint == STANDIN:
        values |= STANDIN_SAMPLING
    if "steps" in settings:
        values |= {(node, "steps"): settings["steps"] for node in WITH_STEPS}
    if "resolution" in settings:
        values[("EdgeTune_LoadSubjectImages", "resolution")] = settings["resolution"]
        values |= {("EmptyLatentImage", side): settings["resolution"] for side in ("width", "height")}
    prompts.fill(prompt, values)
    prompts.fill_positive(prompt, arguments.prompt or f"a photo of a {arguments.token} on a beach")
    prompts.prefix_files(prompt, run_name)


if __name__ == "__main__":
    main()
