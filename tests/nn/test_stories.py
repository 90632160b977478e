"""Tests of the conversion from llama2.c."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from mobillm.errors import ModelError
from mobillm.nn.stories import convert_stories

_DIM, _INNER, _LAYERS, _HEADS, _KV_HEADS, _LONGEST = 8, 6, 2, 2, 1, 16
_PIECES = [b"a", b"b", b" ", b"ab", b" ab", "é".encode()]
_VOCABULARY = 3 + 256 + len(_PIECES)


def _write(folder: Path) -> tuple[Path, Path, dict[str, np.ndarray]]:
    """Write a small model whose tensors are all different, and its tokenizer."""
    width = _DIM // _HEADS
    shapes = {
        "embedding": (_VOCABULARY, _DIM),
        "attention_norm": (_LAYERS, _DIM),
        "q": (_LAYERS, _DIM, _DIM),
        "k": (_LAYERS, _KV_HEADS * width, _DIM),
        "v": (_LAYERS, _KV_HEADS * width, _DIM),
        "o": (_LAYERS, _DIM, _DIM),
        "mlp_norm": (_LAYERS, _DIM),
        "gate": (_LAYERS, _INNER, _DIM),
        "down": (_LAYERS, _DIM, _INNER),
        "up": (_LAYERS, _INNER, _DIM),
        "norm": (_DIM,),
        "rotation": (2, _LONGEST, width // 2),
    }
    rng = np.random.default_rng(0)
    parts = {name: rng.standard_normal(shape).astype("<f4") for name, shape in shapes.items()}
    header = struct.pack("<7i", _DIM, _INNER, _LAYERS, _HEADS, _KV_HEADS, _VOCABULARY, _LONGEST)
    (folder / "m.bin").write_bytes(header + b"".join(part.tobytes() for part in parts.values()))
    raw = [b"<unk>", b"<s>", b"</s>", *(bytes([byte]) for byte in range(256)), *_PIECES]
    tokens = b"".join(
        struct.pack("<fi", float(-number), len(piece)) + piece for number, piece in enumerate(raw)
    )
    (folder / "t.bin").write_bytes(struct.pack("<i", 5) + tokens)
    return folder / "m.bin", folder / "t.bin", parts


def test_weights(tmp_path: Path) -> None:
    """Tensors keep their values; rows of q and k are reordered from pairs to halves within each head."""
    weights, tokens, parts = _write(tmp_path)
    convert_stories(weights, tokens, tmp_path / "out")
    state = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    halves = [0, 2, 1, 3]
    for layer in range(_LAYERS):
        prefix = f"model.layers.{layer}"
        query = torch.from_numpy(parts["q"][layer][[*halves, *(4 + row for row in halves)]])
        assert torch.equal(state[f"{prefix}.self_attn.q_proj.weight"], query)
        assert torch.equal(
            state[f"{prefix}.self_attn.k_proj.weight"], torch.from_numpy(parts["k"][layer][halves])
        )
        for name, key in (("gate", "gate_proj"), ("down", "down_proj"), ("up", "up_proj")):
            assert torch.equal(state[f"{prefix}.mlp.{key}.weight"], torch.from_numpy(parts[name][layer]))
    assert torch.equal(state["model.norm.weight"], torch.from_numpy(parts["norm"]))
    assert torch.equal(state["model.embed_tokens.weight"], torch.from_numpy(parts["embedding"]))


def test_tokenizer(tmp_path: Path) -> None:
    """Texts merge to the listed pieces, unknown letters become bytes, and decoding restores them."""
    weights, tokens, _ = _write(tmp_path)
    convert_stories(weights, tokens, tmp_path / "out")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    ids = tokenizer("ab ab", add_special_tokens=True)["input_ids"]
    assert ids == [1, 263, 263]
    assert tokenizer("é", add_special_tokens=False)["input_ids"] == [261, 264]
    unknown = tokenizer("ab✓", add_special_tokens=False)["input_ids"]
    assert unknown == [263, *(3 + byte for byte in "✓".encode())]
    for text in ("ab ab", "b✓a"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_wrong_layout(tmp_path: Path) -> None:
    """Files whose size does not follow from their header are refused."""
    weights, tokens, _ = _write(tmp_path)
    data = weights.read_bytes()
    weights.write_bytes(data[:-4])
    with pytest.raises(ModelError, match="values, expected"):
        convert_stories(weights, tokens, tmp_path / "out")
    weights.write_bytes(data[:20] + struct.pack("<i", -_VOCABULARY) + data[24:])
    with pytest.raises(ModelError, match="output layer of its own"):
        convert_stories(weights, tokens, tmp_path / "out")
    weights.write_bytes(data)
    tokens.write_bytes(tokens.read_bytes() + b"\x00")
    with pytest.raises(ModelError, match="one piece per token"):
        convert_stories(weights, tokens, tmp_path / "out")
