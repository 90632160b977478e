"""Tests of mobillm.conformance.samples."""

from __future__ import annotations

import pytest

from mobillm.codec import check_headers
from mobillm.conformance.samples import spec, tiny_batch, valid
from mobillm.formats import Format
from mobillm.protocol import Commit, Data, FrameBuffer, FrameType, TensorHeader, decode_message
from mobillm.spec import SessionSpec


@pytest.mark.parametrize("kind", FrameType)
def test_valid_frames_are_valid(kind: FrameType) -> None:
    """Each type has a frame whose fields are all in range."""
    frames = list(FrameBuffer(1 << 20).receive_data(valid(kind, stream=3)))
    assert [decode_message(item).type for item in frames] == [kind]
    assert frames[0].stream == 3


def test_the_batch_fits_the_spec() -> None:
    """Its headers are those that the spec asks for, and COMMIT says what was sent."""
    batch = tiny_batch(4, heldout=True)
    messages = [
        decode_message(item)
        for data in batch.frames(stream=2, size=16)
        for item in FrameBuffer(1 << 20).receive_data(data)
    ]
    commit = messages[-1]
    assert isinstance(commit, Commit)
    assert (commit.seq, commit.tensors, commit.samples, commit.heldout) == (4, 3, 2, True)
    sizes = [len(item.payload) for item in messages if isinstance(item, Data)]
    assert max(sizes) == 16
    assert sum(sizes) == commit.size
    headers = {t.number: TensorHeader(Format(t.format), t.block, t.shape) for t in batch.tensors}
    check_headers(SessionSpec.from_map(spec()), headers, 2)


def test_changes() -> None:
    """Fields are replaced or left out; a variant has other bytes of the same size."""
    assert "side" not in spec(side=...)
    assert spec(epochs=3)["epochs"] == 3
    one, other = tiny_batch(1), tiny_batch(1, variant=1)
    assert one.tensors[2].payload != other.tensors[2].payload
    assert len(one.frames()) == len(other.frames()) == 4
    assert one.replaced(0, block=64).tensors[2].block == 64
    assert one.tensors[2].block == 32
