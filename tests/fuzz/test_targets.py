"""The fuzzing targets on their corpus, without a fuzzer; and that they see a fault when there is one."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import pytest

from mobillm.codec import unpack
from mobillm.protocol import MAX_META, Blob, FrameBuffer, decode_message, endpoint, message
from tests.fuzz import targets
from tests.fuzz.targets import DEVICE, TARGETS, repair
from tests.helpers import make_batch, wire_bytes

CORPUS = pathlib.Path(__file__).parent / "corpus"
INPUTS = sorted(CORPUS.glob("*/*"))


def content(name: str) -> bytes:
    """Return an input of the corpus."""
    return (CORPUS / name).read_bytes()


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.name)
def test_corpus(path: pathlib.Path) -> None:
    """[F-5] [M-1] [P7] Seeds and everything that was ever found pass."""
    TARGETS[path.parent.name](path.read_bytes())


def test_the_corpus_has_inputs_for_every_target() -> None:
    """An empty directory would pass, too."""
    assert {path.parent.name for path in INPUTS} == set(TARGETS)
    assert len(INPUTS) >= 40


@pytest.mark.parametrize("data", [b"", b"\0", bytes(40), b"\xff" * 200, bytes([DEVICE, 1]) + b"ML" * 50])
def test_any_bytes_are_an_input(data: bytes) -> None:
    """Short and senseless inputs end early or pass; repairing them makes frames."""
    for target in TARGETS.values():
        target(data)
    assert len(repair(data)) == len(data)


def test_repair_leaves_right_frames_alone() -> None:
    """Seeds are not changed, and a broken length, magic or checksum becomes right again."""
    good = wire_bytes(make_batch(1))
    assert repair(good) == good
    broken = bytearray(good)
    broken[0] ^= 255
    broken[26] ^= 255
    assert repair(bytes(broken)) == good


def test_an_exception_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the core does not turn into a refusal reaches the fuzzer."""

    def fail(data: bytes) -> Any:
        raise KeyError("planted")

    monkeypatch.setattr(message, "decode_map", fail)
    with pytest.raises(KeyError, match="planted"):
        TARGETS["endpoint"](content("endpoint/handshake-to-server"))


def test_a_difference_between_pieces_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """A count that goes back to 0 at the end of a connection is seen; this was so once."""
    clear = FrameBuffer.clear

    def forget(buffer: FrameBuffer) -> None:
        clear(buffer)
        buffer.skipped = 0

    monkeypatch.setattr(FrameBuffer, "clear", forget)
    with pytest.raises(AssertionError, match="cut into pieces"):
        TARGETS["endpoint"](content("endpoint/found-dropped-after-the-end"))


def test_more_payload_than_bytes_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that holds more than was received is seen."""

    def longer(frame: Any) -> Any:
        found = decode_message(frame)
        if not isinstance(found, Blob):
            return found
        return dataclasses.replace(found, total=MAX_META, payload=bytes(MAX_META))

    monkeypatch.setattr(endpoint, "decode_message", longer)
    with pytest.raises(AssertionError, match="more payload than bytes"):
        TARGETS["endpoint"](content("endpoint/device-blob"))


def test_another_value_than_the_references_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that is off by the last bit, or that takes a payload of a wrong size, is seen."""
    monkeypatch.setattr(targets, "unpack", lambda header, payload: -unpack(header, payload))
    with pytest.raises(AssertionError, match="the reference reads other values"):
        TARGETS["tensor"](content("tensor/asym4"))
    monkeypatch.setattr(targets, "unpack", lambda header, payload: unpack(header, bytes(header.size)))
    with pytest.raises(AssertionError, match="a wrong size was read"):
        TARGETS["tensor"](content("tensor/short-asym4"))
