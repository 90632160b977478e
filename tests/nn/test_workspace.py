"""Tests of memory that is used again."""

from __future__ import annotations

import torch

from mobillm.nn.workspace import Workspace


def test_the_same_memory_again() -> None:
    """What fits is in the memory that is there, whatever its type; what does not gets more."""
    workspace = Workspace()
    assert workspace.nbytes == 0
    first = workspace.take(8, torch.float32)
    assert workspace.nbytes == 32
    assert workspace.take(16, torch.bfloat16).data_ptr() == first.data_ptr()
    assert workspace.take(3, torch.float32).data_ptr() == first.data_ptr()
    assert workspace.take(9, torch.float32).shape == (9,)
    assert workspace.nbytes == 36


def test_in_and_outside_of_inference_mode() -> None:
    """Memory that was first needed in inference mode can be written outside of it."""
    workspace = Workspace()
    with torch.inference_mode():
        workspace.take(4, torch.float32).zero_()
    assert workspace.take(4, torch.float32).fill_(2.0).sum() == 8.0
