"""The golden vectors of tests/vectors against the package, in both directions."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from mobillm import kernels
from mobillm.codec import Equalizer, pack, unpack, unpack_torch
from mobillm.errors import (
    ConfigError,
    ConnectionClosed,
    ErrorCode,
    HandshakeError,
    QuantizationError,
    RemoteProtocolError,
)
from mobillm.formats import Format, packed_size
from mobillm.kernels import torch_backend
from mobillm.options import Limits
from mobillm.protocol import (
    HEADER_SIZE,
    MESSAGES,
    Endpoint,
    Frame,
    FrameBuffer,
    FrameType,
    Message,
    Ping,
    TensorHeader,
    decode_message,
    decompress,
    derive_key,
)
from mobillm.protocol.auth import Transcript
from mobillm.protocol.credit import Credit
from tests.helpers import wire_bytes
from tests.vectors import generate

Case = dict[str, Any]
Array = npt.NDArray[Any]
Quantize = Callable[[Array, Format, int], Array]
Dequantize = Callable[[bytes, Format, list[int], int], Array]

HANDSHAKE = ("HELLO", "CHALLENGE", "AUTH", "WELCOME")
FORMATS = [fmt.name.lower() for fmt in Format]
TRAILING = wire_bytes(Ping(data=b"trailing"))
LIMIT = 1 << 20


def cases(group: str) -> list[Any]:
    """Return the cases of one file, named for pytest."""
    content = json.loads((generate.FOLDER / f"{group}.json").read_text())
    assert (content["protocol"], content["group"]) == (1, group)
    return [pytest.param(case, id=case["name"]) for case in content["cases"]]


def plain(value: Any) -> Any:
    """Return a field's value as the package holds it: bytes for hex, tuples for lists."""
    if isinstance(value, dict):
        return (
            bytes.fromhex(value["hex"]) if set(value) == {"hex"} else {k: plain(v) for k, v in value.items()}
        )
    return tuple(plain(item) for item in value) if isinstance(value, list) else value


def message_of(case: Case) -> Message:
    """Return the message that a case describes."""
    values = plain(case["fields"])
    if case["payload"] is not None:
        values["payload"] = bytes.fromhex(case["payload"])
    return MESSAGES[FrameType[case["type"]]](stream=case["stream"], seq=case["seq"], **values)


def feeds(data: bytes) -> Iterator[tuple[list[bytes], bool]]:
    """Yield the pieces of data whole, byte by byte, and with another frame behind; and whether it is."""
    yield [data], False
    yield [data[i : i + 1] for i in range(len(data))], False
    yield [data + TRAILING], True


def read(data: bytes) -> list[Frame]:
    """Return the frames of data; every feed gives the same ones."""
    found: list[list[Frame]] = []
    for pieces, trailing in feeds(data):
        buffer = FrameBuffer(LIMIT)
        frames = [frame for piece in pieces for frame in buffer.receive_data(piece)]
        if trailing:
            assert frames.pop().type is FrameType.PING
        assert buffer.is_empty
        found.append(frames)
    assert found[0] == found[1] == found[2]
    return found[0]


def test_regenerating_gives_the_committed_files() -> None:
    """[V-15] The files are those that the generator makes from the specification alone, and no others."""
    made = generate.build()
    assert {path.name for path in generate.FOLDER.iterdir()} == set(made)
    for name, text in made.items():
        assert (generate.FOLDER / name).read_text() == text, f"{name}: run python -m tests.vectors.generate"
    assert sum(len(text) for text in made.values()) < 2_000_000


def test_every_type_has_vectors_of_both_sizes() -> None:
    """No message and no format is left out."""
    names = {case.id for case in cases("frames")}
    assert {f"{t.name.lower()}-{size}" for t in FrameType for size in ("least", "most")} <= names
    assert {f"tensors-{name}.json" for name in FORMATS} <= {path.name for path in generate.FOLDER.iterdir()}


@pytest.mark.parametrize("case", cases("frames"))
def test_frames(case: Case) -> None:
    """[F-12] [D-1] to [D-75] Bytes give the fields, at both ends of their ranges; fields give the bytes."""
    data, expected = bytes.fromhex(case["bytes"]), message_of(case)
    (frame,) = read(data)
    message = decode_message(frame)
    assert message == expected
    for field in dataclasses.fields(message):
        ours, theirs = getattr(message, field.name), getattr(expected, field.name)
        assert field.name == "payload" or type(ours) is type(theirs) or isinstance(theirs, float)
    if case["encode"]:
        assert wire_bytes(expected) == data
        assert expected.frame_size() == len(data)


def refusal(buffer: FrameBuffer, pieces: list[bytes]) -> tuple[int | None, int]:
    """Feed pieces until they are refused; return the code and how many bytes it took."""
    fed = 0
    for piece in pieces:
        fed += len(piece)
        try:
            assert list(buffer.receive_data(piece)) == []
        except RemoteProtocolError as exc:
            return exc.code, fed
    return None, fed


@pytest.mark.parametrize("case", cases("header-refusals"))
def test_header_refusals(case: Case) -> None:
    """[F-7] [F-15] The code is right in every feed, and comes as soon as the bytes named have arrived."""
    data = bytes.fromhex(case["bytes"])
    needed = {"header": HEADER_SIZE, "bin header": HEADER_SIZE + 6, "body": len(data)}[case["refused_after"]]
    for pieces, _ in feeds(data):
        code, fed = refusal(FrameBuffer(case["limit"]), pieces)
        assert code == case["code"]
        assert fed == needed or len(pieces) == 1


@pytest.mark.parametrize("case", cases("map-refusals"))
def test_map_refusals(case: Case) -> None:
    """[M-7] The frame is right and its message is refused with the code."""
    (frame,) = read(bytes.fromhex(case["bytes"]))
    with pytest.raises(RemoteProtocolError) as caught:
        decode_message(frame)
    assert caught.value.code == case["code"], caught.value


def endpoint_of(case: Case, role: str) -> Endpoint:
    """Return the package's end of a conversation."""
    figures = case["limits"]
    limits = Limits(**figures, chunk=min(262144, figures["frame"] - 8192))
    key, nonce = bytes.fromhex(case["key"]), bytes.fromhex(case[f"{role}_nonce"])
    caps = tuple(case[f"{role}_caps"])
    if role == "server":
        return Endpoint.server({case["tenant"]: key}, nonce=nonce, caps=caps, limits=limits)
    return Endpoint.device(case["tenant"], key, nonce=nonce, caps=caps)


def check_refusal(output: bytes, step: Case) -> None:
    """Check type and code of a refusal, whose text is free."""
    (frame,) = FrameBuffer(LIMIT).receive_data(output)
    assert frame.type.name == step["refusal"]
    assert getattr(decode_message(frame), "code", None) == step["code"]


def play(case: Case, role: str, size: int | None) -> Endpoint:
    """Play one side of a conversation; the other side's frames come in pieces of ``size`` bytes."""
    endpoint = endpoint_of(case, role)
    for step in case["steps"]:
        if step["from"] != role:
            data = bytes.fromhex(step["bytes"])
            for start in range(0, len(data), size or len(data)):
                endpoint.receive_data(data[start : start + (size or len(data))])
            seen = [event for event in endpoint.events_received() if event.type.name not in HANDSHAKE]
            message = step["message"]
            silent = message is None or step.get("ignored") or message["type"] in HANDSHAKE
            assert endpoint.is_closed() or seen == ([] if silent else [message_of(message)])
            continue
        if step.get("refusal") is None and step["message"]["type"] not in HANDSHAKE:
            endpoint.send(message_of(step["message"]))
        output = b"".join(bytes(buffer) for buffer in endpoint.data_to_send())
        if step.get("refusal"):
            check_refusal(output, step)
        else:
            assert output.hex() == step["bytes"], step["message"]
    return endpoint


@pytest.mark.parametrize("size", [None, 1, 45])
@pytest.mark.parametrize("case", [*cases("handshakes"), *cases("sessions")])
def test_conversations(case: Case, size: int | None) -> None:
    """[T-5] [F-8] [F-9] Each side says these bytes, understands the other's, and ends for this reason."""
    for role in case["roles"]:
        endpoint = play(case, role, size)
        assert endpoint.data_to_send() == []
        assert endpoint.is_closed() is (case["end"] is not None)
        if case["end"] is not None:
            assert getattr(endpoint.close_exc, "code", None) == case["end"]


@pytest.mark.parametrize("case", [c for c in cases("handshakes") if "transcript_hash" in c.values[0]])
def test_keys_and_transcripts(case: Case) -> None:
    """[A-1] [A-2] [A-3] [A-10] The figures in between, for whoever debugs a handshake."""
    assert derive_key(case["token"]).hex() == case["key"]
    frames = [bytes.fromhex(step["bytes"]) for step in case["steps"][:2] if step.get("bytes")]
    if case["name"].startswith(("plain", "unicode", "capabilities", "later")):
        transcript = Transcript()
        for data in frames:
            transcript.add(data[3], data[HEADER_SIZE:])
        assert transcript._hash.hexdigest() == case["transcript_hash"]
        mac = bytes.fromhex(case["steps"][2]["message"]["fields"]["mac"]["hex"])
        assert transcript.device_proof(bytes.fromhex(case["key"])) == mac


def test_a_refused_device_knows_the_reason() -> None:
    """[H-8] [E-7] The device that reads the server's REJECT raises it and answers nothing."""
    for parameter in cases("handshakes"):
        case = parameter.values[0]
        last = case["steps"][-1]
        if last.get("refusal") == "REJECT" and case["name"] == "wrong-token":
            device = Endpoint.device(
                case["tenant"], derive_key("guess"), nonce=bytes.fromhex(case["device_nonce"])
            )
            server = endpoint_of(case, "server")
            for _ in range(3):
                server.receive_data(b"".join(bytes(part) for part in device.data_to_send()))
                device.receive_data(b"".join(bytes(part) for part in server.data_to_send()))
            assert isinstance(device.close_exc, HandshakeError)
            assert device.close_exc.code == last["code"]
            assert isinstance(server.close_exc, ConnectionClosed)


@pytest.mark.parametrize("case", cases("credit"))
def test_credit(case: Case) -> None:
    """[C-2] [C-3] [C-8] [C-11] Grants and sends, step by step."""
    credit = Credit()
    for step in case["steps"]:
        if "grant" in step:
            credit.grant(**step["grant"])
        else:
            assert credit.allows(step["send"], step["seq"]) is step["allowed"]
            if step["allowed"]:
                credit.charge(step["send"])
        assert credit.available == step["available"]


def numpy_quantize(values: Array, fmt: Format, block: int) -> Array:
    """Pack with the numpy backend."""
    return kernels.quantize(values, fmt, block)


def numpy_dequantize(data: bytes, fmt: Format, shape: list[int], block: int) -> Array:
    """Unpack with the numpy backend."""
    return kernels.dequantize(data, fmt, shape, block)


def torch_quantize(values: Array, fmt: Format, block: int) -> Array:
    """Pack with the torch backend."""
    packed: Array = torch_backend.quantize(torch.from_numpy(values.copy()), fmt, block).numpy()
    return packed


def torch_dequantize(data: bytes, fmt: Format, shape: list[int], block: int) -> Array:
    """Unpack with the torch backend."""
    values: Array = torch_backend.dequantize(bytearray(data), fmt, shape, block).numpy()
    return values


BACKENDS = {"numpy": (numpy_quantize, numpy_dequantize), "torch": (torch_quantize, torch_dequantize)}


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("case", cases("tensors-equalized"))
def test_equalized_tensors(case: Case, kind: str) -> None:
    """[P28] [P29] [P30] [B-36] Divided, packed, unpacked and multiplied, bit by bit; and the checksum."""
    factors = bytes.fromhex(case["equalizer"])
    equalizer = Equalizer.unpack(TensorHeader(Format.F16, 0, (len(factors) // 2,)), factors)
    assert bytes(equalizer.packed.payload) == factors
    assert equalizer.checksum == case["checksum"]
    values: Any = array_of(case, case["values"]).copy()
    packed = pack(
        values if kind == "numpy" else torch.from_numpy(values), Format(case["code"]), 32, "x", equalizer
    )
    assert bytes(packed.payload).hex() == case["bytes"]
    assert packed.header.equalizer == case["checksum"]
    read = unpack if kind == "numpy" else unpack_torch
    decoded = np.asarray(read(packed.header, bytes.fromhex(case["bytes"]), equalizer=equalizer))
    assert decoded.tobytes() == array_of(case, case["decoded"]).tobytes()


@pytest.mark.parametrize("case", cases("tensors-compressed"))
def test_compressed_tensors(case: Case) -> None:
    """[Z-1] [Z-6] to [Z-10] A frame gives its content, or is refused with the code."""
    data, size = bytes.fromhex(case["bytes"]), case["size"]
    if "content" in case:
        assert bytes(decompress(data, size)).hex() == case["content"]
        return
    with pytest.raises(RemoteProtocolError) as caught:
        decompress(data, size)
    assert caught.value.code == case["code"]


def array_of(case: Case, digits: str) -> Array:
    """Return the tensor whose values are written as 8 hexadecimal digits each."""
    kind = ">i4" if case["format"] == "i32" else ">f4"
    native = np.int32 if case["format"] == "i32" else np.float32
    return np.frombuffer(bytes.fromhex(digits), kind).astype(native).reshape(case["shape"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [case for name in FORMATS for case in cases(f"tensors-{name}")])
def test_tensors(case: Case, backend: str) -> None:
    """[P1] to [P6] [P13] [P17] Values give the bytes, bytes give the values, bit by bit."""
    quantize, dequantize = BACKENDS[backend]
    fmt, data, block = Format.parse(case["format"]), bytes.fromhex(case["bytes"]), case["block"] or 64
    assert fmt == case["code"]
    assert packed_size(fmt, case["block"], case["shape"]) == len(data)
    assert quantize(array_of(case, case["values"]), fmt, block).tobytes() == data
    decoded = dequantize(data, fmt, case["shape"], block)
    assert decoded.shape == tuple(case["shape"])
    assert decoded.tobytes() == array_of(case, case["decoded"]).tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases("tensor-refusals"))
def test_tensor_refusals(case: Case, backend: str) -> None:
    """[P7] [P18] Values that a format cannot carry, and payloads of another size."""
    quantize, dequantize = BACKENDS[backend]
    fmt, block = Format.parse(case["format"]), case["block"] or 64
    if "values" in case:
        with pytest.raises(QuantizationError):
            quantize(array_of(case, case["values"]), fmt, block)
    else:
        with pytest.raises(ConfigError):
            dequantize(bytes.fromhex(case["bytes"]), fmt, case["shape"], block)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", cases("tensor-readings"))
def test_tensor_readings(case: Case, backend: str) -> None:
    """[P12] [P14] [P16] What no writer makes decodes all the same."""
    _, dequantize = BACKENDS[backend]
    found = dequantize(
        bytes.fromhex(case["bytes"]), Format.parse(case["format"]), case["shape"], case["block"]
    )
    texts = ["nan" if np.isnan(value) else struct.pack(">f", value).hex() for value in found.reshape(-1)]
    assert texts == case["decoded"]


def test_codes_in_the_vectors_are_known() -> None:
    """[E-9] Every refusal has a code of the table."""
    for group in ("header-refusals", "map-refusals", "tensors-compressed"):
        codes = {case.values[0]["code"] for case in cases(group) if "code" in case.values[0]}
        assert codes <= set(ErrorCode)
