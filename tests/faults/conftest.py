"""One thread for the small networks of these tests, and no file or socket that stays open."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest
import torch

from tests.faults import launcher


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def _processes() -> None:
    """Start what processes are forked from, before open files are counted."""
    launcher.prepare()


@pytest.fixture(autouse=True)
def _nothing_left_open(no_fd_leak: None) -> None:
    """Nothing that a fault leaves behind stays open."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the whole table to ``make faults``: it takes minutes."""
    here = pathlib.Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slow)
