"""LoRA files are complete or absent, never replace another by accident, and say what they are."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from pack.trainers import weight_files
from pack.trainers.checkpoint import lora_metadata, save_lora
from pack.trainers.report import Report
from pack.trainers.weight_files import safetensors_name
from safetensors import safe_open
from safetensors.torch import load_file

HALF, FULL = torch.float16, torch.float32
RANK, ALPHA = 4, 2.0


def lora(context_width: int = 768, seed: int = 0) -> dict[str, torch.Tensor]:
    """One attention layer that reads text, as a trainer returns it."""
    generator = torch.Generator().manual_seed(seed)
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    return {
        f"{name}.lora_down.weight": torch.randn(RANK, context_width, generator=generator),
        f"{name}.lora_up.weight": torch.randn(320, RANK, generator=generator),
        f"{name}.alpha": torch.tensor(ALPHA),
    }


def report(**changes) -> Report:
    facts = dict(
        method="Selective BP/ZO",
        base_model="sd_v2",
        prediction_type="epsilon",
        instance_prompt="a photo of a sks dog",
        resolution=512,
        device="cpu",
        dtype="float32",
        steps=3,
        steps_bp=2,
        steps_zo=1,
        seconds=1.5,
        peak_bytes=2**20,
        planned_peak_bytes=None,
        inference_peak_bytes=None,
        phases=(),
        loss={"all": {"first": 0.5, "last": 0.25}},
        settings={"learning_rate": 1e-4, "seed": 7},
    )
    return Report(**facts | changes)


def files(folder: Path) -> set[str]:
    """Names of all files, hidden ones too."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


@contextmanager
def full_disk() -> Iterator[None]:
    """Every write beyond 4 KiB fails, as on a disk that is nearly full; pytest's own, too, so no longer than needed."""
    resource = pytest.importorskip("resource", reason="no file size limits on Windows")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("dtype", [HALF, torch.bfloat16, FULL])
def test_a_saved_file_gives_the_tensors_back_in_its_dtype(tmp_path, dtype):
    state = lora()
    path = save_lora(state, tmp_path / "pets" / "dog.safetensors", dtype, {})
    loaded = load_file(path)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], value.to(dtype)) for key, value in state.items())
    assert files(tmp_path) == {"pets/dog.safetensors"}


def test_a_view_that_needs_grad_is_saved_as_it_reads(tmp_path):
    state = {"a": torch.arange(6.0).reshape(2, 3).T.requires_grad_()}
    assert load_file(save_lora(state, tmp_path / "x.safetensors", FULL, {}))["a"].tolist() == state["a"].tolist()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("taken", [False, True], ids=["free", "taken"])
def test_a_full_disk_leaves_everything_as_it_was(tmp_path, overwrite, taken):
    path = tmp_path / "dog.safetensors"
    if taken:
        path.write_bytes(b"first")
    with full_disk(), pytest.raises(Exception, match="too large"):  # safetensors' own error
        save_lora(lora(), path, FULL, {}, overwrite)
    assert files(tmp_path) == ({"dog.safetensors"} if taken else set())
    assert not taken or path.read_bytes() == b"first"


def test_metadata_that_is_not_text_leaves_nothing_behind(tmp_path):
    with pytest.raises(TypeError):
        save_lora(lora(), tmp_path / "dog.safetensors", HALF, {"steps": 3})
    assert files(tmp_path) == set()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e5], ids=str)
def test_values_that_are_not_finite_in_the_file_are_refused(tmp_path, value):
    """1e5 is finite in float32 and infinite in float16."""
    state = lora()
    key = next(iter(state))
    state[key][0, 0] = value
    with pytest.raises(ValueError, match=f"lora: {key} .* not finite as torch.float16"):
        save_lora(state, tmp_path / "dog.safetensors", HALF, {})
    assert files(tmp_path) == set()


def test_a_taken_name_gets_a_number(tmp_path):
    path = tmp_path / "my.dog.safetensors"
    saved = [save_lora(lora(seed=seed), path, HALF, {}) for seed in range(3)]
    assert [p.name for p in saved] == ["my.dog.safetensors", "my.dog_2.safetensors", "my.dog_3.safetensors"]
    for seed, p in enumerate(saved):
        assert all(torch.equal(load_file(p)[key], value.to(HALF)) for key, value in lora(seed=seed).items())


def test_overwrite_replaces_the_file(tmp_path):
    path = tmp_path / "dog.safetensors"
    save_lora(lora(seed=0), path, HALF, {})
    assert save_lora(lora(seed=1), path, HALF, {}, overwrite=True) == path
    assert files(tmp_path) == {"dog.safetensors"}
    assert all(torch.equal(load_file(path)[key], value.to(HALF)) for key, value in lora(seed=1).items())


def test_without_hard_links_a_taken_name_still_gets_a_number(tmp_path, monkeypatch):
    def link(*_):
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", link)
    names = [save_lora(lora(), tmp_path / "dog.safetensors", HALF, {}).name for _ in range(3)]
    assert names == ["dog.safetensors", "dog_2.safetensors", "dog_3.safetensors"]
    assert files(tmp_path) == set(names)


def test_writers_at_the_same_time_each_get_a_file(tmp_path):
    path = tmp_path / "new folder" / "dog.safetensors"
    with ThreadPoolExecutor(8) as pool:
        saved = list(pool.map(lambda seed: save_lora(lora(seed=seed), path, FULL, {}), range(24)))
    assert len(set(saved)) == 24 and len(files(tmp_path)) == 24
    for seed, p in enumerate(saved):
        assert all(torch.equal(load_file(p)[key], value) for key, value in lora(seed=seed).items())


BASES = [(128, "edgetune_pocket"), (768, "sd_v1"), (1024, "sd_v2"), (2048, "sdxl_base_v1-0"), (512, "unknown")]


@pytest.mark.parametrize("width, base", BASES, ids=str)
def test_without_a_report_the_base_model_is_read_off_the_tensors(width, base):
    metadata = lora_metadata(lora(width), "dog", None)
    assert metadata["ss_base_model_version"] == base
    assert metadata["ss_v2"] == str(base == "sd_v2")
    assert metadata["modelspec.architecture"].endswith("/lora")
    assert "edgetune.report" not in metadata


def test_a_report_goes_into_the_file(tmp_path):
    metadata = lora_metadata(lora(768), "dog", report())
    with safe_open(save_lora(lora(), tmp_path / "dog.safetensors", HALF, metadata), "pt") as file:
        read = file.metadata()
    assert read["ss_base_model_version"] == "sd_v2" and read["ss_v2"] == "True"  # the report knows better
    assert (read["ss_steps"], read["ss_learning_rate"], read["ss_seed"]) == ("3", "0.0001", "7")
    assert read["modelspec.trigger_phrase"] == "a photo of a sks dog"
    assert read["modelspec.resolution"] == "512x512"
    assert json.loads(read["ss_tag_frequency"]) == {"edgetune": {"a photo of a sks dog": 1}}
    assert json.loads(read["edgetune.report"]) == json.loads(report().to_json())


@pytest.mark.parametrize("base", ["sd_v1", "sd_v2", "sdxl_base_v1-0"])
@pytest.mark.parametrize("prediction_type, word", [("epsilon", "epsilon"), ("v_prediction", "v")])
def test_modelspec_s_own_words_are_used(base, prediction_type, word):
    """ModelSpec says epsilon or v, and has two names for SD 2: see kohya's library/sai_model_spec.py."""
    metadata = lora_metadata(lora(), "dog", report(base_model=base, prediction_type=prediction_type))
    assert metadata["modelspec.prediction_type"] == word
    sd2 = {"epsilon": "stable-diffusion-v2-512", "v": "stable-diffusion-v2-768-v"}[word]
    names = {"sd_v1": "stable-diffusion-v1", "sd_v2": sd2, "sdxl_base_v1-0": "stable-diffusion-xl-v1-base"}
    assert metadata["modelspec.architecture"] == names[base] + "/lora"


@pytest.mark.parametrize("given_report", [None, report()], ids=["no report", "report"])
def test_all_metadata_is_text_and_names_rank_and_alpha(given_report):
    metadata = lora_metadata(lora(), "dog", given_report)
    assert all(isinstance(text, str) for item in metadata.items() for text in item)
    assert metadata["ss_network_dim"] == str(RANK)
    assert float(metadata["ss_network_alpha"]) == ALPHA
    assert metadata["ss_network_module"] == "networks.lora"
    assert metadata["ss_output_name"] == metadata["modelspec.title"] == "dog"


def test_something_else_than_a_lora_is_refused():
    with pytest.raises(ValueError, match="lora: .* no lora_down tensors"):
        lora_metadata({"emb_params": torch.zeros(1, 768)}, "dog", None)


GOOD = {
    "my_dog": "my_dog.safetensors",
    "my_dog.safetensors": "my_dog.safetensors",
    "pets/my dog": "pets/my dog.safetensors",
    "pets\\dog": "pets/dog.safetensors",
    "my.dog.v2": "my.dog.v2.safetensors",
    "ein Hündchen/犬": "ein Hündchen/犬.safetensors",
    "console": "console.safetensors",
    "~/dog": "~/dog.safetensors",
}
BAD = ["", " ", ".", "..", "../dog", "pets/../../dog", "/dog", "pets//dog", "pets/", "\\\\host\\share\\dog", "C:\\dog"]
BAD += ["C:dog", "dog.", "dog ", "pets./dog", "a\0b", "a\nb", "a*", "what?", "<dog>", 'a"b', "a|b", ".safetensors"]
BAD += ["con", "NUL.txt", "pets/aux", "COM1", "lpt9.safetensors", "..\\dog", "pets/.."]


@pytest.mark.parametrize("name, expected", GOOD.items(), ids=str)
def test_a_name_becomes_a_path_inside_the_folder(name, expected):
    assert safetensors_name(name).as_posix() == expected


@pytest.mark.parametrize("name", BAD, ids=repr)
def test_a_name_that_leaves_the_folder_or_windows_cannot_store_is_refused(name):
    with pytest.raises(ValueError) as error:
        safetensors_name(name)
    assert str(error.value).startswith(f"filename: got {name!r}; needs a name such as my_dog or pets/my_dog")


@pytest.mark.parametrize("name", ["d" * 243, "d" * 300, "犬" * 90], ids=["243", "300", "270 bytes"])
def test_an_accepted_name_can_be_stored(tmp_path, name):
    """File systems take 255 bytes for a name; a name that is too long has to be refused with the reason."""
    try:
        path = tmp_path / safetensors_name(name)
    except ValueError as error:
        assert str(error).startswith("filename: ")
    else:
        assert save_lora(lora(), path, HALF, {}).exists()


@given(st.one_of(st.text(max_size=20), st.text(st.sampled_from("./\\: ~aC\0"), max_size=12)))
@example("..")
@example("C:/x")
@example("//host/share/x")
def test_no_name_leaves_the_folder(name):
    """On this system and on Windows, whatever the text; and numbers and case do not change that."""
    try:
        relative = safetensors_name(name)
    except ValueError:
        return
    root = Path("/models/loras")
    assert root in Path(os.path.normpath(root / relative)).parents
    windows = PureWindowsPath(str(relative))
    assert not windows.drive and not windows.root and ".." not in windows.parts
    assert relative.suffix == ".safetensors" and relative.stem
    assert not weight_files.RESERVED.search(str(relative))
    assert safetensors_name(str(relative)) == relative  # the name a file got names it again
