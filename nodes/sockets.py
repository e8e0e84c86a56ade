"""The pack's own socket types, which record each one carries, and the forms core's sockets expect."""

import math
from collections.abc import Sequence

from comfy_api.latest import io

SubjectSocket = io.Custom("EDGETUNE_SUBJECT")  # trainers.photos.Subject
EmbeddingSocket = io.Custom("EDGETUNE_EMBEDDING")  # trainers.embedding_file.Embedding
ReportSocket = io.Custom("EDGETUNE_REPORT")  # trainers.report.Report


def loss_map(losses: Sequence[float]) -> dict[str, list[float]]:
    """Core's LOSS_MAP. Its Plot Loss Graph divides by max - min, so a flat curve ends one rounding step higher."""
    losses = list(losses)
    if len(set(losses)) == 1:
        losses.append(math.nextafter(losses[0], math.inf))
    return {"loss": losses}
