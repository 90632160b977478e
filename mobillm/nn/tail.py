"""What a device says and sends of the layers above its tap, read one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import safetensors.torch
import torch
from torch import Tensor

from ..errors import ModelError
from ..spec import TailSpec
from .architectures import describe
from .backbone import Backbone
from .upper import FrozenLayers

__all__ = ["TailBlobs", "upper_weights"]


class TailBlobs:
    """The layers above the tap as blobs: one for each, and one for the final norm and what else is needed.

    Iterating reads the layers again, one at a time; only one is in memory. A blob is a safetensors file of
    bf16 tensors under their names in the layer, so the same weights give the same bytes, whatever the tap.

    Args:
        backbone: with one tap, below its last layer.

    Raises:
        ModelError: the architecture is not known, or there is another number of taps.

    Attributes:
        spec: names the blobs by their SHA-256.
        size: bytes of all blobs.

    """

    def __init__(self, backbone: Backbone) -> None:
        if len(backbone.taps) != 1 or backbone.taps[0] == backbone.layers:
            raise ModelError(
                f"tail tuning needs one tap below layer {backbone.layers}, not {list(backbone.taps)}; "
                "--taps 1/3, say"
            )
        self._backbone = backbone
        fields = describe(backbone.parts)
        digests: list[str] = []
        self.size = 0
        for blob in self:
            digests.append(hashlib.sha256(blob).hexdigest())
            self.size += len(blob)
        self.spec = TailSpec(**fields, layers=tuple(digests[:-1]), ending=digests[-1])

    def __iter__(self) -> Iterator[bytes]:
        backbone = self._backbone
        for number in range(backbone.taps[0], backbone.layers):
            yield _write(backbone.layer_weights(number))
        yield _write(_ending(backbone))


def upper_weights(backbone: Backbone, tap: int) -> FrozenLayers:
    """Return the weights of a backbone's layers above a tap; a resident one's are shared, not copied."""
    layers = [backbone.layer_weights(number) for number in range(tap, backbone.layers)]
    return FrozenLayers(layers, _ending(backbone))


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
