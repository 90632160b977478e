from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from mobillm.formats import Format
from mobillm.kernels import bitpack, torch_backend, torch_blocks
from mobillm.kernels.layout import Layout, code_size

Array = npt.NDArray[Any]
BLOCK_FORMATS = [fmt for fmt in Format if fmt.is_block]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small operations on a busy machine lose their time waiting for torch's other threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_bytes_and_values_equal_the_reference(
    values: Array, expected: Callable[[Array, Format, int], bytes]
) -> None:
    """The steps for other devices, run in main memory, give the reference's bytes and values."""
    for fmt in BLOCK_FORMATS:
        layout = Layout.of(fmt, 64, values.shape)
        rows = torch.from_numpy(values).reshape(layout.rows, layout.width)
        packed = np.frombuffer(expected(values, fmt, 64), np.uint8).reshape(layout.rows, layout.row_size)
        fused = torch_backend.dequantize(packed, fmt, (layout.rows, layout.width))
        for span in layout.spans if layout.size else ():
            records = torch_blocks.encode(fmt, rows[:, span.columns].reshape(-1, span.values).contiguous())
            assert records.numpy().tobytes() == packed[:, span.octets].tobytes(), fmt
            decoded = torch_blocks.decode(fmt, records, span.values)
            assert decoded.numpy().tobytes() == fused[:, span.columns].contiguous().numpy().tobytes(), fmt


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("n", [1, 7, 8, 9, 36, 63, 64, 128])
def test_pack_and_unpack_equal_numpy(bits: int, n: int) -> None:
    """Both packers agree byte for byte, and unpacking ignores unused bits."""
    codes = np.random.default_rng(n).integers(0, 1 << bits, (5, n), dtype=np.uint8)
    packed = torch_blocks.pack(torch.from_numpy(codes), bits)
    expected = np.empty((5, code_size(bits, n)), np.uint8)
    bitpack.pack(codes << np.uint8(8 - bits), bits, expected)
    assert (packed.numpy() == expected).all()
    if used := n * bits % 8:
        packed[:, -1] |= 0xFF << used & 0xFF
    assert (torch_blocks.unpack(packed, bits, n).numpy() == codes).all()


def test_decode_reads_records_inside_a_larger_buffer() -> None:
    """A trailer at an odd address is read correctly."""
    record = torch_blocks.encode(Format.ASYM3, torch.linspace(-1, 1, 7)[None])
    buffer = torch.cat([torch.zeros(1, 2, dtype=torch.uint8), record], dim=1)
    assert torch.equal(
        torch_blocks.decode(Format.ASYM3, buffer[:, 2:], 7), torch_blocks.decode(Format.ASYM3, record, 7)
    )
