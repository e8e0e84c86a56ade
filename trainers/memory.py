"""Peak memory by phase: the CUDA allocator's own figures, and live tensor bytes everywhere else.

Live bytes are the storages of all tensors that torch operations returned and that still exist. They do not depend on
what else the machine does, so a test can hold a ceiling on them. Scratch memory inside one operation is not in them.
"""

import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .process_memory import ProcessPeak
from .timeline import Span, Timeline

BY_ALLOCATOR = "peaks of torch's CUDA allocator at every step"
BY_COUNTING = "live bytes of tensors, counted once for each kind of step"


class Phase(NamedTuple):
    """What one kind of work took: encode, inference, bp, zo."""

    name: str
    seconds: float
    peak_bytes: int  # of tensors on the device
    held_bytes: int = 0  # of them what was there before: weights, and a LoRA with its optimizer
    given_bytes: int = 0  # of these what nothing learns, at the first occurrence, which finds no optimizer's moments
    reserved_peak_bytes: int | None = None  # what CUDA's allocator kept for them, free room between them included
    process_peak_bytes: int = 0  # resident set of the process


class LiveBytes(TorchDispatchMode):
    """Counts bytes of live storages while it is active. Costs tens of microseconds per operation."""

    def __init__(self, resident: Iterable[Tensor] = ()):
        super().__init__()
        self.live = self.peak = 0
        self._storages: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self._watched: set[weakref.ref] = set()  # weakref.finalize() would keep the meter for as long as a weight lives
        for tensor in resident:
            self._see(tensor)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._storages:
            return
        size = storage.nbytes()
        self._storages.add(storage)
        self._watched.add(weakref.ref(storage, partial(self._forget, size)))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _forget(self, size: int, reference: weakref.ref) -> None:
        self.live -= size
        self._watched.discard(reference)


class NestedPeaks:
    """Peaks over blocks that may lie in one another, from statistics that know but the peak since their last reset."""

    def __init__(self, read: Callable[[], tuple[int, ...]], reset: Callable[[], None]):
        self._read, self._reset = read, reset
        self._open: list[list[int]] = []

    @contextmanager
    def measured(self) -> Iterator[list[int]]:
        """Gives the peaks of the block; they stand when it is over."""
        self._note()  # what the blocks around this one have seen so far
        self._reset()
        peaks = [0] * len(self._read())
        self._open.append(peaks)
        try:
            yield peaks
        finally:
            self._note()
            self._open.pop()

    def _note(self) -> None:
        for peaks in self._open:
            peaks[:] = map(max, peaks, self._read())


@dataclass
class _Peak:
    """Bytes of one occurrence of a phase, as Phase has them."""

    given: int
    held: int
    bytes: int = 0
    reserved: int | None = None


class PhaseMeter:
    """Seconds and peak bytes of the phases of a run, each the sum and the maximum over all its occurrences.

    On CUDA every occurrence is read off the allocator (its peak statistics are reset). Elsewhere live bytes are counted
    once for each (name, circumstances): they are the same every time, and counting each step would slow small models.
    Phases may lie in one another; each then counts what the inner ones take.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._start = time.perf_counter()
        self._phases: dict[str, Phase] = {}
        self._known: dict[tuple[str, Hashable], _Peak] = {}
        self._timeline = Timeline()
        self._allocator = NestedPeaks(
            lambda: (torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)),
            lambda: torch.cuda.reset_peak_memory_stats(device),
        )

    @contextmanager
    def phase(self, name: str, resident: Iterable[Tensor], circumstances: Hashable = None) -> Iterator[None]:
        """Count the block towards phase name; resident are the tensors that exist before it and belong to it."""
        start, process = self.elapsed_s(), ProcessPeak()
        try:
            with process, self._counted((name, circumstances), resident) as peak:
                yield
            self._add_peak(name, peak, process.bytes)
            end = self.elapsed_s()
            self._timeline.add(Span(name, start, end, end - start, peak.bytes, process.bytes))
        finally:
            self._add_seconds(name, self.elapsed_s() - start)

    @contextmanager
    def _counted(self, key: tuple[str, Hashable], resident: Iterable[Tensor]) -> Iterator[_Peak]:
        known = self._known.get(key)
        if known is None:
            resident = list(resident)
            given = LiveBytes(tensor for tensor in resident if not tensor.requires_grad).live
        if self.device.type == "cuda":
            peak = replace(known) if known else _Peak(given, LiveBytes(resident).live)
            with self._allocator.measured() as found:
                yield peak
            peak.bytes, peak.reserved = found
            self._known[key] = peak
        elif known:
            yield known
        else:
            with LiveBytes(resident) as meter:
                peak = _Peak(given, meter.live)
                yield peak
            peak.bytes = meter.peak
            self._known[key] = peak

    def peak_bytes(self, name: str) -> int:
        """The phase's peak so far; 0 when it never ran."""
        return self._phases[name].peak_bytes if name in self._phases else 0

    def elapsed_s(self) -> float:
        """Wall time since the meter was made."""
        return time.perf_counter() - self._start

    def phases(self) -> list[Phase]:
        """All phases in the order in which they first ran."""
        return list(self._phases.values())

    def timeline(self) -> tuple[Span, ...]:
        """What was held and when. Where live bytes are counted, a span has the figure of its kind, counted once."""
        return self._timeline.spans()

    @property
    def measurement(self) -> str:
        """What the bytes of tensors are, in words."""
        return BY_ALLOCATOR if self.device.type == "cuda" else BY_COUNTING

    def _add_peak(self, name: str, peak: _Peak, process: int) -> None:
        known = self._phases.get(name, Phase(name, 0.0, 0))
        known = known._replace(given_bytes=min(known.given_bytes or peak.given, peak.given))
        if peak.bytes >= known.peak_bytes:
            known = known._replace(peak_bytes=peak.bytes, held_bytes=peak.held)
        if peak.reserved is not None:
            known = known._replace(reserved_peak_bytes=max(known.reserved_peak_bytes or 0, peak.reserved))
        self._phases[name] = known._replace(process_peak_bytes=max(known.process_peak_bytes, process))

    def _add_seconds(self, name: str, seconds: float) -> None:
        known = self._phases.get(name, Phase(name, 0.0, 0))
        self._phases[name] = known._replace(seconds=known.seconds + seconds)
