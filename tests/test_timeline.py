"""A time line stays short however long the run, and keeps every phase, every peak and every edge."""

from hypothesis import given, settings
from hypothesis import strategies as some
from pack.trainers.timeline import LIMIT, Span, Timeline

PHASES = some.sampled_from(["encode", "bp", "zo"])
FIGURES = some.integers(0, 2**40)


def timeline(runs: list[tuple[str, int, int]], limit: int = LIMIT) -> Timeline:
    """One second each, one after the other."""
    line = Timeline(limit)
    for i, (phase, size, process) in enumerate(runs):
        line.add(Span(phase, float(i), i + 1.0, 1.0, size, process))
    return line


def of(spans, phase: str) -> list[Span]:
    return [span for span in spans if span.phase == phase]


@settings(max_examples=200, deadline=None)
@given(some.lists(some.tuples(PHASES, FIGURES, FIGURES), min_size=1, max_size=120))
def test_thinning_keeps_phases_peaks_and_edges(runs):
    spans = timeline(runs, limit=8).spans()
    assert len(spans) <= 8
    assert [span.end for span in spans] == sorted(span.end for span in spans)
    for phase in {phase for phase, _, _ in runs}:
        given_ones = [(i, size, process) for i, (name, size, process) in enumerate(runs) if name == phase]
        kept = of(spans, phase)
        assert max(span.bytes for span in kept) == max(size for _, size, _ in given_ones)
        assert max(span.process_bytes for span in kept) == max(process for _, _, process in given_ones)
        assert sum(span.seconds for span in kept) == len(given_ones)
        assert kept[0].start == given_ones[0][0] and kept[-1].end == given_ones[-1][0] + 1
        assert all(first.end <= second.start for first, second in zip(kept, kept[1:], strict=False))


@settings(max_examples=100, deadline=None)
@given(some.lists(some.tuples(PHASES, FIGURES, FIGURES), max_size=8))
def test_a_short_run_is_kept_as_it_is(runs):
    spans = timeline(runs, limit=8).spans()
    assert [(span.phase, span.bytes, span.process_bytes) for span in spans] == runs


def test_one_short_phase_keeps_its_place_between_thousands_of_steps():
    spans = timeline([("encode", 5, 5), ("inference", 1, 1), *[("bp", 3, 3)] * 20_000, ("evaluation", 4, 4)]).spans()
    assert len(spans) <= LIMIT
    for phase, first in (("encode", 0), ("inference", 1), ("evaluation", 20_002)):
        assert of(spans, phase) == [Span(phase, first, first + 1.0, 1.0, *of(spans, phase)[0][4:])]
    assert len(of(spans, "bp")) >= LIMIT // 2 - 4
