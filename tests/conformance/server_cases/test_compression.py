"""Tests of mobillm.conformance.server_cases.compression."""

from __future__ import annotations

import pathlib

import pytest

from mobillm.conformance import Target, select, server_suite
from mobillm.server import app
from tests.conformance.running import passing, running, server_results


def test_our_server_passes(target: Target) -> None:
    """All cases of the area pass against this package's server; there are no less than these."""
    assert passing(server_results(target, select(server_suite(), ["compression"]))) >= 50


def test_a_server_without_the_capability(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It need not pass them: all are left out, but for the one that sends what was not agreed on."""
    monkeypatch.setattr(app, "CAPABILITY", "another")
    with running(tmp_path) as target:
        results = server_results(target, select(server_suite(), ["compression"]))
    assert [result.case.title for result in results if result.skipped is None] == [
        "a compressed tap without the capability"
    ]
    assert not [result for result in results if result.deviation is not None]
