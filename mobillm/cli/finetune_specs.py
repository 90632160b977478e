"""What the options of ``mobillm finetune`` say of the side network, the optimizer and the packing."""

from __future__ import annotations

import argparse
import dataclasses

from ..defaults import defaults_of, epochs_of
from ..errors import ConfigError
from ..formats import Format
from ..nn.bits import BITS
from ..spec import CodecSpec, OptimizerSpec, SideSpec, check_tokens

__all__ = ["MAX_BITS", "MIN_BITS", "codec", "settle_kind", "settle_layers", "specs"]

MIN_BITS, MAX_BITS = 3, 8  # of --bits auto: 3 bits cost little accuracy, see benchmarks/LOG.md


def specs(args: argparse.Namespace) -> tuple[SideSpec, OptimizerSpec, CodecSpec]:
    """Return what is trained, how, and how taps are packed.

    Raises:
        ConfigError: an option is out of range, or would have no effect.

    """
    side = SideSpec(
        kind=args.side_kind,
        width=args.side_width,
        heads=args.side_heads,
        dropout=args.side_dropout,
        pool=args.side_pool,
        rank=SideSpec().rank if args.side_rank is None else args.side_rank,
    )
    optimizer = OptimizerSpec(
        lr=args.lr,
        weight_decay=args.weight_decay,
        schedule=args.schedule,
        warmup=args.warmup,
        clip=args.clip,
        ema=args.ema,
    )
    return side, optimizer, dataclasses.replace(codec(args), compression=args.compression)


def settle_kind(args: argparse.Namespace) -> None:
    """Settle what depends on the kind of side network.

    Raises:
        ConfigError: an option does not go with it.

    """
    tail = args.side_kind == "tail"
    if args.side_rank is not None and not tail:
        raise ConfigError("side_rank", args.side_rank, "to be given with --side-kind tail only")
    settle_layers(args)
    if args.lr is None:
        args.lr = defaults_of(args.side_kind).optimizer.lr
    if args.epochs is None:
        args.epochs = epochs_of(args.task)
    if args.task == "causal-lm" and args.side_kind == "head":
        raise ConfigError("side_kind", args.side_kind, "ladder, parallel or tail for --task causal-lm")
    check_tokens(args.tokens, args.task, SideSpec(kind=args.side_kind, pool=args.side_pool))


def settle_layers(args: argparse.Namespace) -> None:
    """Settle which layers are tapped, for how many samples at once, and where they are held."""
    defaults = defaults_of(args.side_kind)
    if args.taps is None:
        args.taps = defaults.taps
    if args.batch_size is None:
        args.batch_size = defaults.batch_size
    # Of the layers above a tail's tap none has to be in memory, then. Of quantized ones none is.
    args.stream_weights |= args.side_kind == "tail" and args.dtype not in BITS


def codec(args: argparse.Namespace) -> CodecSpec:
    """Return how taps are packed.

    Raises:
        ConfigError: an option is out of range, or would have no effect.

    """
    default = CodecSpec()
    block = default.block if args.block is None else args.block
    equalize = default.equalize if args.equalize is None else args.equalize
    for name in ("min_bits", "max_bits"):
        if getattr(args, name) is not None and args.bits != ():
            raise ConfigError(name, getattr(args, name), "to be given with --bits auto only")
    if args.bits is None:
        name = args.format or default.format
        if not Format.parse(name).is_block and (args.block is not None or args.equalize):
            with_it = "--block" if args.block is not None else "--equalize"
            raise ConfigError("format", name, f"a format with blocks, which {with_it} is for")
        return CodecSpec(format=name, block=block, equalize=equalize)
    low = MIN_BITS if args.min_bits is None else args.min_bits
    high = MAX_BITS if args.max_bits is None else args.max_bits
    widths = args.bits or tuple(range(low, high + 1))
    if not widths:
        raise ConfigError("min_bits", low, f"at most --max-bits = {high}")
    # The width to begin with, until the link was measured: that of the default, or the nearest to it.
    first = min(widths, key=lambda bits: abs(bits - Format.parse(default.format).bits))
    several = widths if len(widths) > 1 else ()
    return CodecSpec(format=f"asym{first}", block=block, equalize=equalize, bits=several)
