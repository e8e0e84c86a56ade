"""Of what shapes photos are after each crop, and what aspect-ratio buckets would make of them; nothing is trained.

    python tests/bench/aspect_shapes.py [FOLDER]

FOLDER holds a folder of photos for each subject. Without it, sets of five photos are drawn as people may have them.
"alone" are photos whose shape no other of their set has: in a batch of two they stand twice.

"buckets" are those of other trainers (NovelAI 2022, https://github.com/NovelAI/novelai-aspect-ratio-bucketing; kohya's
sd-scripts): sides in multiples of an eighth of the resolution, area at most its square, the nearest aspect, the photo
scaled to cover it and cut in the middle.
"""

import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from math import ceil, exp, log, sqrt
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import conftest  # noqa: E402, F401, I001, the package `pack`
from pack.trainers.crops import MULTIPLE  # noqa: E402
from pack.trainers.photo_files import photo_paths  # noqa: E402

RESOLUTION = 512
TILES = 8  # of a bucket's side that is a square's: 64 px at 512
SETS, PHOTOS = 2000, 5
Size = tuple[int, int]  # height and width


class Way(NamedTuple):
    """What one way to fit photos does to one of them."""

    size: Size
    cut: float  # share of the photo that is lost
    repeated: float  # share of the result that repeats edges


def bucket(height: int, width: int, resolution: int) -> Size:
    """The bucket, at most 2:1 in tiles, whose aspect is nearest."""
    wide = [(TILES * TILES // across, across) for across in range(TILES, 12)]
    buckets = wide + [(across, down) for down, across in wide]
    down, across = min(buckets, key=lambda tiles: abs(log(tiles[1] / tiles[0]) - log(width / height)))
    return down * resolution // TILES, across * resolution // TILES


def ways(height: int, width: int, resolution: int) -> dict[str, Way]:
    """Each crop of a photo of this size."""
    scale = resolution / sqrt(height * width)
    down, across = (ceil(max(1, round(side * scale)) / MULTIPLE) * MULTIPLE for side in (height, width))
    own, found = width / height, bucket(height, width, resolution)
    given = found[1] / found[0]
    return {
        "center, smart": Way((resolution, resolution), 1 - min(own, 1 / own), 0.0),
        "none": Way((down, across), 0.0, max(0.0, 1 - resolution**2 / (down * across))),
        "buckets": Way(found, 1 - min(own / given, given / own), 0.0),
    }


def drawn_sets() -> dict[str, list[list[Size]]]:
    """Sets of sizes of photos by kind."""
    rng = random.Random("aspect")
    cameras = (4 / 3, 3 / 2, 16 / 9)
    kinds = {
        "one phone: 4:3, lying or upright": lambda: rng.choice((4 / 3, 3 / 4)),
        "cameras: 4:3, 3:2, 16:9, lying or upright": lambda: rng.choice(cameras) ** rng.choice((1, -1)),
        "cut by hand: 1:2 to 2:1": lambda: exp(rng.uniform(-log(2), log(2))),
    }

    def sized(aspect: float) -> Size:
        return round(3000 / sqrt(aspect)), round(3000 * sqrt(aspect))

    return {kind: [[sized(aspect()) for _ in range(PHOTOS)] for _ in range(SETS)] for kind, aspect in kinds.items()}


def sets_of(folder: Path) -> dict[str, list[list[Size]]]:
    """One set for each folder in it."""
    opened = {path.name: [*map(Image.open, photo_paths(path))] for path in sorted(folder.iterdir()) if path.is_dir()}
    return {name: [[ImageOps.exif_transpose(image).size[::-1] for image in images]] for name, images in opened.items()}


def table(sets: dict[str, list[list[Size]]]) -> str:
    """Means over sets, in Markdown."""
    lines = ["| photos | crop | shapes | alone | cut off | edges repeated | pixels |", "|---" * 7 + "|"]
    for kind, found in sets.items():
        for crop in ways(1, 1, RESOLUTION):
            fitted = [[ways(*size, RESOLUTION)[crop] for size in sizes] for sizes in found]
            lines.append(f"| {kind} | {crop} | {' | '.join(_row(fitted))} |")
    return "\n".join(lines)


def _row(fitted: Sequence[Sequence[Way]]) -> list[str]:
    counts = [Counter(way.size for way in ways) for ways in fitted]
    alone = [count[way.size] == 1 for ways, count in zip(fitted, counts, strict=True) for way in ways]

    def mean(of: Callable[[Way], float]) -> str:
        return f"{fmean(of(way) for ways in fitted for way in ways):.1%}"

    area = mean(lambda way: way.size[0] * way.size[1] / RESOLUTION**2)
    parts = [mean(lambda way: way.cut), mean(lambda way: way.repeated), area]
    return [f"{fmean(map(len, counts)):.1f}", f"{fmean(alone):.0%}", *parts]


if __name__ == "__main__":
    print(table(sets_of(Path(sys.argv[1])) if len(sys.argv) > 1 else drawn_sets()))
