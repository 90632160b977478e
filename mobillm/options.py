"""Options of a connection: how long to wait and how much to hold."""

from __future__ import annotations

import dataclasses
import math

from .errors import ConfigError

__all__ = ["Limits", "Timeouts"]

KIB = 1024
MIB = 1024 * KIB


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Bounds of every wait, in seconds; ``None`` switches a bound off.

    Attributes:
        connect: TCP and TLS, on the device.
        handshake: from the first byte to WELCOME, on both sides, in total.
        request: an answer to OPEN, a blob upload's confirmation, EVAL's start or PULL's first chunk.
        keepalive: silence after which a PING is sent.
        keepalive_reply: silence after that PING after which the peer counts as dead.
        drain: a graceful stop; what is left after it is aborted.
        unacknowledged: how long sent bytes may stay without an acknowledgement of the peer's TCP, or the
            peer's window closed, before the connection counts as lost (TCP_USER_TIMEOUT, RFC 5482);
            only where the system has it.
        reconnect: how long a device tries to come back after its connection was lost; None tries for
            ever. A first connection that fails is not tried again.
        away: how long the device of an unfinished session may be away before the server writes the session
            to the disk and frees its memory until the device comes back; None keeps it in memory.

    """

    connect: float | None = 10.0
    handshake: float | None = 5.0
    request: float | None = 30.0
    keepalive: float | None = 20.0
    keepalive_reply: float | None = 20.0
    drain: float | None = 10.0
    unacknowledged: float | None = 30.0
    reconnect: float | None = 60.0
    away: float | None = 60.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not (0 < value < math.inf):
                raise ConfigError(f"timeouts.{field.name}", value, "a positive number of seconds")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of everything that is held in memory, in bytes unless a field says otherwise.

    Attributes:
        frame: largest frame body; at least 16 KiB and at most 4 MiB.
        chunk: payload bytes that a sender puts into one DATA or BLOB frame; fits into ``frame``.
        batch: largest batch, all tensors together, packed.
        blob: largest blob (an LM head, say).
        queue: packed bytes that wait for the network on the device, and the credit window that the
            server grants to one session.
        batches: batches of one session between arrival and training, a count.
        streams: sessions on one connection, a count.
        outbound: bytes that may wait in the socket's send buffer before a slow reader is cut off.
        handshakes: connections that may be in the handshake at once on the server, a count.
        handshakes_per_host: the same from one IP address, or one /64 network of IPv6, a count.
        failed_logins: that one address may have before it must pause, a count; a tenant twice as many.
        sessions: sessions of one tenant that are attached or not finished, a count.
        stored: activations of one tenant on the server's disk.
        parameters: of the largest side network that the server trains, a count; each takes about 24 bytes
            of memory in training. Frozen ones in the layers above a tap count a tenth.
        memory: packed bytes of all sessions of a server that wait for training, credit included; at least
            a frame for each attached session, beyond which attaching is refused for a while. Also what one
            step in the layers above a tap may take, their weights included.
        steps: optimizer steps a minute of all sessions of one tenant, a count; 0 bounds nothing.

    """

    frame: int = 1 * MIB
    chunk: int = 512 * KIB
    batch: int = 64 * MIB
    blob: int = 2048 * MIB
    queue: int = 64 * MIB
    batches: int = 16
    streams: int = 64
    outbound: int = 4 * MIB
    handshakes: int = 64
    handshakes_per_host: int = 8
    failed_logins: int = 10
    sessions: int = 64
    stored: int = 65536 * MIB
    parameters: int = 128 << 20
    memory: int = 4096 * MIB
    steps: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("frame", 16 * KIB, 4 * MIB),
            ("chunk", 1 * KIB, 4 * MIB - 8 * KIB),
            ("batch", 16 * KIB, 1 << 40),
            ("blob", 16 * KIB, 1 << 40),
            ("queue", 16 * KIB, 1 << 40),
            ("batches", 1, 1 << 20),
            ("streams", 1, 65535),
            ("outbound", 64 * KIB, 1 << 40),
            ("handshakes", 1, 1 << 20),
            ("handshakes_per_host", 1, 1 << 20),
            ("failed_logins", 0, 1 << 20),
            ("sessions", 1, 1 << 20),
            ("stored", 16 * KIB, 1 << 50),
            ("parameters", 1, 1 << 40),
            ("memory", 64 * KIB, 1 << 50),
            ("steps", 0, 1 << 30),
        ):
            value = getattr(self, name)
            if not (isinstance(value, int) and low <= value <= high):
                raise ConfigError(f"limits.{name}", value, f"an integer from {low} to {high}")
        # 8 KiB leave room for the 4 KiB metadata map and the five bytes of the bin header.
        if self.chunk > self.frame - 8 * KIB:
            raise ConfigError(
                "limits.chunk", self.chunk, f"at most limits.frame - 8192 = {self.frame - 8192}"
            )

    def narrowed(self, *, frame: int, batch: int, blob: int, streams: int) -> Limits:
        """Return these limits, cut to those of the peer."""
        frame = min(self.frame, frame)
        return dataclasses.replace(
            self,
            frame=frame,
            chunk=min(self.chunk, frame - 8192),
            batch=min(self.batch, batch),
            blob=min(self.blob, blob),
            streams=min(self.streams, streams),
        )
