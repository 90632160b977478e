"""The ladder of narrow blocks."""

from __future__ import annotations

import torch

from mobillm.nn.dropout import MaskSource
from mobillm.nn.ladder import Ladder
from mobillm.nn.ragged import Ragged
from mobillm.nn.tap_norm import normalise_tap
from mobillm.spec import SideSpec
from tests.nn.tiny import sink_taps


def ladder(causal: bool = True) -> Ladder:
    """Return a ladder of three blocks whose weights are not those of the start."""
    side = SideSpec(width=8, heads=2, dropout=0.0, causal=causal)
    torch.manual_seed(0)
    built = Ladder(16, 3, side, MaskSource(0))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return built


def test_at_first_nothing_is_added() -> None:
    """The expansion starts at zero, and the gates at one half."""
    fresh = Ladder(16, 3, SideSpec(width=8, heads=2), MaskSource(0))
    assert torch.equal(fresh.expand(torch.randn(5, 8)), torch.zeros(5, 16))
    assert torch.equal(torch.sigmoid(fresh.gates), torch.full((3,), 0.5))


def test_recurrence_at_the_start() -> None:
    """Blocks start as identities, so the stream is the gated mix that the formula states."""
    torch.manual_seed(1)
    fresh = Ladder(16, 3, SideSpec(width=8, heads=2, dropout=0.0), MaskSource(0))
    taps = sink_taps(6)
    stream = torch.zeros(6, 8)
    for down, tap in zip(fresh.down, taps, strict=True):
        stream = 0.5 * down(normalise_tap(tap)) + 0.5 * stream
    seen = fresh(taps, Ragged(torch.tensor([4, 2])))
    assert torch.allclose(seen, stream, atol=1e-6)


def test_samples_do_not_see_each_other() -> None:
    """A sample's stream does not depend on its neighbours in the batch."""
    built, taps = ladder(), sink_taps(7)
    whole = built(taps, Ragged(torch.tensor([4, 3])))
    alone = built([tap[4:] for tap in taps], Ragged(torch.tensor([3])))
    assert torch.allclose(whole[4:], alone, atol=1e-5)


def test_later_tokens_are_seen_only_without_causality() -> None:
    """A changed last token changes earlier positions in a bidirectional ladder only."""
    taps = sink_taps(5)
    changed = [torch.cat([tap[:4], tap[4:] + 1.0 + torch.arange(16)]) for tap in taps]
    layout = Ragged(torch.tensor([5]))
    for causal in (True, False):
        built = ladder(causal)
        same = torch.allclose(built(taps, layout)[:4], built(changed, layout)[:4], atol=1e-6)
        assert same == causal


def test_extending_equals_the_whole() -> None:
    """Token by token with a cache gives what all tokens at once give."""
    built, taps = ladder(), sink_taps(6)
    whole = built(taps, Ragged(torch.tensor([6])))
    cache = None
    parts = []
    for start, stop in ((0, 3), (3, 4), (4, 6)):
        stream, cache = built.extend([tap[start:stop] for tap in taps], cache)
        parts.append(stream)
    assert torch.allclose(torch.cat(parts), whole, atol=1e-5)
