"""Tests of mobillm.protocol.auth."""

from __future__ import annotations

import hashlib
import hmac

from mobillm.protocol import derive_key
from mobillm.protocol.auth import Transcript


def test_key_of_a_token() -> None:
    """[A-1] SHA-256 over label, zero byte and token as UTF-8."""
    assert derive_key("öl") == hashlib.sha256(b"mobillm v1 token\x00\xc3\xb6l").digest()
    assert derive_key("a") != derive_key("b")


def test_proofs_are_hmacs_over_label_and_transcript_hash() -> None:
    """[A-2] [A-3] [A-10] The two proofs, made by hand."""
    transcript = Transcript()
    transcript.add(1, b"hello")
    transcript.add(2, b"challenge!")
    digest = hashlib.sha256(b"\x01\0\0\0\x05hello\x02\0\0\0\x0achallenge!").digest()
    key = derive_key("t")
    assert transcript.device_proof(key) == hmac.digest(key, b"mobillm v1 device" + digest, "sha256")
    assert transcript.server_proof(key) == hmac.digest(key, b"mobillm v1 server" + digest, "sha256")


def test_proofs_depend_on_key_side_and_each_part() -> None:
    """[A-7] Another key, side, type, border between frames or order makes another proof."""

    def proof(*frames: tuple[int, bytes], key: bytes = b"k") -> bytes:
        transcript = Transcript()
        for frame_type, body in frames:
            transcript.add(frame_type, body)
        return transcript.device_proof(key)

    base = proof((1, b"ab"), (2, b"c"))
    others = [
        proof((1, b"ab"), (2, b"c"), key=b"l"),
        proof((1, b"a"), (2, b"bc")),
        proof((2, b"ab"), (1, b"c")),
        proof((2, b"c"), (1, b"ab")),
        proof((1, b"ab")),
    ]
    assert base not in others
    assert len(set(others)) == len(others)


def test_comparison() -> None:
    """[A-4] Equal proofs match, others and other lengths do not."""
    assert Transcript.matches(b"abc", b"abc")
    assert not Transcript.matches(b"abc", b"abd")
    assert not Transcript.matches(b"abc", b"ab")
