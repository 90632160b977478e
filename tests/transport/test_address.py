"""Addresses."""

from __future__ import annotations

import pytest

from mobillm.errors import ConfigError
from mobillm.transport import DEFAULT_PORT, Address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:1", Address("localhost", 1)),
        ("mobillm://10.0.0.1:0", Address("10.0.0.1", 0)),
        ("mobillms://server.example", Address("server.example", DEFAULT_PORT, tls=True)),
        ("mobillm://[::1]:9/", Address("::1", 9)),
    ],
)
def test_parse(text: str, address: Address) -> None:
    """[T-6] All forms are read."""
    assert Address.parse(text) == address
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize("text", ["", "http://host:1", "host:x", "host:65536", "mobillm://host:1/path", ":7"])
def test_refuse(text: str) -> None:
    """What is no address is refused by name."""
    with pytest.raises(ConfigError, match="address is"):
        Address.parse(text)


def test_text_brackets_ipv6() -> None:
    """An IPv6 address is shown with brackets."""
    assert str(Address("::1", 7, tls=True)) == "mobillms://[::1]:7"
