"""A device and a server core joined by a fake wire, and makers of messages and frames."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import crc32c
import msgpack

from mobillm.errors import MobiLLMError
from mobillm.formats import Format
from mobillm.options import Limits
from mobillm.protocol import (
    Abort,
    Ack,
    Auth,
    Blob,
    Bye,
    Challenge,
    Commit,
    Credit,
    Data,
    Detach,
    Endpoint,
    Error,
    Eval,
    Evaluated,
    Finish,
    Finished,
    FrameType,
    Gap,
    Goaway,
    Hello,
    Message,
    Metrics,
    Open,
    Opened,
    Ping,
    Pong,
    Pull,
    Reject,
    Stored,
    TensorHeader,
    Weights,
    Welcome,
    derive_key,
)
from mobillm.spec import ModelSpec, OptimizerSpec, SessionSpec

__all__ = [
    "KEY",
    "SESSION",
    "TENANT",
    "EndpointPair",
    "closing",
    "example",
    "examples",
    "make_batch",
    "make_data",
    "make_spec",
    "output",
    "raw_frame",
    "wire_bytes",
]

TENANT = "acme"
KEY = derive_key("open sesame")
SESSION = bytes(range(16))
DIGEST = bytes(range(32))
DEVICE_NONCE = b"d" * 16
SERVER_NONCE = b"s" * 16


class EndpointPair:
    """A device and a server whose bytes reach each other only when :meth:`pump` is called.

    Args:
        chunk: bytes delivered at a time; None delivers all at once.
        limits: limits of the server.
        device_limits: limits of the device.
        device_key: the device's key, to have the wrong one.
        tenant: the device's tenant.
        server_keys: what the server knows.
        caps: capabilities of both.

    Attributes:
        to_server, to_device: a middle box, called with all bytes of one direction at each delivery.
        device_events, server_events: messages since the pair was made.

    """

    def __init__(
        self,
        chunk: int | None = None,
        *,
        limits: Limits | None = None,
        device_limits: Limits | None = None,
        device_key: bytes = KEY,
        tenant: str = TENANT,
        server_keys: dict[str, bytes] | None = None,
        caps: tuple[str, ...] = (),
    ) -> None:
        self.chunk = chunk
        self.device = Endpoint.device(
            tenant, device_key, nonce=DEVICE_NONCE, caps=caps, limits=device_limits, agent="tests"
        )
        keys = {TENANT: KEY} if server_keys is None else server_keys
        self.server = Endpoint.server(keys, nonce=SERVER_NONCE, caps=caps, limits=limits)
        self.to_server: Callable[[bytes], bytes] = bytes
        self.to_device: Callable[[bytes], bytes] = bytes
        self.device_events: list[Message] = []
        self.server_events: list[Message] = []

    @classmethod
    def opened(cls, chunk: int | None = None, limits: Limits | None = None) -> EndpointPair:
        """Return a pair whose handshake is over and whose events were taken."""
        pair = cls(chunk, limits=limits)
        pair.pump()
        pair.forget()
        return pair

    @classmethod
    def attached(
        cls, chunk: int | None = None, limits: Limits | None = None, stream: int = 1
    ) -> EndpointPair:
        """Return an open pair with a session on a stream and plenty of credit."""
        pair = cls.opened(chunk, limits)
        pair.attach(stream)
        return pair

    def attach(self, stream: int = 1, *, credit: int = 1 << 24, last: int = 100) -> None:
        """Attach a session to a stream and grant credit."""
        self.device.send(Open(stream=stream, spec=make_spec().to_map()))
        self.pump()
        self.server.send(Opened(stream=stream, session=SESSION, epoch=1))
        self.server.send(Credit(stream=stream, offset=credit, last=last))
        self.pump()
        self.forget()

    def deliver_to_server(self) -> None:
        """Deliver what the device has to say."""
        self._feed(self.server, self.to_server(b"".join(self.device.data_to_send())))
        self.server_events += self.server.events_received()

    def deliver_to_device(self) -> None:
        """Deliver what the server has to say."""
        self._feed(self.device, self.to_device(b"".join(self.server.data_to_send())))
        self.device_events += self.device.events_received()

    def pump(self) -> None:
        """Deliver in both directions until both have said all; a handshake takes two round trips."""
        for _ in range(3):
            self.deliver_to_server()
            self.deliver_to_device()

    def forget(self) -> None:
        """Drop the events so far."""
        self.device_events, self.server_events = [], []

    def _feed(self, endpoint: Endpoint, data: bytes) -> None:
        step = self.chunk or max(len(data), 1)
        for start in range(0, len(data), step):
            endpoint.receive_data(data[start : start + step])


def closing(endpoint: Endpoint) -> tuple[type[MobiLLMError | None], int | None]:
    """Return class and code of the reason an endpoint closed for."""
    return type(endpoint.close_exc), getattr(endpoint.close_exc, "code", None)


def output(endpoint: Endpoint) -> bytes:
    """Return what an endpoint has to say."""
    return b"".join(bytes(buffer) for buffer in endpoint.data_to_send())


def wire_bytes(messages: Message | Sequence[Message]) -> bytes:
    """Return messages as they are on the wire."""
    if isinstance(messages, Message):
        messages = [messages]
    return b"".join(bytes(buffer) for message in messages for buffer in message.encode())


def raw_frame(
    frame_type: int,
    meta: bytes | dict[str, object],
    payload: bytes | None = None,
    *,
    stream: int = 0,
    seq: int = 0,
    magic: bytes = b"ML",
    version: int = 1,
    flags: int = 0,
    reserved: int = 0,
    body_size: int | None = None,
    meta_size: int | None = None,
    bin_header: bytes | None = None,
) -> bytes:
    """Return a frame built by hand, whose checksums are right however wrong its fields are."""
    head: bytes = meta if isinstance(meta, bytes) else msgpack.packb(meta)
    body = head
    if payload is not None:
        body += bin_header if bin_header is not None else b"\xc6" + struct.pack(">I", len(payload))
        body += payload
    fields = struct.pack(
        ">2sBBHHIHHQ",
        magic,
        version,
        frame_type,
        flags,
        stream,
        len(body) if body_size is None else body_size,
        len(head) if meta_size is None else meta_size,
        reserved,
        seq,
    )
    return fields + struct.pack(">II", crc32c.crc32c(fields), crc32c.crc32c(body)) + body


def make_spec() -> SessionSpec:
    """Return a small valid spec."""
    return SessionSpec(
        task="classification",
        outputs=2,
        model=ModelSpec(name="tiny", hidden_size=8, layers=2, taps=(1, 2)),
        optimizer=OptimizerSpec(schedule="constant"),
    )


def make_data(
    seq: int = 1,
    tensor: int = 0,
    payload: bytes = bytes(8),
    *,
    stream: int = 1,
    offset: int = 0,
    values: int | None = None,
) -> Data:
    """Return one part of a tensor of 32-bit integers, whole unless ``values`` says otherwise."""
    first = offset == 0
    shape = (len(payload) // 4 if values is None else values,)
    return Data(
        stream=stream,
        seq=seq,
        tensor=tensor,
        offset=offset,
        format=Format.I32 if first else None,
        block=0 if first else None,
        shape=shape if first else None,
        payload=payload,
    )


def make_batch(seq: int = 1, *, stream: int = 1, size: int = 64, part: int = 24) -> list[Message]:
    """Return the messages of a whole batch of two tensors, in parts of at most ``part`` bytes."""
    messages: list[Message] = []
    checksum = 0
    for tensor in (0, 1001):
        content = bytes((seq + tensor + i) % 251 for i in range(size))
        assert TensorHeader(Format.I32, 0, (size // 4,)).size == size
        for offset in range(0, size, part):
            payload = content[offset : offset + part]
            checksum = crc32c.crc32c(payload, checksum)
            messages.append(make_data(seq, tensor, payload, stream=stream, offset=offset, values=size // 4))
    messages.append(Commit(stream=stream, seq=seq, tensors=2, size=2 * size, checksum=checksum, samples=4))
    return messages


def examples(stream: int = 1) -> list[Message]:
    """Return one message of each type; those of sessions are on ``stream``, DATA is a whole tensor."""
    one = bytes(8)
    return [
        Hello(min_version=1, max_version=1, tenant=TENANT, nonce=DEVICE_NONCE, caps=("a",), agent="x"),
        Challenge(version=1, nonce=SERVER_NONCE, caps=("a",)),
        Auth(mac=DIGEST),
        Welcome(mac=DIGEST, frame=1 << 20, batch=1 << 26, blob=1 << 31, streams=64),
        Reject(code=8, text="no", retry_after=1.5),
        Open(stream=stream, session=SESSION),
        Opened(stream=stream, session=SESSION, epoch=2, received=3, durable=2, applied=1, missing=(DIGEST,)),
        Blob(stream=stream, digest=DIGEST, total=8, offset=0, payload=one),
        Stored(stream=stream, digest=DIGEST),
        make_data(stream=stream),
        Commit(stream=stream, seq=1, tensors=1, size=8, checksum=crc32c.crc32c(one), samples=1),
        Abort(stream=stream, seq=1, text="why"),
        Finish(stream=stream, seq=1),
        Finished(stream=stream, steps=7, loss=0.5),
        Eval(stream=stream),
        Evaluated(stream=stream, steps=7, samples=3, values={"loss": 0.25}),
        Pull(stream=stream),
        Weights(stream=stream, digest=DIGEST, total=8, offset=0, steps=7, payload=one),
        Detach(stream=stream),
        Ack(stream=stream, received=3, durable=2, applied=1),
        Credit(stream=stream, offset=1 << 20, last=4),
        Gap(stream=stream, expected=2),
        Metrics(stream=stream, step=1, epoch=1, loss=0.5, lr=0.1, queue=2, busy=0.5, spans=((0, 1, 2, 3),)),
        Ping(data=one),
        Pong(data=one, time=5),
        Error(code=28, text="broken", retry_after=2.0),
        Goaway(code=0, text="bye", grace=3.0),
        Bye(),
    ]


def example(frame_type: FrameType, stream: int = 1) -> Message:
    """Return the example of one type; ERROR is on ``stream`` too, if that is not 0."""
    if frame_type is FrameType.ERROR:
        return Error(stream=stream, code=28, text="broken")
    return next(message for message in examples(stream) if message.type is frame_type)
