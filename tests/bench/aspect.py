"""What crops of photos that are not square are worth, and whether aspect-ratio buckets would add to them.

    python tests/bench/aspect.py RUNS.csv [--group crops mixing] [--settings none ...] [--seeds 0 1]
    python tests/bench/aspect.py --table RUNS.csv

Runs are as options.py has them, in batches of two. Group "crops": five photos of a toy, three wide and two tall, the
toy about a quarter of the longer side off the middle, so that the square in the middle cuts it. "none" gives five
shapes, so that both of a batch are one photo under two noises; "buckets" gives two shapes. Group "mixing": the toy's
own square photos, two of them in a batch, or one of them twice; all else is the same.

"buckets" are those of aspect_shapes.py, which counts shapes. One thread. Goes on where it was stopped: what RUNS.csv
has is not run again.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

BENCH = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCH.parent), str(BENCH)]
import conftest  # noqa: E402, F401, I001, the package `pack` and ComfyUI
from aspect_shapes import bucket  # noqa: E402
from options import COLUMNS, KEY, STEPS, encoded, table  # noqa: E402
from pack.nodes import host  # noqa: E402
from pack.trainers.crops import CROPS, fitted, resized  # noqa: E402
from pack.trainers.photos import Photo, Subject  # noqa: E402
from pack.trainers.pocket.render import render  # noqa: E402
from pack.trainers.pocket.subjects import views  # noqa: E402
from pack.trainers.selective import Draw, choices  # noqa: E402
from reproduce import CAPTION, Stage, held_out, run_cell  # noqa: E402
from reproduce_cells import Cell  # noqa: E402
from toys import SIDE, Runs, World, as_subject, fresh_views, load_world, photos_of, read_rows  # noqa: E402

ASPECTS = (1.5, 1 / 1.5, 1.6, 1 / 1.65, 1.75)  # of the five photos; nearest to 10:6 and 6:10 of all buckets
SHORT = 192  # pixels of the shorter side
TALL, OFF = 0.65, 0.24  # a toy's height, of the shorter side; how far it is off the middle, of the longer one
BUCKETS = "buckets"
TWO, TWICE = "two photos", "one photo twice"
SETTINGS = {"crops": [*CROPS, BUCKETS], "mixing": [TWO, TWICE]}
PHOTOS = {"crops": "off centre", "mixing": "square"}


def off_centre(name: str) -> list[torch.Tensor]:
    """The toy's five scenes as wide and tall photos (H, W, 3), with all of the toy in each."""
    photos = []
    for i, (scene, aspect) in enumerate(zip(views(name), ASPECTS, strict=True)):
        long = round(SHORT * max(aspect, 1 / aspect))
        off = OFF if i % 4 < 2 else -OFF  # wide ones: right, left, right; tall ones: up, down
        shift = (off, 0.0) if aspect > 1 else (0.0, off)
        view = replace(scene.view, shift=shift, zoom=1.3 * TALL * SHORT / long)
        square = render([replace(scene, view=view)], long)[0].movedim(0, 2)
        cut = slice((long - SHORT) // 2, (long - SHORT) // 2 + SHORT)
        photos.append(square[cut] if aspect > 1 else square[:, cut])
    return photos


def bucketed(image: torch.Tensor, resolution: int) -> torch.Tensor:
    """The image in its bucket: scaled to cover it, cut in the middle."""
    height, width = bucket(*image.shape[:2], resolution)
    scale = max(height / image.shape[0], width / image.shape[1])
    covering = [max(round(scale * old), new) for old, new in zip(image.shape[:2], (height, width), strict=True)]
    image = resized(image, *covering)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width].contiguous()


def photographed(name: str, group: str, setting: str) -> Subject:
    if group == "mixing":
        return as_subject(photos_of(name), CAPTION)
    fit = bucketed if setting == BUCKETS else lambda image, resolution: fitted(image, resolution, setting).image
    photos = tuple(Photo(str(i), fit(image, SIDE), CAPTION) for i, image in enumerate(off_centre(name)))
    return Subject(photos, CAPTION, "", SIDE, False)


class Twice(Cell):
    """Both of a batch are the first photo."""

    def drawing(self, steps: int) -> Callable[..., Draw]:
        def chosen(*given) -> Draw:
            made = choices(*given)
            return made._replace(examples=made.examples[:1] * len(made.examples))

        return chosen


def run_all(file: Path, groups: list[str], wanted: list[str], subjects: list[str], seeds: list[int]) -> None:
    torch.set_num_threads(1)
    world, runs = load_world(), Runs(file, COLUMNS, KEY)
    cells = [(group, setting) for group in groups for setting in SETTINGS[group] if setting in wanted]
    for seed in seeds:
        for subject in subjects:
            for group, setting in cells:
                place = {"group": group, "photos": PHOTOS[group], "setting": setting, "subject": subject}
                place |= {"seed": seed, "steps": STEPS}
                if place in runs:
                    continue
                cell = Twice() if setting == TWICE else Cell()
                found = run(world, cell, photographed(subject, group, setting), place)
                print(runs.add(place | {name: found[name] for name in COLUMNS if name in found}), flush=True)


def run(world: World, cell: Cell, subject: Subject, place: dict) -> dict:
    fresh = [view.high for view in encoded(world, as_subject(fresh_views(place["subject"]), CAPTION))]
    ready = Stage(encoded(world, subject), fresh, photos_of(place["subject"]))
    with host.trainable(world.model) as network:
        before = held_out(network, ready.views)
    return run_cell(world, cell, ready, place["seed"], place["steps"], before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--table", action="store_true", help="run nothing; print the table of what FILE has")
    parser.add_argument("--group", nargs="+", default=[*SETTINGS], choices=[*SETTINGS])
    every = [setting for settings in SETTINGS.values() for setting in settings]
    parser.add_argument("--settings", nargs="+", default=every, choices=every)
    parser.add_argument("--subjects", nargs="+", default=["robot", "tower"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    arguments = parser.parse_args()
    if arguments.table:
        print(table(read_rows(arguments.file)))
    else:
        run_all(arguments.file, arguments.group, arguments.settings, arguments.subjects, arguments.seeds)


if __name__ == "__main__":
    main()
