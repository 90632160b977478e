"""A backbone whose layers stay on the disk: resident are two layers, whatever the model's size.

There is no backward pass, so nothing forces a batch through all layers before the next one begins: several
batches go through layer *i* before layer *i+1* is needed, which is read meanwhile. Hidden states are those
of the resident backbone, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

import accelerate
import torch
import transformers
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import ModelError
from .backbone import (
    Backbone,
    OnBatchTap,
    OnTap,
    find_dtype,
    load_tokenizer,
    model_source,
)
from .checkpoint import Checkpoint
from .layer_store import LayerStore
from .layers import Parts, find_parts
from .models import local_directory
from .quiet import quiet_loading

__all__ = ["StreamedBackbone"]

# Tokens that go through a layer together: reading a weight costs as much as computing with it for some
# hundreds of tokens on a slow disk, and hidden states of this many take a few MiB.
SPAN = 4096


class StreamedBackbone(Backbone):
    """A backbone whose layers are read when they are needed.

    Everything a :class:`Backbone` can do works; what runs token by token (:meth:`extend`) reads all
    layers for each token and is slow. It computes on the CPU: the model cannot be moved to another device.

    Args:
        model, tokenizer, name, taps: as those of :class:`Backbone`.
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
    ) -> None:
        super().__init__(model, tokenizer, name=name, taps=taps)
        self.store = store

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str | Path,
        *,
        gguf_file: str | None = None,
        dtype: str | torch.dtype = "auto",
        taps: str | Sequence[int] = "every:4",
        lm_head: bool = False,
        local_files_only: bool = False,
        name: str | None = None,
    ) -> Self:
        """Open a model; of its weights only what lies outside the layers is loaded.

        Args:
            name_or_dir: as in :meth:`Backbone.from_pretrained`, like what is not named here.
            gguf_file: name of a GGUF file in that directory.
            dtype: of the weights; ``auto`` takes the configuration's.
            taps: which layers to tap.
            lm_head: whether the LM head is loaded too; it stays in memory, and the embedding with it.
            local_files_only: whether the hub may not be asked.
            name: public name; None takes ``name_or_dir``.

        Raises:
            ConfigError: ``taps`` or ``dtype`` cannot be read, or a tap lies outside the model's layers.
            ModelError: the model cannot be found, reached or used, or is not stored as safetensors under
                the names that its modules have.

        """
        source, public = model_source(name_or_dir, gguf_file, name)
        directory = local_directory(source, local_files_only=local_files_only)
        checkpoint = Checkpoint(directory)
        model, tokenizer = _skeleton(directory, find_dtype(dtype), lm_head)
        names = _find_names(model, checkpoint)
        parts = find_parts(model)
        mapping = [
            {own: names[f"{prefix}.{own}"] for own, _ in layer.named_parameters()}
            for prefix, layer in zip(_layer_prefixes(model, parts), parts.layers, strict=True)
        ]
        store = LayerStore(parts.layers, mapping, checkpoint)
        embedding = None if lm_head else cast(Any, model).get_input_embeddings()
        if isinstance(embedding, nn.Embedding):
            _read_rows_only(embedding, checkpoint, names.pop(_name_of(model, embedding) + ".weight"))
        _load(model, names, checkpoint)
        return cls(model, tokenizer, name=public, taps=taps, store=store)

    def with_taps(self, taps: str | Sequence[int]) -> StreamedBackbone:
        """Return a backbone on the same model with other taps."""
        return StreamedBackbone(self.model, self._tokenizer, name=self.name, taps=taps, store=self.store)

    def layer_weights(self, number: int) -> dict[str, Tensor]:
        """Read the weights of a layer, numbered from 0; they are the caller's."""
        return super().layer_weights(number) if self.store is None else self.store.load(number)

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


class _EmptyOnMeta(TorchFunctionMode):
    """Create what ``torch.empty`` makes, large parameters, on the meta device at once.

    Accelerate moves parameters there after they were made, and the memory is free only after the next
    garbage collection: for a while the whole model counts against a limit of the address space.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _skeleton(directory: Path, dtype: str | torch.dtype, lm_head: bool) -> tuple[nn.Module, Any]:
    """Build the model without weights, and load its tokenizer."""
    kind: Any = transformers.AutoModelForCausalLM if lm_head else transformers.AutoModel
    try:
        with quiet_loading():
            config: Any = transformers.AutoConfig.from_pretrained(directory)
            if dtype == "auto":
                dtype = getattr(config, "dtype", None) or torch.float32
            with accelerate.init_empty_weights(include_buffers=False), _EmptyOnMeta():
                model = kind.from_config(config, dtype=dtype)
            return cast(nn.Module, model), load_tokenizer(str(directory), local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ModelError(
            f"cannot load the model {str(directory)!r}: {reason}; give a directory that holds one"
        ) from error


def _find_names(model: nn.Module, checkpoint: Checkpoint) -> dict[str, str]:
    """Return for each parameter of the model its name in the checkpoint, which may lack or have a prefix."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    names = {}
    for own, parameter in model.named_parameters():
        found = next((n for n in (own, prefix + own, own.removeprefix(prefix)) if n in checkpoint), None)
        if found is not None:
            names[own] = found
        elif not _is_tied_head(model, parameter):
            raise ModelError(
                f"{checkpoint.directory} holds no {own}, so this model cannot be streamed; save it anew "
                "with save_pretrained of transformers 5, or load it whole"
            )
    return names


def _is_tied_head(model: Any, parameter: nn.Parameter) -> bool:
    head = model.get_output_embeddings()
    return bool(model.config.tie_word_embeddings) and head is not None and parameter is head.weight


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    found: str = next(name for name, module in model.named_modules() if module is wanted)
    return found


def _layer_prefixes(model: nn.Module, parts: Parts) -> list[str]:
    prefix = _name_of(model, parts.layers)
    return [f"{prefix}.{number}" for number in range(len(parts.layers))]


def _load(model: nn.Module, names: dict[str, str], checkpoint: Checkpoint) -> None:
    """Load what lies outside the layers, and buffers that were saved."""
    for own, parameter in list(model.named_parameters()):
        if parameter.is_meta and own in names:
            loaded = torch.empty(parameter.shape, dtype=parameter.dtype)
            checkpoint.read(names[own], loaded)
            place, _, leaf = own.rpartition(".")
            model.get_submodule(place)._parameters[leaf] = nn.Parameter(loaded, requires_grad=False)
    for own, buffer in model.named_buffers():
        if own in checkpoint:
            checkpoint.read(own, buffer)
    cast(Any, model).tie_weights()


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
