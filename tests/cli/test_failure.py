"""Tests of errors as one line."""

from __future__ import annotations

import argparse
import errno

import pytest

from mobillm.cli.failure import explain, missing_package
from mobillm.errors import (
    ConfigError,
    ConnectionClosedError,
    DataError,
    ErrorCode,
    HandshakeError,
    RemoteError,
)

ARGS = argparse.Namespace(lr=1.0, side_heads=3, weight_decay=0.0, max_length=4)


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (ConfigError("optimizer.lr", 11, "at most 10"), ["--lr is 11; expected at most 10"]),
        (ConfigError("side.heads", 3, "a divisor"), ["--side-heads is 3; expected a divisor"]),
        (ConfigError("max_length", 0, "at least 1"), ["--max-length is 0"]),
        (ConfigError("taps[0]", "bad", "better"), ["taps[0] is 'bad'"]),
        (DataError("two\n lines"), ["two lines"]),
        (
            HandshakeError(ErrorCode.AUTH_FAILED, "no"),
            ["refused the connection", "AUTH_FAILED", "--token-file", "--tenant"],
        ),
        (HandshakeError(ErrorCode.UNSUPPORTED_VERSION, "v2"), ["same version of mobillm"]),
        (HandshakeError(ErrorCode.SERVER_BUSY, "full", 3.0), ["try again in 3 s"]),
        (RemoteError(ErrorCode.SCHEMA_MISMATCH, "taps"), ["the server refused: SCHEMA_MISMATCH: taps"]),
        (ConnectionClosedError(None, "cannot reach mobillm://h:1: refused"), ["mobillm serve", "--server"]),
        (ConnectionClosedError(None, "reset"), ["connection lost: reset", "run the command again"]),
        (ConnectionClosedError(None, "TLS failed; check its authority"), ["TLS failed; check its authority"]),
        (TimeoutError(), ["a wait took too long", "check the server"]),
        (OSError(errno.EADDRINUSE, "in use"), ["--listen is in use", "another port"]),
        (OSError(errno.EADDRNOTAVAIL, "no"), ["--listen is not one of this machine"]),
        (OSError(errno.ENOSPC, "No space left"), ["No space left", "free some disk space"]),
        (PermissionError(errno.EACCES, "denied", "/x"), ["/x: denied", "permissions"]),
    ],
)
def test_lines(error: BaseException, parts: list[str]) -> None:
    """Each kind of error is one line that names the option and what to do."""
    line = explain(error, ARGS)
    assert "\n" not in line
    for part in parts:
        assert part in line


def test_missing_package() -> None:
    """Only packages of the extra are explained; another import error is a defect."""
    assert "pip install 'mobillm[torch]'" in str(missing_package(ImportError(name="rich.live")))
    assert missing_package(ImportError(name="mobillm.nn.gone")) is None
    assert missing_package(ImportError()) is None
