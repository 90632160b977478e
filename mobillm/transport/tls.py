"""TLS contexts: version 1.3 only, with our ALPN name. TLS comes first; there is no upgrade in band."""

from __future__ import annotations

import pathlib
import ssl

from ..errors import ConfigError
from .connection import ALPN

__all__ = ["device_context", "server_context"]


def server_context(
    certificate: pathlib.Path, key: pathlib.Path, *, device_ca: pathlib.Path | None = None
) -> ssl.SSLContext:
    """Return the context of a server.

    Args:
        certificate: PEM file with the server's certificate and any intermediate ones.
        key: PEM file with its private key.
        device_ca: PEM file with the authority whose certificates devices must show; None asks for none.

    Raises:
        ConfigError: a file cannot be read or is not what it should be.

    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _strict(context)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError("tls certificate", f"{certificate}, {key}", f"readable PEM files ({exc})") from exc
    if device_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        _trust(context, device_ca)
    return context


def device_context(
    ca: pathlib.Path | None = None,
    *,
    certificate: pathlib.Path | None = None,
    key: pathlib.Path | None = None,
) -> ssl.SSLContext:
    """Return the context of a device.

    Args:
        ca: PEM file with the authority that signed the server's certificate; None trusts the system's.
        certificate: PEM file with the device's own certificate, for servers that ask for one.
        key: PEM file with its private key.

    Raises:
        ConfigError: a file cannot be read or is not what it should be.

    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _strict(context)
    if ca is None:
        context.load_default_certs()
    else:
        _trust(context, ca)
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as exc:
            raise ConfigError("tls certificate", str(certificate), f"a readable PEM file ({exc})") from exc
    return context


def _strict(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN])


def _trust(context: ssl.SSLContext, ca: pathlib.Path) -> None:
    try:
        context.load_verify_locations(ca)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError("tls authority", str(ca), f"a readable PEM file ({exc})") from exc
