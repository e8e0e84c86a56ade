"""Talks to a ComfyUI server, and starts one. Used by the demo and by the tests; needs aiohttp, which ComfyUI brings.

with Server(comfyui) as server:
    entry = server.client.run(prompt, on_event=print)
"""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import aiohttp

Prompt = dict[str, dict]  # node id -> {"class_type", "inputs"}: a workflow in API format
OnEvent = Callable[[str, dict], None]  # the type and the data of a message from the server

HAS_ACCELERATOR = """
import torch
found = torch.accelerator.is_available() if hasattr(torch, "accelerator") else torch.cuda.is_available()
raise SystemExit(0 if found else 3)
"""


class ServerError(RuntimeError):
    """The server did not start, died, or cannot be reached."""


class PromptRejected(RuntimeError):
    """The server did not take a prompt, or only a part of it. node_errors is its answer, by node id."""

    def __init__(self, answer: dict):
        self.node_errors: dict[str, dict] = answer.get("node_errors") or {}
        error = answer.get("error") or {}
        lines = [_node_error(node_id, node, e) for node_id, node in self.node_errors.items() for e in node["errors"]]
        summary = error if isinstance(error, str) else f"{error.get('message', '')} {error.get('details', '')}".strip()
        super().__init__("The server refused the workflow:\n  " + "\n  ".join(lines or [summary]))


class PromptFailed(RuntimeError):
    """A node raised an exception. data is the server's execution_error message."""

    def __init__(self, data: dict):
        self.data = data
        kind, message = data.get("exception_type"), str(data.get("exception_message")).strip()
        super().__init__(f"Node {data.get('node_id')} ({data.get('node_type')}) failed with {kind}: {message}")


class PromptInterrupted(RuntimeError):
    """The run was cancelled, or taken out of the queue."""


class Client:
    """One running ComfyUI, by its address."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")

    def get(self, path: str, **query: str) -> bytes:
        """Body of the answer to a GET request."""
        return asyncio.run(self._request("GET", path, params=query))

    def post(self, path: str, payload: object) -> bytes:
        """Body of the answer to a POST request with a JSON payload."""
        return asyncio.run(self._request("POST", path, json=payload))

    def system_stats(self) -> dict:
        """Versions, devices and their memory."""
        return json.loads(self.get("/system_stats"))

    def object_info(self, node: str | None = None) -> dict:
        """Inputs and outputs of all nodes by id, or of one."""
        if node is None:
            return json.loads(self.get("/object_info"))
        return json.loads(self.get(f"/object_info/{node}"))[node]

    def options(self, node: str, name: str) -> list[str]:
        """What a list input of a node offers."""
        inputs = self.object_info(node)["input"]
        kind, *rest = (inputs.get("required", {}) | inputs.get("optional", {}))[name]
        return kind if isinstance(kind, list) else rest[0]["options"]

    def history(self, prompt_id: str) -> dict | None:
        """Outputs and status of a finished prompt, else None."""
        return json.loads(self.get(f"/history/{prompt_id}")).get(prompt_id)

    def queue(self, prompt: Prompt, client_id: str | None = None) -> str:
        """Id of the prompt, now waiting to be run. Messages about it go to the websocket with that client id."""
        return asyncio.run(self._queue(prompt, client_id))

    def wait(self, prompt_id: str, timeout_s: float | None = None) -> dict:
        """Outputs and status of a prompt when it is finished. Raises if it failed or was interrupted."""
        return asyncio.run(asyncio.wait_for(self._wait(prompt_id), timeout_s))

    def run(self, prompt: Prompt, on_event: OnEvent = lambda kind, data: None, timeout_s: float | None = None) -> dict:
        """Outputs and status of the prompt, run now; what the server says meanwhile goes to on_event."""
        return asyncio.run(asyncio.wait_for(self._run(prompt, on_event), timeout_s))

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Cancel what is running now, or only that prompt."""
        self.post("/interrupt", {} if prompt_id is None else {"prompt_id": prompt_id})

    def upload_image(self, path: Path, subfolder: str = "") -> dict:
        """Where a picture is now in the server's input folder: name, subfolder, type. Replaces one of that name."""
        form = aiohttp.FormData({"subfolder": subfolder, "overwrite": "true"})
        form.add_field("image", path.read_bytes(), filename=path.name)
        return json.loads(asyncio.run(self._request("POST", "/upload/image", data=form)))

    def download(self, view: Mapping[str, str]) -> bytes:
        """Content of a file that an output names by filename, subfolder and type."""
        return self.get("/view", **{name: view[name] for name in ("filename", "subfolder", "type")})

    async def _run(self, prompt: Prompt, on_event: OnEvent) -> dict:
        client_id = uuid.uuid4().hex
        async with self._session() as session:
            address = f"{self.url}/ws?clientId={client_id}"
            async with session.ws_connect(address, max_msg_size=0, heartbeat=60) as messages:
                prompt_id = await self._queue(prompt, client_id)
                async for message in messages:
                    if message.type is not aiohttp.WSMsgType.TEXT:
                        continue  # previews
                    event = json.loads(message.data)
                    on_event(event["type"], event["data"])
                    if _is_last(event, prompt_id):
                        break
        return await self._wait(prompt_id)

    async def _queue(self, prompt: Prompt, client_id: str | None) -> str:
        payload = {"prompt": prompt} if client_id is None else {"prompt": prompt, "client_id": client_id}
        answer = json.loads(await self._request("POST", "/prompt", json=payload, accept=(200, 400)))
        if "prompt_id" in answer and answer.get("node_errors"):  # it would run without the outputs that have errors
            await self._request("POST", "/queue", json={"delete": [answer["prompt_id"]]})
            await self._request("POST", "/interrupt", json={"prompt_id": answer["prompt_id"]})
        if "prompt_id" not in answer or answer.get("node_errors"):
            raise PromptRejected(answer)
        return answer["prompt_id"]

    async def _wait(self, prompt_id: str) -> dict:
        while True:
            is_queued = prompt_id in (await self._request("GET", "/queue")).decode()
            entry = json.loads(await self._request("GET", f"/history/{prompt_id}")).get(prompt_id)
            if entry:
                _raise_unless_success(entry)
                return entry
            if not is_queued:
                raise PromptInterrupted("The workflow was taken out of the queue")
            await asyncio.sleep(0.2)

    async def _request(self, method: str, path: str, accept: Sequence[int] = (200,), **options) -> bytes:
        try:
            async with self._session() as session, session.request(method, self.url + path, **options) as response:
                body = await response.read()
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise ServerError(f"No answer from {self.url}{path}: {error or type(error).__name__}") from error
        if response.status not in accept:
            raise ServerError(f"{method} {self.url}{path}: {response.status} {body.decode(errors='replace')[:500]}")
        return body

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=120))


class Server:
    """A ComfyUI on a free port of this machine, for the length of a `with` block.

    folders: base, output, input, user, temp -> ComfyUI's folders of these names; custom_nodes: folders with packs in
    them; models: kind -> one more folder with models, as in extra_model_paths.yaml.
    """

    def __init__(
        self,
        comfyui: Path,
        *,
        python: str | Path = sys.executable,
        folders: Mapping[str, Path] | None = None,
        custom_nodes: Sequence[Path] = (),
        models: Mapping[str, Path] | None = None,
        arguments: Sequence[str] = (),
        log: Path | None = None,
        start_timeout_s: float = 300,
    ):
        self.comfyui, self.python, self.folders = comfyui, str(python), dict(folders or {})
        self.extra_paths = [("custom_nodes", path) for path in custom_nodes] + list((models or {}).items())
        self.arguments, self.start_timeout_s = list(arguments), start_timeout_s
        self._scratch = tempfile.TemporaryDirectory(prefix="edgetune-server-", ignore_cleanup_errors=True)
        self.log = log or Path(self._scratch.name) / "server.log"
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = Client(self.url)

    def __enter__(self) -> "Server":
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command(),
                cwd=self.comfyui,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # Ctrl-C is for the caller, which can then cancel a run and keep its results
            )
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server; at once if it does not obey."""
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._scratch.cleanup()

    def log_tail(self, lines: int = 30) -> str:
        """The end of what the server has printed."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def _command(self) -> list[str]:
        command = [self.python, "main.py", "--port", str(self.port), "--disable-auto-launch"]
        command += ["--database-url", "sqlite:///:memory:", *self.arguments]
        for kind, folder in self.folders.items():
            folder.mkdir(parents=True, exist_ok=True)
            command += [f"--{kind}-directory", str(folder)]
        if self.extra_paths:
            command += ["--extra-model-paths-config", str(self._write_extra_paths())]
        if "--cpu" not in self.arguments and not has_accelerator(self.python):
            command.append("--cpu")
        return command

    def _write_extra_paths(self) -> Path:
        file = Path(self._scratch.name) / "extra_model_paths.yaml"
        sections = [
            f"edgetune{i}:\n  {kind}: {json.dumps(str(path), ensure_ascii=False)}\n"
            for i, (kind, path) in enumerate(self.extra_paths)
        ]
        file.write_text("".join(sections), encoding="utf-8")
        return file

    def wait_until_ready(self) -> None:
        """Return when the server answers. Raises ServerError if it ends, or does not."""
        deadline = time.monotonic() + self.start_timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerError(f"ComfyUI ended with code {self.process.returncode}:\n\n{self.log_tail()}")
            with contextlib.suppress(ServerError):
                self.client.system_stats()
                return
            time.sleep(0.2)
        raise ServerError(f"ComfyUI did not answer within {self.start_timeout_s:.0f} s:\n\n{self.log_tail()}")


def has_accelerator(python: str | Path = sys.executable) -> bool:
    """Whether that Python's torch has a device other than the CPU."""
    result = subprocess.run([python, "-c", HAS_ACCELERATOR], capture_output=True, text=True)
    if result.returncode not in (0, 3):
        raise ServerError(f"{python} cannot import torch:\n{result.stderr.strip().splitlines()[-1]}")
    return result.returncode == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _is_last(event: dict, prompt_id: str) -> bool:
    ends = ("execution_success", "execution_error", "execution_interrupted")
    return event["type"] in ends and event["data"].get("prompt_id") == prompt_id


def _raise_unless_success(entry: dict) -> None:
    for kind, data in (entry.get("status") or {}).get("messages", []):
        if kind == "execution_error":
            raise PromptFailed(data)
        if kind == "execution_interrupted":
            raise PromptInterrupted(f"Cancelled in node {data.get('node_id')} ({data.get('node_type')})")


def _node_error(node_id: str, node: dict, error: dict) -> str:
    name = (error.get("extra_info") or {}).get("input_name")
    place = f"node {node_id} ({node.get('class_type')})" + (f", input {name}" if name else "")
    return f"{place}: {error.get('message')}: {error.get('details')}"
