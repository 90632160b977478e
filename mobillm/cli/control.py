"""Requests to the server of this machine, over the socket in its data directory."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any

from ..errors import ConfigError, MobiLLMError

__all__ = ["request"]

_SOCKET = "control.sock"
_LOCK = "lock"
_TIMEOUT = 60.0  # seconds; a step that is under way is finished first
_LONGEST_PATH = 100  # bytes; the system allows 108


def request(directory: Path, command: str, **values: Any) -> tuple[dict[str, Any], bytes]:
    """Ask the server that uses a data directory.

    Args:
        directory: the data directory.
        command: ``list``, ``show``, ``cancel``, ``delete`` or ``export``.
        values: what the command needs.

    Returns:
        the answer, and the bytes that came with it.

    Raises:
        ConfigError: no server uses the directory, or the request cannot be granted.
        MobiLLMError: the server failed, or went away.
        TimeoutError: it did not answer in time.

    """
    with _connect(directory) as sock:
        try:
            sock.sendall(json.dumps({"command": command, **values}).encode() + b"\n")
            with sock.makefile("rb") as stream:
                answer: dict[str, Any] = json.loads(stream.readline() or b"null") or {}
                data = stream.read(answer.get("size", 0))
        except TimeoutError:
            raise TimeoutError("the server did not answer in time") from None
        except (OSError, ValueError) as exc:
            raise MobiLLMError("the server ended the connection; look at its log") from exc
    if not answer or len(data) != answer.get("size", 0):
        raise MobiLLMError("the server ended the connection; look at its log")
    if "refused" in answer:
        field, value, expected = answer["refused"]
        # On the command line it has no name of its own but this one.
        raise ConfigError("SESSION" if field == "session" else field, value, expected)
    if "error" in answer:
        raise MobiLLMError(answer["error"])
    return answer, data


def _connect(directory: Path) -> socket.socket:
    path = directory / _SOCKET
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(_TIMEOUT)
    try:
        if len(os.fsencode(path)) <= _LONGEST_PATH:
            sock.connect(str(path))
        else:
            folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                sock.connect(f"/proc/self/fd/{folder}/{_SOCKET}")
            finally:
                os.close(folder)
    except PermissionError as exc:
        sock.close()
        raise ConfigError("--data-dir", str(directory), "one of your own; run as the server's user") from exc
    except OSError as exc:
        sock.close()
        if _in_use(directory):
            raise MobiLLMError(
                f"a server uses {directory}, but its socket {path.name} there is gone; restart the server"
            ) from exc
        expected = "the --data-dir that a server on this machine was started with, or 'mobillm serve'"
        raise ConfigError("--data-dir", str(directory), expected) from exc
    return sock


def _in_use(directory: Path) -> bool:
    """Tell whether a server holds the lock of a data directory."""
    try:
        with open(directory / _LOCK, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # no server has ever used it
    return False
