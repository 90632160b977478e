"""What a device says and sends of the layers above its tap, read one at a time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..errors import ConfigError, ModelError
from ..spec import SessionSpec, TailSpec
from .architectures import describe
from .backbone import Backbone
from .streamed import StreamedBackbone
from .upper import FrozenLayers

__all__ = ["TailBlobs", "check_base", "describe_tail", "upper_weights"]


def describe_tail(backbone: Backbone) -> dict[str, Any]:
    """Return the fields of a :class:`~mobillm.spec.TailSpec` that are no blobs; no weight is read.

    Raises:
        ModelError: the layers above the tap cannot be trained apart; the text says why.

    """
    if len(backbone.taps) != 1 or backbone.taps[0] == backbone.layers:
        raise ModelError(
            f"tail tuning needs one tap below layer {backbone.layers}, not {list(backbone.taps)}; "
            f"--taps {backbone.layers // 3}, say"
        )
    fields = describe(backbone.parts)
    try:
        TailSpec(**fields, layers=("0" * 64,), ending="0" * 64)
    except ConfigError as error:  # not the user's mistake, but the model's kind
        raise ModelError(
            f"tail tuning cannot use {backbone.name}: {error}; use --side-kind ladder"
        ) from error
    return fields


def check_base(backbone: Backbone, spec: SessionSpec) -> None:
    """Refuse a backbone that a tail was not trained on, by its shape and the first layer above the tap.

    Raises:
        ModelError: it is another one.

    """
    assert spec.tail is not None
    tap = spec.model.taps[0]
    expected = {name: getattr(spec.tail, name) for name in ("architecture", "heads", "kv_heads", "eps")}
    for name, seen in describe(backbone.parts).items():
        if name in expected and seen != expected[name]:
            raise ModelError(
                f"the backbone {backbone.name} has {name} {seen}, but the adapter was trained on "
                f"{spec.model.name}, which has {expected[name]}; load that backbone"
            )
    digest = hashlib.sha256(_write(backbone.layer_weights(tap))).hexdigest()
    if digest != spec.tail.layers[0]:
        raise ModelError(
            f"layer {tap + 1} of the backbone {backbone.name} has SHA-256 {digest[:16]}..., but the adapter "
            f"was trained on {spec.model.name}, where it is {spec.tail.layers[0][:16]}...; load that backbone"
        )


class TailBlobs:
    """The layers above the tap as blobs: one for each, and one for the final norm and what else is needed.

    Iterating reads the layers again, one at a time; only one is in memory. A blob is a safetensors file of
    bf16 tensors under their names in the layer, so the same weights give the same bytes, whatever the tap.

    Args:
        backbone: with one tap, below its last layer.

    Raises:
        ModelError: the architecture is not known, there is another number of taps, or a weight is not finite.

    Attributes:
        spec: names the blobs by their SHA-256.
        size: bytes of all blobs.

    """

    def __init__(self, backbone: Backbone) -> None:
        fields = describe_tail(backbone)
        self._backbone = backbone
        digests: list[str] = []
        self.size = 0
        for blob in self:
            digests.append(hashlib.sha256(blob).hexdigest())
            self.size += len(blob)
        self.spec = TailSpec(**fields, layers=tuple(digests[:-1]), ending=digests[-1])

    def __iter__(self) -> Iterator[bytes]:
        backbone = self._backbone
        for number in range(backbone.taps[0], backbone.layers):
            weights = backbone.layer_weights(number)
            for name, tensor in weights.items():
                # Extremes, as a mask of a whole layer would take memory that the device may lack.
                if not all(map(math.isfinite, map(float, tensor.aminmax()))):
                    raise ModelError(
                        f"layer {number + 1} of {backbone.name} has values in {name} that are not finite; "
                        "its checkpoint is damaged: get it again"
                    )
            yield _write(weights)
        yield _write(_ending(backbone))


def upper_weights(backbone: Backbone, tap: int) -> FrozenLayers:
    """Return the weights of a backbone's layers above a tap; a resident one's are shared, not copied.

    Those of a streamed backbone stay on the disk, and are brought into the memory of its own layers.
    """
    numbers = range(tap, backbone.layers)
    if not isinstance(backbone, StreamedBackbone) or backbone.store is None:
        return FrozenLayers(list(map(backbone.layer_weights, numbers)), _ending(backbone))
    store = backbone.store
    layers = [dict(backbone.parts.layers[number].named_parameters()) for number in numbers]

    def bring(place: int) -> None:
        store.depth = backbone.layers
        store.bring(numbers[place])

    return FrozenLayers(layers, _ending(backbone), bring)


def _ending(backbone: Backbone) -> dict[str, Tensor]:
    norm = backbone.parts.final_norm
    assert norm is not None  # every known architecture has one
    tensors = {f"norm.{name}": parameter.detach() for name, parameter in norm.named_parameters()}
    rotary = getattr(backbone.parts.trunk, "rotary_emb", None)
    if rotary is not None:
        tensors["inv_freq"] = rotary.inv_freq
    return tensors


def _write(tensors: dict[str, Tensor]) -> bytes:
    def plain(name: str, tensor: Tensor) -> Tensor:
        dtype = torch.float32 if name == "inv_freq" else torch.bfloat16
        tensor = tensor.detach().to("cpu", dtype).contiguous()
        # A view of a larger piece of memory, which safetensors refuses.
        return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()

    return safetensors.torch.save({name: plain(name, tensor) for name, tensor in tensors.items()})
