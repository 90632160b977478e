"""The base of all messages: fields with rules, valid from the constructor on.

``stream``, ``seq`` and ``payload`` travel outside the metadata map; all other fields are keys of the
map under their own names. ``docs/protocol.md``, section "Metadata".
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple, Self

import msgpack

from ..errors import ErrorCode, RemoteProtocolError
from .checksum import crc32c
from .frames import HEADER_SIZE, MAX_META, PAYLOAD_HEADER_SIZE, Frame, FrameType, encode_frame
from .schema import Rule, decode_map, integer, number, text

__all__ = ["COUNT", "NAME", "SECONDS", "SENTENCE", "SEQ", "SIZE", "Message", "buffer", "wire"]

SEQ = integer(0, 2**63 - 1)
SIZE = integer(0, 2**48)
COUNT = integer(0, 2**32 - 1)
NAME = text(64)
SENTENCE = text(512)
SECONDS = number(0.0, 86400.0)

_OUTSIDE = frozenset({"stream", "seq", "payload"})


def wire(rule: Rule, default: Any = dataclasses.MISSING) -> Any:
    """Declare a field of a message with the rule it obeys."""
    return dataclasses.field(default=default, metadata={"rule": rule})


class _Encoded:
    """What a message's frame is made of, computed once: a message never changes."""

    __slots__ = ("_checksum", "_meta")
    _checksum: int
    _meta: bytes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Message(_Encoded):
    """Base of all messages.

    Attributes:
        stream: 0 for the connection, else the stream of one session.
        seq: batch number, from 1; 0 where none applies.
        has_seq: whether messages of this type may concern a batch; all others have seq 0.

    """

    type: ClassVar[FrameType]
    has_seq: ClassVar[bool] = False
    stream: int = wire(integer(0, 0xFFFF), 0)
    seq: int = wire(SEQ, 0)

    def __post_init__(self) -> None:
        for name, rule in _plan(type(self)).rules:
            try:
                rule(getattr(self, name))
            except ValueError as exc:
                raise ValueError(f"{self.type.name}.{name} must be {exc}") from None
        if self.seq and not self.has_seq:
            raise ValueError(f"{self.type.name}.seq must be 0, since it concerns no batch")
        self._check()

    def _check(self) -> None:
        """Check what no single field's rule can; raise ValueError."""

    def _payload(self) -> bytes | memoryview | None:
        return getattr(self, "payload", None)

    def _map(self) -> bytes:
        try:
            return self._meta
        except AttributeError:
            pass
        values = {}
        for name in _plan(type(self)).inside:
            value = getattr(self, name)
            if value is not None:
                values[name] = value
        meta: bytes = msgpack.packb(values)
        if len(meta) > MAX_META:
            raise ValueError(f"{self.type.name}: a map of {len(meta)} bytes; the limit is {MAX_META}")
        object.__setattr__(self, "_meta", meta)
        return meta

    def payload_checksum(self) -> int:
        """Return the CRC32C of the payload; 0 for messages without one."""
        try:
            return self._checksum
        except AttributeError:
            pass
        checksum = crc32c(self._payload() or b"")
        object.__setattr__(self, "_checksum", checksum)
        return checksum

    def frame_size(self) -> int:
        """Return the bytes of the message's frame, header included.

        Raises:
            ValueError: the map would exceed 4 KiB.

        """
        payload = self._payload()
        return HEADER_SIZE + len(self._map()) + (0 if payload is None else PAYLOAD_HEADER_SIZE + len(payload))

    def encode(self) -> list[bytes | memoryview]:
        """Return the message's frame as buffers; a payload is handed on without a copy.

        Raises:
            ValueError: the map would exceed 4 KiB.

        """
        meta, payload = self._map(), self._payload()
        return encode_frame(self.type, self.stream, self.seq, meta, payload, self.payload_checksum())

    @classmethod
    def decode(cls, frame: Frame) -> Self:
        """Read the message of a frame; keys that are not known are ignored unless critical.

        Raises:
            RemoteProtocolError: a field is missing or breaks its rule.

        """
        found = decode_map(frame.meta)
        known = _plan(cls).known
        if not known.issuperset(found):
            if any(key.startswith("!") for key in found if key not in known):
                raise RemoteProtocolError(
                    ErrorCode.UNSUPPORTED, f"{cls.type.name} has an unknown critical key"
                )
            found = {key: value for key, value in found.items() if key in known}
        found["stream"] = frame.stream
        found["seq"] = frame.seq if cls.has_seq else 0
        if frame.payload is not None:
            found["payload"] = frame.payload
        try:
            message = cls(**found)
        except TypeError:
            missing = [
                field.name
                for field in dataclasses.fields(cls)
                if field.default is dataclasses.MISSING and field.name not in found
            ]
            text_ = f"{cls.type.name} lacks {', '.join(missing)}"
            raise RemoteProtocolError(ErrorCode.DECODE, text_) from None
        except ValueError as exc:
            raise RemoteProtocolError(ErrorCode.SCHEMA_MISMATCH, str(exc)) from None
        object.__setattr__(message, "_checksum", frame.checksum)
        return message


class _Plan(NamedTuple):
    """What is needed of a message class again and again.

    Attributes:
        rules: name and rule of each field.
        inside: names of the fields that are in the map, in order.
        known: the same, as a set.

    """

    rules: tuple[tuple[str, Rule], ...]
    inside: tuple[str, ...]
    known: frozenset[str]


_PLANS: dict[type[Message], _Plan] = {}


def _plan(cls: type[Message]) -> _Plan:
    plan = _PLANS.get(cls)
    if plan is None:
        rules = tuple((field.name, field.metadata["rule"]) for field in dataclasses.fields(cls))
        inside = tuple(name for name, _ in rules if name not in _OUTSIDE)
        plan = _PLANS[cls] = _Plan(rules, inside, frozenset(inside))
    return plan


def buffer(value: object) -> None:
    """Accept bytes and memoryviews whose length is their number of bytes."""
    flat = isinstance(value, memoryview) and value.ndim == value.itemsize == 1 and value.c_contiguous
    if not isinstance(value, bytes) and not flat:
        raise ValueError("bytes, or a contiguous memoryview of bytes")
