"""Certificates of two authorities, on the disk."""

from __future__ import annotations

import pathlib
import ssl
from typing import Any

import trustme

from mobillm.transport import device_context, server_context

__all__ = ["Certificates"]


class Certificates:
    """An authority, another one, and what they have issued, on the disk."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.authority, self.stranger = trustme.CA(), trustme.CA()
        self.ca, self.other_ca = folder / "ca.pem", folder / "other.pem"
        self.authority.cert_pem.write_to_path(self.ca)
        self.stranger.cert_pem.write_to_path(self.other_ca)
        self.server = self.issue(self.authority, "server", "127.0.0.1")
        self.device = self.issue(self.authority, "device", "phone.example")

    def issue(
        self, authority: trustme.CA, name: str, identity: str, **options: Any
    ) -> tuple[pathlib.Path, pathlib.Path]:
        """Write a certificate and its key; return both paths."""
        issued = authority.issue_cert(identity, **options)
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        issued.cert_chain_pems[0].write_to_path(certificate)
        issued.private_key_pem.write_to_path(key)
        return certificate, key

    def contexts(self, *, mutual: bool = False) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        """Return the contexts of a server and of a device that it lets in."""
        server = server_context(*self.server, device_ca=self.ca if mutual else None)
        certificate, key = self.device
        device = device_context(self.ca, certificate=certificate, key=key)
        return server, device
