"""A run under any budget stays under it, or is refused with the smallest budget that the same run then keeps."""

import re

import folder_paths
import pytest
import tiny
from node_runs import run_node
from pack.nodes.train_embedding import ZOTextualInversion
from pack.nodes.train_hollow import HollowedNetTrainer
from pack.nodes.train_selective import SelectiveTrainer
from pack.trainers.report import Report
from test_host import photo, subject

pytestmark = pytest.mark.slow

GIB = 2**30
SETTINGS = {
    SelectiveTrainer: {"steps": 4, "strategy": "random", "zo_perturbations": 1, "seed": 14},
    HollowedNetTrainer: {"steps": 2, "rank": 8, "cache_samples": 2},
    ZOTextualInversion: {"steps": 2, "token": "my_dog", "eval_every": 1, "eval_samples": 1},
}
SHARES = (1.5, 0.6, 0.02)  # of what the run takes without a budget
SLACK = 1.03


def run(node, **settings) -> Report:
    inputs = dict(model=tiny.tiny_model("sd1"), clip=tiny.tiny_clip("sd1"), vae=tiny.tiny_vae())
    photos = subject(photo(0, "a sks dog", width=256, height=256))
    return run_node(node, **inputs, subject=photos, **SETTINGS[node] | settings).result[-1]


def peak(report: Report) -> int:
    return max(phase.peak_bytes for phase in report.phases if phase.name != "encode")


@pytest.mark.parametrize("node", SETTINGS, ids=lambda node: node.__name__)
def test_a_budget_is_kept_or_refused(node, tmp_path, monkeypatch, output_folder):
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    free = peak(run(node))
    ends = []
    for share in SHARES:
        budget = share * free / GIB
        try:
            report = run(node, budget_gb=budget)
        except ValueError as refusal:
            smallest = float(re.search(r"no less than (\d+\.\d+) GB", str(refusal))[1])
            assert smallest > budget
            budget, report = smallest, run(node, budget_gb=smallest)
            ends.append("refused")
        else:
            ends.append("chosen" if report.chosen else "as asked")
        assert peak(report) <= SLACK * budget * GIB, (share, report.chosen)
    assert ends[0] == "as asked" and "chosen" in ends and ends[-1] == "refused"
