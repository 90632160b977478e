"""Connections over asyncio: :func:`connect`, :func:`serve` and :class:`Connection`."""

from .address import DEFAULT_PORT, Address
from .client import connect
from .connection import ALPN, Connection
from .server import Server, serve
from .tls import device_context, server_context

__all__ = [
    "ALPN",
    "DEFAULT_PORT",
    "Address",
    "Connection",
    "Server",
    "connect",
    "device_context",
    "serve",
    "server_context",
]
