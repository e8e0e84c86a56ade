"""What the protocol asks and what it found: prompts, rows of a CSV file that only ever grows, sheets and a summary."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from growing_rows import Rows
from runtime import SetupError

LIVE = ("cat", "dog")  # kinds that get the live prompts of DreamBooth's list
COLUMNS = ["subject", "kind", "prompt", "seed", "subject_score", "nearest", "nearest_photo", "prompt_score", "features"]
COLUMNS += ["training_s", "peak_bytes", "picture"]


class Questions(NamedTuple):
    """Prompts with {} for the subject, and what the subjects of a known data set are."""

    objects: list[str]
    live: list[str]
    kinds: dict[str, str]

    def of(self, kind: str) -> list[str]:
        return self.live if kind in LIVE else self.objects


def read_questions(file: Path) -> Questions:
    """From DreamBooth's prompts_and_classes.txt, or from a text file with a prompt a line."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise SetupError(f"--prompts {file} cannot be read: {error}") from error
    if "prompt_list" not in text:
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        wrong = [line for line in lines if line.count("{}") != 1]
        if wrong or not lines:
            raise SetupError(f"--prompts {file}: every line needs one {{}} for the subject; got {wrong or 'no line'}")
        return Questions(lines, lines, {})
    head, _, rest = text.partition("Object Prompts")
    objects, _, live = rest.partition("Live Subject Prompts")
    kinds = dict(line.strip().split(",", 1) for line in head.splitlines() if re.fullmatch(r"\w+,[\w ]+", line.strip()))
    return Questions(_listed(objects), _listed(live), kinds)


def _listed(text: str) -> list[str]:
    return [found.replace("{0} {1}", "{}") for found in re.findall(r"^'(.*)'\.format", text, re.MULTILINE)]


class Row(NamedTuple):
    """What makes a row: no two have the same."""

    subject: str
    prompt: str
    seed: int


def table(file: Path) -> Rows:
    """The rows of a file that are there."""
    return Rows(file, COLUMNS, lambda cells: Row(cells["subject"], cells["prompt"], int(cells["seed"])))


def check_same_run(file: Path, settings: Mapping[str, object]) -> None:
    """Remember what a folder's rows were made with. Raises SetupError where it is not what it was."""
    settings = json.loads(json.dumps(settings))
    if not file.exists():
        file.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    changed = [name for name in dict.fromkeys([*before, *settings]) if before.get(name) != settings.get(name)]
    if changed:
        raise SetupError(
            f"{file.parent} has rows that were made with another {', '.join(changed)}; choose another --out, or give "
            f"the same options as before"
        )


def write_sheet(rows: Sequence[Mapping[str, str]], photos: Sequence[Path], folder: Path, subject: str) -> Path:
    """The subject's photos, and a row of pictures for every prompt."""
    from sheet import sheet  # it needs Pillow, which is there only once all is set up

    pictures = defaultdict(list)
    for row in rows:
        pictures[row["prompt"]].append(row)
    captions = {"Photos": list(photos)}
    for prompt, found in pictures.items():
        mean = fmean(float(row["subject_score"]) for row in found)
        captions[f"{prompt.format(subject)}: {mean:.3f}"] = [folder / row["picture"] for row in found]
    path = folder / f"{subject}.jpg"
    sheet(captions).save(path, quality=90)
    return path


def summary(rows: Sequence[Mapping[str, str]]) -> str:
    """Markdown: means of each subject, and over subjects."""
    lines = ["| subject | pictures | subject fidelity | prompt fidelity | training s | peak MiB |", "|---" * 6 + "|"]
    groups = defaultdict(list)
    for row in rows:
        groups[row["subject"]].append(row)
    means = []
    for name, found in sorted(groups.items()):
        means.append([_mean(found, column) for column in ("subject_score", "prompt_score", "training_s", "peak_bytes")])
        lines.append(_line(name, len(found), *means[-1]))
    over_subjects = [
        fmean(values) if (values := [v for v in column if v is not None]) else None
        for column in zip(*means, strict=True)
    ]
    lines.append(_line("mean over subjects", len(rows), *over_subjects))
    return "\n".join(lines) + "\n"


def _mean(rows: Sequence[Mapping[str, str]], column: str) -> float | None:
    values = [float(row[column]) for row in rows if row[column]]
    return fmean(values) if values else None


def _line(
    name: str, count: int, subject: float, prompt: float | None, seconds: float | None, peak: float | None
) -> str:
    cells = [name, str(count), f"{subject:.3f}", "" if prompt is None else f"{prompt:.3f}"]
    cells += ["" if seconds is None else f"{seconds:.0f}", "" if peak is None else f"{peak / 2**20:.0f}"]
    return f"| {' | '.join(cells)} |"
