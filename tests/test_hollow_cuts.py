"""Which blocks of a U-Net can leave, checked by counting parameters by hand."""

from pathlib import Path

import checkpoints
import pytest
import tiny
import torch
from comfy import supported_models
from pack.trainers.hollow_cuts import cuts, cuts_table, nearest_cut

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.fixture(scope="module", params=tiny.KINDS)
def unet(request):
    return tiny.tiny_model(request.param).model.diffusion_model


def test_the_cuts_are_all_there_are_and_their_shares_are_counted_right(unet):
    found = cuts(unet)
    count = len(unet.input_blocks)
    assert [cut.kept for cut in found] == list(range(count, 0, -1))
    total = sum(p.numel() for p in unet.parameters())
    for cut in found:
        leaving = {f"input_blocks.{i}" for i in range(cut.kept, count)} | {"middle_block"}
        leaving |= {f"output_blocks.{j}" for j in range(count - cut.kept)}
        assert set(cut.leaving) == leaving and cut.blocks == 2 * count + 1
        by_hand = sum(
            p.numel()
            for name, p in unet.named_parameters()
            if name.startswith("middle_block.") or ".".join(name.split(".")[:2]) in leaving
        )
        assert (cut.leaving_parameters, cut.parameters) == (by_hand, total)
        assert cut.share == by_hand / total
    shares = [cut.share for cut in found]
    assert shares == sorted(shares) and 0 < shares[0] and shares[-1] < 1


def test_the_nearest_cut_is_the_nearest_that_leaves_something_to_train(unet):
    found = cuts(unet)
    for fraction in (0.001, *(n / 40 for n in range(1, 40)), 0.999):
        distance = abs(nearest_cut(found, fraction).share - fraction)
        assert distance == min(abs(cut.share - fraction) for cut in found if cut.lora_layers)
    for cut in found:
        leaving = tuple(f"{block}." for block in cut.leaving)
        stay = [name for name, _ in unet.named_modules() if not name.startswith(leaving)]
        assert cut.lora_layers == 4 * sum(name.endswith((".attn1", ".attn2")) for name in stay)


def test_the_cut_of_the_paper_is_found_on_stable_diffusion_2_1():
    """The poster: 39.2% hollowed, about 527M of 866M parameters stay."""
    _, config = checkpoints.FULL_SIZE["sd21"]
    unet = supported_models.SD20(config).get_model({}, device="meta").diffusion_model
    cut = nearest_cut(cuts(unet), 0.392)
    assert cut.name == "input_blocks 9-11, middle_block, output_blocks 0-2"
    assert cut.parameters - cut.leaving_parameters == pytest.approx(527e6, rel=0.005)
    assert cut.channels_out == 1280 and cut.has_residual


def test_a_fraction_out_of_range_is_told_what_is_possible(unet):
    found = cuts(unet)
    for fraction in (-0.1, 0.0, 1.0, 39.0, float("nan")):
        with pytest.raises(ValueError, match=f"hollow_fraction: got {fraction}, .*by {found[0].share:.3f}, "):
            nearest_cut(found, fraction)


def test_other_modules_are_refused():
    for module in (torch.nn.Linear(2, 2), tiny.tiny_vae().first_stage_model):
        with pytest.raises(ValueError, match=f"model: got {type(module).__name__} with 0 input blocks"):
            cuts(module)


def test_the_table_has_a_line_for_each_cut(unet):
    found = cuts(unet)
    head, rule, *rows = cuts_table(found).splitlines()
    assert len(rows) == len(found) and len({line.count("|") for line in (head, rule, *rows)}) == 1
    for cut, row in zip(found, rows, strict=True):
        assert row.startswith(f"| {cut.name} | {cut.share:.1%} | ") and ("| yes |" in row) == cut.has_residual


@pytest.mark.parametrize("kind", checkpoints.FULL_SIZE)
def test_the_readme_has_the_tables_as_they_are(kind):
    name, config = checkpoints.FULL_SIZE[kind]
    unet = getattr(supported_models, name)(config).get_model({}, device="meta").diffusion_model
    assert cuts_table(cuts(unet)) in README.read_text(encoding="utf-8")


def test_a_middle_of_one_block_leaves_like_any_other():
    unet = tiny.tiny_model("ssd1b").model.diffusion_model
    assert len(unet.middle_block) == 1 and cuts(unet)[0].leaving == ("middle_block",)
