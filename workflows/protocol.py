"""DreamBooth's protocol: subjects x prompts x seeds, for any training workflow, scored, with a sheet for each subject.

    python workflows/protocol.py OUT --subjects photos/rex=dog photos/shoe=shoe --prompts prompts.txt \\
        --checkpoint path/to/model.safetensors [--workflow train_hollowed] [--seeds 0 1 2 3]
    python workflows/protocol.py OUT --workflow pocket_train_and_compare --subjects robot clown --prompts prompts.txt

Trains once for each subject, then draws and scores every prompt with every seed. OUT gets rows.csv, the pictures, a
sheet for each subject and summary.md. Stop it as you like: the same command goes on, rows that are there are not made
again, and a training that was finished is taken up from its saved run. --prompts is DreamBooth's
prompts_and_classes.txt, which also says what its subjects are, or a text file with a prompt a line, {} standing for the
subject.
"""

import argparse
import copy
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import demo
import photos
import prompts
import protocol_graph as graph
import runtime
from protocol_table import Questions, Row, check_same_run, read_questions, summary, table, write_sheet
from runtime import SetupError, say

SAVED = re.compile(r"(\S+/step_\d+) in the output folder")  # as a trainer's report names its saved run
POCKET_KIND = "toy"


class Subject(NamedTuple):
    """One thing to learn."""

    name: str
    kind: str
    photos: list[Path]
    is_shipped: bool


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for what comes out; an existing one is gone on with")
    parser.add_argument(
        "--subjects", nargs="+", required=True, help="FOLDER=KIND with photos each, or toys that come with the pack"
    )
    parser.add_argument("--prompts", type=Path, required=True, help="file with the prompts")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3], help="of the pictures (default: 0 1 2 3)")
    parser.add_argument("--train-again", action="store_true", help="train anew with each seed, which the trainer gets")
    parser.add_argument("--workflow", help="name of a file in workflows/api/, or a path to a workflow in API format")
    parser.add_argument("--checkpoint", help="a name in ComfyUI's models/checkpoints, or a path to a file")
    parser.add_argument("--set", nargs="*", default=[], metavar="NODE.INPUT=VALUE", help="NODE is a class or a title")
    parser.add_argument("--features", help="of Evaluate Subject (default: auto; pocket judges for the pocket model)")
    parser.add_argument("--clip-vision", help="a name in models/clip_vision, to score with")
    parser.add_argument("--clip", help="a name in models/text_encoders, of the same CLIP, to score prompts with")
    parser.add_argument("--server", "--address", help="address of a running ComfyUI with this pack")
    parser.add_argument("--python", type=Path, help="Python of the ComfyUI that COMFYUI_PATH names (default: this one)")
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    with runtime.ending_in_words("Stopped. The same command goes on from here."):
        questions = read_questions(arguments.prompts)
        subjects = [find_subject(text, questions) for text in arguments.subjects]
        workflow = read_workflow(arguments)
        comfyui = demo.set_up(arguments)
        arguments.out.mkdir(parents=True, exist_ok=True)
        check_same_run(arguments.out / "run.json", facts(arguments, workflow))
        with tempfile.TemporaryDirectory(prefix="edgetune-protocol-") as scratch:
            with demo.open_server(arguments, comfyui, Path(scratch)) as client:
                if prompts.has(workflow, demo.CHECKPOINT_LOADER):
                    name = demo.choose_checkpoint(client, arguments.checkpoint)
                    prompts.fill(workflow, {(demo.CHECKPOINT_LOADER, "ckpt_name"): name})
                run(client, workflow, subjects, questions, arguments)


def read_workflow(arguments: argparse.Namespace) -> prompts.Prompt:
    """The part of the workflow that matters, with what was set on the command line."""
    whole = demo.workflow_as_set(arguments)
    own = "pocket judges" if prompts.has(whole, graph.POCKET_LOADER) else "auto"
    return graph.measured(whole, arguments.features or own, arguments.clip_vision, arguments.clip)


def find_subject(text: str, questions: Questions) -> Subject:
    """A folder with photos of a kind of thing, which the prompts' file may know, or a toy that comes with the pack."""
    named, _, kind = text.partition("=")
    if not Path(named).is_dir() and named in photos.shipped_subjects():
        return Subject(named, kind or POCKET_KIND, photos.find_photos(photos.SHIPPED / named), True)
    folder = Path(named).resolve()
    kind = kind or questions.kinds.get(folder.name, "")
    found = photos.find_photos(Path(named))
    if not kind:
        raise SetupError(f"--subjects {text}: say what it is, as in {named}=dog")
    return Subject(folder.name, kind, found, False)


def facts(arguments: argparse.Namespace, workflow: prompts.Prompt) -> dict[str, object]:
    """What rows of one file have in common."""
    return {"workflow or --set": workflow, "checkpoint": arguments.checkpoint, "train-again": arguments.train_again}


def run(client, workflow: prompts.Prompt, subjects: list[Subject], questions: Questions, arguments) -> None:
    """Make the rows that are missing, and then what is made of them."""
    found, trainings = table(arguments.out / "rows.csv"), Trainings(client, arguments.out / "trainings.json", workflow)
    for subject in subjects:
        wanted = [Row(subject.name, text, seed) for text in questions.of(subject.kind) for seed in arguments.seeds]
        missing = [row for row in wanted if row not in found]
        say(f"{subject.name}, a {subject.kind}: {len(missing)} of {len(wanted)} pictures to make")
        if missing:
            prompt = copy.deepcopy(workflow)
            called = graph.name_subject(prompt, subject.name, subject.kind, put_photos(client, subject))
            for row in ordered(missing, arguments.train_again):
                found.add(make(client, prompt, row, subject, called, trainings, arguments))
        rows = [found.rows[row] for row in wanted]
        say(f"  {write_sheet(rows, subject.photos, arguments.out, subject.name)}")
    text = summary(list(found.rows.values()))
    (arguments.out / "summary.md").write_text(text, encoding="utf-8")
    say(f"\n{text}")


def ordered(rows: list[Row], by_seed: bool) -> list[Row]:
    """By seed where each seed trains, so that no training is needed twice."""
    return sorted(rows, key=lambda row: row.seed) if by_seed else rows


class Trainings:
    """The saved run of every training that is finished, in a file: a server that is new goes on from it at once."""

    def __init__(self, client, file: Path, workflow: prompts.Prompt):
        self.client, self.file = client, file
        self.known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        self.node_id = graph.only(workflow, graph.TRAINERS)

    def take_up(self, prompt: prompts.Prompt, key: str) -> None:
        """Let the trainer go on from the saved run, which has nothing left to do, if there is one."""
        node, run = prompt[self.node_id], self.known.get(key, {}).get("saved")
        is_there = run and run in self.client.options(node["class_type"], "resume")
        node["inputs"]["resume"] = run if is_there else "off"

    def note(self, entry: dict, key: str) -> dict:
        """What is known of the training, where it has just run: seconds, peak bytes, its saved run."""
        told = entry["outputs"].get(self.node_id, {}).get("report")
        if told and key not in self.known:
            report = json.loads(told[0])
            saved = SAVED.match(report["saved"])
            self.known[key] = {
                "saved": saved and saved[1],
                "training_s": round(report["seconds"], 1),
                "peak_bytes": report["peak_bytes"],
            }
            self.file.write_text(json.dumps(self.known, indent=1), encoding="utf-8")
        return self.known.get(key, {})


def make(client, prompt, row: Row, subject: Subject, called: str, trainings: Trainings, arguments) -> dict:
    """Draw and score one picture; its row."""
    key = f"{subject.name}, seed {row.seed}" if arguments.train_again else subject.name
    if arguments.train_again:
        prompt[trainings.node_id]["inputs"]["seed"] = row.seed
    trainings.take_up(prompt, key)
    plain = row.prompt.format(subject.kind)
    graph.ask(prompt, row.prompt.format(called), plain, row.seed, bool(arguments.clip and arguments.clip_vision))
    entry = client.run(prompt)
    known = trainings.note(entry, key)
    scores = json.loads(entry["outputs"][graph.SCORES]["text"][0])
    (one,) = scores["pictures"]
    (view,) = entry["outputs"][graph.PICTURE]["images"]
    name = f"{subject.name}_{sha256(f'{row.prompt} {row.seed}'.encode()).hexdigest()[:10]}.png"
    (arguments.out / name).write_bytes(client.download(view))
    say(f"  {plain}, seed {row.seed}: {one['subject']:.3f}")
    return {
        "subject": subject.name,
        "kind": subject.kind,
        "prompt": row.prompt,
        "seed": row.seed,
        "subject_score": f"{one['subject']:.6f}",
        "nearest": f"{one['nearest']:.6f}",
        "nearest_photo": one["nearest_photo"],
        "prompt_score": "" if one["prompt"] is None else f"{one['prompt']:.6f}",
        "features": scores["features"],
        "training_s": known.get("training_s", ""),
        "peak_bytes": known.get("peak_bytes", ""),
        "picture": name,
    }


def put_photos(client, subject: Subject) -> str:
    """Name of the subject's folder on the server, which holds its photos and no others."""
    if subject.is_shipped:
        return photos.shipped_folder(subject.name)
    folder = photos.content_folder(subject.name, subject.photos)
    photos.upload(client, subject.photos, folder)
    return folder


if __name__ == "__main__":
    main()
