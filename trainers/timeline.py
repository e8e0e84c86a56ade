"""What a run held and when, in a bounded number of spans."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

LIMIT = 256  # spans at most; a picture of them is about 1000 pixels wide


class Span(NamedTuple):
    """One occurrence of a phase, or several that follow one another, with the highest figures among them."""

    phase: str
    start: float  # seconds since the start of the run
    end: float
    seconds: float  # inside the phase; the rest of the time, others ran
    bytes: int  # of tensors on the device
    process_bytes: int  # resident set of the process


class Timeline:
    """Spans in the order of their ends. When they become too many, the most frequent phase's neighbours are merged.

    Phases stay apart, so that a short one keeps its place between thousands of steps. Merged spans of two phases
    that take turns lie over one another.
    """

    def __init__(self, limit: int = LIMIT):
        self.limit = limit
        self._spans: list[Span] = []

    def add(self, span: Span) -> None:
        """Take in the next span. Costs less than a microsecond, on the average."""
        self._spans.append(span)
        if len(self._spans) > self.limit:
            ((most_frequent, _),) = Counter(known.phase for known in self._spans).most_common(1)
            self._spans = sorted(_thinned(self._spans, most_frequent), key=lambda known: known.end)

    def spans(self) -> tuple[Span, ...]:
        return tuple(self._spans)


def _thinned(spans: list[Span], phase: str) -> Iterator[Span]:
    """All spans, but those of this phase merged two by two."""
    waiting = None
    for span in spans:
        if span.phase != phase:
            yield span
        elif waiting is None:
            waiting = span
        else:
            yield _merged(waiting, span)
            waiting = None
    if waiting is not None:
        yield waiting


def _merged(first: Span, second: Span) -> Span:
    highest, process = max(first.bytes, second.bytes), max(first.process_bytes, second.process_bytes)
    start, seconds = min(first.start, second.start), first.seconds + second.seconds
    return Span(first.phase, start, second.end, seconds, highest, process)
