"""What was done to the photos of a subject, as text for people."""

from .photos import Loaded, PhotoRecord, SubjectSettings

ENOUGH, PLENTY = 3, 6  # photos of one subject; DreamBooth (arXiv:2208.12242) uses 3 to 5


def photo_report(loaded: Loaded, settings: SubjectSettings, source: str) -> str:
    """A summary line, advice where there is some, then one line per photo; a caption they share is told once."""
    records = loaded.records
    lines = [_summary(loaded, settings, source), *_advice(loaded)]
    captions = {record.caption for record in records}
    if len(captions) == 1:
        lines.append(_caption(records[0]))
    width = max(len(record.name) for record in records)
    return "\n".join(lines + [_line(record, width, has_own_caption=len(captions) > 1) for record in records])


def _summary(loaded: Loaded, settings: SubjectSettings, source: str) -> str:
    side = settings.resolution
    size = f"about {side}x{side}, uncropped" if settings.crop == "none" else f"{side}x{side}, {settings.crop} crop"
    twins = sum(record.twin is not None for record in loaded.records)
    count = len(loaded.records)
    return "; ".join(
        [
            f"{count} photo{'s' * (count != 1)} from {source} at {size}",
            "each also mirrored (flip)" if settings.flip else "not mirrored",
            f"{twins or 'no'} exact duplicate{'s' * (twins != 1)}",
            *_masks(loaded),
        ]
    )


def _masks(loaded: Loaded) -> list[str]:
    masked = [record for record in loaded.records if record.mask]
    if not masked:
        return []
    mean = sum(record.coverage for record in masked) / len(masked)
    weight = loaded.subject.background_weight
    count = "all" if len(masked) == len(loaded.records) else len(masked)
    return [f"{count} with masks, which cover {mean:.0%} on average; the rest counts {weight:g} times as much"]


def _advice(loaded: Loaded) -> list[str]:
    advice = []
    if not ENOUGH <= len(loaded.records) <= PLENTY:
        advice.append(f"{ENOUGH} to {PLENTY} photos from different sides work best.")
    if small := [record.name for record in loaded.records if record.upscaled]:
        advice.append(
            f"Upscaled, so blurry to learn from: {', '.join(small)}. Larger photos or a lower resolution help."
        )
    if len({photo.image.shape for photo in loaded.subject.photos}) > 1:
        advice.append("Sizes differ: the images output repeats edge pixels up to the largest; training does not.")
    return advice


def _line(record: PhotoRecord, width: int, has_own_caption: bool) -> str:
    done = ", ".join([f"{record.width_px}x{record.height_px}", *(record.steps or ("used as it is",))])
    twin = f" | exact duplicate of {record.twin}" if record.twin else ""
    mask = f" | mask ({record.mask}): {record.coverage:.0%}" if record.mask else ""
    caption = f" | {_caption(record)}" if has_own_caption else ""
    return f"{record.name:<{width}}  {done}{mask}{twin}{caption}"


def _caption(record: PhotoRecord) -> str:
    return f"caption ({record.caption.source}): {record.caption.text}"
