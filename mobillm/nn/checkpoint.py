"""Weights on the disk, read tensor by tensor: nothing is mapped, nothing is loaded that is not asked for."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from ..errors import ModelError

__all__ = ["Checkpoint"]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MAX_HEADER = 100 << 20  # bytes, as the safetensors library has it
_STAGING = 4 << 20  # bytes read at once where the type has to be changed
_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies in which file, in bytes."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int


class Checkpoint:
    """The safetensors files of a model directory.

    Tensors are read into memory of the caller's, so a file larger than the memory, or than what the
    process may map, is no obstacle. Files are open only while they are read.

    Args:
        directory: with ``model.safetensors``, or with an index and several files.

    Raises:
        ModelError: there are no such files, or one is damaged.

    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._places: dict[str, _Place] = {}
        for path in _files(directory):
            self._places |= _places(path)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._places[name].shape

    def read(self, name: str, target: Tensor) -> None:
        """Read a tensor into ``target``, in the type of ``target``.

        Args:
            name: of the tensor.
            target: contiguous memory on the CPU, of the tensor's shape.

        Raises:
            ModelError: the shape is another one, or the file is shorter than it says.

        """
        place = self._places[name]
        if tuple(target.shape) != place.shape:
            raise ModelError(
                f"{name} in {place.path} has shape {list(place.shape)}, the model {list(target.shape)}; "
                "the configuration belongs to other weights"
            )
        with place.path.open("rb", buffering=0) as file:
            _read(file, place, 0, target.view(-1))

    def rows(self, name: str, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Read some rows of a matrix.

        Args:
            name: of the matrix.
            rows: int64 row numbers.
            dtype: of the result.

        Returns:
            ``[len(rows), columns]``.

        Raises:
            IndexError: a row lies outside the matrix.
            ModelError: the file is shorter than it says.

        """
        place = self._places[name]
        count, columns = place.shape
        for row in rows.tolist():
            if not 0 <= row < count:
                raise IndexError(f"row {row} of {name}, which has {count}")
        out = torch.empty(len(rows), columns, dtype=dtype)
        with place.path.open("rb", buffering=0) as file:
            for target, row in zip(out, rows.tolist(), strict=True):
                _read(file, place, row * columns, target)
        return out


def _files(directory: Path) -> list[Path]:
    if (directory / _SINGLE).is_file():
        return [directory / _SINGLE]
    try:
        index = json.loads((directory / _INDEX).read_text())
        return [directory / name for name in sorted(set(index["weight_map"].values()))]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(
            f"{directory} holds neither {_SINGLE} nor a readable {_INDEX}; save the model with "
            "save_pretrained, or load it whole"
        ) from error


def _places(path: Path) -> dict[str, _Place]:
    """Read the header of a file: 8 bytes of length, then JSON (the safetensors format)."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(_MAX_HEADER, size - 8):
                raise ValueError(f"its header would have {length} bytes")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        # Of other types are masks that older versions of transformers saved; now they are computed.
        usable = {name: entry for name, entry in header.items() if entry["dtype"] in _TYPES}
        return {name: _place(path, name, entry, 8 + length, size) for name, entry in usable.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} cannot be read as safetensors: {error}; copy or save it again") from error


def _place(path: Path, name: str, entry: Any, base: int, size: int) -> _Place:
    dtype, shape = _TYPES[entry["dtype"]], tuple(int(n) for n in entry["shape"])
    start, end = (int(n) for n in entry["data_offsets"])
    if end - start != math.prod(shape) * dtype.itemsize or start < 0 or base + end > size:
        raise ValueError(f"{name} lies outside the file")
    return _Place(path, dtype, shape, base + start)


def _read(file: BinaryIO, place: _Place, first: int, target: Tensor) -> None:
    """Fill the flat ``target`` with the tensor's values from number ``first`` on."""
    start = place.start + first * place.dtype.itemsize
    if target.dtype == place.dtype:
        _fill(file, start, target, place.path)
        return
    staging = torch.empty(min(_STAGING // place.dtype.itemsize, target.numel()), dtype=place.dtype)
    for at in range(0, target.numel(), max(1, len(staging))):
        part = target[at : at + len(staging)]
        values = staging[: len(part)]
        _fill(file, start, values, place.path)
        part.copy_(values)
        start += values.nbytes


def _fill(file: BinaryIO, start: int, target: Tensor, path: Path) -> None:
    view = memoryview(cast(Any, target.view(torch.uint8).numpy()))
    while view:
        count = os.preadv(file.fileno(), [view], start)
        if not count:
            raise ModelError(f"{path} ends too early; copy or save it again")
        view, start = view[count:], start + count
