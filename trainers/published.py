"""Peak memory as the papers' tables have it, to stand beside our own. All of it was measured by their authors.

Choi et al. 2025 (arXiv:2507.10029), Table 1. Cho et al. 2024 (Hollowed Net, arXiv:2411.01179), poster.
Seo et al. 2025 (ZOODiP, arXiv:2503.14868), Table 1. Text encoder and VAE stay resident in the first and the last; what
precision the first ran in follows from its own figures. The GB of the last two are taken as 10^9 bytes.
"""

from collections.abc import Mapping
from typing import NamedTuple

MIB, GB = 2**20, 10**9
SELECTIVE, HOLLOW, TOKEN = "arXiv:2507.10029", "arXiv:2411.01179", "arXiv:2503.14868"


class Published(NamedTuple):
    """One figure of a paper."""

    run: str  # what was run
    bytes: int
    source: str


class SelectiveRow(NamedTuple):
    """One model of Choi et al.'s Table 1, MiB."""

    resolution: int
    circumstances: str
    bp: Mapping[float, int]  # by low_res_ratio; 1 is backpropagation alone
    zo: int

    def peak(self, ratio: float) -> int:
        """Of a run: the higher of its two kinds of step."""
        return self.bp[ratio] if ratio == 1 else max(self.bp[ratio], self.zo)


WITH_ALL = "text encoder and VAE resident"
FLOAT32, BITS_16 = f"float32, {WITH_ALL}", f"16 bit, {WITH_ALL}"
SELECTIVE_ROWS = {  # by ComfyUI's name of the model
    "SD15": SelectiveRow(512, FLOAT32, {1: 5722, 0.75: 5033, 0.625: 4737, 0.5: 4547}, 4756),
    "SD20": SelectiveRow(512, FLOAT32, {1: 6485, 0.75: 5832, 0.625: 5561, 0.5: 5368}, 5613),
    "SDXL": SelectiveRow(1024, BITS_16, {1: 14397, 0.75: 11260, 0.625: 9958, 0.5: 8957}, 9546),
    "SSD1B": SelectiveRow(1024, BITS_16, {1: 9030, 0.75: 7115, 0.625: 6338, 0.5: 5729}, 7109),
}
POSTER_RANK, POSTER_FRACTIONS = 128, (0.35, 0.43)  # the nearest cut of these shares is the poster's 39%
POSTER = Published("rank 128, 39% left out, float32, U-Net alone", round(3.88 * GB), HOLLOW)
ZOODIP = Published(f"int8, {WITH_ALL}", round(2.37 * GB), TOKEN)
INVERSION = Published(f"by gradients, float32, {WITH_ALL}", round(6.75 * GB), TOKEN)


def published(method: str, architecture: str, resolution: int, settings: Mapping[str, object]) -> Published | None:
    """The figure of the method's own paper for this model and these settings, where it has one. All are of batch 1."""
    if settings.get("batch_size", 1) != 1:
        return None
    if method.startswith("Selective"):
        return _selective(architecture, resolution, settings)
    if method.startswith("Hollowed"):
        low, high = POSTER_FRACTIONS
        is_same = settings["rank"] == POSTER_RANK and low <= settings["hollow_fraction"] <= high
        return POSTER if (architecture, resolution) == ("SD20", 512) and is_same else None
    if (architecture, resolution) == ("SD15", 512):
        return ZOODIP if settings["method"] == "zo" else INVERSION
    return None


def _selective(architecture: str, resolution: int, settings: Mapping[str, object]) -> Published | None:
    row = SELECTIVE_ROWS.get(architecture)
    ratio = 1 if settings["strategy"] == "bp_high" else settings["low_res_ratio"]
    if row is None or row.resolution != resolution or ratio not in row.bp:
        return None
    sizes = "full size" if ratio == 1 else f"r = {ratio:g}"
    return Published(f"{sizes}, {row.circumstances}", row.peak(ratio) * MIB, SELECTIVE)
