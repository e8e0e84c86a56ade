"""What a run's phases add up to, also where one lies in another: tensors, the process, and when."""

import threading
import time

import pytest
import torch
from pack.trainers.memory import LiveBytes, NestedPeaks, Phase, PhaseMeter
from pack.trainers.process_memory import INTERVAL_S, resident_bytes
from test_memory import size

CPU = torch.device("cpu")


def work(count: int) -> None:
    torch.zeros(count)


def test_a_phase_is_the_sum_of_its_seconds_and_the_highest_of_its_peaks():
    meter = PhaseMeter(CPU)
    resident = [torch.zeros(50)]
    for shape in (100, 300, 200):
        with meter.phase("bp", resident, shape):
            work(shape)
            time.sleep(0.01)
    (phase,) = meter.phases()
    assert isinstance(phase, Phase) and phase.name == "bp"
    assert phase.peak_bytes == meter.peak_bytes("bp") == size(50) + size(300)
    assert 0.03 <= phase.seconds <= meter.elapsed_s()


def test_live_bytes_are_counted_once_for_each_name_and_shape():
    """The second step of a shape is not metered, whatever it does; another shape or another name is."""
    meter = PhaseMeter(CPU)
    for name, shape, count in (("bp", (1, 4), 100), ("bp", (1, 4), 900), ("zo", (1, 4), 200), ("bp", (2, 4), 150)):
        with meter.phase(name, [], shape):
            work(count)
    assert {phase.name: phase.peak_bytes for phase in meter.phases()} == {"bp": size(150), "zo": size(200)}


def test_phases_stand_in_the_order_in_which_they_first_ran():
    meter = PhaseMeter(CPU)
    for name in ("encode", "inference", "zo", "bp", "zo"):
        with meter.phase(name, []):
            pass
    assert [phase.name for phase in meter.phases()] == ["encode", "inference", "zo", "bp"]


def test_a_phase_that_never_ran_has_no_peak():
    meter = PhaseMeter(CPU)
    assert meter.peak_bytes("zo") == 0 and meter.phases() == []


def test_a_phase_that_raises_keeps_its_seconds_and_is_metered_again():
    meter = PhaseMeter(CPU)
    with pytest.raises(KeyboardInterrupt), meter.phase("bp", []):
        raise KeyboardInterrupt
    assert meter.phases()[0].seconds > 0 and meter.peak_bytes("bp") == 0
    with meter.phase("bp", []):
        work(100)
    assert meter.peak_bytes("bp") == size(100)


def test_what_was_there_before_is_told_apart():
    meter = PhaseMeter(CPU)
    weights = torch.zeros(50)
    with meter.phase("zo", [weights, weights[1:]]):
        work(100)
    (phase,) = meter.phases()
    assert (phase.held_bytes, phase.peak_bytes) == (size(50), size(150))


def test_a_phase_counts_what_phases_inside_it_take():
    meter = PhaseMeter(CPU)
    with meter.phase("run", []):
        work(300)
        before = torch.zeros(50)
        for _ in range(2):  # the second time nothing is counted for the inner phase
            with meter.phase("step", [before]):
                work(400)
    assert [meter.peak_bytes(name) for name in ("run", "step")] == [size(450)] * 2


def statistics() -> tuple[LiveBytes, NestedPeaks]:
    """Live bytes, read like an allocator that knows the highest figure since its last reset alone."""
    live = LiveBytes()

    def reset() -> None:
        live.peak = live.live

    return live, NestedPeaks(lambda: (live.peak,), reset)


@pytest.mark.parametrize("outer, inner", [((300,), 100), ((100,), 300), ((), 100), ((100, 200), 50)])
def test_a_reset_does_not_lose_the_peak_of_a_phase_around_it(outer, inner):
    """Work before and between two inner blocks counts for the outer one, and only for it."""
    live, nested = statistics()
    with live, nested.measured() as around:
        for count in outer:
            work(count)
            with nested.measured() as inside:
                work(inner)
            assert inside == [size(inner)]
        work(1)
    assert around == [size(max([1, *outer, *([inner] if outer else [])]))]


def test_a_block_that_raises_leaves_the_blocks_around_it_right():
    live, nested = statistics()
    with live, nested.measured() as around:
        with pytest.raises(KeyboardInterrupt), nested.measured():
            work(500)
            raise KeyboardInterrupt
        with nested.measured() as after:
            work(100)
    assert (around, after) == ([size(500)], [size(100)])


def test_the_time_line_says_what_ran_when_and_with_how_much():
    meter = PhaseMeter(CPU)
    for name, count in (("bp", 100), ("zo", 300), ("bp", 100)):
        with meter.phase(name, []):
            work(count)
            time.sleep(0.01)
    spans = meter.timeline()
    assert [(span.phase, span.bytes) for span in spans] == [("bp", size(100)), ("zo", size(300)), ("bp", size(100))]
    assert all(span.end - span.start >= 0.01 and span.process_bytes > 2**20 for span in spans)
    edges = [edge for span in spans for edge in (span.start, span.end)]
    assert edges == sorted(edges) and edges[-1] <= meter.elapsed_s()


def test_the_process_is_seen_to_grow_inside_a_phase():
    """200 MiB written to and freed again between its ends."""
    meter = PhaseMeter(CPU)
    before = resident_bytes()
    with meter.phase("bp", []):
        block = torch.ones(200 * 2**20, dtype=torch.int8)
        time.sleep(4 * INTERVAL_S)
        del block
    assert meter.phases()[0].process_peak_bytes >= before + 150 * 2**20


def test_no_thread_outlives_a_phase():
    meter, before = PhaseMeter(CPU), threading.active_count()
    for _ in range(3):
        with meter.phase("bp", []):
            pass
    with pytest.raises(KeyboardInterrupt), meter.phase("bp", []):
        raise KeyboardInterrupt
    assert threading.active_count() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_a_phase_keeps_the_peak_it_had_before_an_inner_one():
    device = torch.device("cuda")
    meter, before = PhaseMeter(device), torch.cuda.memory_allocated(device)
    with meter.phase("run", []):
        torch.zeros(2**22, device=device)
        with meter.phase("step", []):
            torch.zeros(2**20, device=device)
    assert meter.peak_bytes("run") == before + size(2**22)
    assert meter.peak_bytes("step") == before + size(2**20)
    assert all(phase.reserved_peak_bytes >= phase.peak_bytes for phase in meter.phases())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_every_occurrence_is_read_off_the_allocator():
    device = torch.device("cuda")
    meter = PhaseMeter(device)
    before = torch.cuda.memory_allocated(device)
    for count in (2**20, 2**22, 2**21):
        with meter.phase("bp", [], shape="same"):
            torch.zeros(count, device=device)
    assert meter.peak_bytes("bp") == before + size(2**22)
