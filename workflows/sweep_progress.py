"""How far a sweep is, on one line, and what went wrong on lines of their own."""

import sys

from sweep_jobs import Job
from tqdm import tqdm

LINE_INTERVAL_S = 30  # where a line cannot be written anew


class Progress:
    """A bar over jobs, which moves with their steps, too."""

    def __init__(self, jobs: int, done: int):
        interval = 0.5 if sys.stdout.isatty() else LINE_INTERVAL_S
        form = "{l_bar}{bar}| {n:.1f}/{total} jobs [{elapsed}<{remaining}{postfix}]"
        self.bar = tqdm(total=jobs, initial=done, file=sys.stdout, bar_format=form, mininterval=interval)
        self.done, self.parts = done, {}  # what part of a job is done, by key

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        self.bar.close()

    def hear(self, job: Job, kind: str, data: dict) -> None:
        """Take in a message of a worker's."""
        if kind == "step":
            self.parts[job.key] = data["step"] / data["steps"]
        elif kind in ("done", "failed", "stopped", "lost"):
            self.parts.pop(job.key, None)
            self.done += kind == "done"
        if kind == "failed":
            self.bar.write(f"{job.name} failed: {data['error']}")
        if kind == "lost":
            self.bar.write(f"{job.name}: its worker was lost. {data['error'].strip().splitlines()[-1]}")
        self.bar.set_postfix_str(f"{len(self.parts)} running", refresh=False)
        self.bar.update(self.done + sum(self.parts.values()) - self.bar.n)
