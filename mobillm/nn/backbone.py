"""The frozen backbone: a language model that is only run forward, and whose hidden states are tapped."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from torch import Tensor, nn

from ..errors import ConfigError, ModelError
from ..spec import ModelSpec
from .bits import BITS
from .compute import Expansion, make_expansion
from .layers import Parts, WeightBytes, find_parts
from .layerwise import Layerwise, NotLayerwiseError, Run
from .loading import find_dtype, load_whole, model_source
from .models import local_directory
from .quantized_loading import load_quantized
from .stored import StoredLayers
from .taps import parse_taps
from .tokens import tokenize
from .workspace import Workspace

__all__ = ["Backbone", "OnBatchTap", "OnTap"]

OnTap = Callable[[int, Tensor], None]
# Tokens that are run at once, at most. What a layer holds while it computes grows with them; speed does not,
# from some hundreds on. Most of it are the MLP's inner states: where one of them would be larger than this,
# the part is smaller, down to the least one.
_PART = 512
_LEAST_PART = 256
_STATE_BYTES = 4 << 20

OnBatchTap = Callable[[int, int, Tensor], None]  # the batch's index, then as OnTap


class _LastTapDoneError(Exception):
    """Raised by the hook of the last tap: what would run after it is not needed."""


class Backbone:
    """A frozen decoder or encoder with taps.

    The model is in evaluation mode and without gradients. One forward at a time: the object is not
    safe for concurrent use by several threads.

    Attributes:
        model: the transformers model; unless it is quantized it may be moved to another device with
            ``model.to``, where it computes in the type of its weights.
        name: public name of the model.
        taps: tapped layers, strictly ascending.
        causal: true for a decoder, false for an encoder.
        span: tokens that :meth:`forward_all` is best given together; 0 when one batch is as good.
        bits: of the weights of linear layers, 8 or 4; None when they are not quantized.
        loaded: layers that can be run; those above were never brought into memory.

    """

    span = 0

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        name: str,
        taps: str | Sequence[int],
        expansion: Expansion | None = None,
        bits: int | None = None,
        stored: StoredLayers | None = None,
        loaded: int | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.name = name
        self._tokenizer = tokenizer
        self._parts: Parts = find_parts(model)
        self.taps = parse_taps(taps, self.layers)
        self.causal = self._parts.causal
        self.bits = bits
        self.loaded = self.layers if loaded is None else loaded
        self._stored = stored
        self._expansion = expansion
        self._layerwise = Layerwise(self._parts)

    @classmethod
    def from_model(
        cls, model: nn.Module, tokenizer: Any = None, *, name: str, taps: str | Sequence[int] = "every:4"
    ) -> Self:
        """Wrap a transformers model that is already in memory; it is frozen in place.

        It computes in the type of its weights.

        Args:
            model: a decoder or an encoder of transformers.
            tokenizer: its tokenizer; None when only token ids will be used.
            name: public name of the model.
            taps: which layers to tap, as in :func:`~mobillm.nn.taps.parse_taps`.

        Raises:
            ConfigError: ``taps`` cannot be read, or one lies outside the model's layers.
            ModelError: the model's layers cannot be found.

        """
        return cls(model, tokenizer, name=name, taps=taps)

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str | Path,
        *,
        gguf_file: str | None = None,
        dtype: str | torch.dtype = "auto",
        compute_dtype: str | torch.dtype = "auto",
        taps: str | Sequence[int] = "every:4",
        lm_head: bool = False,
        local_files_only: bool = False,
        name: str | None = None,
    ) -> Self:
        """Load a model and its tokenizer.

        Args:
            name_or_dir: what :func:`~mobillm.nn.models.resolve_model` takes: a name on the Hugging Face
                hub, a directory, a ``.gguf`` file, or ``smollm2`` or ``stories15m``.
            gguf_file: name of a GGUF file in that directory; the file is dequantized to bf16 once and
                the result is kept in the cache directory.
            dtype: of the weights; ``auto`` takes the checkpoint's own. ``int8`` and ``int4`` quantize the
                linear layers while they are loaded, one after the other; then the model stays on the CPU.
                Layers above the last tap are not loaded then, unless the LM head is.
            compute_dtype: in which a CPU computes, see :func:`~mobillm.nn.compute.compute_type`; a GPU
                computes in the type of the weights.
            taps: which layers to tap, as in :func:`~mobillm.nn.taps.parse_taps`.
            lm_head: whether the LM head is loaded too, to export it or to compare with it.
            local_files_only: whether the hub may not be asked.
            name: public name; None takes ``name_or_dir``.

        Raises:
            ConfigError: ``taps`` or a type cannot be read, or a tap lies outside the model's layers.
            ModelError: the model cannot be found, reached or used.

        """
        source, public = model_source(name_or_dir, gguf_file, name)
        workspace = Workspace()
        bits = BITS.get(dtype) if isinstance(dtype, str) else None
        stored = loaded = None
        if bits is None:
            model, tokenizer = load_whole(source, find_dtype(dtype), lm_head, local_files_only)
        else:
            directory = local_directory(source, local_files_only=local_files_only)

            def depth(layers: int) -> int:
                # Whoever exports the LM head runs all of them, and what computes in which type is read off
                # the first one.
                return layers if lm_head else max(1, parse_taps(taps, layers)[-1])

            model, tokenizer, stored, loaded = load_quantized(
                directory, bits, lm_head=lm_head, workspace=workspace, depth=depth
            )
        return cls(
            model,
            tokenizer,
            name=public,
            taps=taps,
            expansion=make_expansion(model, compute_dtype, workspace),
            bits=bits,
            stored=stored,
            loaded=loaded,
        )

    @property
    def parts(self) -> Parts:
        """The layers of the model and what surrounds them."""
        return self._parts

    @property
    def hidden_size(self) -> int:
        """Width of the tapped hidden states."""
        return self._parts.hidden_size

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self._parts.layers)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, of those that are not quantized."""
        return self._parts.first_weight.dtype

    @property
    def compute_dtype(self) -> torch.dtype:
        """Type in which layers compute, and so that of the taps."""
        expands = self._expansion is not None and self.device.type == "cpu"
        return self._expansion.dtype if self._expansion is not None and expands else self.dtype

    @property
    def arithmetic(self) -> str:
        """What hidden states depend on beside the model and the machine: how weights are held and used."""
        stored = str(self.dtype) if self.bits is None else f"{self.bits} bits"
        return f"{stored} computed in {self.compute_dtype}"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._parts.first_weight.device

    @property
    def part(self) -> int:
        """Most tokens that are run at once, padding included."""
        fit = _STATE_BYTES // (self._widest * self.compute_dtype.itemsize)
        return min(_PART, max(_LEAST_PART, fit))

    @functools.cached_property
    def _widest(self) -> int:
        return self._parts.weight_bytes().widest

    @property
    def positions(self) -> int | None:
        """Most tokens of one sample; None when the model states no limit."""
        return self._parts.positions

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer.

        Raises:
            ModelError: the backbone was built without one.

        """
        if self._tokenizer is None:
            raise ModelError(f"{self.name} has no tokenizer; build the backbone with one, or pass token ids")
        return self._tokenizer

    def weight_bytes(self) -> WeightBytes:
        """Return how large the model is; of a streamed one before its first forward."""
        return self._parts.weight_bytes()

    def layer_values(self, number: int) -> int:
        """Return how many weights a layer has, numbered from 0; of a quantized one before that."""
        if self._stored is not None:
            return self._stored.values(number)
        return sum(p.numel() for p in self._parts.layers[number].parameters())

    def layer_weights(self, number: int) -> dict[str, Tensor]:
        """Return the weights of a layer, numbered from 0, by their names in it, before any quantization.

        They are not copied if they are all in memory so; else they are read, and the caller's.

        Raises:
            ModelError: they cannot be read.
            OSError: the same.

        """
        if self._stored is not None:
            return self._stored.read(number, self.dtype)
        return {name: p.detach() for name, p in self._parts.layers[number].named_parameters()}

    def model_spec(self) -> ModelSpec:
        """Return the fingerprint that a session states."""
        return ModelSpec(
            name=self.name, hidden_size=self.hidden_size, layers=self.layers, taps=tuple(self.taps)
        )

    def with_taps(self, taps: str | Sequence[int]) -> Backbone:
        """Return a backbone on the same model with other taps.

        Raises:
            ConfigError: one of them lies above the layers that are loaded.

        """
        if parse_taps(taps, self.layers)[-1] > self.loaded:
            expected = f"layers up to {self.loaded}, as those above were not loaded; load with these taps"
            raise ConfigError("taps", taps, expected)
        return Backbone(
            self.model,
            self._tokenizer,
            name=self.name,
            taps=taps,
            expansion=self._expansion,
            bits=self.bits,
            stored=self._stored,
            loaded=self.loaded,
        )

    def tokenize(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """Encode texts; see :func:`~mobillm.nn.tokens.tokenize`."""
        return tokenize(self.tokenizer, texts, max_length)

    def check(self, input_ids: Sequence[Sequence[int]], past: int = 0) -> None:
        """Refuse samples that cannot be run forward; nothing is computed.

        Args:
            input_ids: token ids of each sample.
            past: tokens that came before, of a single sample that is continued.

        Raises:
            ModelError: there is no sample, or one is empty, longer than the model allows, or holds a token
                that the model has no embedding of.

        """
        limit, vocabulary = self.positions, self._parts.vocabulary
        if not input_ids:
            raise ModelError("the backbone got no samples; give at least one")
        for row, sample in enumerate(input_ids):
            if not sample:
                raise ModelError(f"sample {row} has no tokens; leave it out or give it one")
            if limit is not None and past + len(sample) > limit:
                raise ModelError(
                    f"sample {row} has {past + len(sample)} tokens but {self.name} takes at most {limit}; "
                    "lower max_length (--max-length)"
                )
            if min(sample) < 0 or max(sample) >= vocabulary:
                wrong = min(sample) if min(sample) < 0 else max(sample)
                raise ModelError(
                    f"sample {row} has the token id {wrong}, but {self.name} has embeddings of 0 to "
                    f"{vocabulary - 1}; use the tokenizer that the model was made with, or give the model a "
                    "row for each added token (resize_token_embeddings)"
                )

    def forward(self, input_ids: Sequence[Sequence[int]], on_tap: OnTap) -> None:
        """Run samples forward and hand over each tap the moment its layer is done.

        Samples are run in parts of some hundred tokens (:attr:`part`), padded to the part's longest and
        masked inside; a sample's hidden states do not depend on its neighbours but for rounding. All parts
        go through a layer before the next layer; nothing after the last tap is computed.

        Args:
            input_ids: token ids of each sample, each with at least one.
            on_tap: called once per tap, in the order of the layers, with the tap's index in ``taps``
                and its hidden states ``[N, hidden_size]``: the valid tokens of all samples, one sample
                after the other, as the layer put them out (before any final norm). The tensor may
                share the model's memory, so it must be used or copied during the call.

        Raises:
            ModelError: a sample is empty or longer than the model allows.

        """
        self.forward_all([input_ids], lambda _, index, hidden: on_tap(index, hidden))

    def forward_all(self, batches: Sequence[Sequence[Sequence[int]]], on_tap: OnBatchTap) -> None:
        """Run several batches forward, all of them through a layer before the next layer.

        Args:
            batches: token ids of each sample of each batch.
            on_tap: called with the batch's index in ``batches``, then as in :meth:`forward`. Each batch's
                taps come in order; all batches' first taps come before the second ones, unless the model
                can only be run as a whole.

        Raises:
            ModelError: a sample is empty or longer than the model allows.

        """
        with torch.inference_mode():
            try:
                runs = [self._begin(batch) for batch in batches]
            except NotLayerwiseError:
                for number, batch in enumerate(batches):
                    self._forward_whole(batch, functools.partial(on_tap, number))
                return
            for depth in range(self.taps[-1] + 1):
                for number, parts in enumerate(runs):
                    if depth:
                        for run, _ in parts:
                            self._layerwise.advance(run, depth - 1)
                    if depth in self.taps:
                        valid = [_valid(run.hidden, rows) for run, rows in parts]
                        hidden = valid[0] if len(valid) == 1 else torch.cat(valid)
                        del valid
                        on_tap(number, self.taps.index(depth), hidden)

    def _begin(self, input_ids: Sequence[Sequence[int]]) -> list[tuple[Run, Tensor | None]]:
        self.check(input_ids)
        depth = max(1, self.taps[-1])
        parts = [self._padded(part) for part in _parts(input_ids, self.part)]
        return [(self._layerwise.begin(inputs, depth), rows) for inputs, rows in parts]

    def _forward_whole(self, input_ids: Sequence[Sequence[int]], on_tap: OnTap) -> None:
        inputs, rows = self._padded(input_ids)
        self._run(lambda index, hidden: on_tap(index, _valid(hidden, rows)), **inputs)

    def _padded(self, input_ids: Sequence[Sequence[int]]) -> tuple[dict[str, Any], Tensor | None]:
        """Return the model's arguments, and which rows of the padded batch are tokens; None: all."""
        longest = max(map(len, input_ids))
        filler = self._parts.config.pad_token_id
        filler = 0 if filler is None or filler < 0 else filler
        ids = torch.full((len(input_ids), longest), filler, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, sample in enumerate(input_ids):
            ids[row, : len(sample)] = torch.tensor(sample, dtype=torch.int64)
            mask[row, : len(sample)] = 1
        rows = None if bool(mask.all()) else mask.flatten().nonzero().squeeze(1).to(self.device)
        inputs = {
            "input_ids": ids.to(self.device),
            "attention_mask": mask.to(self.device),
            "use_cache": False,
        }
        return inputs, rows

    def extend(self, tokens: Sequence[int], on_tap: OnTap, cache: Any = None) -> Any:
        """Run new tokens of one sample forward, reusing the keys and values of the earlier ones.

        Args:
            tokens: the new token ids, at least one.
            on_tap: as in :meth:`forward`, for the new tokens only.
            cache: what the previous call returned; None at the sample's start. It is updated in place.

        Returns:
            the cache for the next call.

        Raises:
            ModelError: the backbone is an encoder, or the sample grew longer than the model allows.

        """
        if not self.causal:
            raise ModelError(f"{self.name} is an encoder, which cannot generate; use a decoder")
        cache = transformers.DynamicCache(config=self._parts.config) if cache is None else cache
        self.check([tokens], past=int(cache.get_seq_length()))
        ids = torch.tensor([list(tokens)], dtype=torch.int64, device=self.device)
        self._run(
            lambda index, hidden: on_tap(index, hidden[0]),
            input_ids=ids,
            past_key_values=cache,
            use_cache=True,
        )
        return cache

    def _run(self, on_tap: OnTap, **inputs: Any) -> None:
        # The exception of the last hook skips the layers above it; transformers leaves no state behind.
        with torch.inference_mode(), self._hooks(on_tap), contextlib.suppress(_LastTapDoneError):
            self._parts.base(**inputs)

    @contextlib.contextmanager
    def _hooks(self, on_tap: OnTap) -> Iterator[None]:
        layers, handles = self._parts.layers, []
        try:
            for index, tap in enumerate(self.taps):
                last = index == len(self.taps) - 1
                if tap == 0:
                    handles.append(layers[0].register_forward_pre_hook(_input_hook(on_tap), with_kwargs=True))
                    if last:  # not before: the first layer's cache is how a model counts positions
                        handles.append(layers[0].register_forward_hook(_stop))
                else:
                    handles.append(layers[tap - 1].register_forward_hook(_output_hook(index, last, on_tap)))
            yield
        finally:
            for handle in handles:
                handle.remove()


def _valid(hidden: Tensor, rows: Tensor | None) -> Tensor:
    """Return the rows of a padded batch ``[B, T, d]`` that are tokens, ``[N, d]``; None keeps all."""
    hidden = hidden.reshape(-1, hidden.shape[-1])
    return hidden if rows is None else hidden.index_select(0, rows)


def _parts(input_ids: Sequence[Sequence[int]], tokens: int) -> Iterator[Sequence[Sequence[int]]]:
    """Cut a batch into parts of at most so many tokens, padding included, or of one longer sample."""
    start = longest = 0
    for end, sample in enumerate(input_ids):
        longest = max(longest, len(sample))
        if end > start and longest * (end + 1 - start) > tokens:
            yield input_ids[start:end]
            start, longest = end, len(sample)
    yield input_ids[start:]


def _output_hook(index: int, last: bool, on_tap: OnTap) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        on_tap(index, output[0] if isinstance(output, tuple) else output)
        if last:
            raise _LastTapDoneError

    return hook


def _input_hook(on_tap: OnTap) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_module: nn.Module, inputs: Any, named: Any) -> None:
        on_tap(0, inputs[0] if inputs else named["hidden_states"])

    return hook


def _stop(*_: Any) -> None:
    raise _LastTapDoneError
