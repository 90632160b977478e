"""Tests of the two buffers that hold a model's layers."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from mobillm.errors import ModelError
from mobillm.nn.checkpoint import Checkpoint
from mobillm.nn.layer_store import LayerStore
from mobillm.nn.stored import StoredLayers

COUNT, WIDTH = 4, 8


def store_of(folder: Path) -> tuple[LayerStore, nn.ModuleList, list[Tensor]]:
    """Save some linear layers and return a store of them, empty layers, and their weights."""
    weights = [torch.full((WIDTH, WIDTH), float(number + 1)) for number in range(COUNT)]
    tensors = {f"layers.{n}.weight": weight for n, weight in enumerate(weights)}
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False, device="meta") for _ in weights)
    names: list[dict[str, str]] = [{"weight": name} for name in tensors]
    return LayerStore(layers, StoredLayers(names, Checkpoint(folder))), layers, weights


def test_layers_in_turn(tmp_path: Path) -> None:
    """Each layer computes with its own weights, which are read once for each round, two at a time."""
    store, layers, weights = store_of(tmp_path)
    for _ in range(2):
        for layer, weight in zip(layers, weights, strict=True):
            for _ in range(3):
                assert torch.equal(layer(torch.eye(WIDTH)).T, weight)
    parameters = list(layers.parameters())
    assert len({parameter.untyped_storage().data_ptr() for parameter in parameters}) == 2
    assert all(parameter.data_ptr() % 64 == 0 for parameter in parameters)
    assert store.reads == 2 * COUNT + 1  # the first layer is read again ahead of a third round


def test_any_order(tmp_path: Path) -> None:
    """Jumps cost a read, never a wrong weight."""
    _, layers, weights = store_of(tmp_path)
    for number in (3, 0, 2, 1, 1, 3, 2, 0):
        assert torch.equal(layers[number](torch.eye(WIDTH)).T, weights[number])


def test_only_the_layers_that_run(tmp_path: Path) -> None:
    """After the last layer that is run the first one is read, not the one above."""
    store, layers, weights = store_of(tmp_path)
    store.depth = 2
    for _ in range(3):
        for number in range(2):
            assert torch.equal(layers[number](torch.eye(WIDTH)).T, weights[number])
    assert store.reads == 2  # both stay in their buffers


def test_a_step_back(tmp_path: Path) -> None:
    """A layer whose buffer is being filled with the next but one is read again."""
    _, layers, weights = store_of(tmp_path)
    for number in (0, 1, 0, 1, 2, 1, 0):
        assert torch.equal(layers[number](torch.eye(WIDTH)).T, weights[number])


def test_an_odd_number_of_layers(tmp_path: Path) -> None:
    """The first layer is not read ahead into the buffer of the last one, which still computes."""
    store, layers, weights = store_of(tmp_path)
    store.depth = 3
    for _ in range(2):
        for number in range(3):
            layers[number](torch.eye(WIDTH))
            if store._coming is not None:
                store._coming[1].result()
            assert torch.equal(layers[number](torch.eye(WIDTH)).T, weights[number])


def test_the_next_layer_is_read_while_one_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading ahead happens in another thread and is not waited for before it is needed."""
    store, layers, weights = store_of(tmp_path)
    may_read, read = threading.Event(), store._read
    readers: list[str] = []

    def slow(layer: int) -> None:
        if layer:
            assert may_read.wait(10)
        readers.append(threading.current_thread().name)
        read(layer)

    monkeypatch.setattr(store, "_read", slow)
    assert torch.equal(layers[0](torch.eye(WIDTH)).T, weights[0])  # layer 1 waits meanwhile
    may_read.set()
    assert torch.equal(layers[1](torch.eye(WIDTH)).T, weights[1])
    assert readers[0] == threading.current_thread().name
    assert readers[1].startswith("mobillm-weights")


def test_an_error_of_reading_ahead_is_raised(tmp_path: Path) -> None:
    """A file that vanishes fails the layer that needs it, and again when it is asked for again."""
    _, layers, _ = store_of(tmp_path)
    layers[0](torch.eye(WIDTH))
    layers[1](torch.eye(WIDTH))
    layers[2](torch.eye(WIDTH))
    layers[3](torch.eye(WIDTH))
    path = tmp_path / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)  # at once: layer 0 is being read ahead of its turn
    layers[0](torch.eye(WIDTH))
    layers[1](torch.eye(WIDTH))
    layers[2](torch.eye(WIDTH))
    for _ in range(2):
        with pytest.raises(ModelError, match="ends too early"):
            layers[3](torch.eye(WIDTH))
