"""One server for all tests of this directory that leave it as it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mobillm.conformance import Target
from tests.conformance.running import running


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Return a running server, on uvloop, without TLS."""
    with running(tmp_path_factory.mktemp("server")) as found:
        yield found
