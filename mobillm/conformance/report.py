"""Results for people and for programs: text, JSON and JUnit XML."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import Any

from .runner import Result

__all__ = ["failure", "junit", "summary", "table", "to_json"]

# Characters that XML 1.0 cannot hold.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _state(result: Result) -> str:
    if result.skipped is not None:
        return "skipped"
    return "passed" if result.passed else "failed"


def _counts(results: Sequence[Result]) -> dict[str, int]:
    counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    for result in results:
        counts[_state(result)] += 1
    return counts


def summary(results: Sequence[Result]) -> str:
    """Return one line: how many cases passed, and how many statements they prove."""
    counts = _counts(results)
    proved = {statement for result in results if result.passed for statement in result.case.statements}
    broken = {result.case.statements[0] for result in results if _state(result) == "failed"}
    parts = [f"{counts['passed']} of {len(results)} cases passed"]
    parts += [f"{counts[name]} {name}" for name in ("failed", "skipped") if counts[name]]
    text = f"{', '.join(parts)}; {len(proved)} statements exercised"
    return text + (f", {len(broken)} broken: {', '.join(sorted(broken))}" if broken else "")


def table(results: Sequence[Result]) -> str:
    """Return the counts of each area, and their sum, as lines."""
    areas = list(dict.fromkeys(result.case.area for result in results))
    width = max([len("area"), len("all"), *map(len, areas)])
    lines = [f"{'area':{width}}  cases  passed  failed  skipped"]
    for area in [*areas, None]:
        counts = _counts([result for result in results if area in (None, result.case.area)])
        figures = (
            f"{sum(counts.values()):5}  {counts['passed']:6}  {counts['failed']:6}  {counts['skipped']:7}"
        )
        lines.append(f"{area or 'all':{width}}  {figures}")
    return "\n".join(lines)


def failure(result: Result, statements: Mapping[str, str]) -> str:
    """Describe a failure: the case, what was expected, the statements, and the frames both ways.

    Args:
        result: of a case that failed.
        statements: texts by their ids.

    """
    lines = [f"FAILED {result.case.id} ({result.case.area}): {result.case.title}", f"  {result.deviation}"]
    lines += [f"  [{name}] {statements.get(name, '')}".rstrip() for name in result.case.statements]
    return "\n".join([*lines, *(f"    {line}" for line in result.log)])


def to_json(results: Sequence[Result], statements: Mapping[str, str], subject: str) -> str:
    """Return the results as one JSON object.

    Args:
        results: of all cases that were run.
        statements: texts by their ids; those of failed cases are included.
        subject: what was tested.

    """
    cases: list[dict[str, Any]] = []
    for result in results:
        case: dict[str, Any] = {
            "id": result.case.id,
            "area": result.case.area,
            "title": result.case.title,
            "statements": list(result.case.statements),
            "result": _state(result),
            "seconds": round(result.seconds, 4),
        }
        if result.skipped is not None:
            case["reason"] = result.skipped
        if result.deviation is not None:
            case["deviation"] = result.deviation
            case["texts"] = {name: statements.get(name, "") for name in result.case.statements}
            case["log"] = list(result.log)
        cases.append(case)
    whole = {"subject": subject, "cases": len(results), **_counts(results), "results": cases}
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


def junit(results: Sequence[Result], statements: Mapping[str, str], subject: str) -> str:
    """Return the results as JUnit XML, one test suite for each area; see :func:`to_json`."""
    counts = _counts(results)
    root = ET.Element(
        "testsuites",
        name=f"mobillm conformance of {subject}",
        tests=str(len(results)),
        failures=str(counts["failed"]),
        skipped=str(counts["skipped"]),
    )
    for area in dict.fromkeys(result.case.area for result in results):
        own = [result for result in results if result.case.area == area]
        counts = _counts(own)
        suite = ET.SubElement(
            root,
            "testsuite",
            name=area,
            tests=str(len(own)),
            failures=str(counts["failed"]),
            skipped=str(counts["skipped"]),
            time=f"{sum(result.seconds for result in own):.3f}",
        )
        for result in own:
            _add_case(suite, result, statements)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _add_case(suite: ET.Element, result: Result, statements: Mapping[str, str]) -> None:
    case = ET.SubElement(
        suite,
        "testcase",
        classname=result.case.area,
        name=_NOT_XML.sub("?", f"{result.case.id} {result.case.title}"),
        time=f"{result.seconds:.3f}",
    )
    if result.skipped is not None:
        ET.SubElement(case, "skipped", message=_NOT_XML.sub("?", result.skipped))
    if result.deviation is not None:
        element = ET.SubElement(case, "failure", message=_NOT_XML.sub("?", result.deviation))
        element.text = _NOT_XML.sub("?", failure(result, statements))
