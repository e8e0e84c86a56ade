"""Runs the linter and all tests: python tests/run.py [arguments for pytest]. Sets up what they need first."""

import os
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS.parent / "workflows"))

import runtime  # noqa: E402
from runtime import ROOT, SetupError, say  # noqa: E402

WORKERS = ("--numprocesses=2", "--dist=loadfile")  # two processes; what a file of tests sets up is set up once


def main() -> None:
    try:
        python = set_up()
        runtime.continue_in(python)
    except SetupError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("Stopped.")
    ensure_chromium()
    say("ruff check")
    lint = subprocess.run([python, "-m", "ruff", "check", ROOT])
    tests = subprocess.run([python, "-m", "pytest", *WORKERS, *sys.argv[1:]], cwd=ROOT, env=environment())
    sys.exit(tests.returncode or lint.returncode)


def environment() -> dict[str, str]:
    """For processes that share the cores with each other and with a server.

    Threads that spin while they wait would make each 20 times slower.
    """
    threads = str(max(1, (os.cpu_count() or 2) // 2))
    return {**os.environ, "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


def set_up() -> Path:
    """The Python of .venv, with the ComfyUI that is found or fetched, the pack's and the tests' requirements in it."""
    comfyui = runtime.find_comfyui() or runtime.fetch_comfyui()
    runtime.ensure_environment("comfyui", runtime.comfyui_requirements(comfyui))
    return runtime.ensure_environment("tests", [TESTS / "requirements.txt"])


def ensure_chromium() -> None:
    """Install chromium for the browser tests where that can be done; else say how. On CI it has to be there."""
    if runtime.find_chromium():
        return
    if is_debian() and hasattr(os, "geteuid") and os.geteuid() == 0:
        install_chromium()
    if runtime.find_chromium():
        return
    how = "Browser tests need chromium or Chrome on the PATH (on Debian and Ubuntu: apt-get install chromium)."
    if os.environ.get("CI") == "true":
        sys.exit(f"error: {how}")
    say(f"{how} They will be skipped.")


def is_debian() -> bool:
    release = Path("/etc/os-release")
    return release.is_file() and "\nID=debian" in "\n" + release.read_text()


def install_chromium() -> None:
    say("Installing chromium for the browser tests (apt-get, 100 MB to download)")
    started = time.monotonic()
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
        result = subprocess.run(["apt-get", "-q", *command], env=environment, capture_output=True, text=True)
        if result.returncode != 0:
            say(f"apt-get {' '.join(command)} failed:\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
            return
    say(f"  done in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
