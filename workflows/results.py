"""Runs a workflow with a line of progress, then fetches, names and lists what came out of it."""

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from client import Client
from prompts import Prompt, positive, title
from runtime import say
from sheet import sheet

LINE_INTERVAL_S = 10  # between lines of progress where a line cannot be rewritten
CANCEL_TIMEOUT_S = 120

SHEET_ROWS = {  # title of a node -> what stands over its pictures
    "Photos": "The photos to learn from",
    "Before": 'Before training: "{}"',
    "After": "After training: the same prompt and seed",
}
LOOK = """\
  The last row is drawn with the LoRA, the row above it without: same prompt, same seed. Before training the model does
  not know the subject of the photos; in the last row it should be there, in the place that the prompt names."""


@dataclass
class Results:
    """Files of one run, and the first line of each report."""

    folder: Path
    sheet: Path | None = None  # photos, before and after in one picture, where the run made these
    pictures: dict[Path, str] = field(default_factory=dict)  # file -> title of the node that made it
    loras: list[str] = field(default_factory=list)  # paths on the server
    reports: list[Path] = field(default_factory=list)
    summaries: list[str] = field(default_factory=list)


class ProgressLine:
    """What the server is doing now, on one line that is written anew, or line by line into a file."""

    def __init__(self, prompt: Prompt):
        self.titles = {node_id: title(node) for node_id, node in prompt.items()}
        self.prompt_id: str | None = None
        self.width = 0
        self.last_line_s = 0.0

    def __call__(self, kind: str, data: dict) -> None:
        name = self.titles.get(str(data.get("node")), "")
        if kind == "execution_start":
            self.prompt_id = data["prompt_id"]
        elif kind == "executing" and name:
            self.show(name, is_new=True)
        elif kind == "edgetune.step":
            loss, size = f"loss {data['loss']:.4f}", f"{data['bytes'] / 2**20:,.0f} MiB"
            self.show(f"{name}: step {data['step']}/{data['steps']}  {data['kind'].upper()}  {loss}  {size}")
        elif kind == "progress" and "Trainer" not in name:
            self.show(f"{name}: {data['value']}/{data['max']}")

    def show(self, text: str, is_new: bool = False) -> None:
        if sys.stdout.isatty():
            sys.stdout.write("\r" + text.ljust(self.width))
            sys.stdout.flush()
            self.width = len(text)
        elif is_new or time.monotonic() - self.last_line_s > LINE_INTERVAL_S:
            self.last_line_s = time.monotonic()
            say(f"  {text}")

    def end(self) -> None:
        if sys.stdout.isatty() and self.width:
            say("")


def run_prompt(client: Client, prompt: Prompt) -> dict:
    """Outputs and status of the workflow. Ctrl-C cancels the run on the server, which keeps what it has."""
    line = ProgressLine(prompt)
    try:
        return client.run(prompt, line)
    except KeyboardInterrupt:
        if line.prompt_id is None:
            raise
        say("\nCancelling")
        client.interrupt(line.prompt_id)
        return client.wait(line.prompt_id, CANCEL_TIMEOUT_S)
    finally:
        line.end()


def collect(client: Client, prompt: Prompt, entry: dict, folder: Path) -> Results:
    """Everything a run left, fetched into the folder where it is not there already."""
    results = Results(folder)
    texts = []
    folder.mkdir(parents=True, exist_ok=True)
    for node_id, output in entry["outputs"].items():
        name = title(prompt[node_id])
        results.loras += output.get("path", [])
        for view in output.get("images", []):
            results.pictures[_fetch(client, view, name, folder)] = name
        texts += [f"{name}\n{'-' * len(name)}\n{text}\n" for text in output.get("text", [])]
        for report in output.get("report", []):
            number = len(results.reports)
            results.reports.append(folder / (f"report_{number}.json" if number else "report.json"))
            results.reports[-1].write_text(report, encoding="utf-8")
            results.summaries += str(output.get("text", [""])[0]).splitlines()[:1]
    if texts:
        results.reports.insert(0, folder / "report.txt")
        results.reports[0].write_text("\n".join(texts), encoding="utf-8")
    results.sheet = _write_sheet(results, positive(prompt))
    return results


def summarise(results: Results, seconds: float) -> None:
    """Say where each thing is, and what to look at."""
    say(f"\nDone in {seconds:.0f} s.")
    if results.sheet:
        say(f"\nLook at this first: {results.sheet}\n{LOOK}\n")
    counts = Counter(results.pictures.values())
    if counts:
        say(f"  pictures {results.folder}  ({', '.join(f'{name}: {count}' for name, count in counts.items())})")
    for path in results.loras:
        say(f"  LoRA     {path}")
    for path in results.reports:
        say(f"  report   {path}")
    for line in results.summaries:
        say(line)


def _write_sheet(results: Results, text: str) -> Path | None:
    """The pictures before and after, and the photos where the workflow shows them, on one sheet."""
    by_name: dict[str, list[Path]] = {}
    for path, name in results.pictures.items():
        by_name.setdefault(name, []).append(path)
    if not {"Before", "After"} <= by_name.keys():
        return None
    path = results.folder / "sheet.png"
    sheet({caption.format(text): by_name[name] for name, caption in SHEET_ROWS.items() if name in by_name}).save(path)
    return path


def _fetch(client: Client, view: dict, name: str, folder: Path) -> Path:
    """The picture as a file of the folder. Previews have no names of their own, so they get the node's."""
    own = "".join(c if c.isalnum() or c in "-_." else "_" for c in f"{name}_{view['filename'][-10:]}")
    target = folder / (view["filename"] if view["type"] == "output" else own)
    if not target.exists():
        target.write_bytes(client.download(view))
    return target
