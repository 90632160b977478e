"""Tests of mobillm.conformance.client_cases.packing."""

from __future__ import annotations

import numpy as np
import pytest

from mobillm.codec import Equalizer, PackedTensor, pack
from mobillm.conformance import client_suite, select
from mobillm.conformance.case import Deviation
from mobillm.conformance.client_cases.packing import _Taps
from mobillm.formats import Format
from mobillm.protocol import Data
from mobillm.spec import CodecSpec
from tests.conformance.running import client_results, passing
from tests.conftest import Run
from tests.sessions import WIDTH, spec


def test_our_client_passes() -> None:
    """The case passes against this package's client, which equalizes its second batch."""
    assert passing(client_results(select(client_suite(), ["packing"]))) == 1


async def feed(taps: _Taps, tensor: int, packed: PackedTensor) -> None:
    """Hand one whole tensor over."""
    header = packed.header
    await taps.data(
        Data(
            stream=1,
            seq=1,
            tensor=tensor,
            offset=0,
            format=int(header.format),
            block=header.block,
            shape=header.shape,
            equalizer=header.equalizer,
            payload=packed.payload,
        )
    )


@pytest.mark.parametrize("fault", ["twice", "never", "another", "format", "factor", "spec"])
def test_wrong_clients_are_found(run_once: Run, fault: str) -> None:
    """[B-36] [B-37] [B-38] [B-40] Each way to get it wrong is a deviation."""
    run_once(_is_found(fault))


async def _is_found(fault: str) -> None:
    what = spec(codec=CodecSpec(format="asym4", block=32, equalize=fault != "spec"))
    taps = _Taps(what)
    values = np.ones((3, WIDTH), np.float32)
    equalizer = Equalizer(np.ones(WIDTH, np.float16))
    if fault != "never":
        await feed(taps, 2000, equalizer.packed)
    used = Equalizer(np.full(WIDTH, 2, np.float16)) if fault == "another" else equalizer
    fmt = Format.ASYM5 if fault == "format" else Format.ASYM4
    await feed(taps, 0, pack(values, fmt, 32, "x", used))
    if fault == "factor":
        taps._payloads[2000] = bytes(2 * WIDTH)
    if fault == "twice":
        taps.commit()
        await feed(taps, 2000, equalizer.packed)
    with pytest.raises(Deviation, match=r"equalizer|asym5"):
        taps.commit()
