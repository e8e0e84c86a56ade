"""How well features tell the subjects of real photos apart: what Evaluate Subject's scores can be trusted with.

    python tests/bench/features.py [FOLDER]

FOLDER has a folder of photos for each subject; by default the DreamBooth photos beside the checkout. Prints mean
cosines of pairs of photos of the same and of different subjects, how often the nearest other photo is of the same
subject, and the area under the ROC curve.
"""

import argparse
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))
import conftest  # noqa: E402, F401, I001
import torch  # noqa: E402
from pack.nodes.host_vision import small_features  # noqa: E402
from pack.trainers.photos import SubjectSettings, load_subject  # noqa: E402
from pack.trainers.pocket.judge_scores import nearest_is_same, same_above_different  # noqa: E402

DREAMBOOTH = TESTS.parents[1] / "shared" / "dreambooth"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=DREAMBOOTH)
    folder = parser.parse_args().folder
    features, labels, seconds = [], [], 0.0
    for number, subject in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        for photo in load_subject(subject, SubjectSettings(), folder).subject.photos:
            began = time.perf_counter()
            features.append(small_features(photo.image[None])[0])
            seconds += time.perf_counter() - began
            labels.append(number)
    unit, labels = torch.nn.functional.normalize(torch.stack(features)), torch.tensor(labels)
    row, column = torch.triu_indices(len(labels), len(labels), 1)
    cosines, same = (unit @ unit.T)[row, column], labels[row] == labels[column]
    print(
        f"EfficientNet-Lite0, {len(labels)} photos of {int(labels.max()) + 1} subjects: "
        f"same {cosines[same].mean():.3f}, different {cosines[~same].mean():.3f}, "
        f"nearest is the same {nearest_is_same(unit, labels):.3f}, "
        f"AUC {same_above_different(unit, labels):.3f}, {1000 * seconds / len(labels):.0f} ms a photo"
    )


if __name__ == "__main__":
    main()
