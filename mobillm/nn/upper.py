"""The layers above a tap: frozen weights with LoRA beside them, samples side by side without padding."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from torch.utils.checkpoint import checkpoint

from ..errors import ModelError
from ..spec import SessionSpec, TailSpec
from .adapter import MODULES
from .architectures import architecture_of
from .attention import KeyValues
from .compute import compute_type
from .lora import LoRALinear
from .prefix import SharedPrefix
from .ragged import Ragged

__all__ = ["KEPT", "WIDE", "FrozenLayers", "UpperLayers", "frozen_values", "held_type", "inner_bytes"]

# Bytes that what layers compute inside may take until the backward pass; beyond that it is computed again.
KEPT = 2 << 30
# Bytes up to which a server holds frozen weights in the type that it computes in: making that anew for each
# product takes 5 to 8 % of a step's time.
WIDE = 1 << 30


def frozen_values(spec: SessionSpec) -> int:
    """Return how many weights a tail's frozen layers have at most."""
    assert spec.tail is not None
    width, inner = spec.model.hidden_size, spec.tail.intermediate_size
    return len(spec.tail.layers) * (4 * width * width + 3 * width * inner)


def held_type(spec: SessionSpec, device: str = "cpu") -> torch.dtype:
    """Return the type in which a server holds a tail's frozen layers.

    Args:
        spec: a session of kind ``tail``.
        device: type of the torch device that trains.

    """
    computing = compute_type("auto", torch.bfloat16) if device == "cpu" else torch.bfloat16
    return computing if frozen_values(spec) * computing.itemsize <= WIDE else torch.bfloat16


def inner_bytes(spec: SessionSpec) -> int:
    """Return what a tail's layers compute inside for one token in training, in bytes, all of it in fp32."""
    assert spec.tail is not None
    return len(spec.tail.layers) * 4 * (16 * spec.model.hidden_size + 8 * spec.tail.intermediate_size)


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenLayers:
    """The weights of the layers above a tap.

    Attributes:
        layers: tensors of each layer, by their names in it.
        ending: ``norm.weight`` of the final norm, and where the architecture has them ``norm.bias`` and
            ``inv_freq`` [half of a head's size], the rotary frequencies.
        bring: is called with a layer's place in ``layers`` before that layer runs, and puts its weights into
            the tensors; None when they are there.

    """

    layers: Sequence[Mapping[str, Tensor]]
    ending: Mapping[str, Tensor]
    bring: Callable[[int], None] | None = None

    @classmethod
    def from_blobs(cls, tail: TailSpec, blobs: Mapping[str, bytes]) -> FrozenLayers:
        """Read blobs as :class:`~mobillm.nn.tail.TailBlobs` writes them.

        Args:
            tail: names the blobs.
            blobs: their contents, by SHA-256 in hex.

        Raises:
            ModelError: a blob is no safetensors file.

        """
        found: dict[str, dict[str, Tensor]] = {}
        for digest in (*tail.layers, tail.ending):
            number = len(found) + 1
            try:
                found[digest] = safetensors.torch.load(blobs[digest])
            except (safetensors.SafetensorError, ValueError, KeyError) as error:
                raise ModelError(f"blob {number} of the tail is no safetensors file: {error}") from error
            for name, tensor in found[digest].items():
                expected = torch.float32 if name == "inv_freq" else torch.bfloat16
                if tensor.dtype != expected:
                    raise ModelError(f"blob {number} of the tail holds {tensor.dtype}, expected {expected}")
        return cls([found[digest] for digest in tail.layers], found[tail.ending])

    def to(self, dtype: torch.dtype) -> FrozenLayers:
        """Return the layers in another type, and the ending as it is."""
        layers = [{name: tensor.to(dtype) for name, tensor in layer.items()} for layer in self.layers]
        return dataclasses.replace(self, layers=layers)


class _Past:
    """Keys and values of one sample's earlier tokens, as the layers of transformers ask for them."""

    def __init__(self, past: Sequence[KeyValues] | None) -> None:
        self._past = past
        self.following: list[KeyValues] = []

    def update(self, key: Tensor, value: Tensor, layer: int) -> KeyValues:
        """Return those of all tokens of a layer; layers come in their order."""
        if self._past:
            key = torch.cat((self._past[layer][0], key), 2)
            value = torch.cat((self._past[layer][1], value), 2)
        self.following.append((key, value))
        return key, value


class UpperLayers(nn.Module):
    """The layers above a tap with LoRA in them, then the final norm.

    Frozen weights are used as they are given, not copied; those that are brought layer by layer are for use
    only, as a backward pass would find others. Computing is in their type, or on a CPU without
    instructions for it in fp32, with one matrix copied at a time.

    Args:
        spec: a session of kind ``tail``.
        frozen: the weights; None leaves them on the meta device, for counting.

    Raises:
        ModelError: a tensor is missing, unknown, or of another shape.

    """

    inv_freq: Tensor | None

    def __init__(self, spec: SessionSpec, frozen: FrozenLayers | None) -> None:
        super().__init__()
        assert spec.tail is not None
        self._first = spec.model.taps[0]
        known = architecture_of(spec.tail)
        self._place, self._some = known.place, known.some
        self._inner = inner_bytes(spec)
        self._bring = None if frozen is None else frozen.bring
        width = spec.model.hidden_size
        with torch.device("meta"):
            self.layers = nn.ModuleList(known.layer(spec, spec.tail, n) for n in range(len(spec.tail.layers)))
            self.norm = known.norm(width, spec.tail.eps)
            rates = torch.empty(width // spec.tail.heads // 2) if known.rotary else None
        self.register_buffer("inv_freq", rates)
        self.requires_grad_(False)
        if frozen is not None:
            self._assign(frozen)
        for layer in self.layers:
            for name in MODULES[spec.tail.architecture]:
                place = next(path for path, _ in layer.named_modules() if path.rpartition(".")[2] == name)
                inside = layer.get_submodule(place.rpartition(".")[0])
                setattr(inside, name, LoRALinear(getattr(inside, name), spec.side.rank))
        for module in self.modules():
            if module._parameters and not isinstance(module, LoRALinear | nn.Linear):
                module.register_forward_pre_hook(self._before)
                module.register_forward_hook(self._after, always_call=True)

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield each matrix of LoRA under the name that PEFT gives it."""
        for number, layer in enumerate(self.layers, self._first):
            for name, parameter in layer.named_parameters():
                if parameter.requires_grad:
                    yield f"base_model.model.model.{self._place}.{number}.{name}.weight", parameter

    def forward(self, tap: Tensor, layout: Ragged, rows: Tensor | None = None) -> Tensor:
        """Compute the final norm's output.

        Args:
            tap: ``[N, d]`` output of the layer below.
            layout: which rows belong to which sample.
            rows: ``[R]`` those that are wanted; None for all.

        Returns:
            ``[R, d]`` or ``[N, d]`` in the type of computing.

        """
        places = layout.places()
        shared = SharedPrefix.of(tap, layout)
        found = None  # where what is wanted will be
        if shared is not None:
            tap, places, found = tap[shared.kept], places[shared.kept], shared.held
            if rows is not None:
                rows, found = torch.unique(found[rows], return_inverse=True)
        hidden, named = self._begin(tap, places)
        named["layout"] = layout if shared is None else shared
        again = torch.is_grad_enabled() and len(tap) * self._inner > KEPT
        steps: list[Callable[..., Tensor]] = list(self.layers)
        if rows is not None:
            steps[-1] = functools.partial(self._some, self.layers[-1], rows=rows)
        for number, step in enumerate(steps):
            if self._bring is not None:
                self._bring(number)
            if again:
                kept = checkpoint(step, hidden, use_reentrant=False, preserve_rng_state=False, **named)
                hidden = cast(Tensor, kept)
            else:
                hidden = step(hidden, **named)
        out: Tensor = self.norm(hidden[0])
        # An embedding's gradient is the same each time on a GPU, too, where rows are found more than once.
        return out if found is None else embedding(found, out)

    def extend(self, tap: Tensor, past: Sequence[KeyValues] | None) -> tuple[Tensor, list[KeyValues]]:
        """Compute the final norm's output for new tokens of one sample.

        Args:
            tap: ``[n, d]`` output of the layer below, of the new tokens.
            past: what the previous call returned; None at the sample's start. It is not changed.

        Returns:
            ``[n, d]``, and each layer's keys and values of all tokens so far.

        """
        start = past[0][0].shape[2] if past else 0
        hidden, named = self._begin(tap, torch.arange(start, start + len(tap)))
        seen = _Past(past)
        for number, layer in enumerate(self.layers):
            if self._bring is not None:
                self._bring(number)
            hidden = layer(hidden, layout=None, past_key_values=seen, **named)
        out: Tensor = self.norm(hidden[0])
        return out, seen.following

    def _begin(self, tap: Tensor, positions: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Return the layers' input in the type of computing, and what else each of them takes."""
        stored = next(self.norm.parameters())
        on_cpu = stored.device.type == "cpu"
        hidden = tap.to(compute_type("auto", stored.dtype) if on_cpu else stored.dtype)[None]
        if self.inv_freq is None:
            return hidden, {}
        return hidden, {"position_embeddings": self._rotations(positions, hidden.dtype)}

    def _before(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Give a norm its weights in the type of its input, for the time that it runs."""
        self._stored = dict(module._parameters)
        for name, parameter in self._stored.items():
            assert parameter is not None
            wide = parameter.detach().to(inputs[0].dtype)
            module._parameters[name] = nn.Parameter(wide, requires_grad=False)

    def _after(self, module: nn.Module, _inputs: Any, _output: Any) -> None:
        module._parameters.update(self._stored)

    def _rotations(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of positions ``[N]``, ``[1, N, size]`` (RoPE, arXiv 2104.09864)."""
        assert self.inv_freq is not None
        angles = positions.to(self.inv_freq.device)[:, None].float() * self.inv_freq.float()
        angles = torch.cat((angles, angles), -1)[None]
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def _assign(self, frozen: FrozenLayers) -> None:
        ending = dict(frozen.ending)
        rates = ending.pop("inv_freq", None)
        if (rates is None) != (self.inv_freq is None):
            raise ModelError("the tail's ending has rotary frequencies where it should not, or lacks them")
        if rates is not None and self.inv_freq is not None:
            _check("inv_freq", rates, self.inv_freq)
            self.inv_freq = rates
        _assign(self.norm, {name.removeprefix("norm."): tensor for name, tensor in ending.items()}, "norm.")
        for number, (layer, tensors) in enumerate(zip(self.layers, frozen.layers, strict=True), self._first):
            _assign(layer, tensors, f"layer {number + 1}: ")


def _assign(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Put tensors in the place of a module's parameters."""
    own = dict(module.named_parameters())
    lacking, unknown = sorted(own.keys() - tensors.keys()), len(tensors.keys() - own.keys())
    if lacking or unknown:
        raise ModelError(f"{where}the tail's weights lack {lacking} and have {unknown} tensors too many")
    for name, parameter in own.items():
        _check(where + name, tensors[name], parameter)
        place, _, leaf = name.rpartition(".")
        module.get_submodule(place)._parameters[leaf] = nn.Parameter(tensors[name], requires_grad=False)


def _check(name: str, tensor: Tensor, expected: Tensor) -> None:
    if tensor.shape != expected.shape:
        raise ModelError(f"{name} is {list(tensor.shape)} in the tail's weights, not {list(expected.shape)}")
