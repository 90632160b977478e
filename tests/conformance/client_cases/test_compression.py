"""Tests of mobillm.conformance.client_cases.compression."""

from __future__ import annotations

import dataclasses

import pytest

from mobillm.conformance import client_suite, select
from mobillm.conformance.case import Deviation
from mobillm.conformance.client_cases.compression import _Frames
from mobillm.conformance.zstd import repeated, zstd_frame
from mobillm.spec import CodecSpec
from tests.conformance.running import client_results, passing
from tests.conftest import Run
from tests.helpers import make_data
from tests.sessions import spec

RUNS = [repeated(7, 50), repeated(7, 50)]
GOOD = zstd_frame(RUNS, 100)


def test_our_client_passes() -> None:
    """The cases pass against this package's client, which compresses its second batch."""
    assert passing(client_results(select(client_suite(), ["compression"]))) == 2


@pytest.mark.parametrize(
    ("frame", "compression"),
    [
        (GOOD, "zstd"),
        (GOOD, "none"),
        (GOOD[:-1], "zstd"),
        (zstd_frame(RUNS, 99), "zstd"),
        (zstd_frame(RUNS, None, window=12), "zstd"),
        (zstd_frame(RUNS, 100, window=25), "zstd"),
        (zstd_frame(RUNS, 100, dictionary=3), "zstd"),
        (GOOD + GOOD, "zstd"),
    ],
)
def test_wrong_clients_are_found(run_once: Run, frame: bytes, compression: str) -> None:
    """[Z-6] [Z-7] [Z-8] [Z-9] [Z-12] Each way to get it wrong is a deviation."""
    frames = _Frames(spec(codec=CodecSpec(compression=compression)))

    async def batch() -> None:
        first = dataclasses.replace(make_data(1, 0, frame[:10], values=25), zstd=len(frame))
        await frames.data(make_data(1, 1001))
        await frames.data(first)
        await frames.data(make_data(1, 0, frame[10:], offset=10))
        frames.commit()

    if frame == GOOD and compression == "zstd":
        run_once(batch())
        run_once(batch())
        return
    with pytest.raises(Deviation, match="tap 0"):
        run_once(batch())
