"""Batches of packed tensors: checked, collected from parts, and joined without unpacking."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from mobillm.device.packing import pack_batch
from mobillm.errors import ConfigError
from mobillm.formats import BLOCKS, Format
from mobillm.protocol import LENGTHS, TARGETS, Commit, TensorHeader
from mobillm.server.batch import Batch, BatchBuilder, Slice, join
from mobillm.spec import CodecSpec, SessionSpec, SideSpec
from tests.helpers import make_data
from tests.sessions import arrays, as_batch, packed, spec

FORMATS = [fmt.name.lower() for fmt in Format if fmt is not Format.I32]
TASKS: dict[str, dict[str, Any]] = {
    "classification": {},
    "regression": {"outputs": 1},
    "causal-lm": {"head": "0" * 64},
}


def slices_of(batch: Batch) -> list[Slice]:
    """Return a batch's samples."""
    ends = np.cumsum(batch.lengths()).tolist()
    starts = [0, *ends[:-1]]
    return [Slice(batch, i, start, end) for i, (start, end) in enumerate(zip(starts, ends, strict=True))]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("fmt", FORMATS)
def test_join_equals_packing(fmt: str, block: int, task: str) -> None:
    """Joining samples gives exactly the bytes that packing them would have given."""
    what = spec(task=task, codec=CodecSpec(format=fmt, block=block), **TASKS[task])
    batches = [packed(what, seq) for seq in (1, 2)]
    chosen = [(1, 3), (0, 0), (1, 0), (0, 2)]
    (joined,) = join([slices_of(batches[b])[s] for b, s in chosen], targets_by_token=task == "causal-lm")
    data = [arrays(seq, task=task) for seq in (1, 2)]
    taps: list[Any] = []
    lengths: list[int] = []
    targets: list[float] = []
    for tap in range(2):
        parts = [np.split(data[b].taps[tap], np.cumsum(data[b].lengths)[:-1])[s] for b, s in chosen]
        taps.append(np.concatenate(parts))
    for b, s in chosen:
        lengths.append(data[b].lengths[s])
        start = sum(data[b].lengths[:s])
        span = slice(start, start + lengths[-1]) if task == "causal-lm" else slice(s, s + 1)
        targets += data[b].targets[span]
    direct = pack_batch(what, taps, lengths, targets)
    assert joined.samples == 4
    for number, tensor in direct.items():
        assert joined.headers[number] == tensor.header
        assert bytes(joined.payloads[number]) == bytes(tensor.payload)
    joined.check(what)


def test_join_of_different_packings() -> None:
    """Samples of batches that were packed in different ways come in parts, each packed in one way."""
    codecs = [CodecSpec(format=name, block=32, bits=(2, 4)) for name in ("asym2", "asym4", "asym2")]
    batches = [packed(spec(codec=codec), seq) for seq, codec in enumerate(codecs, 1)]
    equalized = dataclasses.replace(batches[2].headers[1], equalizer=5)
    batches[2] = dataclasses.replace(batches[2], headers={**batches[2].headers, 1: equalized})
    chosen = [(1, 3), (0, 0), (2, 1), (1, 0), (0, 2)]
    parts = join([slices_of(batches[b])[s] for b, s in chosen], targets_by_token=False)
    assert [part.samples for part in parts] == [2, 2, 1]
    assert [part.headers[1].format for part in parts] == [Format.ASYM4, Format.ASYM2, Format.ASYM2]
    assert [part.headers[1].equalizer for part in parts] == [None, None, 5]
    for part, wanted in zip(parts, ([(1, 3), (1, 0)], [(0, 0), (0, 2)], [(2, 1)]), strict=True):
        (alone,) = join([slices_of(batches[b])[s] for b, s in wanted], targets_by_token=False)
        assert part.headers == alone.headers
        assert {n: bytes(p) for n, p in part.payloads.items()} == {
            n: bytes(p) for n, p in alone.payloads.items()
        }


def test_check_accepts_what_devices_pack() -> None:
    """A batch from the device passes; its size is that of its payloads."""
    batch = packed(spec(), 1)
    batch.check(spec())
    assert batch.size == sum(len(payload) for payload in batch.payloads.values())


def _with(batch: Batch, number: int, header: TensorHeader, payload: bytes) -> Batch:
    return dataclasses.replace(
        batch,
        headers={**batch.headers, number: header},
        payloads={**batch.payloads, number: payload},
    )


@pytest.mark.parametrize(
    ("number", "values", "match"),
    [
        (LENGTHS, [1, 1, 1, 1], "lengths is 'a sum of 4'"),
        (LENGTHS, [0, 0, 0, 0], "positive lengths"),
        (LENGTHS, [1, 1], r"the shape \[4\]"),
        (TARGETS, [0, 1, 2, 0], "targets is 2; expected numbers from 0 to 1"),
        (TARGETS, [0, 1, -100, 0], "targets is -100"),
    ],
)
def test_check_refuses_integers(number: int, values: list[int], match: str) -> None:
    """Lengths and targets are checked against the taps and the spec."""
    header = TensorHeader(Format.I32, 0, (len(values),))
    batch = _with(packed(spec(), 1), number, header, np.array(values, np.int32).tobytes())
    with pytest.raises(ConfigError, match=match):
        batch.check(spec())


def test_check_refuses_another_format() -> None:
    """All batches of a session are packed alike, or they could not be joined."""
    batch = packed(spec(codec=CodecSpec(format="f32")), 1)
    with pytest.raises(ConfigError, match="f32 with blocks of 0"):
        batch.check(spec())
    with pytest.raises(ConfigError, match="asym4 with blocks of 32"):
        packed(spec(), 1).check(spec(codec=CodecSpec(format="asym4", block=64)))


def test_check_refuses_missing_and_superfluous_tensors() -> None:
    """The list of tensors is closed."""
    batch = packed(spec(), 1)
    missing = dataclasses.replace(batch, headers={n: h for n, h in batch.headers.items() if n != 1})
    with pytest.raises(ConfigError, match="tap 1 is 'missing'"):
        missing.check(spec())
    extra = _with(batch, 7, batch.headers[0], bytes(batch.payloads[0]))
    with pytest.raises(ConfigError, match="tap 7"):
        extra.check(spec())


def test_one_token_of_each_sample() -> None:
    """[M-28] Where the spec says so, a batch with more is refused, and one with one is taken."""
    what = spec(side=SideSpec(kind="head"), tokens="last")
    data = arrays(1)
    ends = np.cumsum(data.lengths) - 1
    chosen = pack_batch(what, [tap[ends] for tap in data.taps], [1] * 4, data.targets)
    as_batch(chosen, 1, 4).check(what)
    with pytest.raises(ConfigError, match=r"tap 0 .*expected the shape \[4, 16\]"):
        packed(spec(), 1).check(what)
    with pytest.raises(ConfigError, match=r"the shape \[4, 16\]"):
        pack_batch(what, data.taps, data.lengths, data.targets)


def test_only_tokens_with_a_target() -> None:
    """[M-27] Where the spec says so, a token without one is refused on both sides."""
    anything = spec(task="causal-lm", head="0" * 64, side=SideSpec(kind="parallel"))
    what = dataclasses.replace(anything, tokens="loss")
    data = arrays(1, task="causal-lm")
    packed(what, 1).check(what)
    targets = [-100, *data.targets[1:]]
    tensors = pack_batch(anything, data.taps, data.lengths, targets)
    as_batch(tensors, 1, 4).check(anything)
    with pytest.raises(ConfigError, match=r"targets is -100; expected only tokens with a target"):
        as_batch(tensors, 1, 4).check(what)
    with pytest.raises(ConfigError, match="targets is -100"):
        pack_batch(what, data.taps, data.lengths, targets)


def test_regression_targets_must_be_finite() -> None:
    """A NaN in the targets would spoil the weights."""
    what = spec(task="regression", outputs=1)
    batch = packed(what, 1)
    payload = np.array([0.0, np.nan, 1.0, 2.0], np.float32).tobytes()
    with pytest.raises(ConfigError, match="not finite"):
        _with(batch, TARGETS, batch.headers[TARGETS], payload).check(what)


def test_builder_collects_and_begins_anew() -> None:
    """Parts become tensors; a batch that is over leaves nothing."""
    builder = BatchBuilder()
    assert (builder.seq, builder.held) == (0, 0)
    builder.add(make_data(4, 0, b"12345678", values=4))
    builder.add(make_data(4, 0, b"abcdefgh", offset=8))
    builder.add(make_data(4, LENGTHS, bytes(8)))
    assert (builder.seq, builder.held) == (4, 24)
    batch = builder.build(Commit(stream=1, seq=4, tensors=2, size=24, checksum=0, samples=2, heldout=True))
    assert (batch.seq, batch.samples, batch.heldout) == (4, 2, True)
    assert bytes(batch.payloads[0]) == b"12345678abcdefgh"
    assert batch.lengths() == [0, 0]
    assert (builder.seq, builder.held) == (0, 0)
    assert isinstance(as_batch({}, 1, 1), Batch)


def test_specs_of_all_tasks_are_valid() -> None:
    """The table of this file holds all tasks."""
    assert {spec(task=task, **changes).task for task, changes in TASKS.items()} == set(TASKS)
    assert SessionSpec.from_map(spec().to_map()) == spec()
