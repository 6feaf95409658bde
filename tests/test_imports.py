"""Imports run one way, as CONTRIBUTING.md draws the folders."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "moleflow"


def rows() -> list[list[str]]:
    """The folders of the table, ground floor first."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Where things are")[2]
    table = text.partition("\n## ")[0].partition("|---|---|\n")[2]
    return [re.findall(r"`([^`]+)`", line.split("|")[1]) for line in table.splitlines() if line]


def imports(path: Path) -> Iterator[str]:
    """Folders of the package, other than its own, that a module takes something from."""
    own = path.relative_to(PACKAGE).parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        named = (node.module or "").split(".") if node.module else []
        if node.level:
            base = own[: len(own) - node.level]
            places = [[*base, *named]] if named else [[*base, name.name] for name in node.names]
        else:
            places = [named[1:]] if named[:1] == ["moleflow"] else []
        yield from (place[0] for place in places if place and place[0] != own[0])


def test_the_table_has_every_folder():
    folders = {path.parent.relative_to(PACKAGE).parts[0] for path in PACKAGE.glob("*/*.py")}
    assert sorted(name for row in rows() for name in row) == sorted(folders)


def test_a_folder_imports_from_those_above_it_in_the_table_alone():
    rank = {name: number for number, row in enumerate(rows()) for name in row}
    assert len(rank) > 10
    upwards = [
        f"{path.relative_to(PACKAGE)} -> {other}"
        for path in sorted(PACKAGE.glob("*/**/*.py"))
        for other in imports(path)
        if rank.get(other, -1) > rank[path.relative_to(PACKAGE).parts[0]]
    ]
    assert not upwards
