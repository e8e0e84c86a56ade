"""Writes tests/RELIABILITY.md by running what it tells about: python tests/reliability.py [TRAININGS OF THE SOAK]"""

import json
import os
import platform
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PAGE = TESTS / "RELIABILITY.md"
# file -> test -> what it is a case of
CASES = {
    "test_resume.py": {
        "test_a_run_cancelled_after_a_step_goes_on_to_the_same_bits": "cancelled after a step, twice, and gone on with",
        "test_memory_that_runs_out_within_a_step_costs_that_step_alone": "out of memory at operations all over a step",
        "test_a_step_that_failed_while_it_changed_the_state_is_not_saved": "out of memory inside the optimizer",
        "test_a_loss_that_is_not_finite_keeps_the_last_good_state": "NaN as the loss of a step",
        "test_stop_and_keep_ends_after_the_step_and_gives_the_result_so_far": "stopped and kept, then gone on with",
        "test_a_finished_run_goes_on_to_more_steps": "finished, then gone on with to more steps",
        "test_a_damaged_point_is_named": "damaged saves",
        "test_a_folder_that_cannot_be_written_ends_no_training_and_is_told": "a folder that cannot be written",
    },
    "test_kills.py": {"": "10 processes killed (-9) while they save, gone on with"},
    "test_host_untouched.py": {
        "test_success": "host untouched: success, with and without int8",
        "test_cancel_and_running_out_of_memory_in_every_phase": "host untouched: Cancel and out of memory, by phase",
        "test_an_error_while_the_run_is_saved": "host untouched: the disk is full while saving",
        "test_a_run_stopped_through_the_route": "host untouched: stopped through the route",
        "test_a_request_to_stop": "requests to stop that make no sense",
    },
    "test_bad_inputs.py": {
        "test_a_setting_is_refused_by_name": "settings out of range, NaN, infinite, unknown",
        "test_a_file_name_is_refused": "file names that leave the folder or that Windows refuses",
        "test_a_folder_is_refused_before_and_while_running": "folders outside, absent, linked out, empty",
        "test_photos_and_captions_that_cannot_be_used_are_named": "9 kinds of damaged or linked photos and captions",
        "test_what_photos_become_is_refused_by_name": "settings of Load Subject Images",
        "test_images_that_are_none_are_refused": "IMAGE batches that are none",
        "test_parts_of_another_family_are_refused": "CLIP and VAE of another family",
        "test_a_token_name": "property: token names", "test_a_file_name_that": "property: file names",
        "test_every_photo_comes": "property: crops",
    },
    "test_security.py": {"test_a_trainer_keeps_to_itself": "no network, program or pickle while a trainer runs"},
}  # fmt: skip


class Results:
    """A pytest plugin: how each test ended, by its id."""

    def __init__(self):
        self.outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.nodeid] = report.outcome


def rows(outcomes: dict[str, str]) -> list[str]:
    lines = []
    for file, tests in CASES.items():
        for prefix, what in tests.items():
            counts = Counter(outcome for name, outcome in outcomes.items() if f"{file}::{prefix}" in name)
            tried = counts["passed"] + counts["failed"]
            lines.append(f"| {what} | {counts['passed']} of {tried} | {file} |")
    return lines


def soaked(count: str) -> str:
    result = subprocess.run([sys.executable, TESTS / "soak.py", count], capture_output=True, text=True, check=True)
    told = json.loads(result.stdout.splitlines()[-1])
    warm, end = told["warm"], told["end"]
    first, last = (state["resident_bytes"] / 2**20 for state in (warm, end))
    return (
        f"{told['trainings']} short trainings in one process, the three trainers in turn: resident memory\n"
        f"{first:,.0f} MiB after the warm-up, {last:,.0f} MiB at the end ({last / first - 1:+.1%}); "
        f"threads {warm['threads']} and {end['threads']};\nfiles {warm['files']} and {end['files']}."
    )


def main() -> None:
    results = Results()
    pytest.main(["-q", "-p", "no:cacheprovider", *(str(TESTS / file) for file in CASES)], plugins=[results])
    lines = rows(results.outcomes)
    machine = f"{os.cpu_count()} CPU cores, {platform.machine()}, Python {platform.python_version()}"
    PAGE.write_text(
        "# Faults injected and bad inputs tried\n\n"
        f"Written by `python tests/reliability.py`, which runs the tests it names ({machine}). A case counts when all\n"
        "of its asserts hold: the message names the input and what to do, files are whole, a run that is gone on with\n"
        "ends in the same bits, and nothing of ComfyUI's has changed (tests/host_state.py).\n\n"
        "| Case | held | test |\n|---|---|---|\n" + "\n".join(lines) + "\n\n"
        "## Soak\n\n" + soaked(sys.argv[1] if len(sys.argv) > 1 else "120") + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
