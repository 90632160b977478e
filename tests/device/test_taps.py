"""Packing of taps: which batch calibrates, what is equalized, and what is not."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from mobillm.codec import Equalizer, unpack
from mobillm.device.taps import CALIBRATION, TapPacker
from mobillm.errors import QuantizationError
from mobillm.formats import Format
from mobillm.spec import CodecSpec
from tests.sessions import WIDTH, spec

SCALES = np.geomspace(0.05, 500, WIDTH).astype(np.float32)


def hidden(seq: int, tokens: int = CALIBRATION) -> npt.NDArray[np.float32]:
    """Draw hidden states whose channels differ ten thousandfold."""
    return np.random.default_rng(seq).standard_normal((tokens, WIDTH)).astype(np.float32) * SCALES


def packer(fmt: str = "asym4", *, equalize: bool = True) -> TapPacker:
    """Return the packer of a session without batches."""
    return TapPacker(spec(codec=CodecSpec(format=fmt, block=32, equalize=equalize)), {})


def test_the_first_large_batch_calibrates() -> None:
    """A batch with too few tokens goes as it is; later ones do not change what the first large one gave."""
    taps = packer()
    assert taps.pack(0, hidden(1, CALIBRATION - 1)).header.equalizer is None
    first = taps.pack(0, hidden(2))
    assert first.equalizer is not None
    assert first.header.equalizer == first.equalizer.checksum
    later = taps.pack(0, hidden(3, 2))
    assert later.equalizer is first.equalizer
    other = taps.pack(1, torch.from_numpy(hidden(4)))
    assert other.equalizer is not None
    assert other.equalizer.checksum != first.equalizer.checksum


def test_the_error_is_smaller() -> None:
    """Small channels beside large ones survive."""
    x = hidden(5, 200)
    errors = []
    for equalize in (True, False):
        packed = packer(equalize=equalize).pack(0, x)
        y = unpack(packed.header, packed.payload, packed.equalizer)
        errors.append(float(np.abs((y - x) / SCALES).mean()))
    assert errors[0] < errors[1] / 5


@pytest.mark.parametrize("fmt", ["f8", "f16", "f32"])
def test_formats_that_gain_nothing(fmt: str) -> None:
    """Formats without blocks, and the 8-bit float, are never equalized."""
    assert packer(fmt).pack(0, hidden(1)).equalizer is None


def test_known_and_unknown_equalizers() -> None:
    """Equalizers of earlier are used; a session that may have some that are not known gets plain taps."""
    equalizer = Equalizer(np.arange(1, WIDTH + 1).astype(np.float16))
    taps = TapPacker(spec(), {1: equalizer})
    assert taps.pack(1, hidden(1)).equalizer is equalizer
    assert TapPacker(spec(), None).pack(0, hidden(1)).equalizer is None


def test_a_value_beyond_the_sample() -> None:
    """A tensor that does not fit divided goes undivided, if it fits so; NaN and infinities never do."""
    taps = TapPacker(spec(), {0: Equalizer(np.full(WIDTH, 0.03125, np.float16))})
    x = hidden(1, 4)
    assert taps.pack(0, x).equalizer is not None
    x[2, 3] = 60000.0
    assert taps.pack(0, x).equalizer is None
    for value in (np.nan, np.inf, 70000.0):
        x[2, 3] = value
        with pytest.raises(QuantizationError, match=r"tap 0 \(layer 2\) value .* at \[2, 3\]"):
            taps.pack(0, x)
    repeated = np.repeat(x, CALIBRATION, axis=0)
    assert packer().pack(0, repeated).equalizer is not None  # calibrated on 70000, it fits
    repeated[:, 3] = np.nan
    with pytest.raises(QuantizationError, match=r"tap 0 \(layer 2\)"):
        packer().pack(0, repeated)


def test_a_format_of_the_moment() -> None:
    """The format can be chosen for each tensor; the equalizer stays."""
    taps = packer()
    small, large = taps.pack(0, hidden(1), Format.ASYM2), taps.pack(0, hidden(1), Format.ASYM8)
    assert (small.header.format, large.header.format) == (Format.ASYM2, Format.ASYM8)
    assert small.equalizer is large.equalizer
