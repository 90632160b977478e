"""Tests of mobillm.protocol.transfer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import crc32c
import pytest

from mobillm.errors import ErrorCode
from mobillm.formats import Format
from mobillm.protocol import Abort, Blob, Commit, Data, Weights
from mobillm.protocol.transfer import BatchTransfer, FileTransfer, TransferError
from tests.helpers import make_batch, make_data


def run(transfer: BatchTransfer, *messages: object) -> None:
    """Feed messages of a batch."""
    for message in messages:
        if isinstance(message, Data):
            transfer.data(message)
        elif isinstance(message, Commit):
            transfer.commit(message)
        elif isinstance(message, Abort):
            transfer.abort(message)


def refused(code: ErrorCode, call: Callable[[], None]) -> str:
    """Return the text of a refusal with the code given."""
    with pytest.raises(TransferError) as caught:
        call()
    assert caught.value.code is code
    return str(caught.value)


def refused_data(transfer: BatchTransfer, message: Data, code: ErrorCode) -> str:
    """Check that a part is refused, that it changes nothing, and return the text."""
    before = dict(vars(transfer)), set(transfer._seen)
    text = refused(code, lambda: transfer.data(message))
    assert (dict(vars(transfer)), set(transfer._seen)) == before
    return text


def test_whole_batches_follow_one_another() -> None:
    """[B-2] [B-4] [B-9] [B-23] Batches of several tensors in several parts pass, in any order of tensors."""
    transfer = BatchTransfer(1000)
    for seq in (1, 2, 3):
        messages = make_batch(seq)
        run(transfer, *messages[:-1])
        commit = messages[-1]
        assert isinstance(commit, Commit)
        assert transfer.seq == seq
        assert transfer.summary() == (2, 128, commit.checksum) == (2, commit.size, commit.checksum)
        run(transfer, commit)
        assert transfer.seq == 0


def test_a_part_out_of_order_changes_nothing() -> None:
    """[B-4] [B-18] A gap, an overlap, a repetition and another tensor's part are refused."""
    transfer = BatchTransfer(1000)
    transfer.data(make_data(1, 0, bytes(8), values=8))
    for offset in (4, 12, 24):
        refused_data(transfer, make_data(1, 0, bytes(4), offset=offset), ErrorCode.PROTOCOL)
    refused_data(transfer, make_data(1, 1, bytes(4), offset=8), ErrorCode.PROTOCOL)
    transfer.data(make_data(1, 0, bytes(24), offset=8))
    assert transfer.summary()[:2] == (1, 32)


def test_a_continuation_without_a_beginning() -> None:
    """[B-18] A batch cannot begin in the middle of a tensor."""
    text = refused_data(BatchTransfer(99), make_data(1, 0, bytes(4), offset=4), ErrorCode.PROTOCOL)
    assert text == "tap 0 does not continue at 4; parts come in order"


def test_overlong_tensor() -> None:
    """[B-20] A tensor that outgrows its size is refused, in its first part and later."""
    transfer = BatchTransfer(1000)
    refused_data(transfer, make_data(1, 0, bytes(12), values=2), ErrorCode.SCHEMA_MISMATCH)
    transfer.data(make_data(1, 0, bytes(4), values=2))
    refused_data(transfer, make_data(1, 0, bytes(5), offset=4), ErrorCode.SCHEMA_MISMATCH)
    transfer.data(make_data(1, 0, bytes(4), offset=4))


def test_short_tensor() -> None:
    """[B-19] [B-25] The next tensor, and COMMIT, wait for the open tensor's last byte."""
    transfer = BatchTransfer(1000)
    transfer.data(make_data(1, 0, bytes(4), values=2))
    text = refused_data(transfer, make_data(1, 1), ErrorCode.SCHEMA_MISMATCH)
    assert text == "tap 0 has 8 bytes by its header; 4 were sent"
    tensors, size, checksum = transfer.summary()
    commit = Commit(stream=1, seq=1, tensors=tensors, size=size, checksum=checksum, samples=1)
    assert refused(ErrorCode.SCHEMA_MISMATCH, lambda: transfer.commit(commit)) == text


def test_tensor_sent_twice() -> None:
    """[B-6] Once in a batch, again in the next."""
    transfer = BatchTransfer(1000)
    run(transfer, make_data(1, 0), make_data(1, 1))
    refused_data(transfer, make_data(1, 0), ErrorCode.PROTOCOL)
    run(transfer, Abort(stream=1, seq=1), make_data(1, 0))


def test_another_batch_before_the_end() -> None:
    """[B-16] One batch is open at a time."""
    transfer = BatchTransfer(1000)
    transfer.data(make_data(1, 0))
    for seq in (2, 9):
        refused_data(transfer, make_data(seq, 1), ErrorCode.PROTOCOL)


def test_batch_limit_is_checked_when_a_tensor_begins() -> None:
    """[B-7] [B-24] [L-5] What counts is what the headers announce, not what was stored."""
    transfer = BatchTransfer(100)
    huge = Data(
        stream=1, seq=1, tensor=0, offset=0, format=Format.F32, block=0, shape=(2**31 - 1,) * 8, payload=b"1"
    )
    refused_data(transfer, huge, ErrorCode.LIMIT)
    transfer.data(make_data(1, 0, bytes(60)))
    refused_data(transfer, make_data(1, 1, bytes(4), values=11), ErrorCode.LIMIT)
    transfer.data(make_data(1, 1, bytes(40)))
    assert transfer.summary()[:2] == (2, 100)


@pytest.mark.parametrize("wrong", [{"tensors": 1}, {"size": 127}, {"checksum": 1}])
def test_commit_must_tell_the_truth(wrong: dict[str, int]) -> None:
    """[B-9] Number, size and checksum are compared; afterwards the batch is still open."""
    transfer = BatchTransfer(1000)
    *parts, commit = make_batch(1)
    assert isinstance(commit, Commit)
    run(transfer, *parts)
    changes: dict[str, Any] = dict(wrong)
    lie = dataclasses.replace(commit, **changes)
    refused(ErrorCode.SCHEMA_MISMATCH, lambda: transfer.commit(lie))
    transfer.commit(commit)


def test_checksum_covers_the_order_of_parts() -> None:
    """[B-9] Two tensors that changed places have another checksum."""
    one, other = BatchTransfer(99), BatchTransfer(99)
    run(one, make_data(1, 0, b"aaaa"), make_data(1, 1, b"bbbb"))
    run(other, make_data(1, 0, b"bbbb"), make_data(1, 1, b"aaaa"))
    assert one.summary() != other.summary()


def test_commit_of_a_batch_that_is_not_open() -> None:
    """[B-2] [B-26] No batch, another batch, and the same batch a second time."""
    transfer = BatchTransfer(1000)
    *parts, commit = make_batch(1)
    assert isinstance(commit, Commit)
    refused(ErrorCode.PROTOCOL, lambda: transfer.commit(commit))
    run(transfer, *make_batch(2)[:-1])
    refused(ErrorCode.PROTOCOL, lambda: transfer.commit(commit))
    run(transfer, Abort(stream=1, seq=2), *parts, commit)
    refused(ErrorCode.PROTOCOL, lambda: transfer.commit(commit))


def test_abort_frees_the_number() -> None:
    """[B-10] [B-27] The batch can be sent again; ABORT of another one changes nothing."""
    transfer = BatchTransfer(1000)
    transfer.abort(Abort(stream=1, seq=1))
    run(transfer, *make_batch(1)[:2])
    transfer.abort(Abort(stream=1, seq=2))
    assert transfer.seq == 1
    transfer.abort(Abort(stream=1, seq=1))
    assert transfer.summary() == (0, 0, 0)
    run(transfer, *make_batch(1))


def test_finish_only_between_batches() -> None:
    """[O-23] An open batch could never end after FINISH."""
    transfer = BatchTransfer(1000)
    transfer.finish()
    transfer.data(make_data(1))
    refused(ErrorCode.PROTOCOL, transfer.finish)


def compressed(payload: bytes, zstd: int, *, values: int = 25, tensor: int = 0) -> Data:
    """Return the first part of a tap of 32-bit integers whose frame is said to have ``zstd`` bytes."""
    return dataclasses.replace(make_data(1, tensor, payload, values=values), zstd=zstd)


def test_a_compressed_tensor_has_the_size_of_its_frame() -> None:
    """[Z-1] [Z-3] [Z-11] COMMIT states packed bytes, and the checksum of what was sent."""
    transfer = BatchTransfer(1000, compression=True)
    transfer.data(compressed(bytes(20), 40))
    refused_data(transfer, make_data(1, 0, bytes(4), offset=24), ErrorCode.PROTOCOL)
    refused_data(transfer, make_data(1, 0, bytes(21), offset=20), ErrorCode.SCHEMA_MISMATCH)
    refused_data(transfer, make_data(1, 1, bytes(8)), ErrorCode.SCHEMA_MISMATCH)
    whole = Commit(stream=1, seq=1, tensors=1, size=100, checksum=crc32c.crc32c(bytes(40)), samples=1)
    text = refused(ErrorCode.SCHEMA_MISMATCH, lambda: transfer.commit(whole))
    assert text == "tap 0 has 40 bytes by its header; 20 were sent"
    transfer.data(make_data(1, 0, bytes(20), offset=20))
    assert transfer.summary() == (1, whole.size, whole.checksum)
    transfer.commit(whole)


@pytest.mark.parametrize("zstd", [1, 24, 100, 101, 2**48])
def test_a_frame_must_be_smaller_but_not_by_far(zstd: int) -> None:
    """[Z-4] Below a quarter of 100 bytes, or not below them: DECOMPRESS, before anything is stored."""
    transfer = BatchTransfer(1000, compression=True)
    text = refused_data(transfer, compressed(b"x", zstd), ErrorCode.DECOMPRESS)
    assert text == f"tap 0 is compressed to {zstd} of 100 bytes; allowed are 25 to 99"
    for allowed in (25, 99):
        BatchTransfer(1000, compression=True).data(compressed(b"x", allowed))


def test_compression_has_to_be_agreed_upon() -> None:
    """[Z-2] [V-13] Without the capability a compressed tensor is refused."""
    refused_data(BatchTransfer(1000), compressed(bytes(8), 50), ErrorCode.SCHEMA_MISMATCH)


def test_the_limit_of_a_batch_counts_packed_bytes() -> None:
    """[Z-11] [B-7] However small the frames are, the tensors in them count whole."""
    transfer = BatchTransfer(150, compression=True)
    transfer.data(compressed(bytes(50), 50))
    refused_data(transfer, compressed(bytes(25), 25, tensor=1), ErrorCode.LIMIT)
    transfer.data(compressed(bytes(20), 20, tensor=1, values=12))


def blob(offset: int, size: int = 4, *, total: int = 8, digest: bytes = bytes(32)) -> Blob:
    """Return one part of a blob."""
    return Blob(stream=1, digest=digest, total=total, offset=offset, payload=bytes(size))


def test_files_in_order() -> None:
    """[W-1] [W-3] [W-8] Parts in order, then another file, or the same one again."""
    transfer = FileTransfer(8)
    for part in (blob(0), blob(4), blob(0, 8), blob(0), blob(4), blob(0, 2, total=3, digest=b"x" * 32)):
        transfer.part(part)
    weights = Weights(stream=1, digest=bytes(32), total=4, offset=0, steps=1, payload=bytes(4))
    fresh = FileTransfer(8)
    fresh.part(weights)


@pytest.mark.parametrize(
    "wrong",
    [
        blob(5, 1),
        blob(3, 1),
        blob(0),
        blob(4, total=9),
        blob(4, digest=b"x" * 32),
        blob(0, digest=b"x" * 32),
    ],
)
def test_part_out_of_order(wrong: Blob) -> None:
    """[W-1] [W-3] A gap, an overlap, a restart and another file in between are refused."""
    transfer = FileTransfer(100)
    transfer.part(blob(0))
    refused(ErrorCode.PROTOCOL, lambda: transfer.part(wrong))
    transfer.part(blob(4))


def test_file_cannot_begin_in_the_middle() -> None:
    """[W-1] The first part is at offset 0."""
    refused(ErrorCode.PROTOCOL, lambda: FileTransfer(100).part(blob(4)))


def test_steps_are_the_same_in_all_parts_of_the_weights() -> None:
    """[W-11] Weights of two moments do not mix; another file may have other steps."""

    def part(offset: int, steps: int) -> Weights:
        return Weights(stream=1, digest=bytes(32), total=8, offset=offset, steps=steps, payload=bytes(4))

    transfer = FileTransfer(100)
    transfer.part(part(0, 1))
    refused(ErrorCode.PROTOCOL, lambda: transfer.part(part(4, 2)))
    transfer.part(part(4, 1))
    transfer.part(part(0, 2))


def test_file_limit_is_checked_at_the_first_part() -> None:
    """[W-2] [L-6] The announced total counts."""
    transfer = FileTransfer(8)
    refused(ErrorCode.LIMIT, lambda: transfer.part(blob(0, total=9)))
    transfer.part(blob(0, total=8))
