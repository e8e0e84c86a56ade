"""The DTAP Scheduler Preview node, called through its class in a real ComfyUI."""

import json
import math

import folder_paths
import pytest
import torch
from comfy_api.latest import io
from pack.nodes.dtap_preview import DTAPPreview
from pack.trainers.schedule import STRATEGIES, expected_steps

PAPER = dict(steps=1000, t_max=1000, t_mid=750, k=0.05)


@pytest.fixture(autouse=True)
def temp_directory(tmp_path):
    """Previews are written into ComfyUI's temp folder; here into pytest's."""
    before = folder_paths.get_temp_directory()
    folder_paths.set_temp_directory(str(tmp_path))
    yield tmp_path
    folder_paths.set_temp_directory(before)


def test_plot_and_summary_come_out_and_stand_in_the_history(temp_directory):
    output = DTAPPreview.execute(**PAPER)
    plot, summary = output.result
    assert plot.shape == (1, 520, 1200, 3) and plot.dtype == torch.float32
    assert output.ui["text"] == [summary]
    assert "750 BP-low and 250 ZO-high" in summary and "2,566" in summary and "3,000" in summary
    (saved,) = output.ui["images"]
    assert (temp_directory / saved["subfolder"] / saved["filename"]).is_file()
    json.dumps(output.ui)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_json_carries_the_expected_counts_and_the_settings(strategy):
    output = DTAPPreview.execute(**PAPER, strategy=strategy, low_res_ratio=0.75, zo_perturbations=2, format="json")
    record = json.loads(output.ui["text"][0])
    expected = expected_steps(strategy, **PAPER)
    assert record["steps_bp"] == expected.steps_bp and record["steps_zo"] == expected.steps_zo
    assert record["first_step_10"] == expected.first_step_10 and record["first_step_50"] == expected.first_step_50
    assert record["forward_equivalents"] == expected.forward_equivalents(2, 0.75)
    assert record["settings"] == PAPER | dict(strategy=strategy, low_res_ratio=0.75, zo_perturbations=2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_text_reads_for_a_single_step(strategy):
    _, summary = DTAPPreview.execute(**(PAPER | dict(steps=1)), strategy=strategy).result
    assert ", 1 steps: " in summary and "None" not in summary


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(k=math.nan), "k: got nan"),
        (dict(k=math.inf), "k: got inf"),
        (dict(low_res_ratio=math.nan), "low_res_ratio: got nan"),
        (dict(t_mid=2000), r"t_mid: got 2000, needs to be between 0 and t_max \(1000\)"),
    ],
)
def test_what_the_sockets_let_through_is_refused_with_a_message(changed, message):
    with pytest.raises(ValueError, match=message):
        DTAPPreview.execute(**(PAPER | changed))


def test_the_schema_keeps_the_names_workflows_rely_on():
    schema = DTAPPreview.GET_SCHEMA()
    assert (schema.node_id, schema.display_name) == ("EdgeTune_DTAPPreview", "DTAP Scheduler Preview")
    assert schema.category == "training/EdgeTune" and schema.is_output_node
    assert [i.id for i in schema.inputs if not i.optional] == ["steps", "t_max", "t_mid", "k"]
    assert [i.id for i in schema.inputs if i.optional] == ["low_res_ratio", "zo_perturbations", "strategy", "format"]
    assert {i.id: i.default for i in schema.inputs if not i.optional} == PAPER
    assert [(o.id, o.io_type) for o in schema.outputs] == [("plot", io.Image.io_type), ("summary", io.String.io_type)]
