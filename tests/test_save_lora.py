"""Save LoRA inside ComfyUI's folders: what it returns is what Load LoRA lists, and nothing leaves the folder."""

from pathlib import Path

import folder_paths
import pytest
import torch
from pack.nodes.files import SaveLoRA
from safetensors import safe_open
from safetensors.torch import load_file

NAME = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
LORA = {
    f"{NAME}.lora_down.weight": torch.randn(4, 768, generator=torch.Generator().manual_seed(0)),
    f"{NAME}.lora_up.weight": torch.ones(320, 4),
    f"{NAME}.alpha": torch.tensor(4.0),
}


@pytest.fixture
def loras(tmp_path, monkeypatch) -> Path:
    """The first of two folders in which ComfyUI looks for LoRAs; neither exists yet."""
    folder, second = tmp_path / "models" / "loras", tmp_path / "more loras"
    extensions = folder_paths.folder_names_and_paths["loras"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder), str(second)], extensions))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return folder


def save(filename: str, **options):
    with torch.inference_mode():  # as ComfyUI runs nodes
        return SaveLoRA.EXECUTE_NORMALIZED(lora=LORA, filename=filename, **options)


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("filename", ["dog", "pets/dog", "pets\\small\\dog", "dog.safetensors"])
def test_the_path_is_what_load_lora_lists(loras, filename):
    output = save(filename)
    (listed,) = output.result
    assert folder_paths.get_filename_list("loras") == [listed]
    full_path = folder_paths.get_full_path_or_raise("loras", listed)
    assert output.ui == {"text": [listed], "path": [str(Path(full_path).resolve())]}
    assert Path(full_path).resolve().is_relative_to(loras.resolve())
    state = load_file(full_path)
    assert all(torch.equal(state[key], value.half()) for key, value in LORA.items())


def test_a_taken_name_gets_a_number_and_the_path_says_so(loras):
    names = [save("pets/dog").result[0] for _ in range(3)]
    assert names == ["pets/dog.safetensors", "pets/dog_2.safetensors", "pets/dog_3.safetensors"]
    assert sorted(names) == folder_paths.get_filename_list("loras")


def test_overwrite_and_dtype_are_options(loras):
    for dtype in ("float16", "float32"):
        assert save("dog", overwrite=True, dtype=dtype).result == ("dog.safetensors",)
    assert everything(loras) == {"dog.safetensors"}
    state = load_file(loras / "dog.safetensors")
    assert all(torch.equal(state[key], value) for key, value in LORA.items())


def test_the_file_names_itself(loras):
    with safe_open(loras / save("pets/dog").result[0], "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_output_name"] == "dog" and metadata["ss_base_model_version"] == "sd_v1"


@pytest.mark.parametrize("filename", ["../dog", "pets/../../dog", "/tmp/dog", "C:\\dog", "\\\\host\\share\\dog", ""])
def test_no_name_leads_out_of_the_folder(loras, filename):
    with pytest.raises(ValueError, match="^filename: got "):
        save(filename)
    assert everything(loras.parents[1]) == set()


@pytest.mark.parametrize("linked", ["folder", "file"])
def test_no_link_leads_out_of_the_folder(loras, linked):
    """A dangling link as the file itself would be written through."""
    outside = loras.parents[1] / "outside"
    outside.mkdir()
    loras.mkdir(parents=True)
    target, name = (outside, "pets/dog") if linked == "folder" else (outside / "new.safetensors", "pets")
    (loras / ("pets" if linked == "folder" else "pets.safetensors")).symlink_to(target)
    with pytest.raises(ValueError, match="filename: .* leads out of ComfyUI's loras folder"):
        save(name, overwrite=True)
    assert everything(loras.parents[1]) == set()


def test_a_link_that_stays_inside_is_followed(loras):
    (loras / "pets").mkdir(parents=True)
    (loras / "animals").symlink_to(loras / "pets")
    (listed,) = save("animals/dog").result
    assert everything(loras) >= {"pets/dog.safetensors"}
    assert listed in folder_paths.get_filename_list("loras")


def test_the_loras_folder_itself_may_be_a_link(loras, tmp_path):
    (tmp_path / "big disk").mkdir()
    loras.parent.mkdir(parents=True)
    loras.symlink_to(tmp_path / "big disk")
    assert save("pets/dog").result[0] in folder_paths.get_filename_list("loras")


def test_a_lora_that_is_none_is_refused_before_anything_is_written(loras):
    with pytest.raises(ValueError, match="lora: .* connect the lora output of a trainer"):
        SaveLoRA.EXECUTE_NORMALIZED(lora={}, filename="dog")
    assert not loras.exists()
