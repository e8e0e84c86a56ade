"""Which job of a sweep runs where: planned bytes packed into the memory of GPUs, or of machines without one.

A worker holds a share of one place's memory for as long as it lives, since the model stays loaded in it. It takes a job
that fits its share snugly, the largest first; where none does it ends, and its memory is for workers of another size.
"""

import heapq
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from typing import NamedTuple

SNUG = 0.8  # of a worker's share that a job has to take: a smaller one leaves too much of it unused


class Place(NamedTuple):
    """Memory that workers share: of one GPU, or of a machine without one."""

    node: str
    gpu: int | None
    mib: int
    slots: int  # how many workers at most, however small


class Share(NamedTuple):
    """What a worker holds of a place."""

    place: Place
    mib: int


class Packing:
    """Jobs that wait, by size, and shares that are held, by worker. most limits the number of workers."""

    def __init__(self, places: Iterable[Place] = (), most: int | None = None):
        self.places, self.most = list(places), most
        self.waiting: dict[int, deque] = {}
        self.shares: dict[Hashable, Share] = {}

    def add(self, job: object, mib: int, is_next: bool = False) -> None:
        """Let a job wait; is_next puts it before the others of its size."""
        queue = self.waiting.setdefault(mib, deque())
        queue.appendleft(job) if is_next else queue.append(job)

    def next_for(self, worker: Hashable) -> object | None:
        """Take the job that an idle worker is to do. None: it is to end, and its share is free."""
        share = self.shares[worker].mib
        fitting = [mib for mib in self.waiting if SNUG * share <= mib <= share]
        if fitting:
            return self._take(max(fitting))
        self.release(worker)
        return None

    def release(self, worker: Hashable) -> None:
        """The worker is gone."""
        self.shares.pop(worker, None)

    def openings(self) -> Iterator[tuple[object, Share]]:
        """Jobs to start a new worker for, the largest first; hold() has to be called before the next is asked for."""
        for mib in sorted(self.waiting, reverse=True):
            while mib in self.waiting and (place := self._room(mib)):
                yield self._take(mib), Share(place, mib)

    def hold(self, worker: Hashable, share: Share) -> None:
        """A worker has been started with this share."""
        self.shares[worker] = share

    def free_mib(self, place: Place) -> int:
        """What no worker holds of a place."""
        return place.mib - sum(share.mib for share in self._of(place))

    def _room(self, mib: int) -> Place | None:
        """The fullest place that still has so much, and a slot."""
        if self.most is not None and len(self.shares) >= self.most:
            return None
        open_ones = [place for place in self.places if len(self._of(place)) < place.slots]
        return min((place for place in open_ones if self.free_mib(place) >= mib), key=self.free_mib, default=None)

    def _of(self, place: Place) -> list[Share]:
        return [share for share in self.shares.values() if share.place[:2] == place[:2]]

    def _take(self, mib: int) -> object:
        job = self.waiting[mib].popleft()
        if not self.waiting[mib]:
            del self.waiting[mib]
        return job


def expected_seconds(jobs: Iterable[tuple[int, float]], packing: Packing, start_s: float) -> float:
    """How long jobs of (MiB, seconds) take, workers needing start_s before their first."""
    for mib, seconds in jobs:
        packing.add(seconds, mib)
    ends: list[tuple[float, int]] = []  # and the worker
    now, count = 0.0, 0
    while True:
        for seconds, share in packing.openings():
            packing.hold(count, share)
            heapq.heappush(ends, (now + start_s + seconds, count))
            count += 1
        if not ends:
            return now
        now, worker = heapq.heappop(ends)
        seconds = packing.next_for(worker)
        if seconds is not None:
            heapq.heappush(ends, (now + seconds, worker))
