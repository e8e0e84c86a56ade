"""What leaving out the centre costs in quality: identity and prompt control by fraction, on the pocket model.

    python tests/bench/hollow_quality.py OUT [--subjects robot tower clown] [--seeds 0]

Every subject is learnt with the whole U-Net (Selective Trainer, bp_high) and by the Hollowed Net Trainer at every cut
up to 88%, entering the centre both ways where the cut allows it, and sampled along two paths as well at two cuts; all
on a real ComfyUI, with equal steps, rank, learning rate and batch size, and scored as personalise.py does. Goes on
where it was stopped (OUT/results.json). Writes a sheet per run, a table, and fractions.png, the figure of the poster.
Says at last how far pictures along two paths are from those of the same LoRA in the whole U-Net.
"""

import argparse
import json
import sys
from collections import defaultdict
from itertools import product
from pathlib import Path
from statistics import fmean

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))
import personalise  # noqa: E402
from personalise import comfyui, load_judges  # noqa: E402
from reproduce_cells import FRACTIONS  # noqa: E402

HOLLOW = "EdgeTune_HollowedNetTrainer"
SHARED = ("steps", "rank", "learning_rate", "batch_size", "seed")
RESIDUAL = FRACTIONS[:3]  # the others change the number of channels on their way
TWO_PATH = FRACTIONS[2:4]
WHOLE = "whole U-Net"


def hollow(fraction: float, **settings) -> tuple[str, dict]:
    return HOLLOW, {"hollow_fraction": fraction, "cache_samples": 800} | settings


VARIANTS = {
    WHOLE: (personalise.SELECTIVE, {}),
    **{f"absolute {f:.1%}": hollow(f) for f in FRACTIONS},
    **{f"residual {f:.1%}": hollow(f, mode="residual") for f in RESIDUAL},
    **{f"absolute {f:.1%}, two paths": hollow(f, sampling="two-path") for f in TWO_PATH},
}


def settings_of(variant: str, seed: int) -> dict:
    trainer, own = VARIANTS[variant]
    shared = personalise.SETTINGS | {"seed": seed}
    if trainer == HOLLOW:
        shared = {name: shared[name] for name in SHARED}
    return shared | own


def run_all(subjects: list[str], seeds: list[int], out: Path) -> dict:
    """Scores by "variant, subject, seed"; what results.json has already is not run again."""
    file = out / "results.json"
    about = personalise.circumstances()
    known = json.loads(file.read_text()) if file.exists() else about | {"runs": {}}
    if known["weights_sha256"] != about["weights_sha256"]:
        sys.exit(f"error: {file} is of other pocket weights. Choose another folder.")
    with comfyui.start_server(out / "server") as server:
        for subject, seed, variant in product(subjects, seeds, VARIANTS):
            key = f"{variant} | {subject} | {seed}"
            if key not in known["runs"]:
                trainer, settings = VARIANTS[variant][0], settings_of(variant, seed)
                known["runs"][key] = personalise.run(server.client, subject, settings, sheet_of(out, key), trainer)
                file.write_text(json.dumps(known, indent=1))
            print(personalise.row(key, known["runs"][key]), flush=True)
    return known["runs"]


def sheet_of(out: Path, key: str) -> Path:
    return out / f"{key.replace(' | ', '_').replace(' ', '_')}.png"


def distance(one: Path, other: Path) -> float:
    """Mean absolute difference of the pictures after training on two sheets, in steps of 255."""
    rows = [np.asarray(Image.open(path), dtype=np.float32) for path in (one, other)]
    first = len(rows[0]) * 3 // 5  # photos, two rows before, two after
    return float(np.abs(rows[0][first:] - rows[1][first:]).mean())


def distances(runs: dict, out: Path) -> str:
    """How far two-path pictures are from plain ones, beside how far a LoRA of the whole U-Net is, a line a fraction."""
    lines = []
    for fraction in TWO_PATH:
        plain = f"absolute {fraction:.1%}"
        pairs = [(key, key.replace(plain, f"{plain}, two paths")) for key in runs if key.startswith(f"{plain} |")]
        between = [distance(sheet_of(out, one), sheet_of(out, other)) for one, other in pairs]
        whole = [distance(sheet_of(out, one), sheet_of(out, one.replace(plain, WHOLE))) for one, _ in pairs]
        lines.append(
            f"{plain}: the same LoRA along two paths changes a pixel by {fmean(between):.1f} of 255 on average; a LoRA "
            f"trained on the whole U-Net by {fmean(whole):.1f}."
        )
    return "\n".join(lines)


def by_variant(runs: dict) -> dict[str, list[dict]]:
    groups = defaultdict(list)
    for key, scores in runs.items():
        groups[key.split(" | ")[0]].append(scores)
    return {variant: groups[variant] for variant in VARIANTS if variant in groups}


def table(runs: dict) -> str:
    """Markdown: mean over subjects and seeds, and for identity the lowest and highest."""
    heads = ["run", "identity", "lowest to highest", "ground", "seconds", "peak MiB"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for variant, scores in by_variant(runs).items():
        identity = [score["after"]["identity"] for score in scores]
        ground = fmean(score["after"]["ground"] for score in scores)
        seconds = fmean(score["training_s"] for score in scores)
        peak = max(score["peak_bytes"] for score in scores) / 2**20
        spread = f"{min(identity):.2f} to {max(identity):.2f}"
        lines.append(f"| {variant} | {fmean(identity):.3f} | {spread} | {ground:.2f} | {seconds:.0f} | {peak:.0f} |")
    before = [score["before"]["identity"] for score in runs.values()]
    return "\n".join([*lines, f"\nUntrained: identity {fmean(before):.3f}. Runs in each row: {len(scores)}."])


def draw(runs: dict, path: Path) -> None:
    from matplotlib.figure import Figure

    groups = by_variant(runs)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for label, fractions, end in (
        ("absolute", FRACTIONS, ""),
        ("residual", RESIDUAL, ""),
        ("absolute", TWO_PATH, ", two paths"),
    ):
        identity = [[s["after"]["identity"] for s in groups[f"{label} {f:.1%}{end}"]] for f in fractions]
        xs = fractions
        if not end:
            xs, identity = (0.0, *xs), [[s["after"]["identity"] for s in groups[WHOLE]], *identity]
        means = [fmean(values) for values in identity]
        below = [mean - min(values) for mean, values in zip(means, identity, strict=True)]
        above = [max(values) - mean for mean, values in zip(means, identity, strict=True)]
        axes.errorbar([100 * x for x in xs], means, [below, above], marker="o", capsize=3, label=label + end)
    ground = [fmean(s["after"]["ground"] for s in groups[f"absolute {f:.1%}"]) for f in FRACTIONS]
    axes.plot([100 * f for f in FRACTIONS], ground, "s--", color="0.6", label="ground as asked (absolute)")
    axes.axvline(39.2, color="0.8", zorder=0)
    axes.set(xlabel="parameters that leave, %", ylabel="identity (cosine)", ylim=(0, 1.05))
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--subjects", nargs="+", default=["robot", "tower", "clown"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    load_judges()
    runs = run_all(arguments.subjects, arguments.seeds, out)
    print("\n" + table(runs) + "\n\n" + distances(runs, out))
    draw(runs, out / "fractions.png")


if __name__ == "__main__":
    main()
