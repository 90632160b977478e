"""Tests of errors as one line."""

from __future__ import annotations

import argparse
import errno
import socket
import ssl

import pytest

from mobillm.cli.failure import explain, missing_package, unexpected
from mobillm.errors import (
    ConfigError,
    ConnectionClosedError,
    DataError,
    ErrorCode,
    HandshakeError,
    RemoteError,
)
from mobillm.transport import Address

ARGS = argparse.Namespace(lr=1.0, side_heads=3, weight_decay=0.0, max_length=4, server=Address("far", 1))


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
        (OSError(errno.ENOSPC, "No space left", "/x/y"), ["/x/y: No space left", "free some disk space"]),
        (PermissionError(errno.EACCES, "denied", "/x"), ["/x: denied", "permissions"]),
        (PermissionError(errno.EACCES, "bind denied"), ["bind denied; use a port from 1024 on"]),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/x/y"), ["/x/y: Not a directory; a file is"]),
        (FileExistsError(errno.EEXIST, "File exists", "/x"), ["/x: File exists", "choose another path"]),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/x"), ["/x is a directory; give the path of a"]),
        (FileNotFoundError(errno.ENOENT, "No such file", "/x"), ["/x: No such file; check the path"]),
        (OSError(errno.EIO, "Input/output error"), ["Input/output error; check the system"]),
        (socket.gaierror(-2, "not known"), ["the host 'far' of --server cannot be found: not known; check"]),
        (ssl.SSLError(1, "bad certificate"), ["TLS failed: bad certificate; check the certificates"]),
        (ConfigError("timeouts.reconnect", 0, "more"), ["timeouts.reconnect is 0"]),
        (ConfigError("taps", "1" * 5000, "less"), ["111...; expected less"]),
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
    assert "pip install 'mobillm[ops]'" in str(missing_package(ImportError(name="prometheus_client")))
    assert missing_package(ImportError(name="mobillm.nn.gone")) is None
    assert missing_package(ImportError()) is None


def test_unexpected() -> None:
    """A defect is one line with its kind, and what to do with it."""
    text = unexpected(KeyError("a"))
    assert text.startswith("unexpected KeyError: 'a'; this is a bug: run again with --debug")
    assert unexpected(ValueError()).startswith("unexpected ValueError; this is a bug")
