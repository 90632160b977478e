"""Errors as one line that says what to do next, and the exit statuses."""

from __future__ import annotations

import argparse
import errno

from ..errors import ConfigError, ConnectionClosed, ErrorCode, HandshakeError, RemoteError

__all__ = ["DONE", "FAILED", "INTERRUPTED", "USAGE", "explain", "missing_package"]

DONE = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130

_EXTRA = ("torch", "transformers", "safetensors", "accelerate", "gguf", "rich")


def explain(error: BaseException, args: argparse.Namespace) -> str:
    """Say what went wrong, in one line.

    Args:
        error: what was raised.
        args: the command's arguments: a field of an error that is one of them is shown as the option.

    """
    return " ".join(_sentence(error, args).split())


def _sentence(error: BaseException, args: argparse.Namespace) -> str:
    if isinstance(error, ConfigError):
        return f"{_option(error.field, args)} is {_seen(error.value)}; expected {error.expected}"
    if isinstance(error, HandshakeError):
        return f"the server refused the connection: {error}{_handshake_advice(error)}"
    if isinstance(error, RemoteError):
        return f"the server refused: {error}"
    if isinstance(error, ConnectionClosed):
        if "cannot reach" in error.text:
            return f"{error.text.partition('; ')[0]}; start a server with 'mobillm serve', or check --server"
        if "; " in error.text:  # it says what to do
            return error.text
        return f"{error}; check the network and the server's log, then run the command again"
    if isinstance(error, TimeoutError):
        return f"{str(error) or 'a wait took too long'}; check the server and the network"
    if type(error) is OSError or isinstance(error, PermissionError | FileNotFoundError | FileExistsError):
        return _system(error)
    return str(error) or type(error).__name__


def _seen(value: object) -> str:
    return value if isinstance(value, str) and " " in value else repr(value)


def _option(field: str, args: argparse.Namespace) -> str:
    name = field.replace("side.", "side_")
    for prefix in ("optimizer.", "codec.", "model."):
        name = name.removeprefix(prefix)
    return f"--{name.replace('_', '-')}" if hasattr(args, name) else field


def _handshake_advice(error: HandshakeError) -> str:
    if error.retry_after is not None:
        return ""
    if error.code == ErrorCode.AUTH_FAILED:
        return "; check --token-file (or MOBILLM_TOKEN) and --tenant against the server's token file"
    if error.code == ErrorCode.UNSUPPORTED_VERSION:
        return "; install the same version of mobillm on both sides"
    return ""


def _system(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        return (
            "the address of --listen is in use; stop the other server, or choose another port (0: a free one)"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return "the address of --listen is not one of this machine; use 127.0.0.1 or 0.0.0.0"
    if error.errno == errno.ENOSPC:
        return f"{reason}; free some disk space or choose another directory"
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{reason}; check the path and its permissions"


def missing_package(error: ImportError) -> str | None:
    """Say which optional package is missing; None when the import failed for another reason."""
    name = (error.name or "").partition(".")[0]
    if name not in _EXTRA:
        return None
    return f"this command needs the package {name}; run: pip install 'mobillm[torch]'"
