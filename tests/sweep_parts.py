"""What the tests of a sweep's parts share."""

from pack.workflows import prompts as pack_prompts


def inputs(prompt: dict, name: str) -> dict:
    """Of the first node of that class."""
    return next(node["inputs"] for node in prompt.values() if node["class_type"] == name)


def made(jobs, requests, workflow="pocket_train_and_save", taken=None) -> list:
    """The jobs of a shipped workflow."""
    return jobs.make_jobs(pack_prompts.read_workflow(workflow), requests, None, taken or {})
