"""Addresses: ``mobillm://host:port``, ``mobillms://host:port`` for TLS, or plain ``host:port``."""

from __future__ import annotations

import dataclasses
import urllib.parse

from ..errors import ConfigError

__all__ = ["DEFAULT_PORT", "Address"]

DEFAULT_PORT = 7707


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens.

    Attributes:
        host: name or IP address, IPv6 without brackets.
        port: 0 to 65535; 0 lets the system choose when listening.
        tls: whether TLS comes first.

    """

    host: str
    port: int
    tls: bool = False

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address.

        Raises:
            ConfigError: the text is not one.

        """
        expected = "HOST:PORT, mobillm://HOST:PORT or mobillms://HOST:PORT (TLS)"
        try:
            url = urllib.parse.urlsplit(text if "://" in text else f"mobillm://{text}")
            port = url.port
        except ValueError:
            raise ConfigError("address", text, expected) from None
        # Digits alone are a port whose host was left out, not a host.
        host = url.hostname or ""
        if url.scheme not in ("mobillm", "mobillms") or not host or host.isdigit() or url.path.strip("/"):
            raise ConfigError("address", text, expected)
        return cls(host, DEFAULT_PORT if port is None else port, url.scheme == "mobillms")

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mobillms' if self.tls else 'mobillm'}://{host}:{self.port}"
