"""Servers and clients broken on purpose: the suite must see each of them, and name the statement."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import crc32c
import pytest
import zstandard

from mobillm.conformance import Result, client_suite, select, server_suite
from mobillm.device import Session
from mobillm.errors import ConfigError, ErrorCode, RemoteProtocolError
from mobillm.protocol import (
    HEADER_SIZE,
    Ack,
    Bye,
    Challenge,
    Credit,
    Data,
    Detach,
    Endpoint,
    Evaluated,
    FrameBuffer,
    Gap,
    Message,
    Open,
    Opened,
    Pong,
    Role,
    auth,
    compression,
    credit,
    frames,
    message,
    schema,
    stream,
    transfer,
)
from mobillm.server import attachment, batch, gateway, training
from mobillm.transport import Connection
from tests.conformance.running import client_results, running, server_results

Patch = pytest.MonkeyPatch
Break = Callable[[Patch], None]


def _sends(patch: Patch, change: Callable[[Connection, Message], Message | None]) -> None:
    """Change what either side sends; None leaves it out."""
    original = Connection.post

    def post(self: Connection, sent: Message) -> None:
        changed = change(self, sent)
        if changed is not None:
            original(self, changed)

    patch.setattr(Connection, "post", post)


def _only(role: Role, kind: type[Message], make: Callable[[Any], Message | None]) -> Break:
    def apply(patch: Patch) -> None:
        def change(self: Connection, sent: Message) -> Message | None:
            ours = self.endpoint.role is role and isinstance(sent, kind)
            return make(sent) if ours else sent

        _sends(patch, change)

    return apply


def _no_body_checksum(patch: Patch) -> None:
    original = FrameBuffer._finish

    def finish(self: FrameBuffer, header: Any, head: bytes) -> Any:
        payload = b"" if self._payload is None else self._payload[: self._size]
        checksum = crc32c.crc32c(payload, crc32c.crc32c(head))
        return original(self, header._replace(checksum=checksum), head)

    patch.setattr(FrameBuffer, "_finish", finish)


def _no_header_checksum(patch: Patch) -> None:
    original = frames._Header.parse

    def parse(data: memoryview, start: int, max_body: int) -> Any:
        header = bytearray(data[start : start + HEADER_SIZE])
        header[24:28] = crc32c.crc32c(header[:24]).to_bytes(4, "big")
        return original(memoryview(header), 0, max_body)

    patch.setattr(frames._Header, "parse", parse)


def _any_proof(patch: Patch) -> None:
    patch.setattr(auth.Transcript, "matches", staticmethod(lambda _expected, _seen: True))


def _tells_tenants_apart(patch: Patch) -> None:
    original = Endpoint._answer_auth

    def answer(self: Endpoint, received: Any) -> None:
        if self.tenant not in self._keys:
            self.fail(ErrorCode.AUTH_FAILED, "there is no such tenant")
            return
        original(self, received)

    patch.setattr(Endpoint, "_answer_auth", answer)


def _constant_nonce(patch: Patch) -> None:
    constant = argparse.Namespace(urandom=lambda size: b"n" * size)
    patch.setattr("mobillm.transport.server.os", constant)


def _never_closes(patch: Patch) -> None:
    patch.setattr(Connection, "_shut", lambda self: None)


def _applies_twice(patch: Patch) -> None:
    original = attachment.Attachment._commit

    async def commit(self: attachment.Attachment, received: Any) -> None:
        await original(self, dataclasses.replace(received, seq=self.session.received + 1))

    patch.setattr(attachment.Attachment, "_commit", commit)


def _acknowledges_early(patch: Patch) -> None:
    original = attachment.Attachment._receive_data

    def receive(self: attachment.Attachment, received: Data) -> None:
        original(self, received)
        self._post(Ack(stream=self.stream, received=received.seq, durable=0, applied=0))

    patch.setattr(attachment.Attachment, "_receive_data", receive)


def _reflects(patch: Patch) -> None:
    original = schema.decode_map

    def decode(data: bytes) -> dict[str, Any]:
        try:
            return original(data)
        except RemoteProtocolError as exc:
            raise RemoteProtocolError(exc.code, f"{exc.text}: {data!r}"[:500]) from None

    patch.setattr(message, "decode_map", decode)


def _reflects_specs(patch: Patch) -> None:
    patch.setattr(gateway, "plain_spec", str)


def _takes_critical_keys(patch: Patch) -> None:
    original = schema.decode_map
    patch.setattr(message, "decode_map", lambda data: _without(original(data), "!"))


def _without(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not key.startswith(prefix)}


def _refuses_unknown_keys(patch: Patch) -> None:
    original = schema.decode_map

    def decode(data: bytes) -> dict[str, Any]:
        values = original(data)
        if "grease" in values or "unknown" in values:
            raise RemoteProtocolError(ErrorCode.DECODE, "an unknown key")
        return values

    patch.setattr(message, "decode_map", decode)


def _shows_foreign_sessions(patch: Patch) -> None:
    original = gateway.Gateway._find

    async def find(self: gateway.Gateway, tenant: str, received: Open, caps: tuple[str, ...]) -> Any:
        return self.sessions.get(received.session or b"") or await original(self, tenant, received, caps)

    patch.setattr(gateway.Gateway, "_find", find)


def _keeps_older_attachments(patch: Patch) -> None:
    original = attachment.Attachment.fail

    def fail(self: attachment.Attachment, code: ErrorCode, text: str) -> None:
        if code is not ErrorCode.SESSION_TAKEN_OVER:
            original(self, code, text)

    patch.setattr(attachment.Attachment, "fail", fail)


def _trains_held_out(patch: Patch) -> None:
    original = training.Training.first_epoch

    async def first_epoch(self: training.Training, item: batch.Batch, queue: int) -> None:
        await original(self, dataclasses.replace(item, heldout=False), queue)

    patch.setattr(training.Training, "first_epoch", first_epoch)


def _names_unknown_capabilities(patch: Patch) -> None:
    original = Endpoint._shake

    def shake(self: Endpoint, sent: Any) -> None:
        original(self, dataclasses.replace(sent, caps=("surprise",)) if isinstance(sent, Challenge) else sent)

    patch.setattr(Endpoint, "_shake", shake)


def _other_digest(patch: Patch) -> None:
    wrong = argparse.Namespace(sha256=lambda data: hashlib.sha256(bytes(data) + b"x"))
    patch.setattr("mobillm.server.attachment.hashlib", wrong)


def _one_code(patch: Patch) -> None:
    original = Endpoint.fail

    def fail(self: Endpoint, code: int, text: str, retry_after: float | None = None) -> None:
        original(self, ErrorCode.PROTOCOL if self.role is Role.SERVER else code, text, retry_after)

    patch.setattr(Endpoint, "fail", fail)


def _answers_late(patch: Patch) -> None:
    answer = Connection._answer

    def later(self: Connection, received: Any) -> None:
        self._loop.call_soon(answer, self, received)

    patch.setattr(Connection, "_answer", later)


def _expands_anything(patch: Patch) -> None:
    original = zstandard.ZstdDecompressor

    def decompress(frame: memoryview, size: int) -> memoryview:
        try:
            content = original().decompress(frame, max_output_size=1 << 20)
        except zstandard.ZstdError as exc:
            raise RemoteProtocolError(ErrorCode.DECOMPRESS, "damaged") from exc
        return memoryview(content[:size].ljust(size, b"\0"))

    patch.setattr(batch, "decompress", decompress)


def _fails_the_session(patch: Patch) -> None:
    async def decompressed(self: attachment.Attachment, received: Any) -> Any:
        try:
            return received.decompressed()
        except RemoteProtocolError as exc:
            raise ConfigError("tensors", "damaged", exc.text) from None

    patch.setattr(attachment.Attachment, "_decompressed", decompressed)


def _loses_the_session(patch: Patch) -> None:
    original = attachment.Attachment._decompressed

    async def decompressed(self: attachment.Attachment, received: Any) -> Any:
        self.session.received = received.seq
        return await original(self, received)

    patch.setattr(attachment.Attachment, "_decompressed", decompressed)


def _set(target: Any, name: str, value: Any) -> Break:
    return lambda patch: patch.setattr(target, name, value)


def _any_target(patch: Patch) -> None:
    original = batch.Batch.check

    def check(self: batch.Batch, spec: Any) -> None:
        try:
            original(self, spec)
        except ConfigError as exc:
            if exc.field != "targets":
                raise

    patch.setattr(batch.Batch, "check", check)


def _takes_frames_unasked(patch: Patch) -> None:
    original = transfer.BatchTransfer.__init__

    def init(self: transfer.BatchTransfer, limit: int, _compression: bool = False) -> None:
        original(self, limit, True)

    patch.setattr(transfer.BatchTransfer, "__init__", init)


def _first_epoch(sent: Opened) -> Opened:
    return dataclasses.replace(sent, epoch=1)


SERVER = Role.SERVER

# What is broken, the cases that are run, and the statement that a failure must name.
SERVERS: dict[str, tuple[Break, str, str]] = {
    "no body checksum": (_no_body_checksum, "F-25*", "F-25"),
    "no header checksum": (_no_header_checksum, "F-17*", "F-17"),
    "critical flags ignored": (_set(frames, "CRITICAL_FLAGS", 0), "F-20*", "F-20"),
    "optional flags refused": (_set(frames, "CRITICAL_FLAGS", 0xFFFF), "F-27*", "F-27"),
    "optional types refused": (_set(frames, "_OPTIONAL", range(0)), "V-3*", "V-3"),
    "critical types skipped": (_set(frames, "_OPTIONAL", range(0x100)), "V-4*", "V-4"),
    "any proof accepted": (_any_proof, "A-*", "A-3"),
    "an unknown tenant told apart": (_tells_tenants_apart, "A-5*", "A-5"),
    "the same nonce again": (_constant_nonce, "A-12*", "A-12"),
    "capabilities that were not offered": (_names_unknown_capabilities, "H-5*", "H-5"),
    "connections not closed after a refusal": (_never_closes, "H-4*", "H-4"),
    "credit ignored": (_set(credit.Credit, "allows", lambda self, size, seq: True), "credit", "C-10"),
    "duplicates applied": (_applies_twice, "delivery", "X-14"),
    "acknowledged before COMMIT": (_acknowledges_early, "delivery", "X-8"),
    "gaps not reported": (_only(SERVER, Gap, lambda _: None), "B-32*", "B-32"),
    "PONG with other data": (_only(SERVER, Pong, lambda sent: Pong(data=sent.data[::-1])), "K-8*", "K-8"),
    "BYE not answered": (_only(SERVER, Bye, lambda _: None), "K-18*", "K-18"),
    "DETACH not answered": (_only(SERVER, Detach, lambda _: None), "O-35*", "O-35"),
    "no credit": (_only(SERVER, Credit, lambda _: None), "B-4*", "B-4"),
    "the same epoch again": (
        _only(SERVER, Opened, lambda sent: dataclasses.replace(sent, epoch=1)),
        "O-4*",
        "O-4",
    ),
    "texts that reflect": (_reflects, "M-7*", "M-7"),
    "texts that reflect the spec": (_reflects_specs, "M-7*", "M-7"),
    "critical keys taken": (_takes_critical_keys, "V-8*", "V-8"),
    "unknown keys refused": (_refuses_unknown_keys, "V-2*", "V-2"),
    "foreign sessions shown": (_shows_foreign_sessions, "O-18*", "O-18"),
    "older attachments not ended": (_keeps_older_attachments, "O-19*", "O-19"),
    "held-out batches trained on": (_trains_held_out, "B-12*", "B-12"),
    "targets not checked": (_any_target, "B-30*", "B-30"),
    "ABORT ignored": (_set(transfer.BatchTransfer, "abort", lambda self, received: None), "B-10*", "B-10"),
    "parts in any order": (_set(transfer.FileTransfer, "part", lambda self, received: None), "W-1*", "W-1"),
    "weights with another digest": (_other_digest, "O-30*", "W-1"),
    "samples counted wrong": (
        _only(SERVER, Evaluated, lambda sent: dataclasses.replace(sent, samples=sent.samples + 1)),
        "O-8*",
        "D-35",
    ),
    "sessions that begin anew": (
        _only(SERVER, Opened, lambda sent: dataclasses.replace(sent, received=0, durable=0, applied=0)),
        "O-9*",
        "X-3",
    ),
    "one code for all refusals": (_one_code, "F-17*", "F-17"),
    "frames of any content": (_expands_anything, "Z-6*", "Z-6"),
    "frames of any number": (_expands_anything, "Z-9*", "Z-9"),
    "any size of a frame": (_set(transfer, "compressed_sizes", lambda size: range(1 << 50)), "Z-4*", "Z-4"),
    "any window": (_set(compression, "WINDOW", 1 << 40), "Z-7*", "Z-7"),
    "frames unasked for": (_takes_frames_unasked, "Z-2*", "Z-2"),
    "a bad frame as an error of the session": (_fails_the_session, "Z-9*", "Z-10"),
    "a bad frame that counts as received": (_loses_the_session, "Z-10*", "X-3"),
    "PING answered after what follows it": (_answers_late, "K-8*", "K-8"),
}


def _named(results: list[Result]) -> set[str]:
    """Return the statements that failures name."""
    return {name for result in results if result.deviation is not None for name in result.case.statements}


@pytest.mark.parametrize("name", SERVERS)
def test_broken_server_is_found(name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least one case fails, and its statements tell which rule was broken."""
    apply, pattern, statement = SERVERS[name]
    cases = select(server_suite(), [pattern])[:60]
    apply(monkeypatch)
    with running(tmp_path, bound=1.0) as target:
        named = _named(server_results(target, cases))
    monkeypatch.undo()
    assert statement in named, f"{name}: failures name {sorted(named)}"


def _ignores_credit(patch: Patch) -> None:
    original = stream.Stream.has_credit

    def has_credit(self: stream.Stream, sent: Message, size: int) -> bool:
        return self.role is Role.DEVICE or original(self, sent, size)

    patch.setattr(stream.Stream, "has_credit", has_credit)


def _takes_any_weights(patch: Patch) -> None:
    def receive(self: Session, received: Any) -> None:
        self._pulls_answered += 1

    patch.setattr(Session, "_receive_weights", receive)


def _refuses_in_silence(patch: Patch) -> None:
    original = Endpoint.data_to_send

    def data_to_send(self: Endpoint) -> list[bytes | memoryview]:
        output = original(self)
        return [] if self.role is Role.DEVICE and self.is_closed() else output

    patch.setattr(Endpoint, "data_to_send", data_to_send)


def _states_no_size(patch: Patch) -> None:
    def compress(packed: memoryview) -> memoryview | None:
        frame = zstandard.ZstdCompressor(write_content_size=False).compress(packed)
        return memoryview(frame) if len(frame) in compression.compressed_sizes(packed.nbytes) else None

    patch.setattr("mobillm.codec.compress", compress)


DEVICE = Role.DEVICE

CLIENTS: dict[str, tuple[Break, str, str]] = {
    "credit ignored": (_ignores_credit, "C-3*", "C-3"),
    "any server believed": (_any_proof, "A-6*", "A-6"),
    "no body checksum": (_no_body_checksum, "F-25*", "F-25"),
    "weights not checked": (_takes_any_weights, "W-10*", "W-10"),
    "PING not answered": (_only(DEVICE, Pong, lambda _: None), "K-8*", "K-8"),
    "unknown keys refused": (_refuses_unknown_keys, "V-2*", "V-2"),
    "optional types refused": (_set(frames, "_OPTIONAL", range(0)), "V-3*", "V-3"),
    "frames without their size": (_states_no_size, "Z-1*", "Z-6"),
    "refusals without a reason": (_refuses_in_silence, "H-15*", "H-15"),
}


@pytest.mark.parametrize("name", CLIENTS)
def test_broken_client_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least one case fails, and its statements tell which rule was broken."""
    apply, pattern, statement = CLIENTS[name]
    cases = select(client_suite(), [pattern])[:8]
    apply(monkeypatch)
    named = _named(client_results(cases))
    monkeypatch.undo()
    assert statement in named, f"{name}: failures name {sorted(named)}"
