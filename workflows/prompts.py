"""Workflows in API format: read one, set values in it by what a node is or is called, tell what its outputs are."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

Prompt = dict[str, dict]  # node id -> {"class_type", "inputs", "_meta": {"title"}}

FOLDER = Path(__file__).resolve().parent / "api"
TRAINERS = {"EdgeTune_SelectiveTrainer", "EdgeTune_HollowedNetTrainer", "EdgeTune_ZOTextualInversion"}


class UnfitWorkflow(RuntimeError):
    """What was asked for cannot be done with a workflow. The text says why."""


def read_workflow(name: str) -> Prompt:
    """One of the workflows in workflows/api/, by the name of its file, or another, by a path that ends in .json."""
    path = Path(name) if name.endswith(".json") else FOLDER / f"{name}.json"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in FOLDER.glob("*.json")))
        raise FileNotFoundError(f"there is no workflow {name!r}, only: {names or 'none yet'}")
    return json.loads(path.read_text(encoding="utf-8"))


def title(node: dict) -> str:
    """What the node is called in the canvas, or else its class."""
    return node.get("_meta", {}).get("title") or node["class_type"]


def has(prompt: Prompt, class_type: str) -> bool:
    """Whether there is such a node."""
    return any(node["class_type"] == class_type for node in prompt.values())


def fill(prompt: Prompt, values: Mapping[tuple[str, str], object]) -> None:
    """Set (class or title, input) -> value, in every such node, where it has such an input."""
    for (name, input_name), value in values.items():
        for node in prompt.values():
            if name in (node["class_type"], title(node)) and input_name in node["inputs"]:
                set_input(prompt, node, input_name, value)


def set_value(prompt: Prompt, place: str, text: str) -> None:
    """Set NODE.INPUT, the node being a class or a title, to a text, or to what it says as JSON where it is that.

    Raises UnfitWorkflow where there is no such place.
    """
    name, _, input_name = place.rpartition(".")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    found = [node for node in prompt.values() if name in (node["class_type"], title(node))]
    if not any(input_name in node["inputs"] for node in found):
        names = ", ".join(sorted({title(node) for node in prompt.values()}))
        raise UnfitWorkflow(f"{place}: no node {name!r} with an input {input_name!r}; the nodes are: {names}")
    fill(prompt, {(name, input_name): value})


def fill_positive(prompt: Prompt, text: str) -> None:
    """Set the text that every sampler follows. What it shall avoid stays."""
    for node in _positives(prompt):
        set_input(prompt, node, "text", text)


def positive(prompt: Prompt) -> str:
    """The text that the samplers follow; empty where there is none, or another node makes it."""
    texts = (node["inputs"]["text"] for node in _positives(prompt))
    return next((text for text in texts if isinstance(text, str)), "")


def rename_subject(prompt: Prompt, token: str) -> None:
    """Say the token wherever a text of the workflow says "sks dog", or sks and another noun."""
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, str):
                node["inputs"][name] = re.sub(r"\bsks \w+", lambda _: token, value)


def _positives(prompt: Prompt) -> Iterator[dict]:
    links = [node["inputs"].get("positive") for node in prompt.values()]
    yield from (prompt[link[0]] for link in links if is_link(link) and "text" in prompt[link[0]]["inputs"])


def prefix_files(prompt: Prompt, folder: str) -> None:
    """Let every node that saves pictures do so in a folder of the output folder."""
    for node in prompt.values():
        prefix = node["inputs"].get("filename_prefix")
        if isinstance(prefix, str):
            node["inputs"]["filename_prefix"] = f"{folder}/{prefix.rsplit('/', 1)[-1]}"


def set_input(prompt: Prompt, node: dict, name: str, value: object) -> None:
    """Set an input, or the value of the primitive node that is linked to it."""
    current = node["inputs"][name]
    if not is_link(current):
        node["inputs"][name] = value
    elif "value" in prompt[current[0]]["inputs"]:
        set_input(prompt, prompt[current[0]], "value", value)


def only(prompt: Prompt, classes: set[str]) -> str:
    """Id of the one node of these classes. Raises UnfitWorkflow where there is none, or several."""
    found = [node_id for node_id, node in prompt.items() if node["class_type"] in classes]
    if len(found) != 1:
        raise UnfitWorkflow(f"The workflow needs to have one of {', '.join(sorted(classes))}; it has {len(found)}")
    return found[0]


def needed(prompt: Prompt, node_id: str) -> set[str]:
    """The node and all that it depends on."""
    found, open_ids = set(), [node_id]
    while open_ids:
        current = open_ids.pop()
        if current not in found:
            found.add(current)
            open_ids += [value[0] for value in prompt[current]["inputs"].values() if is_link(value)]
    return found


def is_link(value: object) -> bool:
    """Whether an input's value is the output of another node: its id and the number of the output."""
    return isinstance(value, list) and len(value) == 2
