"""No network, no programs, no pickles while the trainers run, by what Python itself reports."""

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from test_host_untouched import SETTINGS, Ending, Models, temp  # noqa: F401, a fixture

WATCHED = ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto", "subprocess.Popen", "os.system",
           "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class", "urllib.Request")  # fmt: skip
_heard: list | None = None


def _hear(event: str, arguments: tuple) -> None:
    if _heard is not None and event in WATCHED:
        _heard.append((event, repr(arguments)[:200]))


sys.addaudithook(_hear)  # for good: Python has no way to take one off


@pytest.fixture
def heard() -> Iterator[list]:
    global _heard
    _heard = []
    yield _heard
    _heard = None


def test_the_watch_hears(heard):
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", 9), timeout=0.1)
    subprocess.run([sys.executable, "-c", ""], check=True)
    assert {"socket.connect", "subprocess.Popen"} <= {event for event, _ in heard}


@pytest.mark.parametrize("node", SETTINGS, ids=lambda node: node.__name__)
def test_a_trainer_keeps_to_itself(node, heard):
    Models().run(node, Ending())
    assert heard == []
