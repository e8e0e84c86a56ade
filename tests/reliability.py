"""Writes the table of tests/RELIABILITY.md by running what it tells about: python tests/reliability.py [TESTS ...]

With names of files only their rows are written anew.
"""

import sys
from collections import Counter
from pathlib import Path

import page
import pytest

TESTS = Path(__file__).resolve().parent
# file -> test -> what it is a case of
CASES = {
    "test_resume.py": {
        "test_a_run_cancelled_after_a_step_goes_on_to_the_same_bits": "cancelled after a step, twice, and gone on with",
        "test_memory_that_runs_out_within_a_step_costs_that_step_alone": "out of memory at random operations",
        "test_a_step_that_failed_while_it_changed_the_state_is_not_saved": "out of memory inside the optimizer",
        "test_a_loss_that_is_not_finite_keeps_the_last_good_state": "NaN or infinity as the loss of a random step",
        "test_stop_and_keep_ends_after_the_step_and_gives_the_result_so_far": "stopped and kept, then gone on with",
        "test_a_finished_run_goes_on_to_more_steps": "finished, then gone on with to more steps",
        "test_a_damaged_point_is_named": "damaged saves",
        "test_a_folder_that_cannot_be_written_ends_no_training_and_is_told": "a folder that cannot be written",
    },
    "test_kills.py": {"": "processes killed (-9) while they save, gone on with to the same bits"},
    "test_full_disk.py": {"": "disks and quotas that are full at a random write: saves, LoRA, embedding, hollow cache"},
    "server/test_server_kills.py": {"": "servers killed (-9) while they save, gone on with to the same bits"},
    "server/test_faults.py": {
        "test_cancel_at_a_random_moment": "server: /interrupt at a random moment, another prompt queued behind",
        "test_a_run_whose_browser_was_closed": "server: the browser closed while it trains",
        "test_a_photo_deleted": "server: a photo deleted while it is learnt",
    },
    "server/test_saves.py": {"": "server: cancelled and gone on with to the same file; stopped and kept"},
    "server/test_bad_prompts.py": {"": "server: bad prompts to one server, each answered as expected"},
    "test_host_untouched.py": {
        "test_success": "host untouched: success, with and without int8",
        "test_cancel_and_running_out_of_memory_in_every_phase": "host untouched: Cancel and out of memory, by phase",
        "test_a_clip_with_hooks": "CLIPs with hooks, used or refused by name; host untouched",
        "test_an_error_while_the_run_is_saved": "host untouched: the disk is full while saving",
        "test_a_run_stopped_through_the_route": "host untouched: stopped through the route",
        "test_a_request_to_stop": "requests to stop that make no sense",
    },
    "test_bad_inputs.py": {
        "test_a_setting_is_refused_by_name": "settings out of range, NaN, infinite, unknown",
        "test_a_file_name_is_refused": "file names that leave the folder or that Windows refuses",
        "test_a_folder_is_refused_before_and_while_running": "folders outside, absent, linked out, empty",
        "test_photos_and_captions_that_cannot_be_used_are_named": "damaged or linked photos and captions",
        "test_what_photos_become_is_refused_by_name": "settings of Load Subject Images",
        "test_images_that_are_none_are_refused": "IMAGE batches that are none",
        "test_parts_of_another_family_are_refused": "CLIP and VAE of another family",
        "test_a_token_name": "property: token names", "test_a_file_name_that": "property: file names",
        "test_every_photo_comes": "property: crops",
    },
    "test_host.py": {
        "is_refused": "models that are no Stable Diffusion, inpainting, quantised, of other schedules; other parts",
        "do_not_disturb_training": "models patched for the sampler",
        "already_on_takes_part": "models with a LoRA on them",
    },
    "test_security.py": {"test_a_trainer_keeps_to_itself": "no network, program or pickle while a trainer runs"},
}  # fmt: skip


class Results:
    """A pytest plugin: how each test ended and how many cases it was, by its id."""

    def __init__(self):
        self.outcomes: dict[str, tuple[str, int]] = {}

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.nodeid] = report.outcome, dict(report.user_properties).get("cases", 1)


def rows(outcomes: dict[str, tuple[str, int]], file: str) -> list[str]:
    lines = []
    for part, what in CASES[file].items():
        counts = Counter()
        for name, (outcome, cases) in outcomes.items():
            if f"{file}::" in name and part in name:
                counts[outcome] += cases
        lines.append(f"| {what} | {counts['passed']} of {counts['passed'] + counts['failed']} | {file} |")
    return lines


def main() -> None:
    chosen, results = sys.argv[1:] or list(CASES), Results()
    pytest.main(["-q", "-p", "no:cacheprovider", *(str(TESTS / file) for file in chosen)], plugins=[results])
    head, old = ["| Case | held | test |", "|---|---|---|"], page.read("cases").splitlines()
    table = []
    for file in CASES:
        table += (
            rows(results.outcomes, file) if file in chosen else [line for line in old if line.endswith(f"| {file} |")]
        )
    page.put("cases", "\n".join([f"On {page.MACHINE}:\n", *head, *table]))


if __name__ == "__main__":
    main()
