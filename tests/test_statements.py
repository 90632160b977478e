"""Every numbered statement of the specifications has a test, and the list of them is up to date."""

from __future__ import annotations

import pathlib
import re

import pytest

from tests import statements

ROOT = statements.ROOT
PROTOCOL = statements.read_statements((ROOT / "docs" / "protocol.md").read_text())
PACKED = statements.read_statements((ROOT / "docs" / "packed-tensors.md").read_text())
DEFINED = [name for name, _ in PROTOCOL + PACKED]


def test_ids_are_unique_and_many() -> None:
    """A statement has one id, and no id of a section is left out."""
    assert len(DEFINED) == len(set(DEFINED))
    assert len(PROTOCOL) >= 200
    for section in {name[:2] for name in DEFINED if "-" in name}:
        numbers = sorted(int(name[2:]) for name in DEFINED if name.startswith(section))
        assert numbers == list(range(1, len(numbers) + 1)), section
    assert [name for name, _ in PACKED] == [f"P{number}" for number in range(1, len(PACKED) + 1)]


def test_references_between_statements_exist() -> None:
    """The specification refers to no statement that it does not have."""
    text = (ROOT / "docs" / "protocol.md").read_text()
    assert statements.cited_ids(text) <= set(DEFINED)


def test_every_statement_has_a_test() -> None:
    """Nothing is demanded that is not checked."""
    cited = set().union(*statements.citations().values())
    assert [name for name in DEFINED if name not in cited] == []


@pytest.mark.parametrize("folder", ["tests", "mobillm"])
def test_nothing_cites_an_unknown_id(folder: str) -> None:
    """Neither tests nor sources cite a statement that does not exist."""
    for path in (ROOT / folder).rglob("*.py"):
        if path.name != "test_statements.py":
            unknown = {name for name in statements.cited_ids(path.read_text()) if "-" in name} - set(DEFINED)
            assert not unknown, f"{path.relative_to(ROOT)} cites {sorted(unknown)}"
    for name, rules in statements.citations().items():
        assert rules <= set(DEFINED), name


def test_coverage_is_up_to_date() -> None:
    """The committed table is the one that the tests give now."""
    message = "docs/protocol-coverage.md is stale; run: python -m tests.statements"
    assert statements.COVERAGE.read_text() == statements.current(), message


def test_reading_statements_and_citations(tmp_path: pathlib.Path) -> None:
    """Both forms of a definition, single citations and ranges; a test without a citation counts as none."""
    text = "- `[A-1]` One.\n| `[D-2]` | two | x |\n**P3.** Three [A-9].\n"
    assert statements.read_statements(text) == [("A-1", "One."), ("D-2", "two | x |"), ("P3", "Three [A-9].")]
    assert statements.cited_ids("[A-1] [P7], [D-2] to [D-4] or x[3] or [T4]") == {
        "A-1", "P7", "D-2", "D-3", "D-4",
    }  # fmt: skip
    (tmp_path / "vectors" / "v1").mkdir(parents=True)
    (tmp_path / "vectors" / "v1" / "x.json").write_text('{"cases": [{"rules": ["A-2"]}, {"rules": []}]}')
    (tmp_path / "test_a.py").write_text('def test_x() -> None:\n    """[A-1] x."""\n\n\ndef test_y(): ...\n')
    cited = statements.citations(tmp_path)
    assert cited == {"test_a.py::test_x": {"A-1"}, "test_a.py::test_y": set(), "vectors/v1/x.json": {"A-2"}}
    table = statements.render([("A-1", "One [two](x) `a b"), ("A-3", "Three.")], cited)
    assert re.search(r"\| A-1 \| One two .* \| `test_a.py::test_x` \|\n\| A-3 \| Three. \|  \|\n", table)
    assert "2 statements, 2 tests" in table
