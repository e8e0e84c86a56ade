"""A race on the pocket world: core's TrainLoraNode and diffusers' DreamBooth and textual inversion beside our trainers.

    python tests/bench/race.py RUNS.csv [--subjects robot tower clown] [--seeds 0 1] [--only RACER ...]
    python tests/bench/race.py --tables RUNS.csv

Every racer learns the same five photos of a toy, in one process on one thread, from the same weights. What it has
learnt at some steps goes into ComfyUI's MODEL or CLIP and draws the same seeds on five grounds that no photo shows. The
judges say how near the pictures are to the photos (identity, a cosine), whether the ground is the prompt's and, at the
end, whether two other things are still drawn as asked. Time is processor time of the training alone. Peaks are live
bytes of tensors. Goes on where it was stopped. The second form writes table and plot into RESULTS.md and the README.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

BENCH = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCH.parent), str(BENCH)]
import conftest  # noqa: E402, F401, I001, the package `pack` and ComfyUI
from pack.trainers.presets import RECIPE  # noqa: E402
from race_ours import LORA_NAME, TOKEN_RATE, Run, Subject, WORD, drawing, hollow, selective, token  # noqa: E402
from race_peers import CORE_AS_OURS, core, diffusers_lora, diffusers_token  # noqa: E402
from race_tables import LORA_RACERS, TOKEN_RACERS, UNTRAINED, write_tables  # noqa: E402
from reproduce import SUBJECTS, scored, stage  # noqa: E402
from toys import Runs, World, load_world, photos_of  # noqa: E402

EACH = 1  # pictures of a prompt
LORA_MARKS, ZO_MARKS, TOKEN_MARKS = (25, 50, 100), (100, 200), (35, 70, 140)  # the tokens take about as long
RACERS = dict(
    zip(
        (*LORA_RACERS, *TOKEN_RACERS),
        [
            (core(), LORA_MARKS),
            (core(**CORE_AS_OURS), LORA_MARKS),
            (diffusers_lora, LORA_MARKS),
            (selective(strategy="bp_high"), LORA_MARKS),
            (selective(strategy="bp_high", quantization="int8", gradient_checkpointing=True), LORA_MARKS),
            (selective(strategy="dtap", low_res_ratio=0.5), LORA_MARKS),
            (hollow(), LORA_MARKS),
            (selective(strategy="bp_high", **RECIPE), (*LORA_MARKS, 200)),  # about core's time
            (selective(strategy="bp_high", quantization="int8", gradient_checkpointing=True, **RECIPE), LORA_MARKS),
            (diffusers_token, TOKEN_MARKS),
            (token(method="gradient", quantization="none", learning_rate=TOKEN_RATE), TOKEN_MARKS),
            (token(learning_rate=0.03, subspace_size=32), ZO_MARKS),
        ],
        strict=True,
    )
)
COLUMNS = ["racer", "subject", "seed", "step", "seconds", "peak_bytes", "identity", "ground", "others_kept"]


def rows(world: World, run: Run, pictures: torch.Tensor, last: int) -> list[dict]:
    """What the judges say of each of the run's snapshots; others are drawn for the last one alone."""
    found = []
    for step, seconds, learnt in run.snapshots:
        model, clip, name = drawing(world, learnt)
        scores = scored(model, world._replace(clip=clip), pictures, name, EACH, others=step == last)
        found.append({"step": step, "seconds": f"{seconds:.2f}", "peak_bytes": run.peak_bytes} | scores)
    return found


def run_all(file: Path, racers: Sequence[str], subjects: Sequence[str], seeds: Sequence[int]) -> None:
    torch.set_num_threads(1)
    world, runs = load_world(), Runs(file, COLUMNS, ("racer", "subject", "seed", "step"))
    for seed in seeds:
        for subject in subjects:
            encoded = None
            for racer in [*UNTRAINED, *racers]:
                train, marks = RACERS.get(racer, (None, [0]))
                start = {"racer": racer, "subject": subject, "seed": seed}
                if start | {"step": marks[-1]} in runs:
                    continue
                encoded = encoded or Subject(stage(world, subject, 0.5).examples, photos_of(subject))
                if train is None:
                    name = WORD if racer == UNTRAINED[1] else LORA_NAME
                    scores = scored(world.model, world, encoded.pictures, name, EACH)
                    found = [{"step": 0, "seconds": 0, "peak_bytes": 0} | scores]
                else:
                    found = rows(world, train(world, encoded, seed, marks), encoded.pictures, marks[-1])
                for row in found:
                    print(runs.add(start | row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tables", action="store_true", help="run nothing; write table and plot of what FILE has")
    parser.add_argument("--only", nargs="+", default=list(RACERS), choices=list(RACERS), metavar="RACER")
    parser.add_argument("--subjects", nargs="+", default=SUBJECTS[:3], choices=SUBJECTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    arguments = parser.parse_args()
    if arguments.tables:
        write_tables(arguments.file)
    else:
        run_all(arguments.file, arguments.only, arguments.subjects, arguments.seeds)


if __name__ == "__main__":
    main()
