"""Loading without notices."""

from __future__ import annotations

from typing import Any, cast

import pytest
from transformers.utils import logging as transformers_logging

from mobillm.nn.quiet import quiet_loading


def test_levels_come_back() -> None:
    """Inside only errors show and bars are off; afterwards all is as before, also after an error."""
    logging = cast(Any, transformers_logging)
    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())

    def fail() -> None:
        assert logging.get_verbosity() == logging.ERROR
        assert not logging.is_progress_bar_enabled()
        raise RuntimeError

    with pytest.raises(RuntimeError), quiet_loading():
        fail()
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
