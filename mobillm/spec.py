"""What a session trains: frozen dataclasses that travel as one msgpack map.

The maps hold only ``None``, booleans, integers, floats, strings, lists and maps. A key that a reader
does not know is ignored unless it starts with ``!``, which marks it critical.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Self

from .errors import ConfigError
from .formats import BLOCKS, Format

__all__ = [
    "ARCHITECTURES",
    "COMPRESSIONS",
    "IGNORED",
    "KINDS",
    "POOLS",
    "SCHEDULES",
    "TASKS",
    "TOKENS",
    "CodecSpec",
    "ModelSpec",
    "OptimizerSpec",
    "SessionSpec",
    "SideSpec",
    "TailSpec",
    "check_tokens",
]

TASKS = ("causal-lm", "classification", "regression")
KINDS = ("ladder", "parallel", "head", "tail")
ARCHITECTURES = ("llama", "qwen2", "opt")
POOLS = ("last", "first", "mean")
SCHEDULES = ("onecycle", "linear", "constant")
TOKENS = ("all", "loss", "last")
COMPRESSIONS = ("none", "zstd")

IGNORED = -100  # target of a token that does not enter the loss

_TYPES = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}

_MAX_NAME = 128
_MAX_WIDTH = 1 << 16
_MAX_TAPS = 1000  # tensor numbers from 1000 on mean something else
_MAX_VOCABULARY = 1 << 22
_MAX_UPPER = 48  # layers of a tail: their digests have to fit into one map of 4096 bytes


class _Record:
    """A frozen dataclass that can be written to and read from a map.

    Raises:
        ConfigError: a field has another type, or is out of range.

    """

    __slots__ = ()

    def to_map(self) -> dict[str, Any]:
        """Return the record as a map of plain values."""
        out: dict[str, Any] = {}
        for field in dataclasses.fields(typing.cast(Any, self)):
            value = getattr(self, field.name)
            if isinstance(value, _Record):
                value = value.to_map()
            elif isinstance(value, tuple):
                value = list(value)
            out[field.name] = value
        return out

    @classmethod
    def from_map(cls, values: object, where: str = "spec") -> Self:
        """Read a record from a map that may come from a peer.

        Args:
            values: the map; anything else is refused.
            where: dotted name of the map, for errors.

        Raises:
            ConfigError: a field is missing, has another type, or is out of range.

        """
        if not isinstance(values, Mapping):
            raise ConfigError(where, _short(values), "a map")
        hints = _hints(typing.cast(Any, cls))
        fields = dataclasses.fields(typing.cast(Any, cls))
        known = {field.name for field in fields}
        for key in values:
            if key not in known and isinstance(key, str) and key.startswith("!"):
                raise ConfigError(where, _short(key), "fields this version knows where they begin with !")
        found: dict[str, Any] = {}
        for field in fields:
            if field.name not in values:
                if field.default is dataclasses.MISSING:
                    raise ConfigError(f"{where}.{field.name}", None, "a value; the field is required")
                continue
            found[field.name] = _read(hints[field.name], values[field.name], f"{where}.{field.name}")
        return cls(**found)

    def _check_types(self, where: str) -> None:
        for name, hint in _hints(typing.cast(Any, type(self))).items():
            value = getattr(self, name)
            if not _is_a(hint, value):
                raise ConfigError(where + name, _short(value), f"a value of type {_type_name(hint)}")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)  # takes longer than all checks


def _type_name(hint: Any) -> str:
    return hint.__name__ if type(hint) is type else str(hint)


def _is_a(hint: Any, value: object) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_is_a(arm, value) for arm in hint.__args__)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_is_a(hint.__args__[0], item) for item in value)
    if isinstance(value, bool):  # which Python counts as an integer
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


def _read(hint: Any, value: object, where: str) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(arm for arm in hint.__args__ if arm is not type(None))
    if isinstance(hint, type) and issubclass(hint, _Record):
        return hint.from_map(value, where)
    if typing.get_origin(hint) is tuple:
        item = hint.__args__[0]
        if not isinstance(value, list | tuple) or not all(type(one) is item for one in value):
            raise ConfigError(where, _short(value), f"a list of {'integers' if item is int else 'texts'}")
        return tuple(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(where, _short(value), _TYPES[hint])
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check(ok: bool, field: str, value: object, expected: str) -> None:
    if not ok:
        raise ConfigError(field, value, expected)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec(_Record):
    """The backbone's fingerprint.

    Attributes:
        name: public name of the model, at most 128 characters; informative.
        hidden_size: width of the hidden states.
        layers: number of layers.
        taps: layers whose output is sent, strictly ascending, each from 0 (the embedding's output)
            to ``layers``.

    """

    name: str
    hidden_size: int
    layers: int
    taps: tuple[int, ...]

    def __post_init__(self) -> None:
        self._check_types("model.")
        _check(len(self.name) <= _MAX_NAME, "model.name", _short(self.name), "at most 128 characters")
        _check(
            1 <= self.hidden_size <= _MAX_WIDTH, "model.hidden_size", self.hidden_size, f"1 to {_MAX_WIDTH}"
        )
        _check(1 <= self.layers <= 1024, "model.layers", self.layers, "1 to 1024")
        ascending = all(a < b for a, b in zip(self.taps, self.taps[1:], strict=False))
        inside = 0 < len(self.taps) <= _MAX_TAPS and self.taps[0] >= 0 and self.taps[-1] <= self.layers
        _check(
            ascending and inside,
            "model.taps",
            list(self.taps),
            f"1 to {_MAX_TAPS} layer numbers, strictly ascending, each from 0 to {self.layers}",
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SideSpec(_Record):
    """The side network.

    Attributes:
        kind: ``ladder`` (narrow blocks with attention), ``parallel`` (full-width per-token adapters),
            ``head`` (the head alone on the last tap: the baseline) or ``tail`` (LoRA in the layers above
            the one tap, of which the server has a frozen copy; see :class:`TailSpec`).
        width: width of the ladder's blocks, or of the parallel adapters' bottleneck.
        heads: attention heads of a ladder block; must divide ``width``.
        dropout: probability, applied in training only.
        causal: whether a position sees only earlier ones; must be true for ``causal-lm``.
        pool: which position feeds a classification or regression head: ``last``, ``first`` (encoders
            with a [CLS] token) or ``mean``.
        rank: of the LoRA matrices of ``tail``, whose product is multiplied by 2.

    """

    kind: str = "ladder"
    width: int = 96
    heads: int = 6
    dropout: float = 0.1
    causal: bool = True
    pool: str = "last"
    rank: int = 8

    def __post_init__(self) -> None:
        self._check_types("side.")
        _check(self.kind in KINDS, "side.kind", self.kind, f"one of {', '.join(KINDS)}")
        _check(1 <= self.width <= _MAX_WIDTH, "side.width", self.width, f"1 to {_MAX_WIDTH}")
        _check(
            1 <= self.heads <= self.width and self.width % self.heads == 0,
            "side.heads",
            self.heads,
            f"a divisor of side.width = {self.width}",
        )
        _check(0.0 <= self.dropout < 1.0, "side.dropout", self.dropout, "from 0 up to but not 1")
        _check(self.pool in POOLS, "side.pool", self.pool, f"one of {', '.join(POOLS)}")
        _check(1 <= self.rank <= 1024, "side.rank", self.rank, "1 to 1024")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TailSpec(_Record):
    """The backbone's layers above the tap: their shape, and the blobs that hold them.

    Attributes:
        architecture: ``llama``, ``qwen2`` or ``opt``: what the layers compute, as transformers names it.
        intermediate_size: width inside the MLP.
        heads: attention heads; divides the hidden size.
        kv_heads: heads of keys and values; divides ``heads``.
        eps: of the norms.
        layers: SHA-256 (64 hex digits) of the blob of each layer, from the one above the tap to the last.
        ending: the same of the blob of what else is needed: the final norm and the rotary frequencies.

    """

    architecture: str
    intermediate_size: int
    heads: int
    kv_heads: int
    eps: float
    layers: tuple[str, ...]
    ending: str

    def __post_init__(self) -> None:
        self._check_types("tail.")
        known = self.architecture in ARCHITECTURES
        _check(known, "tail.architecture", _short(self.architecture), f"one of {', '.join(ARCHITECTURES)}")
        _check(
            1 <= self.intermediate_size <= 1 << 18,
            "tail.intermediate_size",
            self.intermediate_size,
            f"1 to {1 << 18}",
        )
        _check(1 <= self.heads <= 1024, "tail.heads", self.heads, "1 to 1024")
        divides = 1 <= self.kv_heads <= self.heads and self.heads % self.kv_heads == 0
        _check(divides, "tail.kv_heads", self.kv_heads, f"a divisor of tail.heads = {self.heads}")
        _check(0.0 < self.eps < 1.0, "tail.eps", self.eps, "a number between 0 and 1")
        _check(
            1 <= len(self.layers) <= _MAX_UPPER, "tail.layers", len(self.layers), f"1 to {_MAX_UPPER} layers"
        )
        for digest in (*self.layers, self.ending):
            expected = "the SHA-256 of a blob, 64 lower-case hex digits"
            _check(_is_digest(digest), "tail.layers and tail.ending", _short(digest), expected)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec(_Record):
    """AdamW and its schedule.

    Attributes:
        lr: peak learning rate.
        weight_decay: applied to matrices only.
        schedule: ``onecycle`` (cosine up and down), ``linear`` (up, then down to 0) or ``constant``
            (after the warm-up). The first two need ``SessionSpec.batches``.
        warmup: part of all steps spent rising to ``lr``, 0 to 0.5.
        clip: largest gradient norm; 0 switches clipping off.
        ema: decay of the averaged weights that are evaluated and pulled; 0 switches averaging off.

    """

    lr: float = 5e-4
    weight_decay: float = 0.05
    schedule: str = "onecycle"
    warmup: float = 0.1
    clip: float = 1.0
    ema: float = 0.98

    def __post_init__(self) -> None:
        self._check_types("optimizer.")
        _check(0.0 < self.lr <= 10.0, "optimizer.lr", self.lr, "a number above 0, at most 10")
        _check(0.0 <= self.weight_decay <= 10.0, "optimizer.weight_decay", self.weight_decay, "0 to 10")
        _check(
            self.schedule in SCHEDULES, "optimizer.schedule", self.schedule, f"one of {', '.join(SCHEDULES)}"
        )
        _check(0.0 <= self.warmup <= 0.5, "optimizer.warmup", self.warmup, "0 to 0.5")
        _check(0.0 <= self.clip < math.inf, "optimizer.clip", self.clip, "0 or a positive number")
        _check(0.0 <= self.ema < 1.0, "optimizer.ema", self.ema, "from 0 up to but not 1")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CodecSpec(_Record):
    """How taps are packed.

    Attributes:
        format: name of a packed format, for example ``asym4``.
        block: values that share a scale; 32, 64 or 128.
        equalize: whether taps in a block format may be divided by one factor per channel first.
        bits: widths of codes among which the device chooses for each tap anew, strictly ascending, from
            2 to 8; empty: ``format`` alone. ``format`` is an ``asym`` format of one of them, then.
        compression: ``none``, or ``zstd``: taps may be compressed without loss. A twentieth of their bytes is
            saved for long texts, a fifth for single sentences; it takes more time than it saves where the
            link carries more than about 100 Mbit/s.

    """

    format: str = "asym4"
    block: int = 64
    equalize: bool = True
    bits: tuple[int, ...] = ()
    compression: str = "none"

    def __post_init__(self) -> None:
        self._check_types("codec.")
        fmt = Format.parse(self.format)
        if fmt is Format.I32:
            raise ConfigError("codec.format", self.format, "a format for activations")
        _check(self.block in BLOCKS, "codec.block", self.block, "32, 64 or 128")
        ascending = all(a < b for a, b in zip(self.bits, self.bits[1:], strict=False))
        inside = not self.bits or (self.bits[0] >= 2 and self.bits[-1] <= 8)
        _check(ascending and inside, "codec.bits", list(self.bits), "widths from 2 to 8, strictly ascending")
        fits = not self.bits or (fmt.is_asym and fmt.bits in self.bits)
        _check(fits, "codec.format", self.format, f"an asym format of codec.bits = {list(self.bits)}")
        known = self.compression in COMPRESSIONS
        _check(known, "codec.compression", _short(self.compression), f"one of {', '.join(COMPRESSIONS)}")

    @property
    def formats(self) -> tuple[Format, ...]:
        """Formats that a tap may have, from the smallest to the largest."""
        return tuple(Format.parse(f"asym{bits}") for bits in self.bits) or (Format.parse(self.format),)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec(_Record):
    """One fine-tuning job.

    Attributes:
        task: ``causal-lm``, ``classification`` or ``regression``.
        outputs: classes, 1 for regression, or the vocabulary's size for ``causal-lm``.
        model: the backbone's fingerprint.
        side: the side network.
        optimizer: optimizer and schedule.
        codec: how taps are packed.
        epochs: passes over the batches; passes after the first are read from the activation log.
        early_stopping: epochs without a lower loss on the held-out batches after which training ends; the
            weights are then those of the best epoch. 0 trains all epochs and keeps the last weights.
        batches: training batches of one pass, or None when the device does not know yet.
        seed: of initialisation, dropout and the order of later passes.
        head: SHA-256 (64 hex digits) of the frozen norm and LM head; required by ``causal-lm`` only.
        trace: whether METRICS frames carry the server's timings.
        tokens: which tokens of a sample are sent: ``all``; ``loss``, those that have a target
            (``causal-lm``); or ``last``, one for each sample (the other tasks). The last two need a side
            network that looks at each token alone, so not ``ladder`` or ``tail``, whose attention needs all
            of them.
        tail: the layers above the tap; for ``tail`` only, which needs it.

    """

    task: str
    outputs: int
    model: ModelSpec
    side: SideSpec = SideSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    codec: CodecSpec = CodecSpec()
    epochs: int = 1
    early_stopping: int = 0
    batches: int | None = None
    seed: int = 0
    head: str | None = None
    trace: bool = False
    tokens: str = "all"
    tail: TailSpec | None = None

    def __post_init__(self) -> None:
        self._check_types("")
        _check(self.task in TASKS, "task", self.task, f"one of {', '.join(TASKS)}")
        _check(1 <= self.outputs <= _MAX_VOCABULARY, "outputs", self.outputs, f"1 to {_MAX_VOCABULARY}")
        _check(self.task != "regression" or self.outputs == 1, "outputs", self.outputs, "1 for regression")
        _check(
            self.task != "classification" or self.outputs >= 2, "outputs", self.outputs, "at least 2 classes"
        )
        _check(1 <= self.epochs <= 10_000, "epochs", self.epochs, "1 to 10000")
        _check(0 <= self.early_stopping <= 10_000, "early_stopping", self.early_stopping, "0 to 10000")
        _check(self.batches is None or self.batches >= 1, "batches", self.batches, "at least 1, or none")
        _check(
            self.batches is not None or self.optimizer.schedule == "constant",
            "batches",
            self.batches,
            f"a number, which the schedule {self.optimizer.schedule!r} needs",
        )
        _check(0 <= self.seed < 1 << 63, "seed", self.seed, "0 to 2**63 - 1")
        if self.task == "causal-lm":
            _check(self.side.causal, "side.causal", self.side.causal, "true for causal-lm")
            able = self.side.kind in ("ladder", "parallel", "tail")
            _check(able, "side.kind", self.side.kind, "ladder, parallel or tail for causal-lm")
            _check(
                self.head is not None and _is_digest(self.head),
                "head",
                self.head,
                "the SHA-256 of the LM head's blob, 64 lower-case hex digits",
            )
        else:
            _check(self.head is None, "head", self.head, f"nothing for {self.task}")
        check_tokens(self.tokens, self.task, self.side)
        self._check_tail()

    def stopped(self, steps: int) -> tuple[int, int] | None:
        """Return after which epoch early stopping ended a session, and the epoch whose weights it kept.

        Args:
            steps: of the whole session, as FINISHED says.

        Returns:
            None when all epochs were trained, or there is no early stopping.

        """
        if not self.early_stopping or self.batches is None or steps >= self.batches * self.epochs:
            return None
        last, rest = divmod(steps, self.batches)
        kept = last - self.early_stopping  # training ends so many epochs after the best one
        return (last, kept) if not rest and kept > 0 else None

    @property
    def blobs(self) -> tuple[str, ...]:
        """SHA-256 of each blob that the session needs, in hex, each once."""
        head = () if self.head is None else (self.head,)
        tail = () if self.tail is None else (*self.tail.layers, self.tail.ending)
        return tuple(dict.fromkeys((*head, *tail)))

    def _check_tail(self) -> None:
        if self.side.kind != "tail":
            _check(self.tail is None, "tail", "a map", f"nothing for side.kind = {self.side.kind}")
            return
        if self.tail is None:
            raise ConfigError("tail", None, "the layers above the tap, for side.kind = tail")
        taps, above = self.model.taps, self.model.layers - len(self.tail.layers)
        _check(taps == (above,), "model.taps", list(taps), f"[{above}], the layer below those of tail.layers")
        _check(self.side.causal, "side.causal", self.side.causal, "true for side.kind = tail")
        _check(self.side.pool == "last", "side.pool", self.side.pool, "last for side.kind = tail")
        heads, width = self.tail.heads, self.model.hidden_size
        _check(width % (2 * heads) == 0, "tail.heads", heads, f"heads of an even size in {width}")
        grouped = self.tail.kv_heads != heads and self.tail.architecture == "opt"
        _check(not grouped, "tail.kv_heads", self.tail.kv_heads, f"tail.heads = {heads} for opt")


def check_tokens(tokens: str, task: str, side: SideSpec) -> None:
    """Check that a task and a side network can do with the chosen tokens.

    Args:
        tokens: ``all``, ``loss`` or ``last``.
        task: of the session.
        side: its side network.

    Raises:
        ConfigError: they cannot.

    """
    _check(tokens in TOKENS, "tokens", tokens, f"one of {', '.join(TOKENS)}")
    if tokens == "all":
        return
    fitting, kinds = ("loss", ("parallel",)) if task == "causal-lm" else ("last", ("parallel", "head"))
    _check(tokens == fitting, "tokens", tokens, f"all or {fitting} for the task {task}")
    alone = f"{' or '.join(kinds)} for the tokens {tokens!r}: attention needs those left out"
    _check(side.kind in kinds, "side.kind", side.kind, alone)
    if tokens == "last":
        _check(side.pool == "last", "side.pool", side.pool, "last for the tokens 'last'")


def _is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")
