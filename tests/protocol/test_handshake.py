"""Tests of the handshake of mobillm.protocol.endpoint, with honest and other middle boxes."""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from mobillm.errors import (
    ConfigError,
    ConnectionClosedError,
    ErrorCode,
    HandshakeError,
    RemoteProtocolError,
)
from mobillm.options import Limits
from mobillm.protocol import (
    Auth,
    Endpoint,
    FrameType,
    Phase,
    Welcome,
)
from tests.helpers import (
    KEY,
    TENANT,
    EndpointPair,
    closing,
    output,
    raw_frame,
)


def recorder(seen: list[bytes]) -> Callable[[bytes], bytes]:
    """Return a middle box that keeps what it passes on."""

    def box(data: bytes) -> bytes:
        seen.append(data)
        return data

    return box


@pytest.mark.parametrize("chunk", [None, 1, 7])
def test_handshake(chunk: int | None) -> None:
    """[H-1] [T-3] Four frames open the connection on both ends, however they are cut."""
    pair = EndpointPair(chunk, caps=("a", "b"))
    assert (pair.device.phase, pair.server.phase) == (Phase.CHALLENGE, Phase.HELLO)
    pair.pump()
    assert pair.device.phase is pair.server.phase is Phase.OPEN
    assert [type(event) for event in pair.device_events] == [Welcome]
    assert [type(event) for event in pair.server_events] == [Auth]
    assert pair.server.tenant == TENANT
    assert pair.device.caps == pair.server.caps == ("a", "b")
    assert pair.device.close_exc is None


def test_handshake_bytes() -> None:
    """A device written by hand from the specification logs in and checks the server.

    [A-2] [A-3] [A-9] [A-10] [H-6] [H-14]
    """
    server = Endpoint.server({TENANT: KEY}, nonce=b"s" * 16, limits=Limits(frame=65536, chunk=16384))
    hello = msgpack.packb({"min_version": 1, "max_version": 3, "tenant": TENANT, "nonce": b"d" * 16})
    server.receive_data(raw_frame(0x01, hello))
    challenge = output(server)
    assert challenge[3] == 0x02
    transcript = b"\x01" + struct.pack(">I", len(hello)) + hello
    transcript += b"\x02" + struct.pack(">I", len(challenge) - 32) + challenge[32:]
    digest = hashlib.sha256(transcript).digest()
    mac = hmac.digest(KEY, b"mobillm v1 device" + digest, "sha256")
    server.receive_data(raw_frame(0x03, {"mac": mac}))
    welcome = output(server)
    assert welcome[3] == 0x04
    assert msgpack.unpackb(welcome[32:]) == {
        "mac": hmac.digest(KEY, b"mobillm v1 server" + digest, "sha256"),
        "frame": 65536,
        "batch": 64 * 2**20,
        "blob": 2**31,
        "streams": 64,
    }
    assert server.phase is Phase.OPEN


@pytest.mark.parametrize(
    "change",
    [
        {"device_key": b"x" * 32},
        {"tenant": "nobody"},
        {"server_keys": {}},
        {"device_key": bytes(32), "tenant": "x"},
    ],
)
def test_wrong_token_and_unknown_tenant_look_the_same(change: dict[str, Any]) -> None:
    """[A-5] [A-11] [H-8] [H-19] One refusal for all, and even the stand-in key opens nothing."""
    refusals: list[bytes] = []
    for kwargs in ({"device_key": b"wrong"}, change):
        pair = EndpointPair(**kwargs)
        pair.to_device = recorder(refusals)
        pair.pump()
        assert closing(pair.device) == (HandshakeError, ErrorCode.AUTH_FAILED)
        assert closing(pair.server) == (ConnectionClosedError, ErrorCode.AUTH_FAILED)
        assert isinstance(pair.device.close_exc, HandshakeError)
        assert pair.device.close_exc.retry_after is None
        assert pair.server_events == []
    said = [data for data in refusals if data and data[3] == FrameType.REJECT]
    assert len(said) == 2
    assert said[0] == said[1]


def test_server_without_the_token() -> None:
    """[A-6] The device finds out, says so and sends nothing of a session."""
    pair = EndpointPair()

    def forge(data: bytes) -> bytes:
        if data[3:4] != b"\x04":
            return data
        values = msgpack.unpackb(data[32:])
        return raw_frame(0x04, {**values, "mac": bytes(32)})

    pair.to_device = forge
    pair.pump()
    assert closing(pair.device) == (RemoteProtocolError, ErrorCode.AUTH_FAILED)
    assert closing(pair.server) == (ConnectionClosedError, ErrorCode.AUTH_FAILED)
    assert pair.device_events == []


def rewrite(frame_type: FrameType, **values: object) -> Callable[[bytes], bytes]:
    """Return a middle box that changes fields of one frame and repairs its checksums."""

    def box(data: bytes) -> bytes:
        if data[3:4] != bytes([frame_type]):
            return data
        return raw_frame(frame_type, {**msgpack.unpackb(data[32:]), **values})

    return box


@pytest.mark.parametrize(
    "values",
    [
        {"caps": []},
        {"max_version": 9},
        {"nonce": b"?" * 16},
        {"agent": "other"},
        {"grease": 1},
        {"tenant": "other"},
    ],
)
def test_changed_hello_breaks_the_proof(values: dict[str, object]) -> None:
    """[A-7] A middle box cannot take capabilities away, nor change anything else of HELLO."""
    pair = EndpointPair(caps=("a", "b"), server_keys={TENANT: KEY, "other": KEY})
    pair.to_server = rewrite(FrameType.HELLO, **values)
    pair.pump()
    assert closing(pair.server) == (ConnectionClosedError, ErrorCode.AUTH_FAILED)
    assert closing(pair.device) == (HandshakeError, ErrorCode.AUTH_FAILED)


@pytest.mark.parametrize("values", [{"caps": []}, {"nonce": b"?" * 16}, {"grease": 1}])
def test_changed_challenge_breaks_the_proof(values: dict[str, object]) -> None:
    """[A-7] Nor anything of CHALLENGE."""
    pair = EndpointPair(caps=("a", "b"))
    pair.to_device = rewrite(FrameType.CHALLENGE, **values)
    pair.pump()
    assert closing(pair.server) == (ConnectionClosedError, ErrorCode.AUTH_FAILED)


@pytest.mark.parametrize("values", [{"version": 2}, {"caps": ["zzz"]}])
def test_challenge_must_choose_what_was_offered(values: dict[str, object]) -> None:
    """[H-15] [H-16] Another version, or a capability that was not offered, is refused."""
    pair = EndpointPair(caps=("a",))
    pair.to_device = rewrite(FrameType.CHALLENGE, **values)
    pair.pump()
    assert closing(pair.device) == (RemoteProtocolError, ErrorCode.UNSUPPORTED_VERSION)
    assert closing(pair.server) == (ConnectionClosedError, ErrorCode.UNSUPPORTED_VERSION)


def test_no_common_version() -> None:
    """[H-13] The server rejects a device that speaks later versions only."""
    pair = EndpointPair()
    pair.to_server = rewrite(FrameType.HELLO, min_version=2, max_version=3)
    pair.pump()
    assert closing(pair.device) == (HandshakeError, ErrorCode.UNSUPPORTED_VERSION)
    assert closing(pair.server) == (ConnectionClosedError, ErrorCode.UNSUPPORTED_VERSION)


def test_capabilities_are_intersected() -> None:
    """[V-5] [V-13] [H-5] Both ends use what both have."""
    device = Endpoint.device(TENANT, KEY, nonce=bytes(16), caps=("x", "b"))
    server = Endpoint.server({TENANT: KEY}, nonce=bytes(16), caps=("b", "y"))
    for _ in range(2):
        server.receive_data(output(device))
        device.receive_data(output(server))
    assert device.caps == server.caps == ("b",)


def test_replayed_auth_is_refused() -> None:
    """[A-12] [H-12] A recorded login does not open a second connection."""
    recorded: list[bytes] = []
    pair = EndpointPair()
    pair.to_server = recorder(recorded)
    pair.pump()
    assert pair.server.phase is Phase.OPEN
    again = Endpoint.server({TENANT: KEY}, nonce=b"t" * 16)
    again.receive_data(b"".join(recorded))
    assert closing(again) == (ConnectionClosedError, ErrorCode.AUTH_FAILED)


def test_nonce_must_have_16_bytes() -> None:
    """[H-3] A wrong nonce is found when the endpoint is made, not when a peer calls."""
    with pytest.raises(ConfigError, match="nonce is '8 bytes'; expected 16 random bytes"):
        Endpoint.server({}, nonce=bytes(8))
    with pytest.raises(ConfigError):
        Endpoint.device(TENANT, KEY, nonce=bytes(17))
    with pytest.raises(ValueError, match=r"HELLO\.tenant"):
        Endpoint.device("x" * 65, KEY, nonce=bytes(16))


def test_bodies_before_welcome_are_small() -> None:
    """[H-2] [H-11] [L-2] Nobody who is unknown may make us hold more than 4 KiB."""
    server = Endpoint.server({TENANT: KEY}, nonce=bytes(16))
    server.receive_data(raw_frame(FrameType.DATA, {}, bytes(4096), stream=1, seq=1)[:32])
    assert closing(server) == (RemoteProtocolError, ErrorCode.FRAME_SIZE)
    assert output(server)[3] == FrameType.REJECT
    pair = EndpointPair()
    pair.device.receive_data(raw_frame(FrameType.CHALLENGE, {}, body_size=4097)[:32])
    assert closing(pair.device) == (RemoteProtocolError, ErrorCode.FRAME_SIZE)
    assert output(pair.device)[-60:].find(b"limit is 4096") > 0


def test_limits_of_welcome() -> None:
    """[H-17] [L-3] [L-4] [L-5] [L-6] [L-7] The device takes the smaller figures of the two."""
    server = Limits(frame=65536, chunk=16384, batch=20000, blob=30000, streams=3)
    pair = EndpointPair(limits=server, device_limits=Limits(batch=10**6, blob=25000, streams=9))
    pair.pump()
    found = pair.device.limits
    assert (found.frame, found.chunk, found.batch, found.blob, found.streams) == (
        65536,
        57344,
        20000,
        25000,
        3,
    )
    assert pair.server.limits == server


@pytest.mark.parametrize("values", [{"batch": 5}, {"blob": 0}, {"frame": 1}, {"streams": 0}])
def test_absurd_welcome_is_refused(values: dict[str, object]) -> None:
    """[H-6] [M-5] A server cannot make the device raise."""
    pair = EndpointPair()
    pair.to_device = rewrite(FrameType.WELCOME, **values)
    pair.pump()
    assert closing(pair.device) == (RemoteProtocolError, ErrorCode.SCHEMA_MISMATCH)
