"""Tests of mobillm.protocol.frames."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Iterable, Iterator

import crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillm.errors import ErrorCode, RemoteProtocolError
from mobillm.protocol import HEADER_SIZE, MAX_META, Frame, FrameBuffer, FrameType, encode_frame
from mobillm.protocol.frames import SCRATCH_SIZE, SLACK
from tests.helpers import raw_frame

LIMIT = 1 << 20
PAYLOAD_TYPES = (FrameType.DATA, FrameType.BLOB, FrameType.WEIGHTS)


def feed(data: bytes, sizes: Iterable[int], limit: int = LIMIT) -> list[Frame]:
    """Feed data in pieces of the sizes given, over and over, through the buffer interface."""
    frames: list[Frame] = []
    buffer = FrameBuffer(limit)
    steps = list(sizes)
    position = turn = 0
    while position < len(data):
        into = buffer.get_buffer()
        assert into.nbytes
        count = min(steps[turn % len(steps)], into.nbytes, len(data) - position)
        into[:count] = data[position : position + count]
        buffer.buffer_updated(count)
        frames += buffer
        position += count
        turn += 1
    return frames


def flat(frames: Iterable[Frame]) -> list[tuple[object, ...]]:
    """Make frames comparable."""
    return [
        (f.type, f.stream, f.seq, f.meta, None if f.payload is None else bytes(f.payload), f.size)
        for f in frames
    ]


def refusal(data: bytes, limit: int = LIMIT) -> ErrorCode:
    """Return the code with which data is refused, whole and byte by byte alike."""
    codes = set()
    for sizes in ([len(data)], [1]):
        with pytest.raises(RemoteProtocolError) as caught:
            feed(data, sizes, limit)
        codes.add(caught.value.code)
    (code,) = codes
    return ErrorCode(code)


def test_golden_frame_without_payload() -> None:
    """[F-1] [F-3] [F-10] A PING built by hand is what we write and what we read."""
    meta = b"\x81\xa4data\xc4\x08" + bytes(range(8))
    fields = b"ML\x01\x30" + struct.pack(">HHIHHQ", 0, 0, len(meta), len(meta), 0, 0)
    golden = fields + struct.pack(">II", crc32c.crc32c(fields), crc32c.crc32c(meta)) + meta
    assert golden.hex() == (
        "4d4c01300000000000000010001000000000000000000000129f0081f035023781a464617461c4080001020304050607"
    )
    assert b"".join(encode_frame(FrameType.PING, 0, 0, meta)) == golden
    assert flat(feed(golden, [len(golden)])) == [(FrameType.PING, 0, 0, meta, None, len(golden))]


def test_golden_frame_with_payload() -> None:
    """[F-1] [F-2] [F-6] [F-10] [F-13] A DATA frame built by hand is what we write and what we read."""
    payload = bytes(range(200))
    body = b"\x80" + b"\xc6\x00\x00\x00\xc8" + payload
    fields = b"ML\x01\x10" + struct.pack(">HHIHHQ", 0, 513, len(body), 1, 0, 2**40 + 7)
    golden = fields + struct.pack(">II", crc32c.crc32c(fields), crc32c.crc32c(body)) + body
    assert b"".join(encode_frame(FrameType.DATA, 513, 2**40 + 7, b"\x80", payload)) == golden
    assert flat(feed(golden, [1])) == [(FrameType.DATA, 513, 2**40 + 7, b"\x80", payload, len(golden))]


def test_crc32c_is_castagnoli() -> None:
    """[F-11] The check value of the specification."""
    assert crc32c.crc32c(b"123456789") == 0xE3069283


def test_payload_is_not_copied_on_the_way_out() -> None:
    """A payload is handed on as the caller's own memory, and an empty one needs no buffer."""
    payload = bytearray(b"abcd")
    buffers = encode_frame(FrameType.DATA, 1, 1, b"\x80", memoryview(payload))
    payload[0] = ord("x")
    assert bytes(buffers[1]) == b"xbcd"
    assert len(encode_frame(FrameType.DATA, 1, 1, b"\x80", b"")) == 1


def test_received_payloads_have_memory_of_their_own() -> None:
    """What its owner does with a payload changes no other one."""
    data = raw_frame(FrameType.DATA, {}, b"1234", stream=1, seq=1)
    first, second = feed(data + data, [99])
    assert first.payload is not None
    assert second.payload is not None
    first.payload[:] = b"5678"
    assert bytes(second.payload) == b"1234"


def boundary_frames() -> bytes:
    """Return frames whose payloads sit at every edge of the scratch buffer."""
    sizes = (0, 1, 4000, 4095, 4096, 4097, 8150, 8191, 8192, 8193, 12288, 20000)
    frames = []
    for number, size in enumerate(sizes, 1):
        frames.append(raw_frame(FrameType.DATA, {"n": number}, b"%c" % number * size, stream=1, seq=number))
        frames.append(raw_frame(FrameType.ACK, {"x": "y" * (number * 300)}, stream=1))
        frames.append(raw_frame(0x80, {"skip": number}))
    frames.append(raw_frame(FrameType.METRICS, {"x": b"z" * (MAX_META - 7)}))
    return b"".join(frames)


@pytest.mark.parametrize(
    "size", [1, 2, 31, 32, 33, 37, 4095, 4096, 4097, SCRATCH_SIZE - 1, SCRATCH_SIZE, 10**6]
)
def test_chunking_changes_nothing_at_any_edge(size: int) -> None:
    """[T-3] The same frames come out, however the bytes were cut."""
    data = boundary_frames()
    frames = flat(feed(data, [size]))
    assert len(frames) == 25
    assert frames == flat(FrameBuffer(LIMIT).receive_data(data))
    for type_, _, seq, _, payload, _ in frames[::2][:12]:
        assert type_ is FrameType.DATA
        assert isinstance(payload, bytes)
        assert set(payload) <= {seq}


def test_random_chunking_changes_nothing() -> None:
    """[T-3] Likewise for pieces of mixed sizes."""
    data = boundary_frames()
    whole = flat(feed(data, [len(data)]))
    dice = random.Random(7)
    for _ in range(20):
        assert flat(feed(data, [dice.choice((1, 5, 40, 3000, 5000, 9000)) for _ in range(50)])) == whole


@pytest.mark.parametrize("start", range(4090, 4100))
def test_largest_map_at_the_end_of_the_scratch_buffer(start: int) -> None:
    """There is always room for the next bytes, also when a map of 4 KiB reaches the buffer's last byte."""
    first = raw_frame(FrameType.METRICS, b"m" * (start - 2 * HEADER_SIZE))
    data = first + raw_frame(FrameType.DATA, b"d" * MAX_META, b"payload", stream=1, seq=1)
    assert [frame.type for frame in feed(data, [len(data)])] == [FrameType.METRICS, FrameType.DATA]


def test_long_payload_is_received_in_place() -> None:
    """What the scratch buffer could not hold is handed out as the payload's own memory."""
    data = raw_frame(FrameType.DATA, {}, bytes(50_000), stream=1, seq=1)
    buffer = FrameBuffer(LIMIT)
    into = buffer.get_buffer()
    into[:100] = data[:100]
    buffer.buffer_updated(100)
    assert list(buffer) == []
    assert buffer.get_buffer().nbytes == 50_000 - (100 - HEADER_SIZE - 6) + SLACK


@pytest.mark.parametrize("behind", [0, 1, 40, SLACK - 1, SLACK])
def test_one_call_ends_a_long_payload_and_begins_the_next_frame(behind: int) -> None:
    """[T-3] What comes behind a long payload in its slack belongs to the next frames."""
    first = raw_frame(FrameType.DATA, {"n": 1}, bytes(50_000), stream=1, seq=1)
    second = raw_frame(FrameType.ACK, {"x": "y" * 100}, stream=1)
    third = raw_frame(FrameType.DATA, {"n": 2}, b"3" * 20_000, stream=1, seq=1)
    data = first + second + third
    buffer = FrameBuffer(LIMIT)
    into = buffer.get_buffer()
    into[:100] = data[:100]
    assert buffer.buffer_updated(100)
    assert buffer.next_frame() is None
    into = buffer.get_buffer()
    count = len(first) - 100 + behind
    into[:count] = data[100 : 100 + count]
    assert buffer.buffer_updated(count)
    frames = [*buffer, *buffer.receive_data(data[100 + count :])]
    assert flat(frames) == flat(feed(data, [31]))
    assert [len(frame.payload) for frame in frames if frame.payload is not None] == [50_000, 20_000]
    assert buffer.is_empty


def test_there_is_room_after_a_refusal() -> None:
    """[E-8] A peer that is refused goes on sending for a while; what comes has a place to be dropped from."""
    buffer = FrameBuffer(LIMIT)
    buffer.get_buffer()[:] = b"?" * SCRATCH_SIZE
    buffer.buffer_updated(SCRATCH_SIZE)
    with pytest.raises(RemoteProtocolError):
        buffer.next_frame()
    assert buffer.get_buffer().nbytes > 0


def test_slack_is_only_behind_long_payloads() -> None:
    """[L-3] What a payload takes beside its own bytes is a small part of it."""
    for size in (1, SCRATCH_SIZE - 1, SCRATCH_SIZE, 100_000):
        (frame,) = feed(raw_frame(FrameType.DATA, {}, bytes(size), stream=1, seq=1), [1000])
        assert frame.payload is not None
        held = frame.payload.obj
        assert len(memoryview(held)) == size + (SLACK if size >= SCRATCH_SIZE else 0) <= size * 1.04


@pytest.mark.parametrize("trailing", [b"", b"M", b"ML\x01", bytes(31)])
def test_trailing_bytes_wait(trailing: bytes) -> None:
    """[T-3] [F-12] Bytes after a frame belong to the next one."""
    frame = raw_frame(FrameType.BYE, {})
    buffer = FrameBuffer(LIMIT)
    assert buffer.is_empty
    assert len(list(buffer.receive_data(frame + trailing))) == 1
    assert buffer.is_empty is not bool(trailing)


def test_truncation_at_each_byte_needs_more() -> None:
    """[T-4] A frame that was cut is no frame, and the buffer knows that it is in the middle of one."""
    data = raw_frame(FrameType.DATA, {"k": 1}, b"payload", stream=1, seq=1)
    for cut in range(1, len(data)):
        buffer = FrameBuffer(LIMIT)
        assert list(buffer.receive_data(data[:cut])) == []
        assert not buffer.is_empty
        assert len(list(buffer.receive_data(data[cut:]))) == 1
        assert buffer.is_empty


def test_every_header_bit_flip_is_refused() -> None:
    """[F-5] [F-16] [F-17] [F-25] No single bit of a header can be changed unnoticed."""
    data = raw_frame(FrameType.DATA, {"k": 1}, b"payload", stream=1, seq=1)
    for bit in range(8 * HEADER_SIZE):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 0x80 >> bit % 8
        expected = ErrorCode.CRC_HEADER
        if bit < 16:
            expected = ErrorCode.PROTOCOL
        elif bit >= 28 * 8:
            expected = ErrorCode.CRC_BODY
        assert refusal(bytes(damaged)) is expected, bit


def test_every_body_bit_flip_is_refused() -> None:
    """[F-4] [F-6] [F-25] The body checksum covers the map, the bin header and the payload."""
    data = raw_frame(FrameType.DATA, {"k": 1}, b"payload", stream=1, seq=1)
    start = HEADER_SIZE + 4
    for bit in range(8 * HEADER_SIZE, 8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 0x80 >> bit % 8
        in_bin_header = start <= bit // 8 < start + 5
        expected = ErrorCode.DECODE if in_bin_header else ErrorCode.CRC_BODY
        assert refusal(bytes(damaged)) is expected, bit


def test_flag_bits_with_right_checksums() -> None:
    """[F-20] [F-27] Critical flags are refused, optional ones are ignored."""
    for bit in range(16):
        data = raw_frame(FrameType.BYE, {}, flags=1 << bit)
        if bit < 8:
            assert refusal(data) is ErrorCode.PROTOCOL
        else:
            assert flat(feed(data, [99])) == flat(feed(raw_frame(FrameType.BYE, {}), [99]))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (raw_frame(FrameType.BYE, {}, magic=b"GE"), ErrorCode.PROTOCOL),
        (raw_frame(FrameType.BYE, {}, version=0), ErrorCode.UNSUPPORTED_VERSION),
        (raw_frame(FrameType.BYE, {}, version=2), ErrorCode.UNSUPPORTED_VERSION),
        (raw_frame(FrameType.BYE, {}, reserved=1), ErrorCode.PROTOCOL),
        (raw_frame(FrameType.BYE, {}, seq=1 << 63), ErrorCode.PROTOCOL),
        (raw_frame(FrameType.BYE, {}, body_size=LIMIT + 1), ErrorCode.FRAME_SIZE),
        (raw_frame(FrameType.BYE, {}, body_size=2**32 - 1), ErrorCode.FRAME_SIZE),
        (raw_frame(FrameType.BYE, {}, meta_size=MAX_META + 1, body_size=MAX_META + 1), ErrorCode.LIMIT),
        (raw_frame(FrameType.BYE, {}, body_size=2), ErrorCode.PROTOCOL),
        (raw_frame(FrameType.BYE, {}, meta_size=2), ErrorCode.PROTOCOL),
        (raw_frame(FrameType.DATA, {}), ErrorCode.PROTOCOL),
        (raw_frame(FrameType.DATA, {}, b"", body_size=5), ErrorCode.PROTOCOL),
        (raw_frame(0x00, {}), ErrorCode.UNSUPPORTED),
        (raw_frame(0x7F, {}), ErrorCode.UNSUPPORTED),
        (raw_frame(0xC0, {}), ErrorCode.UNSUPPORTED),
        (raw_frame(0xFF, {}), ErrorCode.UNSUPPORTED),
        (raw_frame(0x80, b"", body_size=MAX_META + 1), ErrorCode.FRAME_SIZE),
    ],
)
def test_bad_header_is_refused_from_the_header_alone(data: bytes, code: ErrorCode) -> None:
    """The first 32 bytes are enough to refuse.

    [F-3] [F-14] [F-16] [F-18] [F-19] [F-21] [F-22] [F-23] [F-24] [V-1] [V-4] [V-11] [L-1] [L-14]
    """
    assert refusal(data[:HEADER_SIZE]) is code


def test_nothing_is_allocated_for_a_length_beyond_the_limit() -> None:
    """[F-15] [F-22] [L-3] A header that announces 4 GiB costs nothing."""
    header = raw_frame(FrameType.DATA, {}, b"", stream=1, seq=1, body_size=2**32 - 1)[:HEADER_SIZE]
    buffer = FrameBuffer(LIMIT)
    tracemalloc.start()
    with pytest.raises(RemoteProtocolError):
        list(buffer.receive_data(header))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000


def test_limit_is_inclusive_and_can_be_raised() -> None:
    """[F-22] [H-6] A body of exactly the limit passes; the limit in force is the one at the header."""
    at_limit = raw_frame(FrameType.DATA, {}, bytes(94), stream=1, seq=1)
    over = raw_frame(FrameType.DATA, {}, bytes(95), stream=1, seq=1)
    assert len(feed(at_limit, [7], 100)) == 1
    assert refusal(over, 100) is ErrorCode.FRAME_SIZE
    buffer = FrameBuffer(10)
    buffer.max_body = 101
    assert len(list(buffer.receive_data(over))) == 1


@pytest.mark.parametrize(
    "bin_header",
    [
        b"\xc5\x00\x00\x00\x04",
        b"\xdb\x00\x00\x00\x04",
        b"\xc6\x00\x00\x00\x03",
        b"\xc6\xff\xff\xff\xff",
        b"\xc6\x04\x00\x00\x00",
    ],
)
def test_wrong_bin_header_is_refused(bin_header: bytes) -> None:
    """[F-4] [F-13] The five bytes before the payload have one form only."""
    data = raw_frame(FrameType.DATA, {}, b"1234", stream=1, seq=1, bin_header=bin_header)
    assert refusal(data) is ErrorCode.DECODE


def test_unknown_optional_types_are_skipped() -> None:
    """All of 0x80 to 0xBF are skipped, whatever they hold, and both checksums are checked.

    [V-3] [V-10] [L-14]
    """
    bye = raw_frame(FrameType.BYE, {})
    skipped = b""
    for code in range(0x80, 0xC0):
        skipped = raw_frame(code, b"\xc1 not msgpack", flags=0x0100, meta_size=4)
        assert len(feed(skipped + bye, [99])) == 1
        assert len(feed(skipped + bye, [1])) == 1
    assert feed(raw_frame(0x80, b"abc", meta_size=50), [99]) == []
    assert feed(raw_frame(0x80, b"x" * MAX_META), [99]) == []
    assert refusal(skipped[:-1] + b"?") is ErrorCode.CRC_BODY


def test_frame_types_are_distinct_and_ranged() -> None:
    """[F-2] [V-3] [V-4] Version 1 uses no code of the extension ranges; three types have payloads."""
    assert all(0 < code < 0x80 for code in FrameType)
    assert {t for t in FrameType if t.has_payload} == set(PAYLOAD_TYPES)


def frames_or_refusal(data: bytes, sizes: list[int]) -> Iterator[tuple[object, ...]]:
    """Yield what data means: frames, then perhaps a refusal. Any other exception passes."""
    buffer = FrameBuffer(LIMIT)
    position = turn = 0
    while position < len(data):
        into = buffer.get_buffer()
        count = min(sizes[turn % len(sizes)], into.nbytes, len(data) - position)
        into[:count] = data[position : position + count]
        buffer.buffer_updated(count)
        position, turn = position + count, turn + 1
        try:
            for frame in buffer:
                yield from flat([frame])
        except RemoteProtocolError as exc:
            yield ("refused", exc.code)
            return


good_frames = st.builds(
    lambda t, stream, seq, payload: raw_frame(
        t, {"k": seq}, payload if t in PAYLOAD_TYPES else None, stream=stream, seq=seq
    ),
    st.sampled_from(FrameType),
    st.integers(0, 0xFFFF),
    st.integers(0, 2**63 - 1),
    st.binary(max_size=6000),
)
odd_frames = st.builds(
    lambda t, meta, flags, body, reserved: raw_frame(
        t, meta, None, flags=flags, body_size=body, reserved=reserved
    ),
    st.integers(0, 255),
    st.binary(max_size=50),
    st.sampled_from([0, 0, 1, 0x100]),
    st.one_of(st.none(), st.integers(0, 2**32 - 1)),
    st.sampled_from([0, 0, 0, 1]),
)


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(st.one_of(good_frames, good_frames, odd_frames, st.binary(max_size=80)), max_size=6),
    sizes=st.lists(st.integers(1, 9000), min_size=1, max_size=8),
)
def test_any_bytes_are_frames_or_a_documented_refusal(parts: list[bytes], sizes: list[int]) -> None:
    """[F-5] [T-3] Whatever comes, the answer is frames, "need more" or a refusal, however it is cut."""
    data = b"".join(parts)
    whole = list(frames_or_refusal(data, [len(data) + 1]))
    assert list(frames_or_refusal(data, sizes)) == whole
