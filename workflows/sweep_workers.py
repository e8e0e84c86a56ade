"""A worker of a sweep: a Ray actor with a ComfyUI of its own, which keeps the model loaded from job to job.

It tells what happens in messages, which are asked for with messages(): began, step, saved (a point that another worker
can go on from), and one of done, failed (the job's own fault) or stopped. Anything else that goes wrong is raised.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

import demo
import prompts
import runtime
from client import PromptFailed, PromptInterrupted, PromptRejected, Server, ServerError
from prompts import Prompt
from results import collect

PATIENCE_S = 2  # how long messages() waits for the first
STEP_INTERVAL_S = 1.0
MODELS = ("loras", "embeddings")
STATE = ".state.safetensors"
GUARD = """
import os, shutil, signal, sys
if hasattr(os, "fork") and os.fork():
    os._exit(0)  # the rest is no child of the worker's, so that it outlives whatever ends that and its children
sys.stdin.buffer.read()
try:
    os.killpg(int(sys.argv[1]), signal.SIGKILL) if hasattr(os, "killpg") else os.kill(int(sys.argv[1]), signal.SIGTERM)
except OSError:
    pass
shutil.rmtree(sys.argv[2], ignore_errors=True)
"""
Message = tuple[str, dict]


class Point(NamedTuple):
    """A saved run: what `resume` calls it, and its files by their path in the output folder."""

    name: str
    files: dict[str, bytes]


class Work(NamedTuple):
    """A job as a worker gets it."""

    name: str
    prompt: Prompt
    folder: str  # in the input folder, for the files
    files: dict[str, bytes]
    point: Point | None  # to go on from


class GuardedServer(Server):
    """A server that ends, and takes its folder with it, when the process that started it ends in whatever way."""

    def wait_until_ready(self) -> None:
        guard = [sys.executable, "-c", GUARD, str(self.process.pid), str(self.log.parent)]
        self.guard = subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True)
        super().wait_until_ready()


class Worker:
    """One ComfyUI, and one job at a time."""

    def __init__(self, checkpoint: str | None = None):
        comfyui = runtime.find_comfyui()
        if comfyui is None:
            raise runtime.SetupError(f"{socket.gethostname()} has no ComfyUI: run workflows/demo.py there once")
        self.scratch = Path(tempfile.mkdtemp(prefix="edgetune-sweep-"))
        self.folders = {name: self.scratch / name for name in ("input", "output", "temp", "user")}
        paths = self.scratch / "save_here.yaml"
        saves = {kind: str(self.scratch / kind) for kind in MODELS} | {"is_default": True}
        paths.write_text(json.dumps({"edgetune_sweep": saves}), encoding="utf-8")
        self.server = GuardedServer(
            comfyui,
            folders=self.folders,
            custom_nodes=demo.offer_pack(comfyui, self.scratch),
            models={"checkpoints": demo.offer_checkpoint(checkpoint, self.scratch / "checkpoints")},
            arguments=[*demo.server_flags()[0], "--extra-model-paths-config", str(paths)],
            log=self.scratch / "server.log",
        )
        self.server.__enter__()
        self.threads, self.future = ThreadPoolExecutor(1), Future()
        self.queue: SimpleQueue[Message] = SimpleQueue()
        self.sent, self.told_s = "", 0.0

    def plan(self, prompt: Prompt, node: str) -> Message:
        """What Plan VRAM says, as "planned" or "failed"."""
        try:
            text = self.server.client.run(prompt)["outputs"][node]["text"][0]
        except (PromptRejected, PromptFailed) as error:
            return "failed", {"error": str(error)}
        return "planned", json.loads(text)

    def start(self, work: Work) -> None:
        """Begin with a job."""
        self.future = self.threads.submit(self._do, work)

    def messages(self) -> list[Message]:
        """What happened since the last call, if need be after some waiting."""
        found = []
        try:
            found.append(self.queue.get(timeout=PATIENCE_S))
            while True:
                found.append(self.queue.get_nowait())
        except Empty:
            if not found and self.future.done():
                self.future.result()  # raises what ended it
        return found

    def stop(self) -> None:
        """End the job; its last point is still told."""
        self.server.client.interrupt()

    def close(self) -> None:
        """End the server, and leave nothing behind."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.server.process.terminate()
            self.server.process.wait(15)
        self.server.guard.stdin.close()  # it does the rest

    def _do(self, work: Work) -> None:
        """Run the job, and tell of it."""
        try:
            self._lay_out(work)
            self.queue.put(("began", {"machine": socket.gethostname(), "gpu": _gpu()}))
            self.queue.put(("done", self._result(work)))
        except (PromptRejected, PromptFailed, prompts.UnfitWorkflow) as error:
            self.queue.put(("failed", {"error": str(error)}))
        except PromptInterrupted:
            self._tell_point()
            self.queue.put(("stopped", {}))
        except ServerError as error:
            raise ServerError(f"{error}\n{self.server.log_tail()}") from error

    def _lay_out(self, work: Work) -> None:
        """Put the photos, and the point to go on from, where ComfyUI finds them; nothing of other jobs stays."""
        for folder in (
            self.folders["input"],
            self.folders["output"],
            self.scratch / "results",
            *(self.scratch / kind for kind in MODELS),
        ):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        for name, content in work.files.items():
            _write(self.folders["input"] / work.folder / name, content)
        self.sent = ""
        if work.point:
            for name, content in work.point.files.items():
                _write(self.folders["output"] / name, content)
            self.sent = work.point.name
            prompts.fill(work.prompt, {(trainer, "resume"): work.point.name for trainer in prompts.TRAINERS})

    def _result(self, work: Work) -> dict:
        """All that the job made: pictures and reports, models by kind, figures."""
        started = time.monotonic()
        entry = self.server.client.run(work.prompt, self._on_event)
        seconds = time.monotonic() - started
        found = collect(self.server.client, work.prompt, entry, self.scratch / "results")
        return {
            "seconds": seconds,
            "reports": [
                json.loads(path.read_text(encoding="utf-8")) for path in found.reports if path.suffix == ".json"
            ],
            "pictures": {path.name: title for path, title in found.pictures.items()},
            "files": {path.name: path.read_bytes() for path in sorted(found.folder.iterdir())},
            "models": [
                (Path(path).relative_to(self.scratch).parts[0], Path(path).read_bytes()) for path in found.loras
            ],
        }

    def _on_event(self, kind: str, data: dict) -> None:
        if kind != "edgetune.step":
            return
        if time.monotonic() - self.told_s > STEP_INTERVAL_S or data["step"] == data["steps"]:
            self.told_s = time.monotonic()
            self.queue.put(("step", {"step": data["step"], "steps": data["steps"]}))
        self._tell_point()

    def _tell_point(self) -> None:
        """Send the newest point, unless it has been sent."""
        root = self.folders["output"]
        newest = max(root.glob(f"edgetune/*/step_*{STATE}"), key=lambda path: path.name, default=None)
        if newest is None:
            return
        name = f"{newest.parent.name}/{newest.name.removesuffix(STATE)}"
        if name != self.sent:
            self.sent = name
            both = [newest, newest.with_name(newest.name.replace(STATE, ".safetensors"))]
            files = {path.relative_to(root).as_posix(): path.read_bytes() for path in both}
            self.queue.put(("saved", {"point": Point(name, files)}))


def _gpu() -> int | None:
    """Number of the GPU that Ray gave to this process."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    return int(shown) if shown.isdecimal() else None


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
