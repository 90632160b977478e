"""Rows 29 to 38 of the fault table: what is inside the frames is wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import pathlib
import resource
import struct
import time

import msgpack
import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
import zstandard

from mobillm.codec import pack
from mobillm.conformance.samples import Batch, Tensor, integers, spec, tiny_batch
from mobillm.conformance.target import Stream
from mobillm.conformance.wire import frame, raw_frame
from mobillm.conformance.zstd import LONGEST, repeated, zstd_frame
from mobillm.errors import ErrorCode
from mobillm.formats import Format
from mobillm.protocol import FrameType, Weights
from tests.conftest import Run
from tests.faults.scene import Scene, scene

Tensors = dict[str, npt.NDArray[np.float32]]

ROOT = pathlib.Path(__file__).parents[2]
PING = FrameType.PING
GOOD = msgpack.packb({"data": b"12345678"})

MAPS: dict[str, tuple[bytes, ErrorCode]] = {
    "nesting": (b"\x81\xa1x" * 600 + b"\x80", ErrorCode.DECODE),
    "huge array": (b"\x81\xa1x\xdd\xff\xff\xff\xff", ErrorCode.DECODE),
    "huge map": (b"\x81\xa1x\xdf\xff\xff\xff\xff", ErrorCode.DECODE),
    "huge string": (b"\x81\xa1x\xdb\xff\xff\xff\xff", ErrorCode.DECODE),
    "huge bytes": (b"\x81\xa1x\xc6\xff\xff\xff\xff", ErrorCode.DECODE),
    "huge extension": (b"\x81\xa1x\xc9\xff\xff\xff\xff\x01", ErrorCode.DECODE),
    "extension": (b"\x81\xa1x\xd4\x01\x00", ErrorCode.DECODE),
    "timestamp": (b"\x81\xa1x\xd6\xff\x00\x00\x00\x00", ErrorCode.DECODE),
    "key twice": (b"\x82" + GOOD[1:] + GOOD[1:], ErrorCode.DECODE),
    "number as key": (b"\x82\x01\x02" + GOOD[1:], ErrorCode.DECODE),
    "trailing byte": (GOOD + b"\x00", ErrorCode.DECODE),
    "malformed text": (b"\x82\xa1x\xa1\xff" + GOOD[1:], ErrorCode.DECODE),
    "reserved byte": (b"\x82\xa1x\xc1" + GOOD[1:], ErrorCode.DECODE),
    "missing field": (b"\x80", ErrorCode.DECODE),
    "65 items": (msgpack.packb({str(n): n for n in range(65)}), ErrorCode.DECODE),
    "another type": (msgpack.packb({"data": "12345678"}), ErrorCode.SCHEMA_MISMATCH),
    "another length": (msgpack.packb({"data": b"1234567"}), ErrorCode.SCHEMA_MISMATCH),
    "too long": (msgpack.packb({"data": b"12345678", "x": bytes(4100)}), ErrorCode.LIMIT),
}


def test_row_29_maps(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A map that is malformed, too deep, too long or lies about its sizes is refused."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            for meta, code in MAPS.values():
                peer = await stage.lab.open()
                await peer.send(raw_frame(PING, meta))
                await peer.refused(code)
                peer.abort()

    run_once(main())


def test_row_29_nan_in_a_spec(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A number that is none is outside each range."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            peer = await stage.lab.open()
            bad = spec(optimizer={"schedule": "constant", "lr": float("nan")})
            await peer.send(frame(FrameType.OPEN, {"spec": bad}, stream=1))
            await peer.refused_on(1, ErrorCode.SCHEMA_MISMATCH)
            await peer.alive()

    run_once(main())


HEAD = msgpack.packb({"tensor": 1001, "offset": 0, "format": 3, "block": 0, "shape": [2]})
PAYLOADS: dict[str, tuple[bytes, ErrorCode]] = {
    "bin 8": (raw_frame(0x10, HEAD, bytes(8), stream=1, seq=1, bin_header=b"\xc4\x08"), ErrorCode.DECODE),
    "string": (
        raw_frame(0x10, HEAD, bytes(8), stream=1, seq=1, bin_header=b"\xdb" + struct.pack(">I", 8)),
        ErrorCode.DECODE,
    ),
    "another length": (
        raw_frame(0x10, HEAD, bytes(8), stream=1, seq=1, bin_header=b"\xc6" + struct.pack(">I", 9)),
        ErrorCode.DECODE,
    ),
    "missing": (raw_frame(0x10, HEAD, stream=1, seq=1), ErrorCode.PROTOCOL),
    "in a PING": (raw_frame(PING, GOOD, bytes(8)), ErrorCode.PROTOCOL),
}


@pytest.mark.parametrize("kind", PAYLOADS)
def test_row_29_payload_object(run_once: Run, tmp_path: pathlib.Path, kind: str) -> None:
    """A payload that is missing, superfluous, of another form or of another length is refused."""
    data, code = PAYLOADS[kind]

    async def main() -> None:
        async with scene(tmp_path) as stage:
            stream = await stage.lab.attach()
            await stream.peer.send(data)
            await stream.peer.refused(code)

    run_once(main())


@pytest.mark.parametrize("kind", ["map", "body", "payload"])
def test_row_30_array_of_empty_arrays(run_once: Run, tmp_path: pathlib.Path, kind: str) -> None:
    """Bytes that would decode to millions of objects are never decoded, and the loop goes on."""
    bomb = b"\xdd\x00\x0f\x00\x00" + b"\x90" * 983_040
    small = HEAD[:-2] + b"\x01"  # one number
    frames = {
        "map": (raw_frame(PING, bomb[:4096]), ErrorCode.DECODE),
        "body": (raw_frame(PING, bomb, meta_size=4096), ErrorCode.PROTOCOL),
        "payload": (raw_frame(0x10, small, bomb, stream=1, seq=1), ErrorCode.SCHEMA_MISMATCH),
    }
    data, code = frames[kind]

    async def main() -> None:
        async with scene(tmp_path, latency=0.8) as stage:
            stream = await stage.lab.attach()
            start = time.process_time()
            await stream.peer.send(data)
            await stream.peer.refused(code)
            assert time.process_time() - start < 1.0

    run_once(main())


def test_row_31_what_was_not_agreed_on(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Without the capability a compressed payload is a tensor of another size: refused, not unpacked."""
    bomb = zstandard.compress(bytes(64 << 20))
    lying = b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 7 + b"\x7f"  # 13 bytes that announce 2^63 - 1
    sources = {path: path.read_text() for path in (ROOT / "mobillm").rglob("*.py")}
    assert [path.name for path, text in sources.items() if "zstandard." in text] == ["compression.py"]
    assert not any("import zlib" in text or "import gzip" in text for text in sources.values())

    async def main() -> None:
        async with scene(tmp_path) as stage:
            for payload in (bomb, lying, zstandard.compress(bytes(8)) * 2):
                stream = await stage.lab.attach()
                bad = Tensor(1001, Format.I32, 0, (2,), payload)
                await stream.peer.send(*bad.parts(1))
                await stream.peer.refused(ErrorCode.SCHEMA_MISMATCH)
                stream = await stage.lab.attach()
                bad = Tensor(0, Format.ASYM4, 32, (3, 32), payload, zstd=len(payload))
                await stream.peer.send(*bad.parts(1))
                await stream.peer.refused(ErrorCode.SCHEMA_MISMATCH)
            # A codec in the flags is a critical flag that this version does not know.
            peer = await stage.lab.open()
            await peer.send(raw_frame(0x10, HEAD, lying, stream=1, seq=1, flags=1))
            await peer.refused(ErrorCode.PROTOCOL)

    run_once(main())


@pytest.mark.parametrize("stated", [1 << 30, 130_560, None], ids=["stated", "denied", "not stated"])
def test_row_31_bombs(run_once: Run, tmp_path: pathlib.Path, stated: int | None) -> None:
    """33 KB that stand for 1 GiB, where frames are agreed on: refused, in no time and from no memory."""
    shape = (6528, 32)  # 130,560 bytes: four times the frame, as much as may be
    bomb = zstd_frame([repeated(0, LONGEST)] * 8192, stated, window=17)
    codec = {"format": "asym4", "block": 32, "compression": "zstd"}

    async def main() -> None:
        async with scene(tmp_path, latency=0.8) as stage:
            stream = await stage.lab.attach(await stage.lab.open(caps=["zstd"]), codec=codec)
            tap = Tensor(0, Format.ASYM4, 32, shape, bomb, zstd=len(bomb))
            batch = Batch(1, (integers(1001, [6527, 1]), integers(1000, [0, 1]), tap))
            await stream.send(*batch.data())
            start = time.process_time()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            await stream.send(batch.end())
            await stream.peer.refused(ErrorCode.DECOMPRESS)
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
            assert time.process_time() - start < 1.0
            name = stream.opened.session
            again = await stage.lab.resume(name, await stage.lab.open(caps=["zstd"]))
            assert again.opened.received == 0
            await again.submit(tiny_batch(1))
            await again.acked(applied=1)

    run_once(main())


SHAPES: dict[str, tuple[tuple[int, ...], ErrorCode]] = {
    "larger": ((4, 32), ErrorCode.SCHEMA_MISMATCH),
    "smaller": ((2, 32), ErrorCode.SCHEMA_MISMATCH),
    "zero": ((0, 32), ErrorCode.SCHEMA_MISMATCH),
    "negative": ((-3, 32), ErrorCode.SCHEMA_MISMATCH),
    "rank 9": ((1,) * 9, ErrorCode.SCHEMA_MISMATCH),
    "overflow": ((2**31 - 1,) * 3, ErrorCode.LIMIT),
    "beyond 31 bits": ((2**31, 32), ErrorCode.SCHEMA_MISMATCH),
}


def test_row_32_shape(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A shape that does not give the payload's size, or no size at all, is refused."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            for shape, code in SHAPES.values():
                stream = await stage.lab.attach()
                await stream.peer.send(*tiny_batch(1).replaced(0, shape=shape).frames())
                await stream.peer.refused(code)
                stream.peer.abort()

    run_once(main())


@pytest.mark.parametrize("code", [9, 200])
def test_row_33_unknown_format(run_once: Run, tmp_path: pathlib.Path, code: int) -> None:
    """A width that nobody knows is refused."""
    assert code not in Format._value2member_map_

    async def main() -> None:
        async with scene(tmp_path) as stage:
            stream = await stage.lab.attach()
            await stream.peer.send(*tiny_batch(1).replaced(0, format=code).frames())
            await stream.peer.refused(ErrorCode.SCHEMA_MISMATCH)

    run_once(main())


def poisoned(seq: int, value: float) -> Batch:
    """Return a batch whose last block, that of a last token, has a trailer (scale, minimum) of this value."""
    tap = tiny_batch(seq).tensors[2]
    payload = bytearray(tap.payload)
    payload[-4:] = struct.pack("<ee", value, value)  # after 32 values of 4 bits
    return tiny_batch(seq).replaced(0, payload=bytes(payload))


async def pulled(stream: Stream) -> Tensors:
    """Pull and read the weights."""
    await stream.control(FrameType.PULL)
    data = b""
    while True:
        part = await stream.peer.expect(Weights, stream=1)
        data += bytes(part.payload)
        if len(data) == part.total:
            assert hashlib.sha256(data).digest() == part.digest
            return safetensors.numpy.load(data)


async def trained(stage: Scene, *batches: Batch) -> Tensors:
    """Train a session on batches and return its weights; EMA off, so that they are the last step's."""
    options = {"schedule": "constant", "ema": 0.0}
    stream = await stage.lab.attach(optimizer=options)
    await stream.submit(*batches)
    await stream.acked(applied=len(batches))
    return await pulled(stream)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_row_33_scale_that_is_no_number(run_once: Run, tmp_path: pathlib.Path, value: float) -> None:
    """A batch with such a scale is not trained on: the weights stay those of the batches before it."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            plain = await trained(stage, tiny_batch(1))
            weights = await trained(stage, tiny_batch(1), poisoned(2, value))
            assert all(np.isfinite(tensor).all() for tensor in weights.values())
            assert all((weights[name] == plain[name]).all() for name in plain)

    run_once(main())


def test_row_34_padding_bits(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Where a packed row ends in bits that mean nothing, only zeros are accepted."""
    hidden = 30  # the last block of a row is short
    values = np.random.default_rng(0).standard_normal((3, hidden)).astype(np.float32)
    packed = pack(values, Format.ASYM4, 32, "tap")
    payload = bytearray(packed.payload)
    row = len(payload) // 3
    model = {"name": "odd", "hidden_size": hidden, "layers": 2, "taps": [2]}

    async def main() -> None:
        async with scene(tmp_path) as stage:
            stream = await stage.lab.attach(model=model)
            good = Tensor(0, Format.ASYM4, 32, (3, hidden), bytes(payload))
            rest = (integers(1001, [2, 1]), integers(1000, [0, 1]))
            await stream.submit(Batch(1, (*rest, good)))
            await stream.acked(applied=1)
            if row == hidden // 2 + 4:
                return  # there are no such bits in this format: one encoding only
            payload[hidden // 2] |= 0xF0
            bad = dataclasses.replace(good, payload=bytes(payload))
            await stream.send(*Batch(2, (*rest, bad)).frames())
            await stream.failed(ErrorCode.SCHEMA_MISMATCH, seq=2)

    run_once(main())


def test_row_35_loss_that_is_not_finite(
    run_once: Run, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """[B-44] Such a step is skipped, with a line in the log; ten in a row end the stream with NON_FINITE."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            caplog.set_level(logging.WARNING, "mobillm")
            stream = await stage.lab.attach()
            await stream.submit(poisoned(1, float("nan")), tiny_batch(2))
            await stream.acked(applied=2)
            assert sum("not finite" in record.message for record in caplog.records) == 1
            await stream.submit(*(poisoned(seq, float("nan")) for seq in range(3, 13)))
            await stream.failed(ErrorCode.NON_FINITE)
            await stream.peer.alive()

    run_once(main())
    caplog.clear()  # a record holds the exception, which holds the mapped log


BROKEN: dict[str, tuple[Batch, ErrorCode, int]] = {
    "layer missing": (
        dataclasses.replace(tiny_batch(1), tensors=tiny_batch(1).tensors[:2]),
        ErrorCode.SCHEMA_MISMATCH,
        1,
    ),
    "layer twice": (
        dataclasses.replace(tiny_batch(1), tensors=(*tiny_batch(1).tensors, tiny_batch(1).tensors[2])),
        ErrorCode.PROTOCOL,
        0,
    ),
    "count": (dataclasses.replace(tiny_batch(1), commit=(("tensors", 4),)), ErrorCode.SCHEMA_MISMATCH, 0),
    "size": (dataclasses.replace(tiny_batch(1), commit=(("size", 1),)), ErrorCode.SCHEMA_MISMATCH, 0),
    "digest": (dataclasses.replace(tiny_batch(1), commit=(("checksum", 1),)), ErrorCode.SCHEMA_MISMATCH, 0),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_row_36_incomplete_batch(run_once: Run, tmp_path: pathlib.Path, kind: str) -> None:
    """A batch that is not whole, or not what its COMMIT says, is not applied."""
    batch, code, seq = BROKEN[kind]

    async def main() -> None:
        async with scene(tmp_path) as stage:
            stream = await stage.lab.attach()
            await stream.peer.send(*batch.frames())
            if seq:
                await stream.failed(code, seq=seq)
            else:
                await stream.peer.refused(code)
            again = await stage.lab.resume(stream.opened.session)
            assert again.opened.received == 0
            await again.submit(tiny_batch(1))
            await again.acked(applied=1)

    run_once(main())


PARTS: dict[str, tuple[list[int], ErrorCode]] = {
    "part missing": ([0, 2], ErrorCode.PROTOCOL),
    "part twice": ([0, 1, 1], ErrorCode.PROTOCOL),
    "reordered": ([1, 0], ErrorCode.PROTOCOL),
    "next tensor too early": ([0, 99], ErrorCode.SCHEMA_MISMATCH),
}


@pytest.mark.parametrize("kind", PARTS)
def test_row_36_parts(run_once: Run, tmp_path: pathlib.Path, kind: str) -> None:
    """Parts of a tensor that are missing, doubled or out of order are refused at once."""
    order, code = PARTS[kind]

    async def main() -> None:
        async with scene(tmp_path) as stage:
            stream = await stage.lab.attach()
            tensors = tiny_batch(1).tensors
            parts = tensors[2].parts(1, size=20)
            other = tensors[0].parts(1)[0]
            await stream.peer.send(*(other if number == 99 else parts[number] for number in order))
            await stream.peer.refused(code)

    run_once(main())


def test_row_37_another_model_or_quantizer(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Batches of another width, format or number of taps than the session's are refused one by one."""
    wide = np.zeros((3, 64), np.float32)
    packed = pack(wide, Format.ASYM4, 32, "tap")
    other_model = Tensor(0, Format.ASYM4, 32, (3, 64), bytes(packed.payload))
    halves = np.zeros((3, 32), np.float16).tobytes()
    other_format = Tensor(0, Format.F16, 0, (3, 32), halves)
    rest = tiny_batch(1).tensors[:2]

    async def main() -> None:
        async with scene(tmp_path) as stage:
            stream = await stage.lab.attach()
            for tensor in (other_model, other_format):
                await stream.send(*Batch(1, (*rest, tensor)).frames())
                await stream.failed(ErrorCode.SCHEMA_MISMATCH, seq=1)
            await stream.submit(tiny_batch(1))
            await stream.acked(applied=1)

    run_once(main())


def test_row_38_nothing_runs_code(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A serialized command in a blob, a map or a checkpoint is bytes like any other."""
    touched = tmp_path / "touched"
    command = f"cposix\nsystem\n(S'touch {touched}'\ntR.".encode()
    digest = hashlib.sha256(command).digest()

    async def main() -> None:
        async with scene(tmp_path / "server") as stage:
            head = {"task": "causal-lm", "side": {"kind": "ladder", "width": 12}, "head": digest.hex()}
            peer = await stage.lab.open()
            await peer.send(frame(FrameType.OPEN, {"spec": spec(**head)}, stream=1))
            stream = await stage.lab.opened(peer, 1)
            assert stream.opened.missing == (digest,)
            values = {"digest": digest, "total": len(command), "offset": 0}
            await stream.send(frame(FrameType.BLOB, values, command, stream=1))
            await stream.failed(ErrorCode.SCHEMA_MISMATCH)  # it is no safetensors file
            await peer.send(raw_frame(PING, command))
            await peer.refused(ErrorCode.DECODE)

    run_once(main())
    assert not touched.exists()
