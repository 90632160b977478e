"""GGUF files as ordinary model directories."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import transformers

from ..errors import ModelError
from .cache import cache_directory, file_digest, installed
from .quiet import quiet_loading

__all__ = ["dequantized_directory"]


def dequantized_directory(path: Path) -> Path:
    """Dequantize a GGUF file to bf16 and return the directory that holds the result.

    Dequantizing takes many times longer than loading the result, so that is kept in the cache
    directory under the file's SHA-256. The values are those of the file rounded to bf16; they are not
    the weights from before the quantization.

    Args:
        path: the GGUF file of a decoder.

    Raises:
        ModelError: the file does not exist or holds no model that transformers can read.

    """
    if not path.is_file():
        raise ModelError(f"there is no GGUF file {str(path)!r}; check the path")
    target = cache_directory() / f"{path.stem}-{file_digest(path)[:16]}-bf16"
    if target.is_dir():
        return target
    # Newer versions of transformers keep GGUF weights packed unless told otherwise.
    config = getattr(transformers, "GgufConfig", None)
    extra = {} if config is None else {"quantization_config": config(dequantize=True)}
    place: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    load_tokenizer = cast(Any, transformers.AutoTokenizer).from_pretrained
    load_model = transformers.AutoModelForCausalLM.from_pretrained
    try:
        with installed(target) as folder, quiet_loading():
            load_tokenizer(str(path.parent), **place).save_pretrained(folder)
            model = cast(Any, load_model(str(path.parent), dtype=torch.bfloat16, **extra, **place))
            model.save_pretrained(folder)
    except ModelError:
        raise
    except Exception as error:  # transformers raises many kinds here, KeyError and struct.error among them
        raise ModelError(
            f"cannot read the GGUF file {str(path)!r}: {type(error).__name__}: {error}; "
            "use one that transformers supports, or a directory"
        ) from error
    return target
