"""Models in exact shapes with random weights: what memory and time depend on, without anyone's weights."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from typing import Any

import tokenizers
import torch
import transformers

from mobillm.nn.cache import cache_directory, installed

__all__ = ["SHAPES", "checkpoint", "words"]

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "opt-350m-shape": (
        "float32",
        {
            "model_type": "opt",
            "hidden_size": 1024,
            "ffn_dim": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "word_embed_proj_dim": 512,
            "do_layer_norm_before": False,
            "vocab_size": 50272,
        },
    ),
    "opt-1.3b-shape": (
        "bfloat16",
        {
            "model_type": "opt",
            "hidden_size": 2048,
            "ffn_dim": 8192,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
            "word_embed_proj_dim": 2048,
            "vocab_size": 50272,
        },
    ),
    "smollm2": (
        "bfloat16",
        {
            "model_type": "llama",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
            "vocab_size": 49152,
        },
    ),
    "llama-1.1b-shape": (
        "float32",
        {
            "model_type": "llama",
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 22,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "vocab_size": 32000,
        },
    ),
}


def checkpoint(name: str) -> pathlib.Path:
    """Return the directory of a shape's checkpoint, in the cache; it is written on first use."""
    target = cache_directory() / f"random-{name}"
    if not target.is_dir():
        # In a process of its own: this one may be measured.
        subprocess.run([sys.executable, "-m", "benchmarks.shapes", name, str(target)], check=True)
    return target


def words(tokens: int, seed: int, vocabulary: int) -> str:
    """Return a text that a shape's tokenizer turns into ``tokens`` tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocabulary, (tokens - 1,), generator=generator)  # the start token is added
    return " ".join(f"w{number}" for number in ids.tolist())


def _tokenizer(vocabulary: int) -> Any:
    names = ["<pad>", "<s>", "</s>", *(f"w{number}" for number in range(3, vocabulary))]
    model = tokenizers.models.WordLevel({word: number for number, word in enumerate(names)}, unk_token="w3")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    make: Any = transformers.PreTrainedTokenizerFast
    return make(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def _write(name: str, target: pathlib.Path) -> None:
    dtype, settings = SHAPES[name]
    config = transformers.AutoConfig.for_model(**settings, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    kind: Any = transformers.AutoModelForCausalLM
    with installed(target) as folder:
        kind.from_config(config, dtype=getattr(torch, dtype)).save_pretrained(folder)
        _tokenizer(settings["vocab_size"]).save_pretrained(folder)


if __name__ == "__main__":
    _write(sys.argv[1], pathlib.Path(sys.argv[2]))
