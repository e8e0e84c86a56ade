"""What the live panel costs: the trainer that tells of its steps, and the browser that draws them.

    python tests/bench/panel.py [--rounds 6] [--steps 30] [--points 1000]

Training: ZO-high steps of the pocket model, in turns with and without the callback that shows them, its messages made
into JSON as the server does; the shortest step of each, the callback's own share of the time, and the messages.
Browser: frames a second in headless chromium, and milliseconds per drawing, with a curve of so many points and ten
messages a second. Chromium without a GPU draws on the CPU.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "browser"), str(ROOT / "tests" / "bench")]
import conftest  # noqa: E402, F401, I001, the package `pack` and ComfyUI
import comfyui  # noqa: E402
import torch  # noqa: E402
from frontend import ARGUMENTS, PACK_NAME, SIZE, Canvas  # noqa: E402
from pack.nodes import host, host_ui  # noqa: E402
from pack.nodes.host_pocket import load_pocket  # noqa: E402
from pack.trainers.config import SelectiveConfig  # noqa: E402
from pack.trainers.memory import PhaseMeter  # noqa: E402
from pack.trainers.photos import SubjectSettings, load_subject  # noqa: E402
from pack.trainers.selective import train_selective  # noqa: E402
from pack.workflows import runtime  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

PHOTOS = ROOT / "trainers" / "pocket" / "photos"
FRAMES = """([message, milliseconds]) => new Promise(resolve => {
    let frames = 0, sent = 0;
    const start = performance.now();
    const tick = now => {
        frames += 1;
        if (now - start > 100 * sent) {
            sent += 1;
            const step = message.losses.length + sent;
            const one = { ...message, step, losses: [Math.random()], kinds: ['bp'] };
            const data = JSON.stringify({ type: 'edgetune.step', data: one });
            app.api.socket.dispatchEvent(new MessageEvent('message', { data }));
        }
        now - start < milliseconds ? requestAnimationFrame(tick) : resolve(1000 * frames / (now - start));
    };
    requestAnimationFrame(tick);
})"""
DRAW = """async ([url, count]) => {
    const { drawCurve } = await import(`${url}/lib/curve.mjs`);
    const { Run } = await import(`${url}/lib/run.mjs`);
    const run = new Run(), losses = Array.from({ length: count }, Math.random);
    const kinds = losses.map(loss => loss > 0.5 ? 'zo' : 'bp');
    run.take({ first: 1, step: count, steps: count, losses, kinds, elapsed_s: 1 });
    const canvas = document.createElement('canvas');
    Object.assign(canvas.style, { width: '330px', height: '120px' });
    document.body.append(canvas);
    const start = performance.now();
    for (let i = 0; i < 50; i++) drawCurve(canvas, run, 'white');
    canvas.getContext('2d').getImageData(0, 0, 1, 1);
    canvas.remove();
    return (performance.now() - start) / 50;
}"""


def training(rounds: int, steps: int) -> None:
    model, clip, vae = load_pocket()
    subject = load_subject(PHOTOS / "robot", SubjectSettings("a photo of a sks toy", 128), PHOTOS).subject
    config = SelectiveConfig(steps=steps, strategy="zo_high", zo_perturbations=1)
    examples = host.encode_subject(model, clip, vae, subject, 1.0, PhaseMeter(model.load_device))
    told, sizes = [], []
    host_ui._send = lambda event, data: sizes.append(len(json.dumps({"type": event, "data": data})))
    shortest = {True: [], False: []}
    with host.trainable(model) as network:
        for shown in [True, False] * rounds:
            report = host_ui.step_reporter("1", steps) if shown else lambda step: None
            ends = []

            def on_step(step, shown=shown, report=report, ends=ends):
                start = time.perf_counter()
                report(step)
                end = time.perf_counter()
                ends.append(end)
                if shown:
                    told.append(end - start)

            train_selective(network, examples, config, host.lora_names(model), PhaseMeter(model.load_device), on_step)
            shortest[shown] += [b - a for a, b in zip(ends[2:], ends[3:], strict=False)]
    mean = sum(shortest[True]) / len(shortest[True])
    print(f"shortest step: shown {1e3 * min(shortest[True]):.1f} ms, not shown {1e3 * min(shortest[False]):.1f} ms")
    print(f"callback: {1e6 * sum(told) / len(told):.0f} us a step, {sum(told) / len(told) / mean:.3%} of a step")
    print(f"messages: {len(sizes)} for {len(told)} steps, {sum(sizes) / len(sizes):.0f} bytes each")


def browser(points: int) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        comfyui.start_server(Path(folder), pack_name=PACK_NAME) as server,
        sync_playwright() as web,
    ):
        chromium = web.chromium.launch(executable_path=runtime.find_chromium(), args=ARGUMENTS)
        for is_nodes2 in (False, True):
            canvas = Canvas(chromium.new_page(viewport=SIZE), server.url, is_nodes2=is_nodes2)
            workflow = json.loads((ROOT / "workflows/pocket_train_and_save.json").read_text(encoding="utf-8"))
            canvas.open(workflow, "pocket_train_and_save")
            node = next(node["id"] for node in workflow["nodes"] if node["type"] == "EdgeTune_SelectiveTrainer")
            message = {"node": str(node), "workflow": workflow["id"], "prompt_id": "p", "first": 1, "step": points}
            message |= {"steps": 10 * points, "loss": 0.1, "kind": "bp", "t": 1, "bytes": 1, "elapsed_s": 1.0}
            message |= {"losses": [0.1 + i % 7 / 10 for i in range(points)], "kinds": ["bp", "zo"] * (points // 2)}
            idle = canvas.page.evaluate(FRAMES, [message | {"node": "0"}, 3000])
            canvas.receive("edgetune.step", message)
            canvas.page.locator(".edgetune-panel canvas").wait_for()
            frames = canvas.page.evaluate(FRAMES, [message, 5000])
            draw = canvas.page.evaluate(DRAW, [f"{server.url}/extensions/{PACK_NAME}", points])
            name = "Nodes 2.0" if is_nodes2 else "classic"
            print(f"{name}: {frames:.0f} frames/s ({idle:.0f} without the panel), {draw:.2f} ms per drawing")
            canvas.page.close()
        chromium.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--points", type=int, default=1000)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with torch.inference_mode():  # as ComfyUI runs nodes
        training(arguments.rounds, arguments.steps)
    browser(arguments.points)


if __name__ == "__main__":
    main()
