"""Memory of this process as the operating system counts it: its resident set, on every system ComfyUI runs on.

All that live bytes leave out is in it: Python, libraries, scratch memory inside operations, what else is loaded.
"""

import threading

import psutil

INTERVAL_S = 0.05  # between looks; one takes 15 microseconds

_this_process = psutil.Process()


def resident_bytes() -> int:
    """The resident set now."""
    return _this_process.memory_info().rss


class ProcessPeak:
    """The largest resident set seen inside the block: at both ends of it, and from a thread every INTERVAL_S.

    What came and went between two looks was not seen.
    """

    def __init__(self):
        self.bytes = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "ProcessPeak":
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._is_over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._is_over.wait(INTERVAL_S):
            self._look()

    def _look(self) -> None:
        self.bytes = max(self.bytes, resident_bytes())
