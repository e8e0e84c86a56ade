"""The real canvas: the frontend that the server brings, in headless chromium, classic and in Nodes 2.0.

Playwright's loop keeps asyncio.run from working in this thread while a browser is open, so browsers are closed with the
module that opened them, and these tests ask the server through the page.
"""

from collections.abc import Iterator

import pytest
from comfyui import start_server
from frontend import ARGUMENTS, PACK_NAME, SIZE, Canvas, furnish
from pack.workflows.client import Server
from playwright.sync_api import sync_playwright


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[Server]:
    """A server with the photos, the checkpoint, the CLIP and the LoRAs that the workflows name."""
    folder = tmp_path_factory.mktemp("browser")
    running = start_server(folder, pack_name=PACK_NAME)
    furnish(folder)
    with running:
        yield running


@pytest.fixture(scope="module", params=["classic", "nodes2"])
def canvas(request, server, chromium) -> Iterator[Canvas]:
    """The canvas, once as it always was and once with Nodes 2.0."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        try:
            page = browser.new_page(viewport=SIZE)
            yield Canvas(page, server.url, is_nodes2=request.param == "nodes2")
        finally:
            browser.close()
