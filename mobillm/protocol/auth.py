"""Token authentication: both ends prove that they hold the token, bound to the handshake's bytes.

``docs/protocol.md``, section "Authentication". HMAC (RFC 2104) with SHA-256 over a label and the
types and bodies of the HELLO and CHALLENGE frames, so that a changed version or capability breaks the proof.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

__all__ = ["Transcript", "derive_key"]

DEVICE_LABEL = b"mobillm v1 device"
SERVER_LABEL = b"mobillm v1 server"
KEY_LABEL = b"mobillm v1 token\0"


def derive_key(token: str) -> bytes:
    """Return the 32-byte key that stands for a token; a server needs to keep only this."""
    return hashlib.sha256(KEY_LABEL + token.encode()).digest()


class Transcript:
    """Running hash of the handshake's frames, and the proofs made from it."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, frame_type: int, body: bytes) -> None:
        """Take the next frame of the handshake in: its type and its body as it was on the wire."""
        self._hash.update(struct.pack(">BI", frame_type, len(body)) + body)

    def device_proof(self, key: bytes) -> bytes:
        """Return the device's proof, 32 bytes."""
        return hmac.digest(key, DEVICE_LABEL + self._hash.digest(), "sha256")

    def server_proof(self, key: bytes) -> bytes:
        """Return the server's proof, 32 bytes."""
        return hmac.digest(key, SERVER_LABEL + self._hash.digest(), "sha256")

    @staticmethod
    def matches(expected: bytes, seen: bytes) -> bool:
        """Compare two proofs in constant time."""
        return hmac.compare_digest(expected, seen)
