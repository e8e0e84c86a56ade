"""What a sweep leaves in its folder: rows, what each job made, points to go on from, and a contact sheet."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from growing_rows import Rows
from sweep_jobs import Job, Request

COLUMNS = "job name subject token settings seconds training_s steps loss peak_bytes planned_mib machine tries".split()
COLUMNS += ["models", "pictures"]
PICTURES = 6  # of a job on the sheet
SHEET_ROWS = 40


class Kept:
    """The folder of a sweep. rows.csv has what is done; saved/ what was going on when it was last heard of."""

    def __init__(self, out: Path, models: Mapping[str, Path]):
        self.out, self.models = out, models  # folders by kind: loras, embeddings
        (out / "saved").mkdir(parents=True, exist_ok=True)
        self.rows = Rows(out / "rows.csv", COLUMNS, lambda cells: cells["job"])

    def taken(self) -> dict[str, str]:
        """Names of the jobs that are done, and their keys."""
        return {row["name"]: key for key, row in self.rows.rows.items()}

    def add(self, job: Job, made: Mapping, planned_mib: int, machine: str, tries: int) -> None:
        """Keep all that a job made. The row comes last: once it is there, the job is done."""
        folder = self.out / job.name
        for name, content in made["files"].items():
            write(folder / name, content)
        models = [self._put_model(job.name, *model) for model in made["models"]]
        report = made["reports"][0] if made["reports"] else {}
        self.rows.add(
            {
                "job": job.key,
                "name": job.name,
                "subject": job.request.subject,
                "token": job.request.token,
                "settings": json.dumps(job.request.settings),
                "seconds": f"{made['seconds']:.1f}",
                "training_s": round(report["seconds"], 1) if "seconds" in report else "",
                "steps": report.get("steps", ""),
                "loss": f"{report['loss']['last']:.6f}" if "loss" in report else "",
                "peak_bytes": report.get("peak_bytes", ""),
                "planned_mib": planned_mib,
                "machine": machine,
                "tries": tries,
                "models": ";".join(map(str, models)),
                "pictures": ";".join(_chosen(made["pictures"])),
            }
        )
        shutil.rmtree(self._saved(job), ignore_errors=True)

    def _put_model(self, name: str, kind: str, content: bytes) -> Path:
        """Where a LoRA or embedding is now: in the job's folder, and where ComfyUI lists it. No other file is lost."""
        own = self.out / name / f"{name}.{kind}.safetensors"
        before = own.read_bytes() if own.exists() else None  # of a sweep that ended before the row was there
        number, target = 1, self.models[kind] / f"{name}.safetensors"
        while target.exists() and target.read_bytes() != before:
            number += 1
            target = self.models[kind] / f"{name}_{number}.safetensors"
        write(own, content)
        write(target, content)
        return target

    def save(self, job: Job, point: tuple[str, Mapping[str, bytes]]) -> None:
        """Keep the newest point of a job that goes on, instead of the one before."""
        name, files = point
        folder = self._saved(job)
        for path, content in files.items():
            write(folder / path, content)
        write(folder / "point", name.encode())
        for old in folder.rglob("*.safetensors"):
            if old.relative_to(folder).as_posix() not in files:
                old.unlink()

    def point(self, job: Job) -> tuple[str, dict[str, bytes]] | None:
        """What save() kept last."""
        folder = self._saved(job)
        if not (folder / "point").exists():
            return None
        name = (folder / "point").read_text()
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.safetensors")}
        return name, {path: file.read_bytes() for path, file in files.items() if path.startswith(f"edgetune/{name}.")}

    def forget_point(self, job: Job) -> None:
        """Let the job begin anew."""
        shutil.rmtree(self._saved(job), ignore_errors=True)

    def sheets(self) -> list[Path]:
        """Contact sheets of what the jobs drew, a row for each, written anew."""
        from sheet import sheet

        captions = {}
        for row in self.rows.rows.values():
            named = [self.out / row["name"] / name for name in row["pictures"].split(";") if name]
            if pictures := [path for path in named if path.exists()]:
                captions[f"{row['name']}  {_settings(row)}"] = pictures
        paths, items = [], list(captions.items())
        for first in range(0, len(items), SHEET_ROWS):
            paths.append(self.out / f"sheet_{first // SHEET_ROWS + 1}.jpg")
            sheet(dict(items[first : first + SHEET_ROWS])).save(paths[-1], quality=90)
        return paths

    def _saved(self, job: Job) -> Path:
        return self.out / "saved" / job.key


def write(path: Path, content: bytes) -> None:
    """Write a file that is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # or the row could outlive a power cut, and the file not
    os.replace(partial, path)


def _chosen(pictures: Mapping[str, str]) -> list[str]:
    """File names for the sheet, of pictures with their nodes' titles: two photos, then what was drawn last."""
    shown = [name for name, title in pictures.items() if title == "Photos"][:2]
    drawn = [name for name, title in pictures.items() if title != "Photos"]
    after = [name for name in drawn if pictures[name] == "After"] or drawn
    return shown + after[-(PICTURES - len(shown)) :]


def _settings(row: Mapping[str, str]) -> str:
    return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in json.loads(row["settings"]).items())


def listing(jobs: Sequence[Job], sizes: Mapping[str, int], limit: int = 20) -> str:
    """The jobs and what they take, a line each."""
    lines = [f"  {sizes[job.key]:>9,} MiB  {job.name}  {_words(job.request)}".rstrip() for job in jobs[:limit]]
    return "\n".join([*lines, f"  and {len(jobs) - limit} more"] if len(jobs) > limit else lines)


def _words(request: Request) -> str:
    return ", ".join(f"{place}={value}" for place, value in request.settings.items())
