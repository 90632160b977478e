"""Tests of mobillm.protocol.state: the tables of docs/protocol.md, walked move by move on both ends."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import re
from typing import Any

import pytest

from mobillm.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from mobillm.protocol import (
    CONNECTION,
    STREAM,
    Detach,
    Endpoint,
    Error,
    Finish,
    FrameType,
    Message,
    Open,
    Phase,
    Role,
    StreamPhase,
)
from tests.helpers import SESSION, EndpointPair, example, make_data, wire_bytes

Moves = dict[str, dict[tuple[Role, FrameType], str]]

SENDERS = {"D": (Role.DEVICE,), "S": (Role.SERVER,), "": (Role.DEVICE, Role.SERVER)}
CLAUSE = re.compile(r"([DS]?) ?([A-Z, ]+?)(?: by either)?(?:: no change| → (\w+)( \(.*\))?)")
HANDSHAKE = {FrameType.HELLO, FrameType.CHALLENGE, FrameType.AUTH, FrameType.WELCOME}


def read_table(title: str) -> Moves:
    """Read one of the two tables of the specification's section "States"."""
    text = (pathlib.Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    section = text.split("\n## States\n")[1].split("\n## ")[0]
    table = re.split(rf"\n{title}[^\n]*:\n\n", section)[1].split("\n\n")[0]
    moves: Moves = {}
    for line in table.splitlines()[2:]:
        states, clauses = (cell.strip() for cell in line.strip("|").split("|"))
        for state in states.split(", "):
            entry = moves.setdefault(state, {})
            for clause in clauses.split("; "):
                if clause == "nothing":
                    continue
                found = CLAUSE.fullmatch(clause)
                assert found, clause
                for sender, name in itertools.product(SENDERS[found[1]], found[2].split(", ")):
                    entry[sender, FrameType[name]] = found[3] or state
    return moves


CONNECTION_TABLE = read_table("Connection")
STREAM_TABLE = read_table("Stream")


def test_tables_are_those_of_the_specification() -> None:
    """[S-1] The tables of the code and those of the text hold the same moves."""
    assert {p.name: {m: n.name for m, n in t.items()} for p, t in CONNECTION.items()} == CONNECTION_TABLE
    assert {p.name: {m: n.name for m, n in t.items()} for p, t in STREAM.items()} == STREAM_TABLE
    assert set(CONNECTION_TABLE) == {phase.name for phase in Phase}
    assert set(STREAM_TABLE) == {phase.name for phase in StreamPhase}


def test_roles_are_peers() -> None:
    """Each role's peer is the other one."""
    assert Role.DEVICE.peer is Role.SERVER
    assert Role.SERVER.peer is Role.DEVICE


def on_stream(frame_type: FrameType, stream: int) -> Message:
    """Return an example of any type on any stream, legal there or not."""
    return dataclasses.replace(example(frame_type), stream=stream)


def snapshot(endpoint: Endpoint) -> tuple[Any, ...]:
    """Return all that a refused send must leave as it is."""
    stream = endpoint._stream(1)
    return (
        endpoint.phase,
        endpoint.close_exc,
        stream.phase,
        endpoint.credit(1),
        endpoint.batch_summary(1),
        endpoint.data_to_send(),
        endpoint.events_received(),
    )


def side(pair: EndpointPair, role: Role) -> Endpoint:
    """Return the end that plays a role."""
    return pair.device if role is Role.DEVICE else pair.server


def refuse_send(endpoint: Endpoint, message: Message) -> None:
    """Check that a send is refused and changes nothing."""
    before = snapshot(endpoint)
    with pytest.raises(LocalProtocolError) as caught:
        endpoint.send(message)
    assert caught.value.code is ErrorCode.PROTOCOL, message
    assert snapshot(endpoint) == before, message


def refuse_receive(endpoint: Endpoint, message: Message) -> None:
    """Check that a received message closes the connection and that the peer is told."""
    endpoint.receive_data(wire_bytes(message))
    assert isinstance(endpoint.close_exc, RemoteProtocolError), message
    assert endpoint.close_exc.code is ErrorCode.PROTOCOL, message
    assert endpoint.is_closed()
    refusal = b"".join(bytes(buffer) for buffer in endpoint.data_to_send())
    assert refusal[3] in (FrameType.ERROR, FrameType.REJECT)
    assert endpoint.events_received() == []


@pytest.mark.parametrize("sender", Role)
@pytest.mark.parametrize("phase", Phase)
def test_every_move_of_the_connection(phase: Phase, sender: Role) -> None:
    """Each type on stream 0 in each state, sent and received.

    [S-1] [S-2] [S-7] [S-12] [H-1] [H-9] [H-10] [K-20]
    """
    for frame_type in FrameType:
        message = on_stream(frame_type, 0)
        target = CONNECTION_TABLE[phase.name].get((sender, frame_type))
        opened = phase in (Phase.OPEN, Phase.DRAINING, Phase.CLOSING)

        us = side(EndpointPair.opened(), sender)
        us.phase = phase
        if target is None or not opened:
            refuse_send(us, message)
        else:
            us.send(message)
            assert us.phase.name == target
            assert b"".join(bytes(part) for part in us.data_to_send()) == wire_bytes(message)

        them = side(EndpointPair.opened(), sender.peer)
        them.phase = phase
        if phase is Phase.CLOSED:
            them.receive_data(wire_bytes(message))
            assert them.events_received() == []
            assert them.data_to_send() == []
        elif target is None:
            refuse_receive(them, message)
        else:
            them.receive_data(wire_bytes(message))
            if frame_type not in HANDSHAKE:  # those have answers of their own
                assert them.phase.name == target
                assert them.events_received() == [message]
            assert getattr(them.close_exc, "code", None) is not ErrorCode.PROTOCOL


def stream_pair(phase: StreamPhase) -> EndpointPair:
    """Return a pair whose stream 1 was brought into a phase by messages."""
    pair = EndpointPair.opened()
    if phase is StreamPhase.IDLE:
        return pair
    if phase is StreamPhase.OPENING:
        pair.device.send(Open(stream=1, session=SESSION))
    else:
        pair.attach()
    if phase is StreamPhase.FINISHING:
        pair.device.send(Finish(stream=1, seq=0))
    elif phase is StreamPhase.FAILED:
        pair.server.send(Error(stream=1, code=28))
    elif phase is StreamPhase.DETACHING:
        pair.device.send(Detach(stream=1))
    pair.pump()
    pair.forget()
    for endpoint in (pair.device, pair.server):
        assert endpoint._stream(1).phase is phase
    return pair


@pytest.mark.parametrize("sender", Role)
@pytest.mark.parametrize("phase", StreamPhase)
def test_every_move_of_a_stream(phase: StreamPhase, sender: Role) -> None:
    """[S-1] [S-2] [S-5] [S-6] [S-7] [O-14] [O-32] Each type on stream 1 in each state, sent and received."""
    for frame_type in FrameType:
        message = on_stream(frame_type, 1)
        target = STREAM_TABLE[phase.name].get((sender, frame_type))
        pair = stream_pair(phase)
        us, them = side(pair, sender), side(pair, sender.peer)
        if target is None:
            refuse_send(us, message)
            refuse_receive(them, message)
            continue
        if frame_type is FrameType.COMMIT:
            us.send(make_data())  # the batch that is committed
            pair.pump()
            pair.forget()
        us.send(message)
        assert us._stream(1).phase.name == target, message
        data = b"".join(bytes(part) for part in us.data_to_send())
        assert data == wire_bytes(message)
        them.receive_data(data)
        assert them._stream(1).phase.name == target, message
        ignored = phase in (StreamPhase.FAILED, StreamPhase.DETACHING) and target == phase.name
        assert them.events_received() == ([] if ignored else [message])
        assert not them.is_closed()


@pytest.mark.parametrize("phase", [p for p in Phase if p not in (Phase.OPEN, Phase.DRAINING, Phase.CLOSED)])
def test_streams_exist_only_while_the_connection_is_open(phase: Phase) -> None:
    """[S-3] [H-9] [K-5] [K-17] Before WELCOME nobody, after BYE only the server sends on a stream."""
    for sender, message in ((Role.DEVICE, make_data()), (Role.SERVER, example(FrameType.ACK))):
        us, them = (side(EndpointPair.attached(), role) for role in (sender, sender.peer))
        us.phase = them.phase = phase
        if sender is Role.SERVER and phase is Phase.CLOSING:
            us.send(message)
            them.receive_data(wire_bytes(message))
            assert them.events_received() == [message]
        else:
            refuse_send(us, message)
            refuse_receive(them, message)


def test_streams_go_on_while_draining() -> None:
    """[S-3] [K-3] GOAWAY does not stop the open sessions."""
    pair = EndpointPair.attached()
    pair.server.send(example(FrameType.GOAWAY))
    pair.pump()
    pair.device.send(make_data())
    pair.server.send(example(FrameType.ACK))
    pair.pump()
    assert pair.server_events == [make_data()]
    assert [event.type for event in pair.device_events] == [FrameType.GOAWAY, FrameType.ACK]
