"""Packed bytes on their way to the device that trains."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mobillm.server.trainer import Trainer
from mobillm.server.upload import Upload
from mobillm.spec import SideSpec
from tests.sessions import packed, spec

PAYLOADS: list[bytes | memoryview] = [b"", bytes(range(256)), memoryview(b"packed" * 1000)]

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")


def test_on_the_cpu_nothing_is_copied() -> None:
    """Who trains where the bytes are gets those that came."""
    found = list(Upload(torch.device("cpu")).send(PAYLOADS))
    assert all(one is other for one, other in zip(found, PAYLOADS, strict=True))


@on_a_gpu
def test_to_a_gpu() -> None:
    """All bytes arrive in order, also when the memory they came from is used again at once."""
    upload = Upload(torch.device("cuda"))
    random = np.random.default_rng(0)
    for _ in range(20):
        payloads = [random.bytes(size) for size in (1, 70_000, 3_000_000)]
        arrived = [octets.cpu().numpy().tobytes() for octets in map(torch.as_tensor, upload.send(payloads))]
        assert arrived == payloads


@on_a_gpu
def test_training_on_a_gpu() -> None:
    """A step on the GPU has the loss of one on the CPU, within the precision of fp32 sums."""
    what = spec(side=SideSpec(width=8, heads=2, dropout=0.0))  # each draws masks of its own
    here, there = Trainer(what, {}), Trainer(what, {}, "cuda")
    for seq in range(1, 4):
        batch = packed(what, seq)
        assert there.step(batch) == pytest.approx(here.step(batch), rel=1e-3)
