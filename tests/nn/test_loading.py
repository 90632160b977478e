"""Tests of where a model comes from and in which type."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mobillm.errors import ConfigError, ModelError
from mobillm.nn.loading import find_dtype, load_whole, model_source


def test_types() -> None:
    """Names of floating types are those of torch; what is no type is refused."""
    assert find_dtype("auto") == "auto"
    assert find_dtype("bfloat16") == find_dtype(torch.bfloat16) == torch.bfloat16
    for wrong in ("int8", "int64", "linear", "fast"):
        with pytest.raises(ConfigError, match="auto, float32, bfloat16 or float16"):
            find_dtype(wrong)


def test_source(tmp_path: Path) -> None:
    """The public name of a directory is its last part; a hub name stays whole."""
    assert model_source(tmp_path, None, None) == (str(tmp_path), tmp_path.name)
    assert model_source(tmp_path, None, "mine") == (str(tmp_path), "mine")
    assert model_source("somebody/something", None, None) == ("somebody/something", "somebody/something")


def test_no_model(tmp_path: Path) -> None:
    """A directory without a model is refused with what to do."""
    with pytest.raises(ModelError, match=r"cannot load the model .*give a directory or a \.gguf file"):
        load_whole(str(tmp_path), "auto", False, True)
