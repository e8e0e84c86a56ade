"""Peak memory by phase: the CUDA allocator's own figures, and live tensor bytes everywhere else.

Live bytes are the storages of all tensors that torch operations returned and that still exist. They do not depend on
what else the machine does, so a test can hold a ceiling on them. Scratch memory inside one operation is not in them.
"""

import time
import weakref
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Phase(NamedTuple):
    """What one kind of work took: encode, inference, bp, zo."""

    name: str
    seconds: float
    peak_bytes: int


class LiveBytes(TorchDispatchMode):
    """Counts bytes of live storages while it is active. Costs tens of microseconds per operation."""

    def __init__(self, resident: Iterable[Tensor] = ()):
        super().__init__()
        self.live = self.peak = 0
        self._storages: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
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
        weakref.finalize(storage, self._forget, size).atexit = False
        self.live += size
        self.peak = max(self.peak, self.live)

    def _forget(self, size: int) -> None:
        self.live -= size


class PhaseMeter:
    """Seconds and peak bytes of the phases of a run, each the sum and the maximum over all its occurrences.

    On CUDA every occurrence is read off the allocator (its peak statistics are reset). Elsewhere live bytes are counted
    once for each (name, circumstances): they are the same every time, and counting each step would slow small models.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._start = time.perf_counter()
        self._phases: dict[str, Phase] = {}
        self._measured: set[tuple[str, Hashable]] = set()

    @contextmanager
    def phase(self, name: str, resident: Iterable[Tensor], circumstances: Hashable = None) -> Iterator[None]:
        """Count the block towards phase name; resident are the tensors that exist before it and belong to it."""
        start = time.perf_counter()
        try:
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
                yield
                self._add_peak(name, torch.cuda.max_memory_allocated(self.device))
            elif (name, circumstances) in self._measured:
                yield
            else:
                with LiveBytes(resident) as meter:
                    yield
                self._measured.add((name, circumstances))
                self._add_peak(name, meter.peak)
        finally:
            self._add_seconds(name, time.perf_counter() - start)

    def peak_bytes(self, name: str) -> int:
        """The phase's peak so far; 0 when it never ran."""
        return self._phases[name].peak_bytes if name in self._phases else 0

    def elapsed_s(self) -> float:
        """Wall time since the meter was made."""
        return time.perf_counter() - self._start

    def phases(self) -> list[Phase]:
        """All phases in the order in which they first ran."""
        return list(self._phases.values())

    def _add_peak(self, name: str, peak: int) -> None:
        known = self._phases.get(name, Phase(name, 0.0, 0))
        self._phases[name] = known._replace(peak_bytes=max(known.peak_bytes, peak))

    def _add_seconds(self, name: str, seconds: float) -> None:
        known = self._phases.get(name, Phase(name, 0.0, 0))
        self._phases[name] = known._replace(seconds=known.seconds + seconds)
