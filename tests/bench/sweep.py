"""Sweeps: throughput of 1, 2 and 4 workers here, and what 10,000 subjects on 100 machines would meet.

    python tests/bench/sweep.py measure MEASURED.json     real ComfyUIs on a real Ray, a few minutes
    python tests/bench/sweep.py simulate MEASURED.json    from those times, in seconds

The simulation packs with the sweep's own code. Machines fail and come back; every save and result goes through the one
process that keeps them, every checkpoint through one file server, first come, first served.
"""

import argparse
import heapq
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "workflows"))

import prompts  # noqa: E402
import sweep_cluster  # noqa: E402
from sweep_jobs import make_jobs, read_requests  # noqa: E402
from sweep_placement import Packing, Place  # noqa: E402

WORKERS = (1, 2, 4)
TOYS = ("robot", "clown", "tower", "trophy")
SETTINGS = {"steps": 12, "save_every": 4, "batch_size": 1}
TRAINER = "EdgeTune_SelectiveTrainer"
MIB = 2048  # of a job here

MACHINES, SUBJECTS = 100, 10_000
GPU_MIB, JOB_MIB, SLOTS = 24 * 1024, 5_500, 8  # SD 1.5, float32: four to a GPU
MEAN_UP_S, DOWN_S = 24 * 3600, 900  # of a machine
CHECKPOINT_BYTES, FILE_SERVER_BYTES_S = 4.3e9, 1.2e9  # SD 1.5 in float32; 10 Gbit/s
LENGTHS = (30, 120, 600, 1800)  # seconds of a job
SAVES = 10  # of a job


def measure(jobs_per_worker: int) -> dict:
    """Times of jobs, of workers' starts and of keeping results, and jobs a second by number of workers."""
    sweep_cluster.folder_on_path()
    sweep_cluster.connect(None, MIB * max(WORKERS), max(WORKERS))
    import ray
    from sweep_run import Sweep
    from sweep_table import Kept
    from sweep_workers import Worker

    class Timed(Kept):
        """Says how long the process that keeps all is busy."""

        adds, saves = [], []

        def add(self, *made) -> None:
            started = time.perf_counter()
            super().add(*made)
            self.adds.append(time.perf_counter() - started)

        def save(self, *point) -> None:
            started = time.perf_counter()
            super().save(*point)
            self.saves.append(time.perf_counter() - started)

    found = {"cores": os.cpu_count(), "workers": {}, "job_s": [], "start_s": []}
    for count in WORKERS:
        with tempfile.TemporaryDirectory() as scratch:
            kept = Timed(Path(scratch), {"loras": Path(scratch) / "loras"})
            ends: dict[str, list[float]] = {}
            holders: dict[str, str] = {}

            def hear(job, kind, data, ends=ends, holders=holders) -> None:
                if kind == "done":
                    ends.setdefault(holders[job.key], []).append(time.perf_counter())

            packing = Packing(sweep_cluster.places(1), count)
            sweep = Sweep(kept, packing, (Worker, ()), on_event=hear)
            give = sweep._give

            def noted(hand, job, give=give, holders=holders) -> None:
                holders[job.key] = str(hand.actor)
                give(hand, job)

            sweep._give = noted
            started = time.perf_counter()
            sweep.run([(job, MIB) for job in jobs(count * jobs_per_worker)])
            whole = time.perf_counter() - started
            warm = [(len(times) - 1) / (times[-1] - times[0]) for times in ends.values() if len(times) > 1]
            found["workers"][count] = {"jobs_s_warm": sum(warm), "whole_s": whole, "jobs": count * jobs_per_worker}
            found["start_s"].append(min(times[0] for times in ends.values()) - started)
            if count == 1:
                found["job_s"] = [float(row["seconds"]) for row in kept.rows.rows.values()][1:]  # the first loads
            print(count, found["workers"][count], flush=True)
    ray.shutdown()
    return found | {"add_s": median(Timed.adds), "save_s": median(Timed.saves)}


def jobs(count: int) -> list:
    """That many different ones."""
    found = []
    for seed in range(-(-count // len(TOYS))):
        workflow = prompts.read_workflow("pocket_train_and_compare")
        prompts.fill(workflow, {(TRAINER, name): value for name, value in {**SETTINGS, "seed": seed}.items()})
        found += make_jobs(workflow, read_requests(TOYS), None, {toy: "another" for toy in TOYS})
    return found[:count]


class Queue:
    """Something that serves one after the other."""

    def __init__(self):
        self.free_s = self.busy_s = 0.0

    def serve(self, now: float, seconds: float) -> float:
        """When what is asked for now is done."""
        self.free_s = max(now, self.free_s) + seconds
        self.busy_s += seconds
        return self.free_s


def simulate(measured: dict, job_s: float, fails: bool, seed: int = 0) -> dict:
    """What becomes of SUBJECTS jobs of about that length, which vary as the measured ones do."""
    chance = random.Random(seed)
    spread = [seconds / median(measured["job_s"]) for seconds in measured["job_s"]]
    places = [Place(str(number), 0, GPU_MIB, SLOTS) for number in range(MACHINES)]
    packing, keeper, files = Packing(places), Queue(), Queue()
    for _ in range(SUBJECTS):
        packing.add(job_s * chance.choice(spread), JOB_MIB)
    ideal = sum(packing.waiting[JOB_MIB]) / (MACHINES * (GPU_MIB // JOB_MIB))
    read_s, start_s = CHECKPOINT_BYTES / FILE_SERVER_BYTES_S, min(measured["start_s"])
    events: list[tuple[float, int, str, object]] = []
    running: dict[int, tuple[float, float]] = {}  # worker -> seconds of its job, and when it began
    done, lost_s, losses, count = 0, 0.0, 0, 0
    read: dict[str, float] = {}  # machine -> when the checkpoint is in its memory

    def push(when: float, kind: str, what: object) -> None:
        nonlocal count
        count += 1
        heapq.heappush(events, (when, count, kind, what))

    def begin(now: float, worker: int, seconds: float) -> None:
        running[worker] = (seconds, now)
        push(now + seconds, "end", (worker, now))

    def open_workers(now: float) -> None:
        nonlocal count
        for seconds, share in packing.openings():
            count += 1
            packing.hold(count, share)
            if share.place.node not in read:
                read[share.place.node] = files.serve(now, read_s)
            begin(max(now, read[share.place.node]) + start_s, count, seconds)

    for place in places if fails else ():
        push(chance.expovariate(1 / MEAN_UP_S), "fail", place)
    open_workers(0.0)
    now, first_reads_s = 0.0, files.free_s
    while done < SUBJECTS:
        now, _, kind, what = heapq.heappop(events)
        if kind == "end" and running.get(what[0], (0, None))[1] == what[1]:
            worker = what[0]
            del running[worker]
            done += 1
            kept = keeper.serve(now, measured["add_s"] + SAVES * measured["save_s"])
            push(kept, "next", worker)
        elif kind == "next" and what in packing.shares:
            seconds = packing.next_for(what)
            begin(now, what, seconds) if seconds is not None else open_workers(now)
        elif kind == "fail":
            packing.places = [place for place in packing.places if place != what]
            read.pop(what.node, None)
            for worker in [worker for worker, share in packing.shares.items() if share.place == what]:
                packing.release(worker)
                if worker in running:
                    seconds, began = running.pop(worker)
                    spent = max(0.0, now - began)
                    saved = int(spent / seconds * SAVES) / SAVES * seconds
                    lost_s, losses = lost_s + spent - saved, losses + 1
                    packing.add(seconds - saved, JOB_MIB, is_next=True)
            push(now + DOWN_S, "back", what)
            open_workers(now)
        elif kind == "back":
            packing.places.append(what)
            push(now + chance.expovariate(1 / MEAN_UP_S), "fail", what)
            open_workers(now)
    return {
        "hours": now / 3600,
        "of ideal": now / ideal,
        "keeper busy": keeper.busy_s / now,
        "first reads, min": first_reads_s / 60,
        "jobs lost": losses,
        "work lost": lost_s / (SUBJECTS * job_s),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "simulate"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--jobs", type=int, default=5, help="of each worker")
    arguments = parser.parse_args()
    if arguments.what == "measure":
        arguments.file.write_text(json.dumps(measure(arguments.jobs), indent=1))
    measured = json.loads(arguments.file.read_text())
    one = measured["workers"]["1"]["jobs_s_warm"]
    print("| workers | jobs a minute, warm | of one worker's | whole, s |\n|---|---|---|---|")
    for count, told in measured["workers"].items():
        rate = told["jobs_s_warm"]
        print(f"| {count} | {60 * rate:.1f} | {rate / one:.2f} | {told['whole_s']:.0f} for {told['jobs']} |")
    print(f"\nkeeping a job {1000 * measured['add_s']:.0f} ms, a save {1000 * measured['save_s']:.1f} ms\n")
    print("| job, s | machines fail | hours | of ideal | keeper busy | first reads, min | jobs lost | work lost |")
    print("|---" * 8 + "|")
    for job_s in LENGTHS:
        for fails in (False, True):
            cells = simulate(measured, job_s, fails)
            print(
                f"| {job_s} | {'yes' if fails else 'no'} | {cells['hours']:.2f} | {cells['of ideal']:.2f} | "
                f"{cells['keeper busy']:.0%} | {cells['first reads, min']:.1f} | {cells['jobs lost']} | "
                f"{cells['work lost']:.2%} |"
            )


if __name__ == "__main__":
    main()
