"""Which test proves which statement of the specifications; writes ``docs/protocol-coverage.md``.

A test cites a statement by its id in square brackets, anywhere in its source: ``[F-3]``, ``[P7]`` or, for
several in a row, ``[D-1] to [D-9]``. Golden vectors cite theirs under ``rules``. Run it as
``python -m tests.statements`` after a change of either.
"""

from __future__ import annotations

import ast
import json
import pathlib
import re

__all__ = ["COVERAGE", "ROOT", "citations", "cited_ids", "current", "read_statements", "render"]

ROOT = pathlib.Path(__file__).parents[1]
COVERAGE = ROOT / "docs" / "protocol-coverage.md"
TESTS = ROOT / "tests"

DEFINITION = re.compile(r"^(?:(?:- |\| )`\[([A-Z]-\d+)\]`(?: \|)?|\*\*(P\d+)\.\*\*) (.*)$", re.MULTILINE)
CITATION = re.compile(r"\[([A-Z]-?)(\d+)\](?: to \[\1(\d+)\])?")
WORDS = 9

INTRODUCTION = """# Coverage of the specifications

Made by `python -m tests.statements` from the ids that tests cite; `tests/test_statements.py` checks that it
is up to date and that no statement is without a test. Ids are those of [protocol.md](protocol.md) and,
from P1 on, of [packed-tensors.md](packed-tensors.md). Paths are below `tests/`.
"""


def read_statements(text: str) -> list[tuple[str, str]]:
    """Return the id and the text of each numbered statement of a specification, in order."""
    return [(found[1] or found[2], found[3]) for found in DEFINITION.finditer(text)]


def cited_ids(text: str) -> set[str]:
    """Return the ids that a text cites."""
    ids: set[str] = set()
    for found in CITATION.finditer(text):
        last = int(found[3] or found[2])
        ids |= {f"{found[1]}{number}" for number in range(int(found[2]), last + 1)}
    return {name for name in ids if "-" in name or name.startswith("P")}


def citations(root: pathlib.Path = TESTS) -> dict[str, set[str]]:
    """Return the ids that each test and each file of vectors cites, by ``file::test`` or file."""
    found: dict[str, set[str]] = {}
    for path in sorted(root.rglob("test_*.py")):
        if path.name == "test_statements.py":
            continue  # its texts are examples
        source = path.read_text()
        lines = source.splitlines()
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                start = min([node.lineno, *(item.lineno for item in node.decorator_list)])
                text = "\n".join(lines[start - 1 : node.end_lineno])
                found[f"{path.relative_to(root).as_posix()}::{node.name}"] = cited_ids(text)
    for path in sorted((root / "vectors").glob("*/*.json")):
        rules = {rule for case in json.loads(path.read_text())["cases"] for rule in case["rules"]}
        found[path.relative_to(root).as_posix()] = rules
    return found


def render(statements: list[tuple[str, str]], cited: dict[str, set[str]]) -> str:
    """Return the text of ``docs/protocol-coverage.md``."""
    rows = ["| id | statement | tests |", "|---|---|---|"]
    for name, text in statements:
        tests = [f"`{test}`" for test, ids in cited.items() if name in ids]
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).replace("|", "·").split()
        short = " ".join(words[:WORDS]) + (" …" if len(words) > WORDS else "")
        if short.count("`") % 2:
            short = short.replace(" …", "` …")
        rows.append(f"| {name} | {short.rstrip(' ·')} | {'<br>'.join(tests)} |")
    tests_in_all = sum(1 for ids in cited.values() if ids)
    summary = f"{len(statements)} statements, {tests_in_all} tests and files of vectors that cite them."
    return f"{INTRODUCTION}\n{summary}\n\n" + "\n".join(rows) + "\n"


def current() -> str:
    """Return what ``docs/protocol-coverage.md`` has to hold now."""
    docs = ("protocol.md", "packed-tensors.md")
    statements = [item for name in docs for item in read_statements((ROOT / "docs" / name).read_text())]
    return render(statements, citations())


if __name__ == "__main__":
    COVERAGE.write_text(current())
