"""The table of bad_prompts.py, posted to one server: each is answered in words, and the server lives on."""

import re

import pytest
from bad_prompts import table
from pack.workflows.client import PromptFailed, PromptRejected
from short_runs import TWINS, report, training

pytestmark = pytest.mark.slow


def written(server) -> set:
    """All files but those of the server itself, and but the pictures it shows of photos."""
    kept = {"user", "temp", "input"}
    base = server.folders["base"]
    return {
        path
        for path in base.parent.rglob("*")
        if path.is_file() and not kept & set(path.relative_to(base.parent).parts)
    }


def test_every_bad_prompt_is_answered_and_the_next_good_one_runs(odd_server, record_property):
    cases, wrong = table(odd_server.folders["input"]), []
    before = written(odd_server)
    for name, (prompt, words) in cases.items():
        try:
            odd_server.client.run(prompt, timeout_s=300)
            wrong.append(f"{name}: it ran")
        except (PromptRejected, PromptFailed) as error:
            if not re.search(words, str(error), re.DOTALL):
                wrong.append(f"{name}: {error}")
        if odd_server.process.poll() is not None:
            pytest.fail(f"{name} ended the server:\n{odd_server.log_tail()}")
    assert not wrong, "\n".join(wrong)
    record_property("cases", len(cases))
    new = written(odd_server) - before
    assert all("edgetune" in path.parts for path in new), new  # what was trained before a name was refused
    for trainer in TWINS:
        assert report(odd_server.client.run(training(trainer, "mini"), timeout_s=300))["steps"] == 2
