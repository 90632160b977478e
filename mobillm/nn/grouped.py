"""Ladders of one shape, each with its own weights and batch, in one pass.

A narrow network's step is mostly the cost of calling operators, so one call for all is faster than one
for each. Taps are as wide as the backbone and stay with their session, without padding; what is as narrow as
the ladder is padded to one grid ``[G sessions, B samples, T tokens]``. No value of a session enters another
one's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..spec import SessionSpec
from .attention import Turn, rotate, turn
from .dropout import kept
from .ragged import Ragged
from .side import SideNetwork
from .tap_norm import normalise_tap

__all__ = ["Group", "Item", "can_group"]


def can_group(spec: SessionSpec) -> bool:
    """Tell whether networks of a spec can be computed together: ladders with a head of their own."""
    return spec.side.kind == "ladder" and spec.task != "causal-lm"


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One session's part.

    Attributes:
        network: of the session; its dropout masks are those of the step that it was told of last.
        taps, lengths, targets: a batch, as :meth:`SideNetwork.loss` takes it.

    """

    network: SideNetwork
    taps: Sequence[Tensor]
    lengths: Tensor
    targets: Tensor


class Group:
    """A batch of each session.

    Args:
        items: the sessions; their networks have one shape.

    Attributes:
        down: shape of the projections of a session's taps, ``[taps, width, d]``.
        wide: how many weights they are; all of them are before any other matrix of the network.

    Raises:
        ConfigError: taps or targets do not match the spec or the lengths.

    """

    def __init__(self, items: Sequence[Item]) -> None:
        self._spec = spec = items[0].network.spec
        self._size = len(items)
        self._layouts = [item.network.check(item.taps, item.lengths, item.targets) for item in items]
        self._samples = max(layout.samples for layout in self._layouts)
        self._longest = max(layout.longest for layout in self._layouts)
        self._keep = kept(spec.side.dropout)
        self._device = items[0].taps[0].device
        taps, width = len(spec.model.taps), spec.side.width
        self.down = (taps, width, spec.model.hidden_size)
        self.wide = math.prod(self.down)
        places = self._samples * self._longest
        self._flat = [self._places(layout) for layout in self._layouts]
        self._wide: list[Tensor] = []
        self._masks = self._new(self._size, taps, 2, places, width)
        self._pooled = self._new(self._size, self._samples, spec.model.hidden_size)
        self._pooled_masks = torch.zeros_like(self._pooled)
        self._targets = torch.zeros(
            self._size, self._samples, dtype=items[0].targets.dtype, device=self._device
        )
        self._shares = self._new(self._size, self._samples)  # of each sample in its session's mean
        for index, item in enumerate(items):
            self._prepare(index, item)

    def _new(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self._device)

    def _places(self, layout: Ragged) -> Tensor:
        """Return where a session's tokens lie in its part of the grid."""
        samples = torch.arange(layout.samples).repeat_interleave(layout.lengths)
        inside = torch.arange(layout.tokens) - layout.starts.repeat_interleave(layout.lengths)
        return (samples * self._longest + inside).to(self._device)

    def _prepare(self, index: int, item: Item) -> None:
        """Normalise a session's taps and drop out; no gradient is needed of what comes before the weights."""
        layout, spec = self._layouts[index], self._spec
        wide = normalise_tap(torch.stack(list(item.taps)))
        samples = layout.samples
        self._pooled[index, :samples] = layout.pool(wide[-1], spec.side.pool)
        self._targets[index, :samples] = item.targets
        self._shares[index, :samples] = 1.0 / samples
        if spec.side.dropout:
            taps, tokens, hidden = wide.shape
            width = spec.side.width
            sizes = [tokens * hidden, tokens * width, tokens * width]
            masks = item.network.masks([*sizes * taps, samples * hidden], self._device)
            self._pooled_masks[index, :samples] = masks[taps * sum(sizes) :].view(samples, hidden)
            masks = masks[: taps * sum(sizes)].view(taps, -1)
            wide.mul_(masks[:, : sizes[0]].view(wide.shape))
            narrow = masks[:, sizes[0] :].view(taps, 2, tokens, width).float()
            self._masks[index].index_copy_(2, self._flat[index], narrow)
        self._wide.append(wide)

    def losses(self, down: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """Compute each session's mean loss.

        Args:
            down: of each session, the projections of all taps ``[taps, width, d]``.
            weights: the other parameters by their names in the network, each ``[G, ...]``.

        Returns:
            ``[G]``.

        """
        stream = self._stream(self._entered(down, weights), weights)
        pooled = self._pooled + self._pool(stream) @ weights["body.up.weight"].mT
        if self._spec.side.dropout:
            pooled = pooled * (self._pooled_masks / self._keep)
        outputs = _linear(pooled, weights, "head.linear")
        if self._spec.task == "classification":
            each = F.cross_entropy(outputs.flatten(0, 1), self._targets.flatten(), reduction="none")
        else:
            each = (outputs.flatten() - self._targets.flatten().float()).square()
        return (each.view(self._size, self._samples) * self._shares).sum(1)

    def _entered(self, down: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """Project the taps; ``[G, taps, places, width]``."""
        taps, width = down[0].shape[:2]
        parts = []
        for wide, matrix, flat in zip(self._wide, down, self._flat, strict=True):
            padded = self._new(taps, self._samples * self._longest, width)
            parts.append(padded.index_copy(1, flat, wide @ matrix.mT))
        bias = torch.stack([weights[f"body.down.{tap}.bias"] for tap in range(taps)], 1)
        return torch.add(bias[:, :, None], torch.stack(parts), alpha=1.0 / self._keep)

    def _stream(self, entered: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the last block's output; ``[G, places, width]``."""
        gates = torch.sigmoid(weights["body.gates"])[:, :, None, None]
        entered, rest = entered * gates, 1.0 - gates
        turns = turn(0, self._longest, self._spec.side.width // self._spec.side.heads, self._device)
        mask = None if self._spec.side.causal else self._valid()
        stream: Tensor | None = None
        for tap, part in enumerate(entered.unbind(1)):
            stream = part if stream is None else torch.addcmul(part, rest[:, tap], stream)
            stream = self._block(tap, stream, weights, turns, mask)
        assert stream is not None
        return stream

    def _block(
        self, tap: int, stream: Tensor, weights: Mapping[str, Tensor], turns: Turn, mask: Tensor | None
    ) -> Tensor:
        name = f"body.blocks.{tap}"
        side = self._spec.side
        qkv = _linear(_norm(stream, weights, f"{name}.attention_norm"), weights, f"{name}.qkv")
        parts = qkv.view(self._size * self._samples, self._longest, 3, side.heads, -1).permute(2, 0, 3, 1, 4)
        query, key = rotate(parts[:2], turns)
        mixed = F.scaled_dot_product_attention(query, key, parts[2], attn_mask=mask, is_causal=side.causal)
        mixed = mixed.transpose(1, 2).reshape(stream.shape)
        stream = self._add(stream, _linear(mixed, weights, f"{name}.attention_out", self._keep), tap, 0)
        inner = _linear(_norm(stream, weights, f"{name}.mlp_norm"), weights, f"{name}.mlp_in")
        return self._add(stream, _linear(F.gelu(inner), weights, f"{name}.mlp_out", self._keep), tap, 1)

    def _add(self, stream: Tensor, added: Tensor, tap: int, inner: int) -> Tensor:
        if not self._spec.side.dropout:
            return stream + added
        return torch.addcmul(stream, added, self._masks[:, tap, inner])

    def _valid(self) -> Tensor:
        """Return which places hold tokens; ``[G B, 1, 1, T]``. A sample that is none is seen whole."""
        valid = torch.zeros(self._size, self._samples * self._longest, dtype=torch.bool, device=self._device)
        for index, (layout, flat) in enumerate(zip(self._layouts, self._flat, strict=True)):
            valid[index, flat] = True
            valid[index, layout.samples * self._longest :] = True
        return valid.view(self._size * self._samples, 1, 1, self._longest)

    def _pool(self, stream: Tensor) -> Tensor:
        """Reduce ``[G, places, width]`` to ``[G, B, width]``; rows of samples that are none mean nothing."""
        lengths = torch.ones(self._size, self._samples, dtype=torch.int64)
        for index, layout in enumerate(self._layouts):
            lengths[index, : layout.samples] = layout.lengths
        lengths = lengths.to(self._device)
        grid = stream.view(self._size * self._samples, self._longest, -1)
        if self._spec.side.pool == "mean":
            valid = torch.arange(self._longest, device=self._device) < lengths.view(-1, 1)
            pooled = (grid * valid[:, :, None]).sum(1) / lengths.view(-1, 1)
        else:
            place = (
                lengths.flatten() - 1
                if self._spec.side.pool == "last"
                else torch.zeros_like(lengths).flatten()
            )
            pooled = grid[torch.arange(len(grid), device=self._device), place]
        return pooled.view(self._size, self._samples, -1)


def _linear(values: Tensor, weights: Mapping[str, Tensor], name: str, keep: float = 1.0) -> Tensor:
    """Return ``values @ weight.T + bias`` of each session, divided by ``keep``."""
    bias, scale = weights[f"{name}.bias"][:, None], 1.0 / keep
    return torch.baddbmm(bias, values, weights[f"{name}.weight"].mT, beta=scale, alpha=scale)


def _norm(values: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    weight, bias = weights[f"{name}.weight"][:, None], weights[f"{name}.bias"][:, None]
    return torch.addcmul(bias, F.layer_norm(values, values.shape[-1:]), weight)
