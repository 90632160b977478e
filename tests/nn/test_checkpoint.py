"""Tests of reading single tensors from safetensors files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from mobillm.errors import ModelError
from mobillm.nn import checkpoint
from mobillm.nn.checkpoint import Checkpoint

TENSORS = {
    "a": torch.randn(5, 7, generator=torch.Generator().manual_seed(1)),
    "b": torch.randn(3, 4, generator=torch.Generator().manual_seed(2)).bfloat16(),
    "c": torch.arange(6),
}


def saved(folder: Path, tensors: dict[str, Tensor]) -> Path:
    """Write one file of tensors and return its directory."""
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_tensors_and_rows(tmp_path: Path) -> None:
    """Tensors come back as they were saved, whole or by rows."""
    found = Checkpoint(saved(tmp_path, TENSORS))
    for name, tensor in TENSORS.items():
        target = torch.empty_like(tensor)
        found.read(name, target)
        assert torch.equal(target, tensor)
        assert found.shape(name) == tuple(tensor.shape)
    assert torch.equal(found.rows("a", torch.tensor([4, 0, 4]), torch.float32), TENSORS["a"][[4, 0, 4]])
    for row in (-1, 5):
        with pytest.raises(IndexError, match=f"row {row} of a, which has 5"):
            found.rows("a", torch.tensor([0, row]), torch.float32)
    assert "a" in found
    assert "d" not in found


def test_masks_are_passed_over(tmp_path: Path) -> None:
    """Tensors of types that no weight has do not make the others unreadable."""
    found = Checkpoint(saved(tmp_path, TENSORS | {"mask": torch.ones(3, dtype=torch.bool)}))
    assert "mask" not in found
    target = torch.empty(6, dtype=torch.int64)
    found.read("c", target)
    assert torch.equal(target, TENSORS["c"])


def test_other_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that is wanted in another type is rounded like ``Tensor.to``, in parts of bounded size."""
    found = Checkpoint(saved(tmp_path, TENSORS))
    monkeypatch.setattr(checkpoint, "_STAGING", 16)
    target = torch.empty(5, 7, dtype=torch.bfloat16)
    found.read("a", target)
    assert torch.equal(target, TENSORS["a"].bfloat16())
    assert torch.equal(found.rows("b", torch.tensor([2]), torch.float32), TENSORS["b"][[2]].float())


def test_several_files(tmp_path: Path) -> None:
    """An index leads to the files of a larger model."""
    for number, name in enumerate(TENSORS):
        safetensors.torch.save_file({name: TENSORS[name]}, tmp_path / f"part{number}.safetensors")
    weights = {name: f"part{number}.safetensors" for number, name in enumerate(TENSORS)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    target = torch.empty(6, dtype=torch.int64)
    Checkpoint(tmp_path).read("c", target)
    assert torch.equal(target, TENSORS["c"])


def test_damaged_files(tmp_path: Path) -> None:
    """What is missing, cut or lying is named before memory is taken for it."""
    with pytest.raises(ModelError, match=r"holds neither .* nor a readable"):
        Checkpoint(tmp_path)
    path = saved(tmp_path, TENSORS) / "model.safetensors"
    whole = path.read_bytes()
    found = Checkpoint(tmp_path)
    with pytest.raises(ModelError, match=r"shape \[5, 7\], the model \[7, 5\]"):
        found.read("a", torch.empty(7, 5))
    path.write_bytes(whole[:-40])
    with pytest.raises(ModelError, match="lies outside the file"):
        Checkpoint(tmp_path)
    path.write_bytes(whole[:-200])
    with pytest.raises(ModelError, match="ends too early"):
        found.read("a", torch.empty(5, 7))
    path.write_bytes((1 << 62).to_bytes(8, "little") + whole[8:])
    with pytest.raises(ModelError, match="its header would have"):
        Checkpoint(tmp_path)
    path.write_bytes(whole[:8] + b"{" * (len(whole) - 8))
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        Checkpoint(tmp_path)
