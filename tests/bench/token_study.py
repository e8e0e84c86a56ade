"""The paper's ablations of zeroth-order textual inversion, on the pocket model: does it hold in our world?

    python tests/bench/token_study.py RUNS.csv [--only SETTING ...] [--runs 0 1 2] [--set NAME=VALUE ...]
    python tests/bench/token_study.py --tables RUNS.csv

Every setting differs from "zo" in what its name says and takes as many forward passes, but "gradient, equal time". A
run learns one of five toys; its number chooses the toy and is the seed, so that 15 runs are three of each. Then come
the denoising loss of eight fresh views of the toy under fixed noise at all timesteps, over that of the initial word (1
is nothing learnt), and, of pictures on five grounds that no photo shows, how near they are to the photos (identity, a
cosine) and whether the ground is the prompt's. One thread. Goes on where it was stopped: what RUNS.csv has is not run
again. Prints the table, which the second form puts into tests/bench/RESULTS.md; brackets hold 95% of the means of runs
drawn again (bootstrap).
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch

BENCH = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCH.parent), str(BENCH)]
import conftest  # noqa: E402, F401, I001
from pack.nodes import host, host_token  # noqa: E402
from pack.nodes.host_embeddings import with_token  # noqa: E402
from pack.trainers.config import TokenConfig  # noqa: E402
from pack.trainers.memory import PhaseMeter  # noqa: E402
from pack.trainers.token_inversion import TokenTrained, train_token  # noqa: E402
from pack.trainers.token_steps import Draw, TokenLoss  # noqa: E402
from pack.trainers.token_vectors import packed  # noqa: E402
from pages import put_between_markers, with_interval  # noqa: E402
from toys import TIMES, Runs, Toy, World, draw, judged, load_world, on_new_grounds, read_rows, toy  # noqa: E402

NAME, WORD = "my_toy", "toy"
TOKEN = f"embedding:{NAME}"
CAPTION = f"a photo of a {TOKEN}"
SUBJECTS = ["robot", "tower", "clown", "mushroom", "lifebuoy"]  # of the runs in turn
PASSES = 600  # forward passes of training in every run
BASE = TokenConfig(
    token=NAME,
    initial_word=WORD,
    quantization="none",
    learning_rate=0.03,
    eval_every=75,
    eval_samples=8,
    patience=0,
    subspace_size=32,
)
GRADIENT_RATE = 1e-2
SECONDS_RATIO = 4.2  # a gradient step over a forward pass of a zo step, in processor time: 130 and 31 ms
UNTRAINED = "initial word"
SETTINGS: dict[str, dict] = {  # in the order in which they run
    "zo": {},
    "subspace off": {"subspace": "off"},
    "n = 8": {"zo_perturbations": 8},
    "t from 0 to 1000": {"t_low": 0, "t_high": 1000},
    "gradient, equal time": {"method": "gradient"},
    "int8": {"quantization": "int8"},
    "n = 1": {"zo_perturbations": 1},
    "mu = 1e-2": {"zo_epsilon": 1e-2},
    "mu = 1e-4": {"zo_epsilon": 1e-4},
    "subspace confined": {"subspace": "confined"},
    "n = 4": {"zo_perturbations": 4},
    "gradient, equal passes": {"method": "gradient"},
    "central": {"difference": "central"},
}
DRAWN = (
    "zo",
    "gradient, equal passes",
    "gradient, equal time",
    "int8",
    "n = 8",
)  # the rest would take half as long again
EACH = 2  # pictures of each ground
COLUMNS = ["setting", "run", "subject", "steps", "seconds", "kept_step", "first", "kept", "held_out", "identity"]
COLUMNS += ["ground", "settings"]


class Stage(NamedTuple):
    """Both networks, ready, with a subject's photos."""

    network: object
    encoder: object
    train: object  # config -> TokenTrained
    held_out: object  # vectors -> loss


@contextmanager
def stage(world: World, subject: Toy, quantization: str) -> Iterator[Stage]:
    model, clip = world.model, world.clip
    with (
        host.trainable(model, quantization) as network,
        host_token.text_encoder(clip, NAME, quantization) as encoder,
    ):

        def examples(pictures):
            return host_token.token_examples(model, network, encoder, pictures, [[CAPTION]] * len(pictures))

        shown, fresh, initial = examples(subject.photos), examples(subject.views), encoder.initial_vectors(WORD, 1)

        def train(config: TokenConfig) -> TokenTrained:
            meter = PhaseMeter(network.device)
            return train_token(network, encoder.module, shown, initial, config, meter, lambda step: None, lambda: 2**40)

        def held_out(vectors=initial) -> float:
            meter = PhaseMeter(network.device)
            loss = TokenLoss(network, encoder.module, {name: vector.shape for name, vector in vectors.items()}, meter)
            draws = [Draw(view, 0, t, 1000 * i + t, 0) for i, view in enumerate(fresh) for t in TIMES]
            return fmean(loss.values(draw, packed(vectors)[None], False)[0] for draw in draws)

        yield Stage(network, encoder, train, held_out)


def pictures(world: World, vectors) -> torch.Tensor:
    """EACH on every new ground; ten steps."""
    return draw(world.model, with_token(world.clip, NAME, vectors), world.vae, on_new_grounds(TOKEN), EACH, 10)


def subject_of(run: int) -> str:
    return SUBJECTS[run % len(SUBJECTS)]


def configured(setting: str, run: int, overrides: dict) -> TokenConfig:
    """The setting's config, with as many steps as PASSES allow."""
    rate = {"learning_rate": GRADIENT_RATE} if SETTINGS[setting].get("method") == "gradient" else {}
    config = replace(BASE, **rate | SETTINGS[setting] | overrides, seed=run)
    passes = PASSES / SECONDS_RATIO if setting.endswith("equal time") else PASSES
    n = config.zo_perturbations
    each = 1 if config.method == "gradient" else 2 * n if config.difference == "central" else n + 1
    return replace(config, steps=int(passes / each))


def run_one(world: World, subject: Toy, setting: str, run: int, overrides: dict, words: dict) -> dict:
    config = configured(setting, run, overrides)
    with stage(world, subject, config.quantization) as ready:
        began = time.process_time()
        trained = ready.train(config)
        seconds = time.process_time() - began
    with stage(world, subject, "none") as plain:  # as it will be used
        held_out = plain.held_out(trained.vectors) / words["held_out"]
    is_drawn = setting in DRAWN
    identity, ground = judged(pictures(world, trained.vectors), subject.pictures) if is_drawn else ("", "")
    losses = [evaluation.loss for evaluation in trained.evaluations]
    return {
        "setting": setting,
        "run": run,
        "subject": subject_of(run),
        "steps": len(trained.steps),
        "seconds": f"{seconds:.1f}",
        "kept_step": trained.best_step,
        "first": f"{losses[0]:.6f}",
        "kept": f"{min(losses):.6f}",
        "held_out": f"{held_out:.4f}",
        "identity": f"{identity:.4f}" if is_drawn else "",
        "ground": f"{ground:.2f}" if is_drawn else "",
        "settings": " ".join(f"{name}={value}" for name, value in overrides.items()),
    }


def untrained(world: World, subject: Toy) -> dict:
    """The scores of the initial word, its loss not yet over itself."""
    with stage(world, subject, "none") as ready:
        vectors = ready.encoder.initial_vectors(WORD, 1)
        held_out = ready.held_out()
    identity, ground = judged(pictures(world, vectors), subject.pictures)
    return {"held_out": held_out, "identity": identity, "ground": ground}


def word_row(words: dict, run: int) -> dict:
    """The initial word as a row of its own; its scores belong to no settings."""
    nothing = {"steps": 0, "seconds": 0, "kept_step": 0, "first": 1, "kept": 1, "held_out": 1, "settings": ""}
    scores = {"identity": f"{words['identity']:.4f}", "ground": f"{words['ground']:.2f}"}
    return {"setting": UNTRAINED, "run": run, "subject": subject_of(run)} | nothing | scores


def table(rows: list[dict]) -> str:
    """Markdown, means over runs with their intervals; differences are to "zo" in the same run."""
    groups = defaultdict(dict)
    for row in rows:
        groups[row["setting"]][row["run"]] = row
    heads = ["setting", "runs", "steps", "CPU s", "loss left, fixed noise", "loss left, fresh views", "minus zo's"]
    heads += ["identity", "minus zo's", "ground"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for setting in [UNTRAINED, *SETTINGS]:
        if not (found := groups[setting]):
            continue
        cells = [setting, str(len(found)), next(iter(found.values()))["steps"]]
        cells += [f"{fmean(float(row['seconds']) for row in found.values()):.0f}"]
        cells += [with_interval([float(row["kept"]) / float(row["first"]) for row in found.values()])]
        for name in ("held_out", "identity"):
            if any(row[name] == "" for row in found.values()):
                cells += ["", ""]
                continue
            pairs = [
                float(row[name]) - float(groups["zo"][run][name]) for run, row in found.items() if run in groups["zo"]
            ]
            cells.append(with_interval([float(row[name]) for row in found.values()]))
            cells.append(with_interval(pairs, "+") if pairs else "")
        grounds = [float(row["ground"]) for row in found.values() if row["ground"]]
        cells.append(f"{fmean(grounds):.2f}" if grounds else "")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", nargs="+", default=list(SETTINGS), choices=list(SETTINGS), metavar="SETTING")
    parser.add_argument("--tables", action="store_true", help="run nothing; write the table of what RUNS.csv has")
    parser.add_argument("--runs", nargs="+", type=int, default=range(3 * len(SUBJECTS)))
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other settings of all these runs")
    arguments = parser.parse_args()
    if arguments.tables:
        rows = [row for row in read_rows(arguments.file) if not row["settings"]]
        put_between_markers(BENCH / "RESULTS.md", "token study", table(rows))
        return
    types = {field.name: type(field.default) for field in fields(TokenConfig)}
    pairs = [item.split("=", 1) for item in arguments.set]
    overrides = {name: types[name](value) for name, value in pairs}
    told = " ".join(f"{name}={value}" for name, value in overrides.items())
    torch.set_num_threads(1)
    world, runs = load_world(), Runs(arguments.file, COLUMNS, ("setting", "run", "settings"))
    for run in arguments.runs:
        cases = [{"setting": UNTRAINED, "run": run, "settings": ""}]
        cases += [{"setting": setting, "run": run, "settings": told} for setting in arguments.only]
        wanted = [case["setting"] for case in cases if case not in runs]
        if not wanted:
            continue
        subject = toy(world, subject_of(run), CAPTION)
        words = untrained(world, subject)
        for setting in wanted:
            is_word = setting == UNTRAINED
            row = word_row(words, run) if is_word else run_one(world, subject, setting, run, overrides, words)
            print(runs.add(row), flush=True)
    print("\n" + table([row for row in read_rows(arguments.file) if row["settings"] == told]))


if __name__ == "__main__":
    main()
