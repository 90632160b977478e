"""Backbones and side networks for a command; torch is imported when one is asked for, not before."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelError
from ..nn.adapter import ADAPTER_WEIGHTS
from ..nn.saved import CONFIG_FILE, WEIGHTS_FILE, SideConfig, read_config
from .console import say

if TYPE_CHECKING:
    from ..nn.backbone import Backbone
    from ..nn.sidetuned import SideTuned

__all__ = ["check_output", "load_backbone", "load_config", "load_tuned"]


def load_backbone(args: argparse.Namespace, *, taps: str, lm_head: bool) -> Backbone:
    """Load the backbone that the arguments name, and say so: it takes seconds.

    Raises:
        ConfigError: ``taps`` cannot be read.
        ModelError: the model cannot be found, reached or used.

    """
    say(f"loading the model {args.model} ...")
    import torch

    from ..nn.backbone import Backbone
    from ..nn.models import resolve_model
    from ..nn.streamed import StreamedBackbone

    torch.set_num_threads(args.threads)
    kind = StreamedBackbone if args.stream_weights else Backbone
    return kind.from_pretrained(resolve_model(args.model), dtype=args.dtype, taps=taps, lm_head=lm_head)


def load_config(directory: Path) -> SideConfig:
    """Read what a side network was trained for, without its weights.

    Raises:
        ModelError: the directory holds no side network, or its configuration is damaged.

    """
    if not os.access(directory / CONFIG_FILE, os.R_OK):
        raise ModelError(
            f"--side {directory} holds no side network (no readable {CONFIG_FILE}); "
            "give the directory that --out of 'mobillm finetune' named"
        )
    return read_config(directory)


def load_tuned(args: argparse.Namespace, config: SideConfig) -> SideTuned:
    """Load the backbone and the side network that the arguments name.

    Raises:
        ModelError: the model or the side network cannot be used, or they do not fit each other.

    """
    from ..nn.sidetuned import SideTuned

    # The side network says which layers it needs, once it is known that it fits the model.
    backbone = load_backbone(args, taps="all", lm_head=config.spec.task == "causal-lm")
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
