"""Tests of loading models and checking directories."""

from __future__ import annotations

import argparse
import gc
from functools import partial
from pathlib import Path

import pytest
import torch

from mobillm.cli.loading import OPENED, check_output, load_backbone, load_config, loading, open_backbone
from mobillm.errors import ConfigError, ModelError
from mobillm.nn.streamed import StreamedBackbone


def test_backbone(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The model is loaded as asked, with a notice before, and the threads are set."""
    threads = torch.get_num_threads()
    args = argparse.Namespace(
        model=model, dtype="float32", compute_dtype="auto", threads=threads + 1, stream_weights=False
    )
    backbone = load_backbone(args, taps="1,3", lm_head=False)
    assert (backbone.taps, backbone.dtype) == ((1, 3), torch.float32)
    assert backbone.name == Path(model).name  # the server sees it, so it is no path
    assert torch.get_num_threads() == threads + 1
    assert capsys.readouterr().err == f"loading the model {model} ...\n"


def test_streamed_backbone(model: str) -> None:
    """With --stream-weights the layers stay on the disk."""
    args = argparse.Namespace(
        model=model,
        dtype="float32",
        compute_dtype="auto",
        threads=torch.get_num_threads(),
        stream_weights=True,
    )
    backbone = load_backbone(args, taps="1,3", lm_head=False)
    assert isinstance(backbone, StreamedBackbone)
    assert backbone.taps == (1, 3)
    assert backbone.store is not None
    assert backbone.store.reads == 0


def test_opened_for_figures(model: str) -> None:
    """A quantized backbone counts all its layers but has only the first ones; others are streamed."""
    args = argparse.Namespace(
        model=model, dtype="int8", compute_dtype="float32", threads=1, stream_weights=False
    )
    opened = open_backbone(args, taps="all")
    assert opened.weight_bytes() == load_backbone(args, taps="all", lm_head=False).weight_bytes()
    opened.with_taps([OPENED]).forward([[5, 6]], lambda *_: None)
    with pytest.raises((AttributeError, NotImplementedError, RuntimeError)):
        opened.forward([[5, 6]], lambda *_: None)
    args.stream_weights = True
    for load in (open_backbone, partial(load_backbone, lm_head=False)):
        with pytest.raises(ConfigError, match=r"dtype is 'int8'; .*with --stream-weights"):
            load(args, taps="all")
    args.dtype = "bfloat16"
    args.stream_weights = False
    assert isinstance(open_backbone(args, taps="all"), StreamedBackbone)
    assert not args.stream_weights


def test_output(tmp_path: Path) -> None:
    """A directory is made; one with a side network is refused unless it may be overwritten."""
    folder = tmp_path / "a" / "b"
    check_output(folder, overwrite=False)
    check_output(folder, overwrite=False)
    (folder / "side_model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"holds a side network already; .* --overwrite"):
        check_output(folder, overwrite=False)
    check_output(folder, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        check_output(tmp_path / "file", overwrite=True)


def test_config(tmp_path: Path) -> None:
    """A directory without a side network is refused by the option's name."""
    (tmp_path / "file").write_text("")
    for name, text in (
        (".", "holds no side network"),
        ("file", "holds no side network"),
        ("none", "does not exist"),
    ):
        folder = tmp_path / name
        with pytest.raises(ModelError, match=rf"--side .* {text}"):
            load_config(folder)


def test_the_collector_rests_while_something_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert gc.isenabled()
    try:
        with loading("a model"):
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
    assert capsys.readouterr().err == "loading a model ...\n"


def test_the_collector_runs_again_after_a_failure() -> None:
    try:
        with pytest.raises(ValueError, match="damaged"), loading("a model"):
            raise ValueError("damaged")
        assert gc.isenabled()
    finally:
        gc.unfreeze()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with loading("a model"):
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
