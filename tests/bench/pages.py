"""Parts of Markdown pages that a command writes: what stands between a pair of markers, and figures in words."""

import re
from collections.abc import Sequence
from pathlib import Path

from pack.trainers.evaluation import mean_with_interval


def markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def between_markers(text: str, name: str) -> str:
    """What stands there now."""
    begin, end = markers(name)
    return text[text.index(begin) + len(begin) : text.index(end)].strip("\n")


def put_between_markers(page: Path, name: str, body: str) -> None:
    """Put the body there instead."""
    begin, end = markers(name)
    text = page.read_text(encoding="utf-8")
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    page.write_text(re.sub(pattern, lambda _: f"{begin}\n\n{body}\n\n{end}", text, flags=re.S), encoding="utf-8")


def with_interval(values: Sequence[float], sign: str = "") -> str:
    """Their mean, and behind it its interval, where there are enough of them to have one."""
    mean, low, high = mean_with_interval(values)
    return f"{mean:{sign}.3f}" if low is None else f"{mean:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"
