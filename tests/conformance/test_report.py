"""Tests of mobillm.conformance.report."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

from mobillm.conformance import Case, Result, failure, junit, summary, table, to_json

STATEMENTS = {"F-3": "Frames are whole.", "M-1": "A map is a map."}


async def _nothing(_: None) -> None:
    pass


def _result(id: str, area: str, deviation: str | None = None, skipped: str | None = None) -> Result:
    case = Case(id, area, (id.partition(".")[0], "M-1"), f"title \0 of <{id}>", _nothing, 1.0)
    log = () if deviation is None else ("> PING", "< ERROR \x1b")
    return Result(case, deviation, 0.25, log, skipped)


RESULTS = [
    _result("F-3.1", "framing"),
    _result("F-3.2", "framing", "expected this; got that"),
    _result("K-8.1", "connection", skipped="needs two tenants"),
]


def test_text() -> None:
    """A line that sums up, a table by area, and for each failure what was sent and the statements."""
    assert summary(RESULTS) == (
        "1 of 3 cases passed, 1 failed, 1 skipped; 2 statements exercised, 1 broken: F-3"
    )
    assert summary(RESULTS[:1]) == "1 of 1 cases passed; 2 statements exercised"
    lines = [line.split() for line in table(RESULTS).splitlines()]
    assert lines[1:] == [
        ["framing", "2", "1", "1", "0"],
        ["connection", "1", "0", "0", "1"],
        ["all", "3", "1", "1", "1"],
    ]
    text = failure(RESULTS[1], STATEMENTS)
    assert text.startswith("FAILED F-3.2 (framing): title")
    assert "\n  expected this; got that\n  [F-3] Frames are whole.\n  [M-1] A map is a map.\n" in text
    assert "    > PING\n" in text


def test_json() -> None:
    """Everything, with the texts of broken statements."""
    whole = json.loads(to_json(RESULTS, STATEMENTS, "the server x"))
    assert (whole["subject"], whole["cases"], whole["failed"]) == ("the server x", 3, 1)
    assert [case["result"] for case in whole["results"]] == ["passed", "failed", "skipped"]
    assert whole["results"][1]["texts"]["F-3"] == "Frames are whole."
    assert whole["results"][1]["log"] == ["> PING", "< ERROR \x1b"]
    assert whole["results"][2]["reason"] == "needs two tenants"


def test_junit() -> None:
    """Well-formed XML, whatever is in the texts."""
    root = ET.fromstring(junit(RESULTS, STATEMENTS, "the server x"))
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("3", "1", "1")
    suites = {suite.get("name"): suite for suite in root}
    assert suites["framing"].get("tests") == "2"
    broken = root.find(".//failure")
    assert broken is not None
    assert broken.get("message") == "expected this; got that"
    assert "[F-3] Frames are whole." in (broken.text or "")
    assert "< ERROR ?" in (broken.text or "")
    assert root.find(".//skipped") is not None
