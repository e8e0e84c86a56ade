"""Masked photos through a real ComfyUI: uploaded, shown, and learnt from by all trainers."""

import numpy as np
import pytest
from pack.workflows.client import PromptFailed
from PIL import Image
from short_runs import HOLLOWED, SELECTIVE, TOKEN, report, training

pytestmark = pytest.mark.slow


@pytest.fixture
def cut_outs(server, tmp_path) -> str:
    """A folder of two photos in the input folder: one is half transparent, the other has a mask file."""
    pixels = np.random.default_rng(0).integers(0, 256, (80, 80, 4), dtype=np.uint8)
    pixels[:, :40, 3], pixels[:, 40:, 3] = 255, 0
    mask = np.zeros((40, 40), np.uint8)
    mask[:20, :20] = 255
    pictures = {"1.png": pixels, "2.jpg": pixels[..., :3], "2.mask.png": mask}
    for name, picture in pictures.items():
        Image.fromarray(picture).save(tmp_path / name)
        server.client.upload_image(tmp_path / name, "masked")
    return "masked"


@pytest.mark.parametrize("trainer", [SELECTIVE, HOLLOWED, TOKEN])
def test_every_trainer_learns_from_masked_photos_as_planned(server, cut_outs, trainer):
    prompts = [training(trainer, folder=cut_outs) for _ in range(2)]
    prompts[1]["subject"]["inputs"]["background_weight"] = 1.0
    losses = []
    for prompt in prompts:
        prompt["shown"] = {"class_type": "PreviewAny", "inputs": {"source": ["subject", 2]}}
        entry = server.client.run(prompt, timeout_s=300)
        told = report(entry)
        losses.append(told["loss"]["first"])
        assert told["steps"] == 2 and told["peak_bytes"] <= 1.01 * told["planned_peak_bytes"]
        text = entry["outputs"]["shown"]["text"][0]
        has_masks = prompt is prompts[0]
        assert ("2 photos from folder masked" in text) and (("which cover" in text) == has_masks)
        if has_masks:
            assert "mask (alpha channel): 50%" in text and "mask (2.mask.png): 25%" in text
    assert losses[0] != losses[1]


def test_connected_masks_are_taken_and_a_wrong_count_names_its_socket(server, cut_outs):
    prompt = training(SELECTIVE, folder=cut_outs)
    solid = {"value": 1.0, "width": 80, "height": 80}
    prompt["mask"] = {"class_type": "SolidMask", "inputs": solid}
    prompt["subject"]["inputs"]["masks"] = ["mask", 0]
    with pytest.raises(PromptFailed, match="masks: got 1 for 2 photos; needs one for each"):
        server.client.run(prompt, timeout_s=300)
