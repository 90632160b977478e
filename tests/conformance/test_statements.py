"""Tests of mobillm.conformance.statements, and that the suites name statements that exist."""

from __future__ import annotations

import pathlib

from mobillm.conformance import client_suite, server_suite
from mobillm.conformance.statements import FILE, load, read, render

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def test_the_package_has_the_statements_of_the_documents() -> None:
    """The file beside the code is made from the documents as they are."""
    texts = [(DOCS / name).read_text() for name in ("protocol.md", "packed-tensors.md")]
    message = (
        "statements.json is stale; run: "
        "python -m mobillm.conformance.statements docs/protocol.md docs/packed-tensors.md"
    )
    assert FILE.read_text() == render(read(texts)), message


def test_statements_of_all_forms_are_read() -> None:
    """List items, rows of tables, and paragraphs of several lines; links keep their text."""
    text = "- `[A-1]` One [two](#x).\n\n| `[D-2]` | field | int |\n\n**P3.** Three\nlines.\n\nNo statement.\n"
    assert read([text]) == {"A-1": "One two.", "D-2": "field | int", "P3": "Three lines."}


def test_cases_name_statements_that_exist() -> None:
    """Every id of every case is in the specification, and each suite is as large as promised."""
    known = set(load())
    for suite, least in ((server_suite(), 550), (client_suite(), 60)):
        assert len(suite) >= least
        assert len({case.id for case in suite}) == len(suite)
        assert len({(case.area, case.title) for case in suite}) == len(suite)
        assert {name for case in suite for name in case.statements} <= known
