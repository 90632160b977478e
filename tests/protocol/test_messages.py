"""Tests of mobillm.protocol.messages, and of docs/protocol.md against the code."""

from __future__ import annotations

import dataclasses
import pathlib
import re

import pytest

from mobillm.errors import ErrorCode
from mobillm.protocol import MESSAGES, FrameBuffer, FrameType, Message, decode_message, messages
from mobillm.protocol.stream import CHARGED
from tests.helpers import examples, make_data, wire_bytes

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "protocol.md").read_text()


FIELDS = re.findall(r"^\| `\[D-\d+\]` \| (\w+) `(\w+)` \|", TEXT, re.MULTILINE)


def rows(section: str) -> list[list[str]]:
    """Return the cells of the table rows of one section of the specification."""
    body = TEXT.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in body.splitlines()
        if line.startswith("| ")
    ]


def test_every_frame_type_has_one_message() -> None:
    """The table is complete, and each class stands under its own type."""
    assert set(MESSAGES) == set(FrameType)
    assert all(cls.type is frame_type for frame_type, cls in MESSAGES.items())
    assert {cls.__name__ for cls in MESSAGES.values()} <= set(messages.__all__)


@pytest.mark.parametrize("message", examples(), ids=lambda message: message.type.name)
def test_decode_finds_the_class(message: Message) -> None:
    """A frame becomes the message of its type."""
    (frame,) = FrameBuffer(1 << 20).receive_data(wire_bytes(message))
    assert type(decode_message(frame)) is MESSAGES[message.type]


def test_specification_lists_every_message_with_its_fields() -> None:
    """[F-9] [V-16] [M-3] Codes, names, fields and numbers of batches are those of the code."""
    listed = {row[1]: row for row in rows("Messages") if row[0].startswith("0x")}
    assert {(int(row[0], 16), name) for name, row in listed.items()} == {(int(t), t.name) for t in FrameType}
    for frame_type, cls in MESSAGES.items():
        fields = {field.name for field in dataclasses.fields(cls)} - {"stream", "seq", "payload"}
        row = listed[frame_type.name]
        assert {name for message, name in FIELDS if message == frame_type.name} == fields, frame_type.name
        assert frame_type.has_payload == (row[6] == "yes")
        assert (row[5] == "yes") == issubclass(cls, CHARGED)
        assert cls.has_seq == row[4].startswith("b"), frame_type.name


def test_specification_lists_every_error_code() -> None:
    """[E-9] [V-16] Numbers and names of the table "Errors" are those of the code."""
    assert [(int(row[0]), row[1]) for row in rows("Errors") if row[0].isdigit()] == [
        (int(code), code.name) for code in ErrorCode
    ]


def test_examples_of_the_specification_are_what_we_send() -> None:
    """The bytes printed at the end of the specification are those of the two messages."""
    blocks = re.findall(r"```\n([0-9a-f\s]+)\n```", TEXT.split("\n## Examples\n")[1])
    ping, data = (bytes.fromhex(block) for block in blocks)
    assert decode_message(*FrameBuffer(4096).receive_data(ping)).type is FrameType.PING
    assert data == wire_bytes(make_data(1, 1001, bytes.fromhex("0300000005000000")))
