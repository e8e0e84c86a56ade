"""One tab of the canvas: the frontend that ComfyUI's server brings, driven by playwright."""

import json
import time
from collections.abc import Callable

from playwright.sync_api import ConsoleMessage, Page

ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
PACK_NAME = "EdgeTune-main"  # ComfyUI 0.30 serves no web/ of a pack with a space in its name
SIZE = {"width": 1600, "height": 900}
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.RightSidePanel.IsOpen": False}
READY = "() => window.app?.vueAppReady && window.app.canvas && window.app.graph"
FOREIGN = "/missingModelDownload-"  # asks the model hub about the default graph, whenever it gets to it
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
        if FOREIGN not in source and message.type in ("warning", "error") and (not source or self._is_local(source)):
            self.messages.append(f"{message.type}: {message.text} ({source})")
