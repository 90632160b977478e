"""The full-width stream of adapters."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mobillm.nn.dropout import MaskSource
from mobillm.nn.parallel import Parallel
from mobillm.nn.tap_norm import normalise_tap
from mobillm.spec import SideSpec
from tests.nn.tiny import sink_taps


def test_formula() -> None:
    """The stream is that of the recurrence, written out for two taps."""
    torch.manual_seed(0)
    built = Parallel(16, 2, SideSpec(kind="parallel", width=4, heads=1, dropout=0.0), MaskSource(0))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    first, second = (normalise_tap(tap) for tap in sink_taps(5, count=2))
    stream = first + built.up[0](F.gelu(built.down[0](first)))
    gate = torch.sigmoid(built.gates[1])
    mixed = (1 - gate) * second + gate * stream
    stream = mixed + built.up[1](F.gelu(built.down[1](mixed)))
    assert torch.allclose(built(sink_taps(5, count=2)), stream, atol=1e-6)
    assert torch.allclose(built.expand(stream), stream * built.scale)


def test_at_first_nothing_is_added() -> None:
    """The scale starts at zero."""
    built = Parallel(16, 2, SideSpec(kind="parallel", width=4, heads=1), MaskSource(0))
    assert torch.equal(built.expand(torch.randn(5, 16)), torch.zeros(5, 16))


def test_no_position_sees_another() -> None:
    """Each token's stream is the same alone: this wiring works with one token per sample."""
    built = Parallel(16, 3, SideSpec(kind="parallel", width=4, heads=1, dropout=0.0), MaskSource(0))
    taps = sink_taps(5)
    whole = built(taps)
    for token in range(5):
        assert torch.allclose(built([tap[token : token + 1] for tap in taps]), whole[token : token + 1])
