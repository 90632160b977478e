"""A backbone whose layers stay on the disk: resident are two layers, whatever the model's size.

There is no backward pass, so nothing forces a batch through all layers before the next one begins: several
batches go through layer *i* before layer *i+1* is needed, which is read meanwhile. Hidden states are those
of the resident backbone, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from .backbone import Backbone, OnBatchTap, OnTap
from .checkpoint import Checkpoint
from .compute import Expansion, make_expansion
from .layer_store import LayerStore
from .layers import find_parts
from .loading import find_dtype, model_source
from .models import local_directory
from .skeleton import build_skeleton, find_names, load_rest, name_of
from .stored import StoredLayers
from .workspace import Workspace

__all__ = ["StreamedBackbone"]

# Tokens that go through a layer together: reading a weight costs as much as computing with it for some
# hundreds of tokens on a slow disk, and hidden states of this many take a few MiB.
SPAN = 4096


class StreamedBackbone(Backbone):
    """A backbone whose layers are read when they are needed.

    Everything a :class:`Backbone` can do works; what runs token by token (:meth:`extend`) reads all
    layers for each token and is slow. It computes on the CPU: the model cannot be moved to another device.

    Args:
        model, tokenizer, name, taps, expansion, stored: as those of :class:`Backbone`.
        store: where the layers come from; None when they are all in memory.

    """

    span = SPAN

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        name: str,
        taps: str | Sequence[int],
        store: LayerStore | None = None,
        expansion: Expansion | None = None,
        stored: StoredLayers | None = None,
    ) -> None:
        super().__init__(model, tokenizer, name=name, taps=taps, expansion=expansion, stored=stored)
        self.store = store

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
        """Open a model; of its weights only what lies outside the layers is loaded.

        Args:
            name_or_dir: as in :meth:`Backbone.from_pretrained`, like what is not named here.
            gguf_file: name of a GGUF file in that directory.
            dtype: of the weights; ``auto`` takes the configuration's. They cannot be quantized.
            compute_dtype: in which they are used.
            taps: which layers to tap.
            lm_head: whether the LM head is loaded too; it stays in memory, and the embedding with it.
            local_files_only: whether the hub may not be asked.
            name: public name; None takes ``name_or_dir``.

        Raises:
            ConfigError: ``taps`` or a type cannot be read, or a tap lies outside the model's layers.
            ModelError: the model cannot be found, reached or used, or is not stored as safetensors under
                the names that its modules have.

        """
        source, public = model_source(name_or_dir, gguf_file, name)
        directory = local_directory(source, local_files_only=local_files_only)
        checkpoint = Checkpoint(directory)
        model, tokenizer = build_skeleton(directory, find_dtype(dtype), lm_head)
        names = find_names(model, checkpoint)
        parts = find_parts(model)
        stored = StoredLayers.find(model, parts, names, checkpoint)
        store = LayerStore(parts.layers, stored)
        embedding = None if lm_head else cast(Any, model).get_input_embeddings()
        if isinstance(embedding, nn.Embedding):
            _read_rows_only(embedding, checkpoint, names.pop(name_of(model, embedding) + ".weight"))
        load_rest(model, names, checkpoint)
        expansion = make_expansion(model, compute_dtype, Workspace())
        return cls(model, tokenizer, name=public, taps=taps, store=store, expansion=expansion, stored=stored)

    def with_taps(self, taps: str | Sequence[int]) -> StreamedBackbone:
        """Return a backbone on the same model with other taps."""
        return StreamedBackbone(
            self.model,
            self._tokenizer,
            name=self.name,
            taps=taps,
            store=self.store,
            expansion=self._expansion,
            stored=self._stored,
        )

    def forward_all(self, batches: Sequence[Sequence[Sequence[int]]], on_tap: OnBatchTap) -> None:
        """Do what :meth:`Backbone.forward_all` does; each layer is read once for all batches."""
        self._limit_depth()
        super().forward_all(batches, on_tap)

    def _run(self, on_tap: OnTap, **inputs: Any) -> None:
        self._limit_depth()
        super()._run(on_tap, **inputs)

    def _limit_depth(self) -> None:
        if self.store is not None:
            self.store.depth = max(1, self.taps[-1])


def _read_rows_only(embedding: nn.Embedding, checkpoint: Checkpoint, name: str) -> None:
    """Make an embedding read the rows it needs from the disk each time."""
    dtype = embedding.weight.dtype
    embedding.padding_idx = None  # its row is not at its place; it matters in training only

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rows, places = torch.unique(inputs[0], return_inverse=True)
        weight = checkpoint.rows(name, rows, dtype)
        module._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
        return (places, *inputs[1:])

    embedding.register_forward_pre_hook(before)
