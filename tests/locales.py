"""Writes the nodes' texts as ComfyUI's translations: python tests/locales.py

locales/en holds the texts of the schemas, locales/zh their translations. These stand in tests/locales_zh.json by their
English text, so that a text that changes asks for a new translation; the command names those that are missing.
"""

import asyncio
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS))
import conftest  # noqa: E402, F401, I001, the package `pack` and ComfyUI
from comfy_api.latest import io  # noqa: E402
from pack.nodes import EdgeTune  # noqa: E402

FOLDER = TESTS.parent / "locales"
CHINESE = TESTS / "locales_zh.json"
MARKUP = re.compile(r"[@{}|$]")  # means something to the frontend's translations


def schemas() -> list[io.Schema]:
    return [node.GET_SCHEMA() for node in asyncio.run(EdgeTune().get_node_list())]


def node_definitions(translated: Callable[[str], str]) -> dict[str, dict]:
    """Every text of every node, translated, as ComfyUI's nodeDefs.json has them. Names of inputs stay as they are."""
    return {
        schema.node_id: {
            "display_name": translated(schema.display_name),
            "description": translated(plain(schema.description)),
            "inputs": _tooltips({item.id: item for item in schema.inputs}, translated),
            "outputs": _tooltips({str(i): item for i, item in enumerate(schema.outputs)}, translated),
        }
        for schema in schemas()
    }


def _tooltips(items: dict[str, io.Input | io.Output], translated: Callable[[str], str]) -> dict[str, dict]:
    return {
        key: {"name": item.id} | ({"tooltip": translated(plain(item.tooltip))} if item.tooltip else {})
        for key, item in items.items()
    }


def plain(text: str) -> str:
    """The text on one line."""
    return " ".join(text.split())


def escaped(text: str) -> str:
    """The text as the frontend's translations take it literally."""
    return MARKUP.sub(lambda found: f"{{'{found[0]}'}}", text)


def chinese() -> dict[str, str]:
    """Translations by English text."""
    return json.loads(CHINESE.read_text(encoding="utf-8"))


def texts() -> list[str]:
    """Every English text, once."""
    seen = {}
    node_definitions(lambda text: seen.setdefault(text, text))
    return list(seen)


def files() -> dict[Path, str]:
    """What the files of locales/ have to hold."""
    known = chinese()
    definitions = {
        "en": node_definitions(escaped),
        "zh": node_definitions(lambda text: escaped(known.get(text, text))),
    }
    return {
        FOLDER / language / "nodeDefs.json": json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        for language, content in definitions.items()
    }


def main() -> None:
    for path, content in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    known = chinese()
    missing = [text for text in texts() if text not in known]
    if missing:
        sys.exit(f"{CHINESE} has no translation of:\n" + json.dumps(missing, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
