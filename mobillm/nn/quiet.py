"""Loading without the progress bars and notices of transformers and the hub's client."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any, cast

from transformers.utils import logging as transformers_logging

__all__ = ["quiet_loading"]


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence progress bars, warnings and retry notices inside the block; errors still raise."""
    settings = cast(Any, transformers_logging)
    hub = logging.getLogger("huggingface_hub")
    level, hub_level = settings.get_verbosity(), hub.level
    bars = settings.is_progress_bar_enabled()
    settings.set_verbosity_error()
    settings.disable_progress_bar()
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        settings.set_verbosity(level)
        hub.setLevel(hub_level)
        if bars:
            settings.enable_progress_bar()
