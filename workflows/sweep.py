"""Many subjects or settings at once: a workflow for each, over all GPUs and machines there are, on Ray.

    python workflows/sweep.py OUT photos/ --checkpoint path/to/model.safetensors [--workflow train_hollowed]
    python workflows/sweep.py OUT jobs.csv --checkpoint path/to/model.safetensors --dry-run
    python workflows/sweep.py OUT robot clown --workflow pocket_train_and_compare

photos/ has a folder of photos for each subject; a table has a line for each job, and columns subject, token, and
NODE.INPUT for what is to be set, NODE being a class or a title. OUT gets rows.csv, a folder for each job and contact
sheets; LoRAs go where ComfyUI lists them. Each job is planned, and as many run at once as fit into memory. Stop it as
you like: the same command goes on, no job that is done is done again, and those that were under way go on from their
last save. Needs Ray: pip install ray.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import demo
import prompts
import runtime
from runtime import SetupError, say
from sweep_jobs import Job, make_jobs, read_requests


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for what comes out; an existing one is gone on with")
    parser.add_argument("subjects", nargs="+", help="folders of subjects' folders, folders of photos, toys, or tables")
    parser.add_argument("--workflow", help="name of a file in workflows/api/, or a path to a workflow in API format")
    parser.add_argument("--checkpoint", help="a name in ComfyUI's models/checkpoints, or a path to a file")
    parser.add_argument("--token", default="", help='rare word and kind of the subjects, such as "sks dog"')
    parser.add_argument("--set", nargs="*", default=[], metavar="NODE.INPUT=VALUE", help="for all jobs")
    parser.add_argument("--models", type=Path, help="where loras/OUT/ goes (default: ComfyUI's models folder)")
    parser.add_argument("--dry-run", action="store_true", help="say what it would do and how long it may take")
    parser.add_argument("--address", help="HOST:PORT of a Ray cluster (default: this machine alone)")
    parser.add_argument("--workers", type=int, help="at most so many at once (default: as many as fit)")
    parser.add_argument("--cpus", type=int, default=1, help="cores of each worker (default: 1)")
    parser.add_argument("--memory-gb", type=float, help="memory of this machine for workers (default: what is free)")
    parser.add_argument("--job-gb", type=float, help="memory of each job, instead of planning it")
    parser.add_argument("--retries", type=int, default=2, help="how often a job whose worker was lost is taken up")
    parser.add_argument("--python", type=Path, help="Python of the ComfyUI that COMFYUI_PATH names (default: this one)")
    return parser.parse_args(arguments, argparse.Namespace(server=None))


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    with runtime.ending_in_words("Stopped. The same command goes on from here."):
        workflow = demo.workflow_as_set(arguments)
        requests = read_requests(arguments.subjects, arguments.token)
        comfyui = demo.set_up(arguments)
        failed = run(arguments, workflow, requests, comfyui)
    sys.exit(1 if failed else 0)


def run(arguments: argparse.Namespace, workflow: prompts.Prompt, requests: list, comfyui: Path) -> dict[str, str]:
    """Do all jobs that are not done; which failed, and why."""
    import sweep_cluster

    sweep_cluster.check_ray()
    if arguments.checkpoint and Path(arguments.checkpoint).is_file():
        arguments.checkpoint = str(Path(arguments.checkpoint).resolve())
    from sweep_table import Kept  # this and what follows need what ComfyUI's Python has

    models = (arguments.models or comfyui / "models").resolve()
    folders = {kind: models / kind / arguments.out.resolve().name for kind in ("loras", "embeddings")}
    kept = Kept(arguments.out, folders)
    jobs = make_jobs(workflow, requests, arguments.checkpoint, kept.taken())
    missing = [job for job in jobs if job.key not in kept.rows]
    say(f"{len(jobs)} jobs, of which {len(jobs) - len(missing)} are done")
    failed = {}
    if missing:
        sweep_cluster.folder_on_path()
        sweep_cluster.connect(arguments.address, mib(arguments.memory_gb), local_cpus(arguments))
        import ray  # not before: as it is imported it reads the environment, which connect() has set

        try:
            failed = run_missing(arguments, kept, jobs, missing)
        finally:
            ray.shutdown()
    if not arguments.dry_run:
        for path in kept.sheets():
            say(f"  sheet    {path}")
        say(f"  table    {kept.rows.file}\n  models   {models}")
    for name, error in failed.items():
        say(f"FAILED {name}: {error}")
    return failed


def run_missing(arguments: argparse.Namespace, kept, jobs: list[Job], missing: list[Job]) -> dict[str, str]:
    """Plan and run the jobs that are missing; which failed, and why."""
    from sweep_cluster import places
    from sweep_estimate import dry_run, plan
    from sweep_placement import Packing
    from sweep_progress import Progress
    from sweep_run import Sweep
    from sweep_workers import Worker

    found = places(arguments.cpus)
    if not found:
        raise SetupError(
            "No machine of the cluster offers memory to workers. Start Ray there with its GPUs' memory in MiB, such as "
            """ray start --resources='{"edgetune_bytes": 24000}'"""
        )
    worker = (Worker, (arguments.checkpoint,))
    sizes, failed = plan(missing, arguments.out / "plans.json", mib(arguments.job_gb), found[0], worker, arguments.cpus)
    sized = [(job, sizes[job.key]) for job in missing if job.key in sizes]
    if arguments.dry_run:
        say(dry_run(kept, jobs, sized, found, worker, arguments))
        return failed
    with Progress(len(jobs), len(jobs) - len(missing)) as progress:
        sweep = Sweep(kept, Packing(found, arguments.workers), worker, arguments.cpus, arguments.retries, progress.hear)
        return failed | sweep.run(sized).failed


def mib(gb: float | None) -> int | None:
    """MiB of a GB as graphics cards have it."""
    return None if gb is None else round(gb * 1024)


def local_cpus(arguments: argparse.Namespace) -> int:
    """How many cores Ray may count on here: enough for as many workers as were asked for."""
    return max(os.cpu_count() or 1, (arguments.workers or 1) * arguments.cpus)


if __name__ == "__main__":
    main()
