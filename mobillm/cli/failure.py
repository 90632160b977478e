"""Errors as one line that says what to do next, and the exit statuses."""

from __future__ import annotations

import argparse
import errno
import socket
import ssl

from ..errors import ConfigError, ConnectionClosed, ErrorCode, HandshakeError, MobiLLMError, RemoteError

__all__ = ["DONE", "FAILED", "INTERRUPTED", "USAGE", "explain", "missing_package", "unexpected"]

DONE = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130

_FIELDS = {"timeouts.reconnect": "patience"}
_LONGEST = 300  # characters of a value that an error repeats
_EXTRAS = dict.fromkeys(("torch", "transformers", "safetensors", "accelerate", "gguf", "rich"), "torch")
_EXTRAS |= dict.fromkeys(("prometheus_client", "tensorboard"), "ops")


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
    if isinstance(error, MemoryError):
        return "the memory does not suffice; lower --batch-size or --max-length, or take a smaller model"
    if isinstance(error, socket.gaierror):
        return f"{_host(args)} cannot be found: {error.strerror or error}; check the name and the network"
    if isinstance(error, OSError) and not isinstance(error, MobiLLMError):
        return _system(error)
    return str(error) or type(error).__name__


def unexpected(error: Exception) -> str:
    """Say, in one line, that an error of no known kind ended a command."""
    reason = " ".join(str(error).split())
    named = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return f"unexpected {named}; this is a bug: run again with --debug for the traceback and report it"


def _seen(value: object) -> str:
    text = value if isinstance(value, str) and " " in value else repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _host(args: argparse.Namespace) -> str:
    """Name the address that a command connects to or listens at."""
    for name in ("listen", "server"):
        where = getattr(args, name, None)
        if where is not None:
            return f"the host {where.host!r} of --{name}"
    return "the host"


def _option(field: str, args: argparse.Namespace) -> str:
    name = _FIELDS.get(field) or field.replace("side.", "side_")
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
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{reason}; free some disk space or choose another directory"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {reason}; check the certificates on both sides"
    if error.filename is None:
        if isinstance(error, PermissionError):
            return f"{reason}; use a port from 1024 on, or ask for the permission"
        return f"{reason}; check the system, then run the command again"
    if isinstance(error, IsADirectoryError):
        return f"{error.filename} is a directory; give the path of a file"
    if isinstance(error, NotADirectoryError | FileExistsError):
        return f"{error.filename}: {reason}; a file is where a directory is needed: choose another path"
    return f"{error.filename}: {reason}; check the path and its permissions"


def missing_package(error: ImportError) -> str | None:
    """Say which optional package is missing; None when the import failed for another reason."""
    name = (error.name or "").partition(".")[0]
    if name == "matplotlib":
        return "this command needs the package matplotlib; run: pip install matplotlib"
    if name not in _EXTRAS:
        return None
    return f"this command needs the package {name}; run: pip install 'mobillm[{_EXTRAS[name]}]'"
