"""tests/RELIABILITY.md: sections between marks, each written by the command that found what it tells."""

import os
import platform
import re
from pathlib import Path

PAGE = Path(__file__).resolve().with_name("RELIABILITY.md")
MACHINE = f"{os.cpu_count()} CPU cores, {platform.machine()}, Python {platform.python_version()}"


def put(section: str, text: str) -> None:
    """Replace what stands in the section."""
    page = PAGE.read_text(encoding="utf-8")
    new, count = _marked(section).subn(lambda found: f"{found[1]}\n{text.strip()}\n\n{found[3]}", page)
    if count != 1:
        raise ValueError(f"{PAGE.name} has {count} sections {section}")
    PAGE.write_text(new, encoding="utf-8")


def read(section: str) -> str:
    """What stands there."""
    return _marked(section).search(PAGE.read_text(encoding="utf-8"))[2].strip()


def _marked(section: str) -> re.Pattern:
    return re.compile(f"(<!-- {section}: begin -->\n)(.*?)(<!-- {section}: end -->)", re.DOTALL)
