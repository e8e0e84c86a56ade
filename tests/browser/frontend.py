"""One tab of the canvas: the frontend that ComfyUI's server brings, driven by playwright."""

import json
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image
from playwright.sync_api import ConsoleMessage, Page

ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
MIB = 2**20
PACK_NAME = "EdgeTune-main"  # ComfyUI 0.30 serves no web/ of a pack with a space in its name
SIZE = {"width": 1600, "height": 900}
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.RightSidePanel.IsOpen": False}
EMPTY = {"nodes": [], "links": [], "groups": [], "last_node_id": 0, "last_link_id": 0, "config": {}, "version": 0.4}
READY = "() => window.app?.vueAppReady && window.app.canvas && window.app.graph"
FOREIGN = "/missingModelDownload-"  # asks the model hub about the default graph, whenever it gets to it
ROUTING = (
    "[subgraphNavigation]"  # of the frontend's addresses, where another workflow is opened from inside a sub-graph
)
PATIENCE_MS = 120_000  # with a page on a machine that is busy
SETTLE_MS = 1000  # the check for missing models comes after the graph is drawn
LOCATE = """id => {
    const { canvas, ds } = app.canvas, node = app.graph.getNodeById(id), frame = canvas.getBoundingClientRect();
    return [0, 1].map(i => [frame.x, frame.y][i] + (node.pos[i] + [60, -15][i] + ds.offset[i]) * ds.scale);
}"""

START = """() => {
    window.end = null;
    for (const end of ['execution_success', 'execution_error', 'execution_interrupted'])
        app.api.addEventListener(end, () => { window.end = end; });
    app.queuePrompt(0);
}"""


class Canvas:
    """One tab with ComfyUI in it."""

    def __init__(self, page: Page, url: str, is_nodes2: bool):
        self.page, self.url, self.is_nodes2 = page, url, is_nodes2
        self.messages: list[str] = []  # warnings and errors since the last workflow was opened
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.messages.append(f"uncaught: {error}"))
        page.route("**/*", lambda route: route.continue_() if self._is_local(route.request.url) else route.abort())
        for setting, value in (SETTINGS | {"Comfy.VueNodes.Enabled": is_nodes2}).items():
            self.set(setting, value)
        page.goto(url)
        self._settle()
        self.loaded_messages, self.messages = self.messages, []

    def set(self, setting: str, value: object) -> None:
        """Change one of the user's settings, for pages that are loaded from now on."""
        assert self.page.request.post(f"{self.url}/api/settings", data={setting: value}).ok

    def reload(self) -> None:
        """Load the page again, with what was open in it."""
        self.page.reload()
        self._settle()
        self.messages.clear()

    def get_json(self, path: str) -> dict:
        """The server's answer to a GET request."""
        return self.page.request.get(self.url + path).json()

    def open(self, workflow: dict, name: str) -> None:
        """Open a workflow as the template browser does."""
        self.messages.clear()
        load = "([data, name]) => app.loadGraphData(data, true, true, name, { openSource: 'template' })"
        self.page.evaluate(load, [workflow, name])
        self.page.wait_for_timeout(SETTLE_MS)

    def export(self) -> dict:
        """What "Export (API)" writes."""
        text = self.page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).output)")
        return json.loads(text)

    def start(self) -> None:
        """Run what is open."""
        self.page.evaluate(START)

    def finish(self, timeout_s: float) -> None:
        """Wait for the end of what was started, which has to be a success."""
        self.wait(lambda: self.page.evaluate("() => window.end"), timeout_s)
        assert self.page.evaluate("() => window.end") == "execution_success", self.complaints()

    def open_empty(self) -> None:
        """Open a workflow with nothing in it."""
        self.open(EMPTY | {"id": str(uuid.uuid4())}, "empty")

    def place_by_search(self, words: str) -> None:
        """Put what these words find onto an empty canvas, with the mouse and the canvas's own search."""
        self.open_empty()
        search = self.page.get_by_role("combobox", expanded=True)

        def opened() -> bool:  # a busy page may take two clicks for single ones
            self.page.mouse.dblclick(800, 500)
            self.page.wait_for_timeout(1000)
            return search.is_visible()

        self.wait(opened, timeout_s=30)
        search.fill(words)
        self.page.get_by_test_id("result-item").first.wait_for()
        self.page.wait_for_timeout(700)  # the list follows the words with a delay
        self.page.keyboard.press("Enter")
        self.wait(lambda: self.page.evaluate("() => app.graph.nodes.length"), timeout_s=30)

        def placed() -> bool:  # the first click may still meet the closing search
            self.page.mouse.move(600, 200, steps=4)
            self.page.mouse.click(600, 200)
            return not self.page.evaluate("() => app.graph.nodes[0].flags.ghost")

        self.wait(placed, timeout_s=30)

    def receive(self, kind: str, data: dict) -> None:
        """Let the frontend handle a message as if the server had sent it."""
        message = json.dumps({"type": kind, "data": data})
        self.page.evaluate("m => app.api.socket.dispatchEvent(new MessageEvent('message', { data: m }))", message)

    def complaints(self) -> list[str]:
        """Texts of the error messages, notices and dialogs that are on the page."""
        marks = '[data-testid="error-overlay"], [data-testid="error-dialog"], .p-toast-message-error, [role="dialog"]'
        return [found.inner_text() for found in self.page.locator(marks).all() if found.is_visible()]

    def select(self, node_id: int) -> None:
        """Click on a node's title."""
        self.page.mouse.click(*self.page.evaluate(LOCATE, node_id))

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Return when the condition holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"waited {timeout_s} s in vain"
            self.page.wait_for_timeout(100)

    def _settle(self) -> None:
        self.page.wait_for_function(READY)
        self.page.wait_for_timeout(SETTLE_MS)

    def _is_local(self, address: str) -> bool:
        return address.startswith((self.url, "data:", "blob:"))

    def _note(self, message: ConsoleMessage) -> None:
        source = (message.location or {}).get("url", "")
        if FOREIGN in source or message.text.startswith(ROUTING):
            return
        if message.type in ("warning", "error") and (not source or self._is_local(source)):
            self.messages.append(f"{message.type}: {message.text} ({source})")


def step_message(node: int | str, workflow: str, losses: list[float], step: int | None = None, **other) -> dict:
    """An edgetune.step, as nodes/host_runs.py sends it."""
    last = {"loss": losses[-1], "kind": "bp", "t": 10, "bytes": 64 * MIB}
    place = {"node": str(node), "workflow": workflow, "prompt_id": "p"}
    series = {"losses": losses, "kinds": ["bp"] * len(losses)}
    limits = {"planned_bytes": None, "budget_bytes": None}
    progress = {"step": step or len(losses), "first": 1, "steps": 8, "elapsed_s": 1.0}
    return place | progress | last | limits | series | other


def furnish(folder: Path, loras: Sequence[str] = ("my_subject", "my_toy")) -> None:
    """Give a server's folder the photos that the workflows name, and files with the names of their models."""
    photos = folder / "input" / "my_subject"
    photos.mkdir(parents=True)
    for i, colour in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (96, 80), colour).save(photos / f"{i}.png")
    models = ["checkpoints/v1-5-pruned-emaonly-fp16", "clip_vision/clip_vision_h"]
    for name in (*models, *(f"loras/edgetune/{lora}" for lora in loras)):  # listed, and never loaded
        file = folder / "models" / f"{name}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
