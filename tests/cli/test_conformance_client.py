"""Tests of mobillm.cli.conformance_client."""

from __future__ import annotations

import subprocess
import sys

from mobillm.cli.conformance_client import SPEC
from mobillm.spec import SessionSpec
from tests.cli.commands import RunningServer
from tests.cli.conftest import SECRET


def _client(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mobillm.cli.conformance_client", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_usage_and_failure(server: RunningServer) -> None:
    """Wrong arguments, a tenant that the server does not know, and no server."""
    assert _client().returncode == 2
    refused = _client(server.address, SECRET)
    assert refused.returncode == 1
    assert "AUTH_FAILED" in refused.stderr
    nowhere = _client("mobillm://127.0.0.1:1", "x")
    assert nowhere.returncode == 1
    assert "cannot reach" in nowhere.stderr


def test_the_spec_is_valid() -> None:
    """It survives the way over the wire."""
    assert SessionSpec.from_map(SPEC.to_map()) == SPEC
