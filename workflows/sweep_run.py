"""Runs the jobs of a sweep on Ray's workers: hands them out, keeps what they send, and takes up those that are lost."""

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import ray
from ray.exceptions import RayError
from runtime import SetupError
from sweep_cluster import places, start_worker
from sweep_jobs import Job
from sweep_placement import Packing, Share
from sweep_table import Kept
from sweep_workers import Point, Work

REFRESH_S = 5  # between looks at which machines are up
STRIKES = 3  # workers lost on a machine before any of its jobs is done: it gets no more
STOPPING_S = 60  # for a last save after Ctrl-C
CLOSING_S = 20


@dataclass(eq=False)
class Hand:
    """A worker and what it does now."""

    actor: object
    job: Job
    answer: object  # of the call that is under way
    machine: str = ""
    is_resumed: bool = False  # the job goes on from a point


@dataclass
class Outcome:
    """How a sweep went."""

    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # name of a job -> why


class Sweep:
    """One run of the jobs. on_event gets a job, and a message's kind and data."""

    def __init__(
        self,
        kept: Kept,
        packing: Packing,
        worker: tuple[type, tuple],  # a class like sweep_workers.Worker, and its arguments
        cpus: int = 1,
        retries: int = 2,
        on_event: Callable[[Job, str, dict], None] = lambda job, kind, data: None,
    ):
        self.kept, self.packing, self.worker, self.cpus, self.retries = kept, packing, worker, cpus, retries
        self.on_event, self.outcome = on_event, Outcome()
        self.hands: list[Hand] = []
        self.mib: dict[str, int] = {}  # of jobs, by key
        self.tries, self.strikes = Counter(), Counter()
        self.last_loss = ""
        self.seen_s = 0.0

    def run(self, sized: list[tuple[Job, int]]) -> Outcome:
        """Do the jobs, each of which takes so many MiB. KeyboardInterrupt after Ctrl-C, once workers have saved."""
        for job, mib in sized:
            self.mib[job.key] = mib
            self.packing.add(job, mib)
        with _ctrl_c_held_back() as is_pressed:
            try:
                while (self.hands or self.packing.waiting) and not is_pressed():
                    self._start_workers()
                    self._listen()
                if is_pressed():
                    self._stop()
                    raise KeyboardInterrupt
            finally:
                self._close()
        return self.outcome

    def _start_workers(self) -> None:
        if time.monotonic() - self.seen_s > REFRESH_S:
            found = [place for place in places(self.cpus) if self.strikes[place.node] < STRIKES]
            if not found and not self.hands:
                raise SetupError(f"No machine is left that workers could run on. {self.last_loss}")
            self.packing.places, self.seen_s = found, time.monotonic()
        for job, share in self.packing.openings():
            actor = start_worker(*self.worker, share, self.cpus)
            hand = Hand(actor, job, None)
            self.packing.hold(hand, share)
            self.hands.append(hand)
            self._give(hand, job)
        if not self.hands and self.packing.waiting and self.packing.places:
            largest = max(place.mib for place in self.packing.places)
            for mib in [mib for mib in self.packing.waiting if mib > largest]:
                for job in self.packing.waiting.pop(mib):
                    self._fail(
                        job, f"it is planned to take {mib:,} MiB, and the largest share there is has {largest:,}"
                    )

    def _give(self, hand: Hand, job: Job) -> None:
        hand.job = job
        files = {path.name: path.read_bytes() for path in job.files}
        point = self.kept.point(job)
        hand.is_resumed = point is not None
        work = Work(job.name, job.prompt, job.folder, files, Point(*point) if point else None)
        hand.actor.start.remote(work)
        hand.answer = hand.actor.messages.remote()

    def _listen(self) -> None:
        """Wait for workers to say something, and act on it."""
        by_answer = {hand.answer: hand for hand in self.hands}
        if not by_answer:
            time.sleep(0.5)
            return
        ready, _ = ray.wait(list(by_answer), num_returns=1, timeout=REFRESH_S)
        for answer in ready:
            hand = by_answer[answer]
            try:
                messages = ray.get(answer)
            except RayError as error:
                self._lose(hand, str(error))
                continue
            is_idle = False
            for message in messages:
                is_idle = self._hear(hand, *message) or is_idle
            if not is_idle:
                hand.answer = hand.actor.messages.remote()
            elif (job := self.packing.next_for(hand)) is not None:
                self._give(hand, job)
            else:
                self.hands.remove(hand)
                hand.actor.close.remote()
                hand.actor.__ray_terminate__.remote()

    def _hear(self, hand: Hand, kind: str, data: dict) -> bool:
        """Act on one message; whether the worker is idle now."""
        job, share = hand.job, self.packing.shares[hand]
        if kind == "began":
            self.tries[job.key] += 1
            hand.machine = data["machine"]
            if data["gpu"] is not None:  # Ray's choice
                self.packing.hold(hand, Share(share.place._replace(gpu=data["gpu"]), share.mib))
        elif kind == "saved":
            self.kept.save(job, data["point"])
        elif kind == "done":
            self.strikes[share.place.node] = 0
            self.kept.add(job, data, self.mib[job.key], hand.machine, self.tries[job.key])
            self.outcome.done += 1
        elif kind == "failed":
            self.kept.forget_point(job)
            if hand.is_resumed:  # perhaps it was the point that does not fit, as where another file has a model's name
                self.packing.add(job, self.mib[job.key], is_next=True)
            else:
                self._fail(job, data["error"])
        self.on_event(job, kind, data)
        return kind in ("done", "failed", "stopped")

    def _lose(self, hand: Hand, error: str) -> None:
        """The worker is gone, or of no use: another takes up its job."""
        node = self.packing.shares[hand].place.node
        self.strikes[node] += 1
        self.seen_s = 0.0
        self.last_loss = f"The last worker was lost like this: {error}"
        self.packing.release(hand)
        self.hands.remove(hand)
        ray.kill(hand.actor)
        if self.tries[hand.job.key] > self.retries:
            self._fail(hand.job, f"its worker was lost {self.tries[hand.job.key]} times; at last: {error}")
        else:
            self.packing.add(hand.job, self.mib[hand.job.key], is_next=True)
        self.on_event(hand.job, "lost", {"error": error, "machine": hand.machine})

    def _fail(self, job: Job, error: str) -> None:
        self.outcome.failed[job.name] = error

    def _stop(self) -> None:
        """After Ctrl-C: let workers save what they do, and hear of it."""
        for hand in self.hands:
            hand.actor.stop.remote()
        deadline = time.monotonic() + STOPPING_S
        while self.hands and time.monotonic() < deadline:
            self.packing.waiting.clear()
            self._listen()

    def _close(self) -> None:
        closing = [hand.actor.close.remote() for hand in self.hands]
        ray.wait(closing, num_returns=len(closing), timeout=CLOSING_S) if closing else None
        for hand in self.hands:
            ray.kill(hand.actor)


@contextmanager
def _ctrl_c_held_back() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed is asked for, so that no message is heard by half, and then again for another job.

    The second press is not held back.
    """
    pressed, usual = threading.Event(), signal.getsignal(signal.SIGINT)

    def note(*_) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, usual)
