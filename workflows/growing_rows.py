"""Rows of a CSV file that only ever grows: whatever ends a run, each row is there as a whole or not at all."""

import csv
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path


class Rows:
    """The rows of a file by their key, which no two share. What a killed run left half written is taken off."""

    def __init__(self, file: Path, columns: Sequence[str], key: Callable[[Mapping[str, str]], Hashable]):
        self.file, self.columns, self.key = file, columns, key
        self.rows: dict[Hashable, dict[str, str]] = {}
        if not file.exists():
            file.write_text(",".join(columns) + "\n", encoding="utf-8")
            return
        whole, _, torn = file.read_text(encoding="utf-8").rpartition("\n")
        if torn:
            file.write_text(whole + "\n", encoding="utf-8")
        with file.open(newline="", encoding="utf-8") as lines:
            self.rows = {key(row): row for row in csv.DictReader(lines)}

    def add(self, row: Mapping[str, object]) -> dict[str, str]:
        """Append it to the file at once. Returns it as it will be read."""
        with self.file.open("a", newline="", encoding="utf-8") as lines:
            csv.DictWriter(lines, self.columns, lineterminator="\n").writerow(row)
        cells = {name: str(row[name]) for name in self.columns}
        self.rows[self.key(cells)] = cells
        return cells

    def __contains__(self, key: Hashable) -> bool:
        return key in self.rows
