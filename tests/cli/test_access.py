"""Tests of tokens and TLS on the device."""

from __future__ import annotations

import argparse
import ssl
from pathlib import Path
from typing import Any

import pytest

from mobillm.cli.access import check_server, data_directory, device_tls, device_token
from mobillm.errors import ConfigError, HandshakeError
from mobillm.transport import Address
from tests.cli.commands import RunningServer


def _args(**changes: Any) -> argparse.Namespace:
    defaults = {
        "server": Address("h", 1),
        "token_file": None,
        "tenant": None,
        "ca": None,
        "cert": None,
        "key": None,
    }
    return argparse.Namespace(**(defaults | changes))


def _file(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_data_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """XDG_DATA_HOME wins over the home directory."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert data_directory() == tmp_path / "mobillm"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert data_directory() == Path.home() / ".local" / "share" / "mobillm"


def test_token_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The option wins over the environment, which wins over the server's own file."""
    with pytest.raises(ConfigError, match=r"--token-file is .*MOBILLM_TOKEN"):
        device_token(_args())
    _file(data_directory() / "token", "of-the-server\n")
    assert device_token(_args()) == ("default", "of-the-server")
    monkeypatch.setenv("MOBILLM_TOKEN", "of-the-environment")
    assert device_token(_args()) == ("default", "of-the-environment")
    assert device_token(_args(tenant="acme")) == ("acme", "of-the-environment")
    option = _file(tmp_path / "token", "acme:first\nzeta:second\n")
    assert device_token(_args(token_file=option)) == ("acme", "first")
    assert device_token(_args(token_file=option, tenant="zeta")) == ("zeta", "second")
    with pytest.raises(ConfigError, match=r"--tenant is 'omega'; expected a tenant of .*: acme, zeta"):
        device_token(_args(token_file=option, tenant="omega"))
    with pytest.raises(ConfigError, match="token file"):
        device_token(_args(token_file=tmp_path / "none"))


def test_tls(tmp_path: Path) -> None:
    """A mobillms address gets a context; certificates without one, or half of a pair, are refused."""
    assert device_tls(_args()) is None
    secure = Address("h", 1, tls=True)
    assert isinstance(device_tls(_args(server=secure)), ssl.SSLContext)
    with pytest.raises(ConfigError, match=r"mobillms://..., which --ca is for"):
        device_tls(_args(ca=tmp_path / "ca.pem"))
    with pytest.raises(ConfigError, match="--cert and --key together"):
        device_tls(_args(server=secure, cert=tmp_path / "c.pem"))
    with pytest.raises(ConfigError, match="tls authority"):
        device_tls(_args(server=secure, ca=tmp_path / "none.pem"))


def test_server_check(server: RunningServer) -> None:
    """The right token passes, a wrong one is refused, both without torch."""
    address = Address.parse(server.address)
    tenant, secret = device_token(_args(token_file=server.token_file))
    check_server(address, tenant, secret, None)
    with pytest.raises(HandshakeError, match="AUTH_FAILED"):
        check_server(address, tenant, "not-the-secret", None)
