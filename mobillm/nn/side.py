"""The side network: what the server trains on taps alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Self

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, ModelError
from ..spec import SessionSpec
from .attention import KeyValues
from .cross_entropy import IGNORED, chunked_cross_entropy
from .dropout import Dropout, MaskSource, kept
from .heads import FrozenHead, PooledHead
from .ladder import Ladder
from .parallel import Parallel
from .ragged import Ragged
from .tap_norm import normalise_tap
from .upper import FrozenLayers, UpperLayers

__all__ = ["SideCache", "SideNetwork"]

# One entry per block of a ladder, or per layer above the tap; empty for a parallel network.
SideCache = list[KeyValues]


def _parts(
    spec: SessionSpec, taps: int, source: MaskSource, tail: FrozenLayers | None
) -> tuple[Ladder | Parallel | None, UpperLayers | None, PooledHead | None]:
    """Make the body, the layers above the tap, and the head where it is not the backbone's."""
    width, side = spec.model.hidden_size, spec.side
    body: Ladder | Parallel | None = None
    if side.kind == "ladder":
        body = Ladder(width, taps, side, source)
    elif side.kind == "parallel":
        body = Parallel(width, taps, side, source)
    upper = UpperLayers(spec, tail) if side.kind == "tail" else None
    # The heads of transformers, which the weights of an adapter belong to, have no bias.
    head = None if spec.task == "causal-lm" else PooledHead(width, spec.outputs, bias=upper is None)
    return body, upper, head


def _count(spec: SessionSpec, taps: int) -> int:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        parts = nn.ModuleList(p for p in _parts(spec, taps, MaskSource(spec.seed), None) if p is not None)
    return sum(p.numel() if p.requires_grad else p.numel() // 10 for p in parts.parameters())


class SideNetwork(nn.Module):
    """A side network of any kind and for any task, trained from ragged taps.

    Taps are a sequence of ``[N, d]`` floating tensors, one per tap of the model, in order: the valid
    tokens of all samples, one sample after the other, as ``lengths`` (``[B]`` int64) says. The
    backbone takes no part. The frozen LM head is neither trained nor saved.

    Of the kind ``tail`` it is the backbone's upper layers, frozen, with LoRA in them.

    A causal-lm network starts as exactly the frozen model; the heads of the other tasks start at zero.
    """

    def __init__(self, spec: SessionSpec, head: FrozenHead | None, tail: FrozenLayers | None) -> None:
        super().__init__()
        if (tail is not None) != (spec.side.kind == "tail"):
            raise ModelError(
                f"the kind {spec.side.kind!r} and the weights of upper layers do not go together"
            )
        if (head is not None) != (spec.task == "causal-lm"):
            raise ModelError(f"the task {spec.task!r} {'needs an' if head is None else 'takes no'} LM head")
        if head is not None:
            _check_head(spec, head)
        self.spec = spec
        self.frozen = head
        self._source = MaskSource(spec.seed)
        self.body, self.upper, self.head = _parts(spec, len(spec.model.taps), self._source, tail)
        self.dropout = Dropout(spec.side.dropout, self._source)

    @classmethod
    def from_spec(
        cls, spec: SessionSpec, head: FrozenHead | None = None, tail: FrozenLayers | None = None
    ) -> Self:
        """Build the network of a session; the same spec gives the same weights.

        The process's random state is neither used nor changed.

        Args:
            spec: the session.
            head: the backbone's norm and LM head for ``causal-lm``; None for the other tasks.
            tail: the weights of the layers above the tap for ``tail``; None for the other kinds.

        Raises:
            ConfigError: a causal-lm session without a tail does not tap the last layer.
            ModelError: the head or the tail is missing, superfluous or of another model.

        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            return cls(spec, head, tail)

    @staticmethod
    def count(spec: SessionSpec) -> int:
        """Return how many parameters the network of a session would have; no memory is taken for them.

        Frozen ones of a ``tail``, which need no gradients and no moments, count a tenth.
        """
        # Each tap adds the same modules, so a thousand taps take no longer than two.
        one, two = _count(spec, 1), _count(spec, 2)
        return one + (len(spec.model.taps) - 1) * (two - one)

    def begin_step(self, step: int) -> None:
        """Make the dropout masks a function of the spec's seed and ``step``; call before each step's loss."""
        self._source.begin(step)

    def masks(self, sizes: Sequence[int], device: torch.device) -> Tensor:
        """Draw the dropout masks of one step, as layers would that drop out so many values each."""
        return self._source.keep_all(sizes, kept(self.spec.side.dropout), device)

    def check(self, taps: Sequence[Tensor], lengths: Tensor, targets: Tensor) -> Ragged:
        """Return the layout of a batch.

        Args:
            taps: ragged taps.
            lengths: ``[B]`` tokens of each sample.
            targets: as in :meth:`loss`.

        Raises:
            ConfigError: taps or targets do not match the spec or the lengths.

        """
        layout = self._layout(taps, lengths)
        self._check_targets(targets, layout)
        return layout

    def forward(self, taps: Sequence[Tensor], lengths: Tensor) -> Tensor:
        """Compute the task's outputs.

        Args:
            taps: ragged taps.
            lengths: ``[B]`` tokens of each sample.

        Returns:
            logits ``[B, outputs]`` for classification, values ``[B]`` for regression, next-token logits
            ``[N, vocabulary]`` for causal-lm.

        Raises:
            ConfigError: the taps do not match the spec or the lengths.

        """
        layout = self._layout(taps, lengths)
        if self.frozen is not None:
            return self.frozen.logits(self._token_states(taps, layout, None))
        return self._pooled(taps, layout)

    def loss(self, taps: Sequence[Tensor], lengths: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean loss of a batch.

        Args:
            taps: ragged taps.
            lengths: ``[B]`` tokens of each sample.
            targets: classes ``[B]`` int64; values ``[B]`` floating; or next tokens ``[N]`` int64, where
                -100 is left out.

        Returns:
            a scalar: mean cross entropy over samples or counted tokens, or mean squared error.

        Raises:
            ConfigError: taps or targets do not match the spec or the lengths.

        """
        layout = self.check(taps, lengths, targets)
        if self.frozen is not None:
            rows = (targets != IGNORED).nonzero().squeeze(1)
            hidden = self._token_states(taps, layout, rows)
            return chunked_cross_entropy(hidden, targets[rows], self.frozen) / max(1, rows.numel())
        outputs = self._pooled(taps, layout)
        if self.spec.task == "classification":
            return F.cross_entropy(outputs, targets)
        return F.mse_loss(outputs, targets.float())

    def evaluate(self, taps: Sequence[Tensor], lengths: Tensor, targets: Tensor) -> dict[str, float]:
        """Sum a batch's figures, in evaluation mode and without gradients.

        Args:
            taps: ragged taps.
            lengths: ``[B]`` tokens of each sample.
            targets: as in :meth:`loss`.

        Returns:
            ``loss`` (sum), ``count`` (samples, or counted tokens) and, but for regression, ``correct``.
            Add up the maps of several batches and divide by ``count``.

        Raises:
            ConfigError: taps or targets do not match the spec or the lengths.

        """
        layout = self.check(taps, lengths, targets)
        with self._evaluating():
            if self.frozen is not None:
                rows = (targets != IGNORED).nonzero().squeeze(1)
                hidden, wanted = self._token_states(taps, layout, rows), targets[rows]
                loss = chunked_cross_entropy(hidden, wanted, self.frozen)
                best = [self.frozen.logits(part).argmax(-1) for part in torch.split(hidden, self.frozen.rows)]
                correct = (torch.cat(best) == wanted).sum() if best else wanted.sum()
                return {"loss": float(loss), "correct": float(correct), "count": float(rows.numel())}
            outputs = self._pooled(taps, layout)
            count = float(layout.samples)
            if self.spec.task == "classification":
                loss = F.cross_entropy(outputs, targets, reduction="sum")
                correct = (outputs.argmax(-1) == targets).sum()
                return {"loss": float(loss), "correct": float(correct), "count": count}
            return {
                "loss": float(F.mse_loss(outputs, targets.float(), reduction="sum")),
                "count": count,
            }

    def step(
        self, taps: Sequence[Tensor], cache: SideCache | None = None, *, last: bool = False
    ) -> tuple[Tensor, SideCache]:
        """Compute next-token logits of the new tokens of one sample.

        Args:
            taps: ``[n, d]`` per tap, of the new tokens only.
            cache: what the previous call returned; None at the sample's start.
            last: whether only the last token's logits are wanted, as those of a long prompt are large.

        Returns:
            logits ``[n, vocabulary]``, or ``[1, vocabulary]``, and the cache for the next call; the given one
            is unchanged.

        Raises:
            ConfigError: the taps do not match the spec.
            ModelError: the task is not causal-lm.

        """
        if self.frozen is None:
            raise ModelError(
                f"a side network for {self.spec.task!r} cannot generate; train one for 'causal-lm'"
            )
        new = torch.tensor([taps[0].shape[0] if taps else 0], device=self._device)
        self._layout(taps, new)
        with self._evaluating():
            following: SideCache = []
            if self.upper is not None:
                states, following = self.upper.extend(taps[-1], cache)
                return self.frozen.logits(states[-1 if last else 0 :].float()), following
            assert self.body is not None
            if isinstance(self.body, Ladder):
                stream, following = self.body.extend(taps, cache)
            else:
                stream = self.body(taps)
            hidden = self.frozen.normalise(taps[-1]) + self.body.expand(stream)
            return self.frozen.logits(hidden[-1 if last else 0 :]), following

    def trained(self) -> dict[str, nn.Parameter]:
        """Return what is trained by name; for ``tail`` the names are those of a PEFT adapter."""
        if self.upper is None:
            return dict(self.named_parameters())
        found = dict(self.upper.trained())
        if self.head is not None:
            (found["base_model.model.score.weight"],) = self.head.parameters()
        return found

    def state_bytes(self) -> bytes:
        """Return the trained weights as safetensors; equal weights give equal bytes."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.trained().items()}
        return safetensors.torch.save(tensors)

    def load_bytes(self, data: bytes) -> None:
        """Replace the trained weights by what :meth:`state_bytes` returned.

        Raises:
            ModelError: the bytes are no safetensors, or a tensor is missing, unknown or of another
                shape; no weight is changed then.

        """
        try:
            tensors = safetensors.torch.load(data)
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            raise ModelError(f"the side network's weights cannot be read: {error}") from error
        own = self.trained()
        for name in sorted(own.keys() | tensors.keys()):
            seen = list(tensors[name].shape) if name in tensors else "missing"
            expected = list(own[name].shape) if name in own else "no such tensor"
            if seen != expected:
                raise ModelError(
                    f"the side network's tensor {name} is {seen}, expected {expected}; "
                    "the weights belong to another session spec"
                )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(training)

    def _token_states(self, taps: Sequence[Tensor], layout: Ragged, rows: Tensor | None) -> Tensor:
        """Return the LM head's input of the chosen rows, ``[R, d]``; all rows when None."""
        assert self.frozen is not None
        if self.upper is not None:
            states: Tensor = self.upper(taps[-1], layout, rows)
            return states.float()
        assert self.body is not None
        stream = self._stream(taps, layout)
        last = taps[-1]
        if rows is not None:
            stream, last = stream.index_select(0, rows), last.index_select(0, rows)
        return self.frozen.normalise(last) + self.body.expand(stream)

    def _pooled(self, taps: Sequence[Tensor], layout: Ragged) -> Tensor:
        assert self.head is not None
        how = self.spec.side.pool
        if self.upper is not None:
            rows = layout.pooled_rows(how)
            states = self.upper(taps[-1], layout, rows)
            pooled = (layout.pool(states, how) if rows is None else states).float()
        else:
            pooled = layout.pool(normalise_tap(taps[-1]), how)
        if self.body is not None:
            # Expanding is linear, so pooling first costs B rows of full width, not N.
            pooled = pooled + self.body.expand(layout.pool(self._stream(taps, layout), how))
        out: Tensor = self.head(self.dropout(pooled))
        return out

    def _stream(self, taps: Sequence[Tensor], layout: Ragged) -> Tensor:
        assert self.body is not None
        stream: Tensor = self.body(taps, layout) if isinstance(self.body, Ladder) else self.body(taps)
        return stream

    def _layout(self, taps: Sequence[Tensor], lengths: Tensor) -> Ragged:
        layout = Ragged(lengths)
        expected = len(self.spec.model.taps)
        if len(taps) != expected:
            raise ConfigError("taps", len(taps), f"{expected} tensors, one per tap of the model")
        shape = (layout.tokens, self.spec.model.hidden_size)
        for index, tap in enumerate(taps):
            if tuple(tap.shape) != shape or not tap.is_floating_point():
                seen = f"{tap.dtype} {list(tap.shape)}"
                raise ConfigError(f"taps[{index}]", seen, f"floating values of shape {list(shape)}")
        return layout

    def _check_targets(self, targets: Tensor, layout: Ragged) -> None:
        language = self.spec.task == "causal-lm"
        size = layout.tokens if language else layout.samples
        wanted = "floating values" if self.spec.task == "regression" else "int64 values"
        right = (
            targets.is_floating_point() if self.spec.task == "regression" else targets.dtype == torch.int64
        )
        if not right or tuple(targets.shape) != (size,):
            raise ConfigError(
                "targets", f"{targets.dtype} {list(targets.shape)}", f"{wanted} of shape [{size}]"
            )
        if self.spec.task == "regression":
            return
        counted = targets[targets != IGNORED] if language else targets
        if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < self.spec.outputs:
            wrong = int(counted.min()) if int(counted.min()) < 0 else int(counted.max())
            raise ConfigError("targets", wrong, f"0 to {self.spec.outputs - 1}")


def _check_head(spec: SessionSpec, head: FrozenHead) -> None:
    if spec.tail is None and spec.model.taps[-1] != spec.model.layers:
        raise ConfigError(
            "model.taps",
            list(spec.model.taps),
            f"the last layer, {spec.model.layers}, among them for causal-lm",
        )
    seen, expected = (head.hidden_size, head.vocabulary), (spec.model.hidden_size, spec.outputs)
    if seen != expected:
        raise ModelError(
            f"the LM head has hidden size {seen[0]} and {seen[1]} outputs, the session {expected[0]} and "
            f"{expected[1]}; upload the head of the session's own model"
        )
