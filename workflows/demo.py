"""From a few photos to pictures, a LoRA and a report, with one command.

    python workflows/demo.py

Sets up what it needs inside the checkout, starts ComfyUI, runs a workflow from workflows/api/ through its API, and says
where the results are. Without options it teaches the pocket model, which comes with the pack, a toy that comes with it
too. With --checkpoint and --photos it does the same with a real model and your own subject. Under torchrun several
processes train as one (ranks.py).
"""

import argparse
import contextlib
import importlib.util
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import photos
import prompts
import ranks
import runtime
from runtime import ROOT, SetupError, say

POCKET_WORKFLOW, CHECKPOINT_WORKFLOW = "pocket_train_and_compare", "train_and_compare"
CHECKPOINT_LOADER, PHOTO_LOADER = "CheckpointLoaderSimple", "EdgeTune_LoadSubjectImages"
WITH_STEPS = (*prompts.TRAINERS, "EdgeTune_DTAPPreview")


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subject = parser.add_mutually_exclusive_group()
    subject.add_argument("--subject", choices=photos.shipped_subjects(), help="a toy that comes with the pack")
    subject.add_argument("--photos", type=Path, help="folder with 3 to 6 photos of one subject")
    parser.add_argument(
        "--token", help='rare word and kind of the subject (default: "sks toy"; with --checkpoint, "sks dog")'
    )
    parser.add_argument(
        "--prompt", help="what to draw (default: the token on green grass; with --checkpoint, on the beach)"
    )
    parser.add_argument(
        "--checkpoint", help="a real model: a name in ComfyUI's models/checkpoints, or a path to a file"
    )
    parser.add_argument("--steps", type=int, help="training steps")
    parser.add_argument("--resolution", type=int, help="side of the training images and of the pictures, in pixels")
    parser.add_argument("--workflow", help="name of a file in workflows/api/")
    parser.add_argument(
        "--out", type=Path, help="folder for the results (default: in ComfyUI's output folder; with --server, here)"
    )
    parser.add_argument("--server", help="address of a running ComfyUI with this pack, for example http://host:8188")
    parser.add_argument("--python", type=Path, help="Python of the ComfyUI that COMFYUI_PATH names (default: this one)")
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    with runtime.ending_in_words("Stopped."):
        prompt = choose_workflow(arguments)
        comfyui = set_up(arguments)
        run_demo(arguments, prompt, comfyui)


def choose_workflow(arguments: argparse.Namespace) -> prompts.Prompt:
    """The workflow that was named, or else the comparison for the pocket model or for a checkpoint."""
    prompt = named_workflow(arguments)
    if arguments.checkpoint and not prompts.has(prompt, CHECKPOINT_LOADER):
        raise SetupError(f"The workflow {arguments.workflow} loads no checkpoint; leave out one of the two options")
    return prompt


def named_workflow(arguments: argparse.Namespace) -> prompts.Prompt:
    """The workflow that was named, whatever it loads, or else the comparison."""
    default = CHECKPOINT_WORKFLOW if arguments.checkpoint else POCKET_WORKFLOW
    return prompts.read_workflow(arguments.workflow or default)


def workflow_as_set(arguments: argparse.Namespace) -> prompts.Prompt:
    """The workflow that was named, with each --set NODE.INPUT=VALUE in it."""
    workflow = named_workflow(arguments)
    for item in arguments.set:
        place, _, text = item.partition("=")
        prompts.set_value(workflow, place, text)
    return workflow


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
            checkpoint = folder = None
            if prompts.has(prompt, CHECKPOINT_LOADER):
                checkpoint = choose_checkpoint(client, arguments.checkpoint)
            if prompts.has(prompt, PHOTO_LOADER):
                folder = choose_photos(client, arguments, run_name, is_pocket=checkpoint is None)
            fill(prompt, arguments, checkpoint, folder)
            if not ranks.is_first():
                client.run(ranks.training_alone(prompt))
                return
            prompts.prefix_files(prompt, run_name)
            started = time.monotonic()
            entry = run_prompt(client, prompt)
            seconds = time.monotonic() - started
            results = arguments.out or (comfyui / "output" if comfyui else Path.cwd()) / run_name
            found = collect(client, prompt, entry, results)
    summarise(found, seconds)


@contextlib.contextmanager
def open_server(arguments: argparse.Namespace, comfyui: Path | None, scratch: Path) -> Iterator:
    """A client of the named server, or of one that runs as long as the demo does."""
    from client import Client, Server

    if comfyui is None:
        client = Client(arguments.server)
        client.system_stats()
        yield client
        return
    log = comfyui / "edgetune_demo.log" if comfyui == runtime.COMFYUI else None
    say("Starting ComfyUI, which takes some 15 seconds" + (f"; its log is {log}" if log else ""))
    flags, is_on_gpu = server_flags()
    options = dict(arguments=flags, log=log) | ranks.server_options(scratch, flags, is_on_gpu)
    models = {"checkpoints": offer_checkpoint(arguments.checkpoint, scratch / "checkpoints")}
    custom_nodes = offer_pack(comfyui, scratch)
    with Server(comfyui, custom_nodes=custom_nodes, models=models, **options) as server:
        yield server.client


def server_flags() -> tuple[list[str], bool]:
    """Arguments for a ComfyUI that is to train here, and whether it is on a GPU."""
    from client import has_accelerator

    if has_accelerator():
        return ["--disable-api-nodes"], True
    return ["--disable-api-nodes", "--cpu", "--use-pytorch-cross-attention"], False  # faster than a CPU's default


def offer_pack(comfyui: Path, scratch: Path) -> list[Path]:
    """Folders of custom nodes, beside ComfyUI's own, that it needs to find this checkout."""
    if comfyui == runtime.COMFYUI:
        runtime.link_pack(comfyui / "custom_nodes")
    elif comfyui / "custom_nodes" != ROOT.parent:
        return [runtime.link_pack(scratch / "custom_nodes").parent]
    return []


def offer_checkpoint(named: str | None, folder: Path) -> Path:
    """A folder of checkpoints beside ComfyUI's own, in which a checkpoint that was named by its path can be found."""
    folder.mkdir()
    if named and Path(named).is_file():
        try:
            (folder / Path(named).name).symlink_to(Path(named).resolve())
        except OSError:  # Windows asks for a right to make links
            return Path(named).resolve().parent
    return folder


def choose_checkpoint(client, named: str | None) -> str:
    """Name of the checkpoint to load: the one asked for, else the first that is there."""
    names = client.options(CHECKPOINT_LOADER, "ckpt_name")
    if named:
        name = Path(named).name if Path(named).is_file() else named
        if name not in names:
            raise SetupError(f"The server has no checkpoint {named}. It has: {', '.join(names) or 'none'}")
        return name
    if not names:
        raise SetupError("This workflow needs a checkpoint, and the server has none: name one with --checkpoint")
    say(f"Checkpoint: {names[0]} (choose with --checkpoint; there are {len(names)})")
    return names[0]


def choose_photos(client, arguments: argparse.Namespace, run_name: str, is_pocket: bool) -> str | None:
    """The folder to load photos from, where those that are not on the server are uploaded to; None: the workflow's."""
    if arguments.subject:
        return photos.shipped_folder(arguments.subject)
    if is_pocket and not arguments.photos:
        say("The pocket model learns a toy that comes with the pack; --subject chooses another.")
        return None
    photos.upload(client, photos.find_photos(arguments.photos), run_name)
    return run_name


def fill(prompt: prompts.Prompt, arguments: argparse.Namespace, checkpoint: str | None, folder: str | None) -> None:
    """Put what was asked for into the workflow; what is None stays as the workflow has it."""
    values = {(CHECKPOINT_LOADER, "ckpt_name"): checkpoint, (PHOTO_LOADER, "folder"): folder}
    values |= {(node, "steps"): arguments.steps for node in WITH_STEPS}
    values |= {(PHOTO_LOADER, "resolution"): arguments.resolution}
    values |= {("EmptyLatentImage", side): arguments.resolution for side in ("width", "height")}
    prompts.fill(prompt, {place: value for place, value in values.items() if value is not None})
    if arguments.token:
        prompts.rename_subject(prompt, arguments.token)
    if arguments.prompt:
        prompts.fill_positive(prompt, arguments.prompt)


if __name__ == "__main__":
    main()
