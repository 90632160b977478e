"""The operator's way in: a Unix socket in the data directory that only its owner can open.

The file system says who the operator is, so there is no second kind of token to lose, nothing listens on the
network, and the wire protocol stays what devices need. A request is one line of JSON; the answer is one
line of JSON, after which, where it has ``size``, that many bytes follow.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pathlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from ..errors import ConfigError, MobiLLMError
from .gateway import Gateway
from .session import Session
from .summary import state_of, summarise, unreadable

__all__ = ["SOCKET", "Control"]

logger = logging.getLogger("mobillm.server")

SOCKET = "control.sock"
LONGEST_REQUEST = 4096  # bytes
REQUEST_TIMEOUT = 10.0  # seconds for a request to arrive whole, and for its answer to be taken
MAX_CALLERS = 16
NAME_DIGITS = 32

_Answer = tuple[dict[str, Any], bytes]


class Control:
    """Answers the operator's requests while a server runs.

    Args:
        gateway: the sessions.
        directory: the data directory.

    """

    def __init__(self, gateway: Gateway, directory: pathlib.Path) -> None:
        self._gateway = gateway
        self._directory = directory
        self._server: asyncio.Server | None = None
        self._callers: set[asyncio.Task[None]] = set()
        self._commands: dict[str, Callable[[dict[str, Any]], Awaitable[_Answer]]] = {
            "list": self._list,
            "show": self._show,
            "cancel": self._cancel,
            "delete": self._delete,
            "export": self._export,
        }

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the socket cannot be made.

        """
        sock = _bind(self._directory)
        self._server = await asyncio.start_unix_server(self._accept, sock=sock, limit=LONGEST_REQUEST)

    async def close(self) -> None:
        """Stop listening, and end what is under way; can be called more than once."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for task in self._callers:
            task.cancel()
        await asyncio.gather(*self._callers, return_exceptions=True)
        (self._directory / SOCKET).unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._callers.add(task)
        try:
            if len(self._callers) <= MAX_CALLERS:
                await self._serve(reader, writer)
        except (TimeoutError, ConnectionError, asyncio.CancelledError):
            writer.transport.abort()  # the caller has gone or does not read, or the server stops
        finally:
            self._callers.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(REQUEST_TIMEOUT):
            try:
                line = await reader.readline()
            except ValueError:  # longer than the limit
                line = b""
        answer, payload = await self._answer(line)
        writer.write(json.dumps(answer).encode() + b"\n")
        writer.write(payload)
        async with asyncio.timeout(REQUEST_TIMEOUT):
            await writer.drain()

    async def _answer(self, line: bytes) -> _Answer:
        try:
            request = json.loads(line)
            command = self._commands[request["command"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            known = ", ".join(self._commands)
            return {"error": f"the request is no line of JSON with a command among {known}"}, b""
        try:
            return await command(request)
        except ConfigError as exc:
            return {"refused": [exc.field, exc.value, exc.expected]}, b""
        except MobiLLMError as exc:
            logger.error("! control: %s", exc)
            return {"error": str(exc)}, b""
        except Exception:
            logger.exception("! control: %s failed", request["command"])
            return {"error": "the server failed; its log says why"}, b""

    def _name(self, request: dict[str, Any]) -> bytes:
        """Return the name of which a request has the first digits."""
        name = str(request.get("session", "")).lower()
        known = (*self._gateway.sessions, *self._gateway.unreadable)
        found = [one for one in known if one.hex().startswith(name)]
        if not name or not found:
            raise ConfigError("session", name or "missing", "a session of 'mobillm sessions list'")
        if len(found) > 1:
            raise ConfigError("session", name, f"more digits; {len(found)} sessions begin so")
        return found[0]

    def _find(self, request: dict[str, Any]) -> Session:
        """Return the session that a request names."""
        name = self._name(request)
        if name in self._gateway.unreadable:
            raise ConfigError("session", f"{name.hex()}, failed", "one that can be read; delete this one")
        return self._gateway.sessions[name]

    def _summary(self, session: Session) -> dict[str, Any]:
        return summarise(session, attached=self._gateway.is_attached(session))

    async def _list(self, request: dict[str, Any]) -> _Answer:
        found = [self._summary(one) for one in self._gateway.sessions.values()]
        lost = [unreadable(name, failure) for name, failure in self._gateway.unreadable.items()]
        return {"sessions": found + lost}, b""

    async def _show(self, request: dict[str, Any]) -> _Answer:
        name = self._name(request)
        if name in self._gateway.unreadable:
            return unreadable(name, self._gateway.unreadable[name]) | {"spec": {}}, b""
        session = self._gateway.sessions[name]
        return self._summary(session) | {"spec": session.spec.to_map()}, b""

    async def _cancel(self, request: dict[str, Any]) -> _Answer:
        session = self._find(request)
        if session.finished is not None:
            raise ConfigError("session", f"{session.id.hex()}, finished", "one that is not finished")
        await session.cancel()
        logger.info("= session %s cancelled by the operator", session.id.hex())
        return self._summary(session), b""

    async def _delete(self, request: dict[str, Any]) -> _Answer:
        name = self._name(request)
        if name in self._gateway.unreadable:
            summary = unreadable(name, self._gateway.unreadable[name])
            await self._gateway.forget(name)
            logger.info("= session %s deleted by the operator", name.hex())
            return summary, b""
        session = self._gateway.sessions[name]
        if not session.ended and not request.get("force"):
            text = "one that has ended; cancel it first, or give --force"
            raise ConfigError("session", f"{session.id.hex()}, {state_of(session)}", text)
        summary = self._summary(session)
        await self._gateway.delete(session)
        logger.info("= session %s deleted by the operator", session.id.hex())
        return summary, b""

    async def _export(self, request: dict[str, Any]) -> _Answer:
        session = self._find(request)
        data = await self._gateway.export(session)
        return self._summary(session) | {"spec": session.spec.to_map(), "size": len(data)}, data


def _bind(directory: pathlib.Path) -> socket.socket:
    """Return a listening socket in the directory, whatever the length of its path."""
    path = directory / SOCKET
    path.unlink(missing_ok=True)  # of a server that was killed: the directory's lock is ours
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # An address has at most 108 bytes; the way over the open directory is always short.
        sock.bind(f"/proc/self/fd/{folder}/{SOCKET}" if len(os.fsencode(path)) > 100 else str(path))
        os.chmod(path, 0o600)  # before it listens: nobody else can have connected
        sock.listen(MAX_CALLERS)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    finally:
        os.close(folder)
    return sock
