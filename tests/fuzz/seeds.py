"""Write the seeds of the corpus: ``python -m tests.fuzz.seeds``; inputs that were found by fuzzing stay."""

from __future__ import annotations

import pathlib
import struct
from collections.abc import Iterator
from functools import partial

import numpy as np

from mobillm import kernels
from mobillm.formats import Format
from mobillm.protocol import Bye, Data, Error, Finish, Message, Open, Ping, compress
from mobillm.protocol.state import STREAM, Role, StreamPhase
from tests.fuzz.targets import DEVICE, FRESH, RAW
from tests.helpers import EndpointPair, examples, make_batch, make_data, make_spec, wire_bytes
from tests.vectors import compression

CORPUS = pathlib.Path(__file__).parent / "corpus"
STEP = 7  # bytes of a piece


def endpoint_seeds() -> Iterator[tuple[str, bytes]]:
    """Yield name and content: handshakes, and what each side may send once a session is attached."""
    pair = EndpointPair()
    heard = {"server": b"", "device": b""}

    def listen(end: str, data: bytes) -> bytes:
        heard[end] += data
        return data

    pair.to_server, pair.to_device = partial(listen, "server"), partial(listen, "device")
    pair.pump()
    spec = wire_bytes(Open(stream=1, spec=make_spec().to_map()))
    yield "handshake-to-server", bytes([FRESH, STEP]) + heard["server"] + spec + wire_bytes(Bye())
    yield "handshake-to-device", bytes([FRESH | DEVICE, STEP]) + heard["device"]
    yield "raw", bytes([FRESH | RAW, STEP]) + heard["server"][:40]
    batches: list[Message] = [*make_batch(1), Ping(data=bytes(8)), *make_batch(2), Finish(stream=1, seq=2)]
    yield "batches", bytes([0, STEP]) + wire_bytes(batches)
    long = make_data(1, 0, bytes(range(256)) * 40)
    yield "long-part", bytes([0, 255]) + wire_bytes(long)
    for role, mode in ((Role.DEVICE, 0), (Role.SERVER, DEVICE)):
        legal = [message for message in examples() if (role, message.type) in STREAM[StreamPhase.ATTACHED]]
        for message in (*legal, Error(code=1, text="x"), Ping(data=bytes(8))):
            if not isinstance(message, Data):
                yield f"{role.value}-{message.type.name.lower()}", bytes([mode, STEP]) + wire_bytes(message)


def tensor_seeds() -> Iterator[tuple[str, bytes]]:
    """Yield a tensor in each format, and one that is a byte short."""
    generator = np.random.default_rng(0)
    for fmt in Format:
        block = 32 if fmt.is_block else 0
        values = generator.standard_normal((2, 37))
        array = values.astype(np.int32) if fmt is Format.I32 else values.astype(np.float32)
        packed = kernels.quantize(array, fmt, block or 64).tobytes()
        head = bytes([fmt, block, 2]) + struct.pack(">HH", 2, 37)
        yield fmt.name.lower(), head + packed
        yield f"short-{fmt.name.lower()}", head + packed[:-1]


def compressed_seeds() -> Iterator[tuple[str, bytes]]:
    """Yield a tensor that zstd has compressed, and those of the golden vectors, right and wrong ones."""
    packed = bytes(range(200)) * 3
    yield "library", struct.pack(">H", len(packed)) + bytes(compress(memoryview(packed)) or b"")
    for case in compression.compressed():
        yield case["name"], struct.pack(">H", case["size"]) + bytes.fromhex(case["bytes"])


def main() -> None:
    """Write all seeds."""
    written = {"endpoint": endpoint_seeds(), "tensor": tensor_seeds(), "compressed": compressed_seeds()}
    for target, seeds in written.items():
        (CORPUS / target).mkdir(parents=True, exist_ok=True)
        for name, content in seeds:
            (CORPUS / target / name).write_bytes(content)


if __name__ == "__main__":
    main()
