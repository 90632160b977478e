"""The ragged layout of a batch: the tokens of all samples in one axis, without padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ..errors import ConfigError

__all__ = ["Padding", "Ragged"]

_WASTE = 4  # positions for each token, up to which all samples are padded together


class Padding(Protocol):
    """A layout of rows that attention can pad."""

    def pad(self, values: Tensor) -> Tensor:
        """Spread rows to ``[B, T, ...]``."""
        ...

    def unpad(self, values: Tensor) -> Tensor:
        """Gather padded values to rows."""
        ...

    def apart(self, work: Callable[..., Tensor], *values: Tensor) -> Tensor:
        """Do what pads, for some samples at a time."""
        ...


class Ragged:
    """Where the tokens of each sample lie.

    A ragged tensor is ``[N, ...]`` with the samples one after the other; its padded form is
    ``[B, T, ...]`` with each sample at the left and T the longest length.

    Args:
        lengths: ``[B]`` int64 tokens of each sample, each at least 1.

    Raises:
        ConfigError: there is no sample, or a length is below 1 or not an int64.

    """

    def __init__(self, lengths: Tensor) -> None:
        if lengths.dtype != torch.int64 or lengths.dim() != 1 or lengths.numel() == 0:
            raise ConfigError(
                "lengths", f"{lengths.dtype} {list(lengths.shape)}", "an int64 tensor [B], B >= 1"
            )
        if int(lengths.min()) < 1:
            raise ConfigError("lengths", int(lengths.min()), "at least 1 token in each sample")
        self.lengths = lengths
        self.samples = lengths.numel()
        self.longest = int(lengths.max())
        self.tokens = int(lengths.sum())
        self.ends = lengths.cumsum(0)
        self.starts = self.ends - lengths
        self.full = self.tokens == self.samples * self.longest
        steps = torch.arange(self.longest, device=lengths.device)
        self.mask = steps < lengths[:, None]  # [B, T]
        self._flat = self.mask.flatten().nonzero().squeeze(1)  # [N] positions in the padded form

    @property
    def wasteful(self) -> bool:
        """Whether most places would be padding if all samples were padded together."""
        return self.samples * self.longest > _WASTE * self.tokens

    def places(self) -> Tensor:
        """Return ``[N]``, each row's place in its sample, from 0."""
        starts = self.starts.repeat_interleave(self.lengths)
        return torch.arange(self.tokens, device=starts.device) - starts

    def pad(self, values: Tensor) -> Tensor:
        """Spread ragged ``[N, ...]`` values to ``[B, T, ...]``; the padding is zero."""
        shape = (self.samples, self.longest, *values.shape[1:])
        if self.full:
            return values.reshape(shape)
        padded = values.new_zeros(self.samples * self.longest, *values.shape[1:])
        return padded.index_copy(0, self._flat, values).reshape(shape)

    def unpad(self, values: Tensor) -> Tensor:
        """Gather padded ``[B, T, ...]`` values to ``[N, ...]``."""
        flat = values.reshape(-1, *values.shape[2:])
        return flat if self.full else flat.index_select(0, self._flat)

    def apart(self, work: Callable[..., Tensor], *values: Tensor) -> Tensor:
        """Do what pads, with samples of similar length at a time where padding would be most of the work.

        One long sample among many short ones would else cost the square of what it holds.

        Args:
            work: takes a layout and ragged values of its samples, and returns ragged values.
            values: ``[N, ...]`` each.

        Returns:
            ``[N, ...]`` values.

        """
        if not self.wasteful:
            return work(self, *values)
        rows, pieces = [], []
        octaves = torch.frexp(self.lengths.double()).exponent
        for octave in sorted(set(octaves.tolist())):
            chosen = octaves == octave
            own = chosen.repeat_interleave(self.lengths).nonzero().squeeze(1)
            part = Ragged(self.lengths[chosen])
            rows.append(own)
            pieces.append(work(part, *(value.index_select(0, own) for value in values)))
        return torch.cat(pieces).index_select(0, torch.cat(rows).argsort())

    def pooled_rows(self, how: str) -> Tensor | None:
        """Return ``[B]``, the rows that :meth:`pool` takes; None where it takes all of them."""
        return {"last": self.ends - 1, "first": self.starts}.get(how)

    def pool(self, values: Tensor, how: str) -> Tensor:
        """Reduce ragged ``[N, ...]`` values to one row per sample.

        Args:
            values: ragged values.
            how: ``last`` or ``first`` token, or the ``mean`` over the sample's tokens.

        Returns:
            ``[B, ...]`` values.

        """
        rows = self.pooled_rows(how)
        if rows is not None:
            return values.index_select(0, rows)
        total = self.pad(values).sum(1)
        return total / self.lengths.reshape(-1, *[1] * (total.dim() - 1)).to(total.dtype)
