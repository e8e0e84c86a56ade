"""Takes the workflows' thumbnails again: the pocket ones after a run, the others as they open.

    python tests/browser/thumbnails.py [NAME ...]

writes workflows/NAME.jpg. pocket_train_and_save has to run before pocket_use_trained_lora, as the order of names does.
"""

import argparse
import io
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "browser"), str(ROOT / "workflows")]
import comfyui  # noqa: E402
import runtime  # noqa: E402
from frontend import ARGUMENTS, Canvas, furnish  # noqa: E402
from PIL import Image  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
WIDTH, QUALITY = 640, 82
FIT = """() => {
    const { canvas, ds } = app.canvas, boxes = app.graph.nodes.map(n => n.boundingRect);
    const left = Math.min(...boxes.map(b => b[0])), top = Math.min(...boxes.map(b => b[1]));
    const margin = 40, side = 60, menu = 120;
    const right = Math.max(...boxes.map(b => b[0] + b[2])), bottom = Math.max(...boxes.map(b => b[1] + b[3]));
    const width = canvas.clientWidth - side, height = canvas.clientHeight - menu;
    ds.scale = Math.min(width / (right - left + 2 * margin), height / (bottom - top + 2 * margin));
    ds.offset = [margin + side / ds.scale - left, margin + menu / ds.scale - top];
    app.canvas.setDirty(true, true);
    return [side, menu, (right - left + 2 * margin) * ds.scale, (bottom - top + 2 * margin) * ds.scale];
}"""


def shoot(canvas, name: str) -> Image.Image:
    """The whole graph, with what its run has left in it."""
    canvas.page.evaluate("app.refreshComboInNodes()")  # what a run before has saved is listed
    canvas.open(json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8")), name)
    if name.startswith("pocket_"):
        canvas.start()
        canvas.finish(timeout_s=900)
        canvas.page.wait_for_timeout(3000)  # pictures are fetched and nodes grow
    x, y, width, height = canvas.page.evaluate(FIT)
    canvas.page.wait_for_timeout(1000)
    clip = {"x": x, "y": y, "width": width, "height": height}
    return Image.open(io.BytesIO(canvas.page.screenshot(clip=clip))).convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help=", ".join(NAMES))
    names = parser.parse_args().names
    with (
        tempfile.TemporaryDirectory() as folder,
        comfyui.start_server(Path(folder)) as server,
        sync_playwright() as web,
    ):
        furnish(Path(folder), loras=("my_subject",))  # my_toy is what pocket_train_and_save makes
        browser = web.chromium.launch(executable_path=runtime.find_chromium(), args=ARGUMENTS)
        canvas = Canvas(browser.new_page(viewport={"width": 1920, "height": 1080}), server.url, is_nodes2=False)
        for name in names:
            picture = shoot(canvas, name)
            picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.LANCZOS).save(
                ROOT / "workflows" / f"{name}.jpg", quality=QUALITY
            )
        browser.close()


if __name__ == "__main__":
    main()
