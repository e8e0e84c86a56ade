"""How near generated pictures are to the photos of a subject, and to the prompt they were made with.

Ruiz et al. 2023 (DreamBooth, arXiv:2208.12242), section 4.1: subject fidelity is the mean cosine between the features
of a generated picture and those of all photos (DINO, CLIP-I, after whose features they are), prompt fidelity that
between picture and prompt (CLIP-T). Two things are added: an interval, and what the photos score among themselves,
which is as near as a picture of the same subject can be expected to come.

Shapes: N pictures, M photos, D numbers of a feature.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from scipy.stats import bootstrap
from torch import Tensor
from torch.nn.functional import normalize

CONFIDENCE = 0.95
RESAMPLES = 9999


class PictureScore(NamedTuple):
    """One generated picture. All are cosines, -1 to 1."""

    subject: float  # mean over all photos
    nearest: float  # the highest of them; near 1, the picture repeats a photo
    nearest_photo: str
    prompt: float | None  # None: not measured


class Mean(NamedTuple):
    """A mean over pictures, and a 95% interval of it by bootstrap over them; None where there is only one."""

    mean: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is None:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f}  (95%: {self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Scores:
    """What an evaluation found."""

    features: str  # whose, as "DINO" or "CLIP-I"
    pictures: tuple[PictureScore, ...]
    subject: Mean
    prompt: Mean | None
    photos: float | None  # mean cosine between two of the photos; None where there is one
    photo_count: int
    prompts: tuple[str, ...] = ()

    def to_json(self) -> str:
        record = asdict(self) | {
            "pictures": [picture._asdict() for picture in self.pictures],
            "subject": self.subject._asdict(),
            "prompt": self.prompt and self.prompt._asdict(),
        }
        return json.dumps(record, indent=2)

    def summary(self) -> str:
        """One line for the log."""
        prompt = f", prompt {self.prompt.mean:.3f}" if self.prompt else ""
        return f"{len(self.pictures)} pictures: subject {self.subject.mean:.3f} ({self.features}){prompt}"

    def __str__(self) -> str:
        lines = [f"subject fidelity ({self.features}): {self.subject}"]
        if self.photos is not None:
            lines.append(f"the {self.photo_count} photos among themselves: {self.photos:.3f}")
        lines.append(f"prompt fidelity (CLIP-T): {self.prompt}" if self.prompt else "prompt fidelity: not measured")
        lines += ["", "picture  subject  nearest  prompt  nearest photo"]
        for number, one in enumerate(self.pictures, 1):
            prompt = "     -" if one.prompt is None else f"{one.prompt:6.3f}"
            lines.append(f"{number:7}  {one.subject:7.3f}  {one.nearest:7.3f}  {prompt}  {one.nearest_photo}")
        return "\n".join(lines)


def subject_scores(
    features: str,
    pictures: Tensor,
    photos: Tensor,
    photo_names: Sequence[str],
    prompt_cosines: Sequence[float] | None = None,
    prompts: Sequence[str] = (),
) -> Scores:
    """The scores of pictures by their features (N, D) and the photos' (M, D), of any length but zero."""
    pictures, photos = normalize(pictures.double()), normalize(photos.double())
    cosines = pictures @ photos.T  # (N, M)
    nearest, which = cosines.max(1)
    found = [
        PictureScore(subject, near, photo_names[photo], prompt)
        for subject, near, photo, prompt in zip(
            cosines.mean(1).tolist(),
            nearest.tolist(),
            which.tolist(),
            prompt_cosines or [None] * len(pictures),
            strict=True,
        )
    ]
    return Scores(
        features,
        tuple(found),
        mean_with_interval([one.subject for one in found]),
        mean_with_interval(prompt_cosines) if prompt_cosines else None,
        _among_themselves(photos),
        len(photos),
        tuple(prompts),
    )


def mean_with_interval(values: Sequence[float], seed: int = 0) -> Mean:
    """The mean of values, and the interval that 95% of the means of samples drawn from them lie in."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return Mean(mean, None, None)
    if max(values) == min(values):
        return Mean(mean, mean, mean)
    found = bootstrap(
        (values,),
        lambda sample, axis: sample.mean(axis=axis),
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="percentile",
        random_state=seed,
    )
    low, high = found.confidence_interval
    return Mean(mean, float(low), float(high))


def _among_themselves(photos: Tensor) -> float | None:
    """Mean cosine of all pairs of different photos."""
    count = len(photos)
    if count < 2:
        return None
    cosines = photos @ photos.T
    return ((cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1))).item()


def prompt_cosines(pictures: Tensor, texts: Tensor) -> list[float]:
    """Cosines of pictures (N, D) and texts (N, D), pair by pair."""
    return (normalize(pictures.double()) * normalize(texts.double())).sum(1).tolist()


def prompts_for(text: str, count: int) -> list[str]:
    """A prompt for each of so many pictures: the one line of the text, or as many lines as there are pictures.

    Raises ValueError for any other number of lines.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) not in (1, count):
        raise ValueError(
            f"prompt: got {len(lines)} lines for {count} pictures; write one line, or one for each picture"
        )
    return lines * count if len(lines) == 1 else lines
