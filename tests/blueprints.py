"""Derives the sub-graph blueprints from the workflows that train and draw, so that their nodes are the same ones.

    python tests/blueprints.py

writes subgraphs/*.json again, the folder in which ComfyUI looks for them. What each shows on its outside stands here.
"""

import json
import uuid
from dataclasses import dataclass
from pathlib import Path

from pocket_workflows import FOLDER, canvas_text

BLUEPRINTS = FOLDER.parent / "subgraphs"
CATEGORY = "EdgeTune"
ALIASES = ["personalize", "dreambooth", "train lora", "my photos", "subject"]

# Ids of nodes, the same in all of the workflows.
MODEL_LOADER, SUBJECT, TRAINER, SAVE, PROMPT, NEGATIVE, SIZE, SAMPLER, DECODE = 2, 3, 4, 5, 7, 8, 9, 13, 14
INPUT, OUTPUT = -10, -20  # that ComfyUI gives the ends of a sub-graph
MOVED = {SUBJECT: (10, 90), SAMPLER: (1185, 90), DECODE: (1185, 470)}
GROUPS = {
    "1. Your photos": (SUBJECT,),
    "2. Train": (TRAINER, SAVE),
    "3. What to draw": (PROMPT, NEGATIVE, SIZE),
    "4. Draw": (SAMPLER, DECODE),
}
COLOURS = ("#88A", "#b58b2a", "#8AA", "#8A8")
PADDING, TITLE = 10, 80  # of a group: around, and above its nodes
PANEL = 220  # the room that a trainer's live panel takes under it

SUBJECT_WIDGETS = ((SUBJECT, "folder"), (SUBJECT, "instance_prompt"), (SUBJECT, "resolution"))
DRAWING = {"prompt": (PROMPT, "text"), "negative_prompt": (NEGATIVE, "text")} | {
    name: (node, name) for node, name in ((SIZE, "width"), (SIZE, "height"), (SAMPLER, "seed"))
}


@dataclass(frozen=True)
class Blueprint:
    """What becomes of a workflow. widgets are those of the trainer and its file that can be set from outside."""

    workflow: str
    description: str
    widgets: tuple[tuple[int, str], ...]
    personal: str  # output of the trainer that pictures are drawn with: "model" or "clip"

    def exposed(self) -> dict[str, tuple[int, str]]:
        """Name outside -> node and widget inside, in order."""
        return {widget: (node, widget) for node, widget in (*SUBJECT_WIDGETS, *self.widgets)} | DRAWING


FILE = ((SAVE, "filename"),)
LORA = "Trains a LoRA of the subject of a folder of photos, saves it, and draws a prompt with it. "
ALL = {
    "Personalise and Generate (LoRA)": Blueprint(
        "train_and_compare",
        LORA + "By selective backpropagation and zeroth-order steps.",
        ((TRAINER, "steps"), (TRAINER, "budget_gb"), *FILE),
        "model",
    ),
    "Personalise and Generate (Hollowed Net)": Blueprint(
        "train_hollowed",
        LORA + "With the centre of the U-Net left out while it trains.",
        ((TRAINER, "steps"), (TRAINER, "hollow_fraction"), (TRAINER, "budget_gb"), *FILE),
        "model",
    ),
    "Personalise and Generate (Embedding)": Blueprint(
        "train_embedding",
        "Learns a word for the subject of a folder of photos, saves it as an embedding, and draws a prompt with it. "
        "Forward passes only.",
        ((TRAINER, "token"), (TRAINER, "initial_word"), (TRAINER, "steps"), (TRAINER, "budget_gb")),
        "clip",
    ),
}


def blueprint(name: str) -> dict:
    """A workflow of one node that is a sub-graph, as the canvas publishes it."""
    made = ALL[name]
    inner = _SubGraph(name, made)
    node = {
        "id": 1,
        "type": inner.id,
        "pos": [0, 0],
        "size": [400, 460],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [_outer_slot(slot, inner.widgets) for slot in inner.inputs],
        "outputs": [{"name": slot["name"], "type": slot["type"], "links": []} for slot in inner.outputs],
        "properties": {},
        "widgets_values": list(inner.widgets.values()),
        "title": name,
    }
    return {
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [node],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [inner.as_json()]},
        "extra": {"BlueprintDescription": made.description, "BlueprintSearchAliases": ALIASES},
    }


def widget_value(node: dict, widget: str) -> object:
    """What the widget of a saved node is set to. A seed's is followed by its "control after"."""
    names = []
    for slot in node["inputs"]:
        if "widget" in slot:
            names += [slot["name"], None] if slot["name"] == "seed" else [slot["name"]]
    return node["widgets_values"][names.index(widget)]


class _SubGraph:
    """The inside: the workflow's nodes that are named above, and its links, the loader and the outputs cut off."""

    def __init__(self, name: str, made: Blueprint):
        workflow = json.loads((FOLDER / f"{made.workflow}.json").read_text(encoding="utf-8"))
        self.name, self.description = name, made.description
        self.id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"edgetune/subgraphs/{made.workflow}"))
        kept = {node for nodes in GROUPS.values() for node in nodes}
        self.nodes = {node["id"]: node for node in workflow["nodes"] if node["id"] in kept}
        self.inputs, self.outputs, self.links = [], [], []
        self.widgets: dict[str, object] = {}  # shown outside, with their values
        self._clear()
        for _, source, out, target, into, kind in workflow["links"]:
            if source in kept and target in kept:
                self._join(source, out, target, into, kind)
        self._take_models(next(node for node in workflow["nodes"] if node["id"] == MODEL_LOADER), workflow["links"])
        for exposed, (node, widget) in made.exposed().items():
            self._take_widget(exposed, node, widget)
        for out, source, slot in (("image", DECODE, 0), *self._of_trainer(made.personal, "report")):
            self._give(out, source, slot)
        self._place()

    def as_json(self) -> dict:
        height = 20 * len(self.inputs)
        state = {"lastGroupId": len(GROUPS), "lastNodeId": max(self.nodes), "lastLinkId": len(self.links)}
        return {
            "id": self.id,
            "version": 1,
            "state": state | {"lastRerouteId": 0},
            "revision": 0,
            "config": {},
            "name": self.name,
            "inputNode": {"id": INPUT, "bounding": [-240, 90, 160, 40 + height]},
            "outputNode": {"id": OUTPUT, "bounding": [1540, 90, 120, 40 + 20 * len(self.outputs)]},
            "inputs": self.inputs,
            "outputs": self.outputs,
            "widgets": [],
            "nodes": list(self.nodes.values()),
            "groups": self._groups(),
            "links": self.links,
            "extra": {},
            "category": CATEGORY,
            "description": self.description,
        }

    def _clear(self) -> None:
        for order, node in enumerate(self.nodes.values()):
            node["order"] = order
            for slot in node["inputs"]:
                slot["link"] = None
            for slot in node["outputs"]:
                slot["links"] = None

    def _join(self, source: int, out: int, target: int, into: int, kind: str) -> int:
        link = len(self.links) + 1
        ends = {"origin_id": source, "origin_slot": out, "target_id": target, "target_slot": into}
        self.links.append({"id": link} | ends | {"type": kind})
        if source in self.nodes:
            slot = self.nodes[source]["outputs"][out]
            slot["links"] = [*(slot["links"] or []), link]
        if target in self.nodes:
            self.nodes[target]["inputs"][into]["link"] = link
        return link

    def _take_models(self, loader: dict, links: list) -> None:
        """model, clip and vae, which a loader outside gives."""
        for out, slot in enumerate(loader["outputs"]):
            into = self._slot("inputs", slot["name"].lower(), slot["type"])
            for _, source, source_slot, target, target_slot, kind in links:
                if (source, source_slot) == (MODEL_LOADER, out) and target in self.nodes:
                    into["linkIds"].append(self._join(INPUT, len(self.inputs) - 1, target, target_slot, kind))

    def _take_widget(self, name: str, node: int, widget: str) -> None:
        names = [slot["name"] for slot in self.nodes[node]["inputs"]]
        target_slot = names.index(widget)
        kind = self.nodes[node]["inputs"][target_slot]["type"]
        into = self._slot("inputs", name, kind)
        into["linkIds"].append(self._join(INPUT, len(self.inputs) - 1, node, target_slot, kind))
        self.widgets[name] = widget_value(self.nodes[node], widget)

    def _of_trainer(self, *names: str) -> list[tuple[str, int, int]]:
        outputs = [slot["name"] for slot in self.nodes[TRAINER]["outputs"]]
        return [(name, TRAINER, outputs.index(name)) for name in names]

    def _give(self, name: str, source: int, out: int) -> None:
        kind = self.nodes[source]["outputs"][out]["type"]
        given = self._slot("outputs", name, kind)
        given["linkIds"].append(self._join(source, out, OUTPUT, len(self.outputs) - 1, kind))

    def _slot(self, side: str, name: str, kind: str) -> dict:
        slots = getattr(self, side)
        slot_id = str(uuid.uuid5(uuid.UUID(self.id), f"{side}/{name}"))
        slots.append({"id": slot_id, "name": name, "type": kind, "linkIds": [], "pos": [0, 110 + 20 * len(slots)]})
        return slots[-1]

    def _place(self) -> None:
        for node, position in MOVED.items():
            self.nodes[node]["pos"] = list(position)

    def _groups(self) -> list[dict]:
        groups = []
        for number, (title, members) in enumerate(GROUPS.items()):
            boxes = [(*self.nodes[node]["pos"], *self.nodes[node]["size"]) for node in members]
            left, top = (min(box[i] for box in boxes) for i in (0, 1))
            right, bottom = (max(box[i] + box[i + 2] for box in boxes) for i in (0, 1))
            bottom += PANEL if TRAINER in members else 0
            bounding = [left - PADDING, top - TITLE, right - left + 2 * PADDING, bottom - top + TITLE + PADDING]
            groups.append({"id": number + 1, "title": title, "bounding": bounding, "color": COLOURS[number]})
        return groups


def _outer_slot(slot: dict, widgets: dict[str, object]) -> dict:
    outer = {"name": slot["name"], "type": slot["type"], "link": None}
    return outer | ({"widget": {"name": slot["name"]}} if slot["name"] in widgets else {})


def text(name: str) -> str:
    return canvas_text(blueprint(name))


def path(name: str) -> Path:
    return BLUEPRINTS / f"{name}.json"


def main() -> None:
    BLUEPRINTS.mkdir(exist_ok=True)
    for name in ALL:
        path(name).write_text(text(name), encoding="utf-8")


if __name__ == "__main__":
    main()
