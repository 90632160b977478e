"""The parts of a transformers model that the backbone and the head need, found without a list of models."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor, nn

from ..errors import ModelError
from .quantized import QuantizedLinear

__all__ = ["Parts", "WeightBytes", "find_parts"]

# Attribute names of the norm after the last layer, over the decoders of transformers.
_FINAL_NORMS = ("norm", "final_layer_norm", "final_layernorm", "ln_f", "norm_f")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WeightBytes:
    """How large a model is without its LM head.

    Attributes:
        total: bytes of all weights.
        layer: bytes of the largest layer.
        outside: bytes of what is neither in a layer nor in the input embedding.
        widest: values of the widest inner state of a layer.
        module: values of the weights of the largest module in a layer.

    """

    total: int
    layer: int
    outside: int
    widest: int
    module: int


class Parts:
    """The layers of a model and what surrounds them.

    Attributes:
        base: the model without a task head.
        config: the text configuration.
        layers: the layer modules, in order.
        trunk: the module that holds ``layers``; its norm and projection follow the last layer.
        causal: whether a position sees only itself and earlier ones.
        hidden_size: width between the layers, which may differ from the embedding's width.

    """

    def __init__(self, base: nn.Module, config: Any, layers: nn.ModuleList, trunk: nn.Module) -> None:
        self.base = base
        self.config = config
        self.layers = layers
        self.trunk = trunk
        self.causal = _is_causal(layers, config)
        self.hidden_size = int(config.hidden_size)

    def weight_bytes(self) -> WeightBytes:
        """Count the weights; of parameters on the meta device too."""
        layers = [_bytes(layer) for layer in self.layers]
        total = _bytes(self.base)
        embedding = cast(Any, self.base).get_input_embeddings()
        return WeightBytes(
            total=total,
            layer=max(layers),
            outside=total - sum(layers) - sum(p.nbytes for p in embedding.parameters()),
            widest=max(max(shape) for module in self.layers.modules() for shape in _shapes(module)),
            module=max(sum(map(math.prod, _shapes(module))) for module in self.layers.modules()),
        )

    @property
    def first_weight(self) -> Tensor:
        """A weight that is not quantized: of the layers, or where they have none left, of the model."""
        return next(itertools.chain(self.layers.parameters(), self.base.parameters()))

    @property
    def final_norm(self) -> nn.Module | None:
        """The norm between the last layer and the LM head; None when the model has none."""
        for name in _FINAL_NORMS:
            module = getattr(self.trunk, name, None)
            if isinstance(module, nn.Module):
                return module
        return None

    @property
    def project_out(self) -> nn.Module | None:
        """The projection from the hidden width to the embedding's width; None when they are equal."""
        module = getattr(self.trunk, "project_out", None)
        return module if isinstance(module, nn.Module) else None

    @property
    def vocabulary(self) -> int:
        """Number of token ids that have an embedding: those from 0 on."""
        embedding = cast(Any, self.base).get_input_embeddings()
        # Of a streamed model the table has the rows of the last batch alone.
        return int(embedding.num_embeddings if isinstance(embedding, nn.Embedding) else len(embedding.weight))

    @property
    def positions(self) -> int | None:
        """Most tokens of one sample; None when the model states no limit."""
        limit = getattr(self.config, "max_position_embeddings", None)
        if limit is None:
            return None
        for name, module in self.base.named_modules():
            # RoBERTa counts positions from padding_idx + 1, so its table holds fewer than it has rows.
            if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
                return int(limit) - (0 if module.padding_idx is None else module.padding_idx + 1)
        return int(limit)


def find_parts(model: nn.Module) -> Parts:
    """Find the layers of a decoder or an encoder.

    Args:
        model: a transformers model, with or without a task head.

    Raises:
        ModelError: the model is an encoder-decoder, or its layers cannot be told from its other modules.

    """
    whole: Any = model
    config = getattr(whole, "config", None)
    if config is None:
        raise ModelError(f"{type(model).__name__} is no transformers model: it has no config")
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{type(model).__name__} is an encoder-decoder; use a decoder (GPT, Llama) or an encoder (BERT)"
        )
    text = config.get_text_config()
    count = getattr(text, "num_hidden_layers", None)
    base: nn.Module = whole.base_model
    found = [
        (sum(math.prod(shape) for inner in module.modules() for shape in _shapes(inner)), name, module)
        for name, module in base.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no list of {count} layers (shared layers are not supported); "
            "use another backbone"
        )
    # Other lists of that length (per-layer embeddings, say) are smaller than the layers themselves.
    _, name, layers = max(found, key=lambda entry: entry[0])
    return Parts(base, text, layers, base.get_submodule(name.rpartition(".")[0]))


def _shapes(module: nn.Module) -> Iterator[tuple[int, ...]]:
    """Yield the shapes of a module's own weights, not those of modules in it."""
    if isinstance(module, QuantizedLinear):
        yield module.out_features, module.in_features
    for parameter in module.parameters(recurse=False):
        yield tuple(parameter.shape)


def _bytes(module: nn.Module) -> int:
    quantized = sum(inner.nbytes for inner in module.modules() if isinstance(inner, QuantizedLinear))
    return quantized + sum(parameter.nbytes for parameter in module.parameters())


def _is_causal(layers: nn.ModuleList, config: Any) -> bool:
    if getattr(config, "is_causal", True) is False:  # a decoder's layers that were trained to see both sides
        return False
    for module in layers[0].modules():
        flag = getattr(module, "is_causal", None)
        if isinstance(flag, bool):
            return flag
    return bool(getattr(config, "is_decoder", False))
