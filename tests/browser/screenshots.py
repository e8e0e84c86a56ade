"""Takes the pictures of README and help again, in the real canvas: python tests/browser/screenshots.py

A trainer while it runs on the pocket model, the dragged schedule, and every other node after a run, each into
web/docs/<node id>/.
"""

import io
import json
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "browser"), str(ROOT / "workflows")]
import comfyui  # noqa: E402
import runtime  # noqa: E402
from frontend import ARGUMENTS, PACK_NAME, Canvas  # noqa: E402
from PIL import Image  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

SIZE = {"width": 1400, "height": 1400}
TRAINER, SUBJECT, SCHEDULE = "EdgeTune_SelectiveTrainer", "EdgeTune_LoadSubjectImages", "EdgeTune_DTAPPreview"
STEPS, PREVIEWS = 120, 40
AFTER_RUNS = {  # workflow: nodes that are shown as its run leaves them
    "pocket_plan_memory": ["EdgeTune_PlanVRAM"],
    "pocket_memory_report": ["EdgeTune_VRAMReport"],
    "pocket_train_hollowed": ["EdgeTune_HollowedNetTrainer", "EdgeTune_SaveLoRA"],
    "pocket_train_embedding": ["EdgeTune_ZOTextualInversion", "EdgeTune_SaveEmbedding", "EdgeTune_LoadPocketModel"],
    "pocket_evaluate_subject": ["EdgeTune_EvaluateSubject"],
}
SET = """settings => {
    for (const [type, name, value] of settings)
        for (const node of app.graph.nodes.filter(n => n.type === type)) {
            const widget = node.widgets.find(w => w.name === name);
            widget.value = value;
            widget.callback?.(value, app.canvas, node);
        }
}"""
LOOK = """type => {
    const node = app.graph.nodes.find(n => n.type === type), { canvas, ds } = app.canvas;
    const [x, y, width, height] = node.boundingRect, frame = canvas.getBoundingClientRect();
    ds.scale = 1;
    ds.offset = [100 - x, 140 - y];
    app.canvas.deselectAll();
    app.canvas.setDirty(true, true);
    return { x: frame.x + 92, y: frame.y + 132, width: width + 16, height: height + 16 };
}"""


def shoot(canvas: Canvas, node: str, name: str) -> None:
    """The node as it is now."""
    canvas.page.evaluate(LOOK, node)
    canvas.page.wait_for_timeout(1000)
    clip = canvas.page.evaluate(LOOK, node)
    picture = Image.open(io.BytesIO(canvas.page.screenshot(clip=clip))).convert("RGB")
    path = ROOT / "web" / "docs" / node / f"{name}.jpg"
    path.parent.mkdir(exist_ok=True)
    picture.save(path, quality=85)


def open_workflow(canvas: Canvas, name: str) -> None:
    canvas.open(json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8")), name)


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        comfyui.start_server(Path(folder), pack_name=PACK_NAME) as server,
        sync_playwright() as web,
    ):
        browser = web.chromium.launch(executable_path=runtime.find_chromium(), args=ARGUMENTS)
        canvas = Canvas(browser.new_page(viewport=SIZE), server.url, is_nodes2=False)
        open_workflow(canvas, "dtap_preview")
        canvas.page.evaluate(SET, [(SCHEDULE, "t_mid", 600), (SCHEDULE, "k", 0.02)])
        shoot(canvas, SCHEDULE, "plot")

        open_workflow(canvas, "pocket_train_and_save")
        settings = [("steps", STEPS), ("preview_every", PREVIEWS), ("t_mid", 500), ("k", 0.01)]
        canvas.page.evaluate(SET, [(TRAINER, *setting) for setting in settings])
        canvas.start()
        status = canvas.page.get_by_text(re.compile(rf"Step (9|10|11)\d of {STEPS}"))
        status.wait_for(timeout=600_000)
        shoot(canvas, TRAINER, "running")
        canvas.finish(timeout_s=300)
        shoot(canvas, SUBJECT, "photos")
        for workflow, nodes in AFTER_RUNS.items():
            open_workflow(canvas, workflow)
            canvas.start()
            canvas.finish(timeout_s=900)
            canvas.page.wait_for_timeout(3000)  # pictures are fetched and nodes grow
            for node in nodes:
                shoot(canvas, node, "node")
        browser.close()


if __name__ == "__main__":
    main()
