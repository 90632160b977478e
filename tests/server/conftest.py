"""One thread for the tests of this directory: the networks are too small to share among several."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest
import torch

from mobillm.server.registry import Registry


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Return an empty registry, in a directory of its own."""
    folder: pathlib.Path = tmp_path_factory.mktemp("registry")
    with Registry(folder / "registry.sqlite") as found:
        yield found
