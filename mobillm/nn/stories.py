"""Models of llama2.c (https://github.com/karpathy/llama2.c) as transformers Llama directories."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from torch import Tensor

from ..errors import ModelError
from .quiet import quiet_loading

__all__ = ["convert_stories"]

_BYTE_TOKENS = 256
_FIRST_BYTE = 3  # ids 0, 1, 2 are <unk>, <s>, </s>
_SPACE = "\u2581"  # sentencepiece's visible space


def convert_stories(weights: Path, tokens: Path, target: Path) -> None:
    """Write a llama2.c model and its tokenizer as a transformers directory, in full precision.

    Args:
        weights: the ``.bin`` model: seven int32 and then fp32 tensors, all little-endian.
        tokens: the ``.bin`` tokenizer: an int32, then score, length and bytes of each token.
        target: the directory to write.

    Raises:
        ModelError: a file does not have the layout that its header states.

    """
    config, state = _read_weights(weights.read_bytes())
    tokenizer = _read_tokenizer(tokens.read_bytes(), int(config.vocab_size or 0))
    with quiet_loading():
        model = transformers.LlamaForCausalLM(config)
        model.load_state_dict(state, strict=True)
        cast(Any, model).save_pretrained(target)
        tokenizer.save_pretrained(target)


def _read_weights(data: bytes) -> tuple[transformers.LlamaConfig, dict[str, Tensor]]:
    dim, inner, layers, heads, kv_heads, vocabulary, longest = struct.unpack_from("<7i", data)
    if vocabulary <= 0:
        raise ModelError("the llama2.c model has an output layer of its own; only tied ones can be read")
    values = torch.from_numpy(np.frombuffer(data, "<f4", offset=28).copy())
    width = dim // heads
    kv_dim = kv_heads * width
    shapes = {
        "embedding": (vocabulary, dim),
        "attention_norm": (layers, dim),
        "q": (layers, dim, dim),
        "k": (layers, kv_dim, dim),
        "v": (layers, kv_dim, dim),
        "o": (layers, dim, dim),
        "mlp_norm": (layers, dim),
        "gate": (layers, inner, dim),
        "down": (layers, dim, inner),
        "up": (layers, inner, dim),
        "norm": (dim,),
        "rotation": (2, longest, width // 2),  # cosines and sines, which transformers computes itself
    }
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    if sum(sizes) != values.numel():
        raise ModelError(f"the llama2.c model has {values.numel()} values, expected {sum(sizes)}")
    parts = {
        name: part.view(shape)
        for (name, shape), part in zip(shapes.items(), torch.split(values, sizes), strict=True)
    }
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=dim,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=longest,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        dtype="float32",
    )
    return config, _state(parts, layers, heads, kv_heads)


def _state(parts: dict[str, Tensor], layers: int, heads: int, kv_heads: int) -> dict[str, Tensor]:
    """Name the tensors as transformers does."""
    state = {
        "model.embed_tokens.weight": parts["embedding"],
        "lm_head.weight": parts["embedding"],
        "model.norm.weight": parts["norm"],
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        state |= {
            f"{prefix}.input_layernorm.weight": parts["attention_norm"][layer],
            f"{prefix}.self_attn.q_proj.weight": _halves(parts["q"][layer], heads),
            f"{prefix}.self_attn.k_proj.weight": _halves(parts["k"][layer], kv_heads),
            f"{prefix}.self_attn.v_proj.weight": parts["v"][layer],
            f"{prefix}.self_attn.o_proj.weight": parts["o"][layer],
            f"{prefix}.post_attention_layernorm.weight": parts["mlp_norm"][layer],
            f"{prefix}.mlp.gate_proj.weight": parts["gate"][layer],
            f"{prefix}.mlp.down_proj.weight": parts["down"][layer],
            f"{prefix}.mlp.up_proj.weight": parts["up"][layer],
        }
    return state


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Reorder rows: llama2.c rotates neighbouring channels, transformers the two halves of a head."""
    rows, columns = weight.shape
    pairs = weight.view(heads, rows // heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)


def _read_tokenizer(data: bytes, vocabulary: int) -> Any:
    pieces, scores, offset = [], [], 4
    for number in range(vocabulary):
        score, length = struct.unpack_from("<fi", data, offset)
        raw = data[offset + 8 : offset + 8 + length]
        offset += 8 + length
        scores.append(score)
        byte = number - _FIRST_BYTE
        if number < _FIRST_BYTE:
            pieces.append(("<unk>", "<s>", "</s>")[number])
        elif byte < _BYTE_TOKENS:
            pieces.append(f"<0x{byte:02X}>")
        else:
            pieces.append(raw.decode("utf-8").replace(" ", _SPACE))
    ids = {piece: number for number, piece in enumerate(pieces)}
    if offset != len(data) or len(ids) != vocabulary:
        raise ModelError("the llama2.c tokenizer does not have one piece per token; fetch it again")
    bpe = models.BPE(ids, _merges(ids, scores), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    make = cast(Any, transformers.PreTrainedTokenizerFast)
    return make(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _merges(ids: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """List the merges whose order reproduces sentencepiece's choice of the best-scored piece."""
    ranked = []
    for piece, number in ids.items():
        if number < _FIRST_BYTE + _BYTE_TOKENS:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                ranked.append((-scores[number], ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]
