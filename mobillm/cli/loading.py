"""Backbones and side networks for a command; torch is imported when one is asked for, not before."""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..device.arena import share_arena
from ..device.pending import PENDING_FILE
from ..errors import ConfigError, ModelError
from ..nn.adapter import ADAPTER_WEIGHTS
from ..nn.bits import BITS
from ..nn.saved import CONFIG_FILE, WEIGHTS_FILE, SideConfig, read_config
from .console import say

if TYPE_CHECKING:
    from ..nn.backbone import Backbone
    from ..nn.sidetuned import SideTuned

__all__ = [
    "OPENED",
    "check_output",
    "check_trace",
    "load_backbone",
    "load_config",
    "load_tuned",
    "loading",
    "open_backbone",
]

OPENED = 2  # layers that are timed


@contextlib.contextmanager
def loading(what: str) -> Iterator[None]:
    """Say what is loaded, and keep the garbage collector out of it.

    Modules and models are hundreds of thousands of objects that stay. To go through them again and again
    while they come takes a tenth of the loading time, and finds nothing; later collections need not look
    at them either.
    """
    say(f"loading {what} ...")
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.freeze()
            gc.enable()


def load_backbone(args: argparse.Namespace, *, taps: str, lm_head: bool) -> Backbone:
    """Load the backbone that the arguments name, and say so: it takes seconds.

    Raises:
        ConfigError: ``taps`` cannot be read, or quantized weights are to be streamed.
        ModelError: the model cannot be found, reached or used.

    """
    if args.stream_weights and args.dtype in BITS:
        raise ConfigError("dtype", args.dtype, "bfloat16, float16 or float32 with --stream-weights")
    share_arena()  # before torch starts threads
    with loading(f"the model {args.model}"):
        import torch

        from ..nn.backbone import Backbone
        from ..nn.models import resolve_model
        from ..nn.streamed import StreamedBackbone

        torch.set_num_threads(args.threads)
        kind = StreamedBackbone if args.stream_weights else Backbone
        return kind.from_pretrained(
            resolve_model(args.model),
            dtype=args.dtype,
            compute_dtype=args.compute_dtype,
            taps=taps,
            lm_head=lm_head,
        )


def open_backbone(args: argparse.Namespace, *, taps: str) -> Backbone:
    """Open the backbone for figures: layers are read when they are run.

    Of a quantized one only the first :data:`OPENED` layers can be run, which are read at once.

    Raises:
        ConfigError: ``taps`` cannot be read.
        ModelError: the model cannot be found, reached or used.

    """
    import torch

    from ..nn.backbone import Backbone
    from ..nn.compute import make_expansion
    from ..nn.loading import model_source
    from ..nn.models import local_directory
    from ..nn.quantized_loading import load_quantized
    from ..nn.workspace import Workspace

    if args.stream_weights or args.dtype not in BITS:
        streaming = argparse.Namespace(**{**vars(args), "stream_weights": True})
        return load_backbone(streaming, taps=taps, lm_head=False)
    torch.set_num_threads(args.threads)
    source, name = model_source(args.model, None, None)
    workspace, bits = Workspace(), BITS[args.dtype]
    with loading(f"the model {args.model}"):
        directory = local_directory(source, local_files_only=False)
        model, tokenizer, stored, loaded = load_quantized(
            directory, bits, lm_head=False, workspace=workspace, depth=lambda layers: min(OPENED, layers)
        )
    return Backbone(
        model,
        tokenizer,
        name=name,
        taps=taps,
        expansion=make_expansion(model, args.compute_dtype, workspace),
        bits=bits,
        stored=stored,
        loaded=loaded,
    )


def load_config(directory: Path) -> SideConfig:
    """Read what a side network was trained for, without its weights.

    Raises:
        ModelError: the directory holds no side network, or its configuration is damaged.

    """
    if not os.access(directory / CONFIG_FILE, os.R_OK):
        advice = "give the directory that --out of 'mobillm finetune' named"
        if (directory / PENDING_FILE).exists():
            advice = f"its result is still on the server: 'mobillm pull --out {directory}' fetches it"
        seen = (
            f"holds no side network (no readable {CONFIG_FILE})" if directory.exists() else "does not exist"
        )
        raise ModelError(f"--side {directory} {seen}; {advice}")
    return read_config(directory)


def load_tuned(args: argparse.Namespace, config: SideConfig) -> SideTuned:
    """Load the backbone and the side network that the arguments name.

    Raises:
        ModelError: the model or the side network cannot be used, or they do not fit each other.

    """
    with loading("torch"):
        from ..nn.sidetuned import SideTuned

    # The side network says which layers it needs, once it is known that it fits the model; but layers that
    # are quantized while they are loaded should be no others.
    taps = ",".join(map(str, config.spec.model.taps)) if args.dtype in BITS else "all"
    backbone = load_backbone(args, taps=taps, lm_head=config.spec.task == "causal-lm")
    return SideTuned.from_pretrained(backbone, args.side)


def check_output(directory: Path, *, overwrite: bool) -> None:
    """Make the directory of a result before hours of work go into it.

    Raises:
        ModelError: it holds a side network that is not to be overwritten.
        OSError: it cannot be made.

    """
    names = (CONFIG_FILE, WEIGHTS_FILE, ADAPTER_WEIGHTS)
    if not overwrite and any((directory / name).exists() for name in names):
        raise ModelError(
            f"--out {directory} holds a side network already; choose another directory or add --overwrite"
        )
    directory.mkdir(parents=True, exist_ok=True)


def check_trace(path: Path) -> None:
    """Make the directory of a trace, and see that the file can be written, before hours of work go into it.

    Raises:
        ConfigError: it cannot.

    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        path.open("a").close()
        if new:
            path.unlink()
    except OSError as error:
        raise ConfigError("trace", str(path), f"a file that can be written ({error.strerror})") from error
