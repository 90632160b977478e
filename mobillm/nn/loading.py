"""Where a model comes from, in which type, and how transformers loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn

from ..errors import ConfigError, ModelError
from .gguf import dequantized_directory
from .models import resolve_model
from .quiet import quiet_loading
from .skeleton import load_tokenizer

__all__ = ["find_dtype", "load_whole", "model_source"]


def model_source(name_or_dir: str | Path, gguf_file: str | None, name: str | None) -> tuple[str, str]:
    """Return the directory or hub name to load from, and the public name.

    Args:
        name_or_dir: what :func:`~mobillm.nn.models.resolve_model` takes.
        gguf_file: name of a GGUF file in that directory, or None.
        name: public name; None takes ``name_or_dir``.

    Raises:
        ModelError: a file does not exist or cannot be read.

    """
    source = str(name_or_dir)
    source = resolve_model(source) if gguf_file is None else str(Path(source) / gguf_file)
    public = (name or (Path(source).name if Path(source).exists() else source))[-128:]
    if source.endswith(".gguf"):
        source = str(dequantized_directory(Path(source)))
    return source, public


def find_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    """Return the type that a name stands for; ``auto`` stays as it is.

    Raises:
        ConfigError: it is no floating type of torch.

    """
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(
            "dtype",
            dtype,
            "auto, float32, bfloat16 or float16; if all layers are in memory also int8 or int4",
        )
    return found


def load_whole(
    source: str, dtype: str | torch.dtype, lm_head: bool, local_files_only: bool
) -> tuple[nn.Module, Any]:
    """Load a model and its tokenizer as transformers does.

    Args:
        source: a directory, or a name on the hub.
        dtype: of the weights.
        lm_head: whether the LM head is loaded too.
        local_files_only: whether the hub may not be asked.

    Raises:
        ModelError: the model cannot be found, reached or used.

    """
    kind = transformers.AutoModelForCausalLM if lm_head else transformers.AutoModel
    try:
        with quiet_loading():
            model = kind.from_pretrained(source, dtype=dtype, local_files_only=local_files_only)
            return cast(nn.Module, model), load_tokenizer(source, local_files_only)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ModelError(
            f"cannot load the model {source!r}: {reason}; give a directory or a .gguf file that exists, "
            "or a name on the Hugging Face hub and a network that reaches it"
        ) from error
