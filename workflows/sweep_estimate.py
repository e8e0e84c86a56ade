"""What jobs will take before they run: memory by Plan VRAM on a real server, and time by a few steps of each kind."""

import copy
import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import prompts
import ray
from ray.exceptions import RayError
from runtime import SetupError, say
from sweep_cluster import start_worker
from sweep_jobs import PLANNED, Job, plan_key, plan_prompt
from sweep_placement import Packing, Place, Share, expected_seconds
from sweep_run import Sweep
from sweep_table import Kept, listing

PROCESS_MIB = 2048  # of a ComfyUI on the CPU beside what is planned: Python, torch, text encoder and VAE
PLANNER_MIB = 1024  # to plan takes next to nothing
PROBES = (1, 2, 8)  # steps; the first loads the model, the others tell a job's time from a step's
START_S = 20  # of a worker


def plan(
    jobs: Sequence[Job], file: Path, fixed_mib: int | None, place: Place, worker: tuple[type, tuple], cpus: int
) -> tuple[dict[str, int], dict[str, str]]:
    """MiB of each job by its key, and why some cannot be planned, by name. The file has what was planned before."""
    if fixed_mib is not None:
        return {job.key: fixed_mib for job in jobs}, {}
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    keys = {job.key: plan_key(job.prompt) for job in jobs}
    missing = {keys[job.key]: job for job in jobs if keys[job.key] not in known}
    errors = {}
    if missing:
        say(f"Planning {len(missing)} kinds of jobs in a ComfyUI")
        share = Share(place, min(PLANNER_MIB, place.mib))
        planner = start_worker(*worker, share, cpus)
        try:
            for key, job in missing.items():
                kind, told = ray.get(planner.plan.remote(plan_prompt(job.prompt), PLANNED))
                if kind == "planned":
                    known[key] = -(-told["needed_bytes"] // 2**20) + (PROCESS_MIB if told["device"] == "cpu" else 0)
                else:
                    errors[key] = told["error"]
            ray.get(planner.close.remote())
        except RayError as error:
            raise SetupError(f"The jobs could not be planned: {error}") from error
        finally:
            ray.kill(planner)
        file.write_text(json.dumps(known, indent=1), encoding="utf-8")
    sizes = {job.key: known[keys[job.key]] for job in jobs if keys[job.key] in known}
    return sizes, {job.name: errors[keys[job.key]] for job in jobs if keys[job.key] in errors}


def dry_run(kept: Kept, jobs, sized: list[tuple[Job, int]], places: Sequence[Place], worker, arguments) -> str:
    """What a sweep would do, in words."""
    sizes = {job.key: mib for job, mib in sized}
    memory = sum(place.mib for place in places)
    lines = [
        listing([job for job, _ in sized], sizes),
        f"{len(sized)} jobs to do; {memory:,} MiB in {len(places)} places (GPUs, or machines without one)",
    ]
    seconds, unknown = _seconds(kept, jobs, sized, places, worker, arguments)
    timed = [(mib, seconds[job.key]) for job, mib in sized if job.key in seconds]
    whole = expected_seconds(timed, Packing(places, arguments.workers), START_S)
    lines.append(f"expected time: {_clock(whole)} ({_clock(sum(s for _, s in timed))} one after the other)")
    lines += [f"not counted, since a few steps of it failed: {name}: {error}" for name, error in unknown.items()]
    return "\n".join(lines)


def _seconds(kept: Kept, jobs, sized, places, worker, arguments) -> tuple[dict[str, float], dict[str, str]]:
    """Of each job, as jobs of the same kind took that are done, or else as a few steps tell."""
    known = defaultdict(list)
    for job in jobs:
        if job.key in kept.rows:
            known[_kind(job)].append(float(kept.rows.rows[job.key]["seconds"]))
    fresh = {_kind(job): (job, mib) for job, mib in reversed(sized) if _kind(job) not in known}
    failed = {}
    if fresh:
        say(f"Training {', '.join(map(str, PROBES))} steps of {len(fresh)} kinds of jobs, to know how long they take")
        for kind, (job, mib) in fresh.items():
            told = _probe(job, mib, places, worker, arguments)
            if isinstance(told, str):
                failed[job.name] = told
            else:
                known[kind] = [told]
    return {job.key: fmean(known[_kind(job)]) for job, _ in sized if known[_kind(job)]}, failed


def _probe(job: Job, mib: int, places: Sequence[Place], worker, arguments) -> float | str:
    """Seconds of the job, from runs of it with fewer steps; or what went wrong."""
    probes = [_shorter(job, steps) for steps in PROBES]
    with tempfile.TemporaryDirectory(prefix="edgetune-probe-") as scratch:
        folders = {kind: Path(scratch) / kind for kind in ("loras", "embeddings")}
        probed = Kept(Path(scratch), folders)
        outcome = Sweep(probed, Packing(places, 1), worker, arguments.cpus).run([(probe, mib) for probe in probes])
        if outcome.failed:
            return next(iter(outcome.failed.values()))
        _, few, many = (float(probed.rows.rows[probe.key]["seconds"]) for probe in probes)
    return few + max(0.0, many - few) / (PROBES[2] - PROBES[1]) * (_steps(job) - PROBES[1])


def _shorter(job: Job, steps: int) -> Job:
    prompt = copy.deepcopy(job.prompt)
    prompts.fill(prompt, {(trainer, "steps"): steps for trainer in prompts.TRAINERS})
    name = f"{job.name}_{steps}_steps"
    return job._replace(key=f"{job.key}_{steps}", name=name, prompt=prompt)


def _steps(job: Job) -> int:
    trained = [node["inputs"]["steps"] for node in job.prompt.values() if node["class_type"] in prompts.TRAINERS]
    return trained[0] if trained else PROBES[1]


def _kind(job: Job) -> tuple[str, int]:
    """The same for jobs that take as long."""
    has_trainer = any(node["class_type"] in prompts.TRAINERS for node in job.prompt.values())
    return plan_key(job.prompt) if has_trainer else "", _steps(job)


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{seconds / 60:.1f} min"
