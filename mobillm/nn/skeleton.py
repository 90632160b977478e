"""A model without its weights, and where they are in a checkpoint, so that they can be read one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import accelerate
import torch
import transformers
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import ModelError
from .checkpoint import Checkpoint
from .layers import Parts
from .quiet import quiet_loading

__all__ = ["build_skeleton", "find_names", "layer_prefixes", "load_rest", "load_tokenizer", "name_of"]


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


def build_skeleton(directory: Path, dtype: str | torch.dtype, lm_head: bool) -> tuple[nn.Module, Any]:
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


def find_names(model: nn.Module, checkpoint: Checkpoint) -> dict[str, str]:
    """Return for each parameter of the model its name in the checkpoint, which may lack or have a prefix."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    names = {}
    for own, parameter in model.named_parameters():
        found = next((n for n in (own, prefix + own, own.removeprefix(prefix)) if n in checkpoint), None)
        if found is not None:
            names[own] = found
        elif not _is_tied_head(model, parameter):
            raise ModelError(
                f"{checkpoint.directory} holds no {own}, so this model cannot be read layer by layer; "
                "save it anew with save_pretrained of transformers 5, or load it whole, in bfloat16"
            )
    return names


def _is_tied_head(model: Any, parameter: nn.Parameter) -> bool:
    head = model.get_output_embeddings()
    return bool(model.config.tie_word_embeddings) and head is not None and parameter is head.weight


def name_of(model: nn.Module, wanted: nn.Module) -> str:
    """Return the path of a module in a model."""
    found: str = next(name for name, module in model.named_modules() if module is wanted)
    return found


def layer_prefixes(model: nn.Module, parts: Parts) -> list[str]:
    """Return the path of each layer in a model."""
    prefix = name_of(model, parts.layers)
    return [f"{prefix}.{number}" for number in range(len(parts.layers))]


def load_rest(model: nn.Module, names: dict[str, str], checkpoint: Checkpoint) -> None:
    """Load the parameters that ``names`` has and that are not there yet, and buffers that were saved."""
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


def load_tokenizer(source: str, local_files_only: bool) -> Any:
    """Load the tokenizer of a hub name or a directory."""
    load = cast(Any, transformers.AutoTokenizer).from_pretrained
    return load(source, local_files_only=local_files_only)
