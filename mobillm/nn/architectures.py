"""What is known of the layers of those architectures whose upper layers can be trained apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import transformers
from torch import Tensor, nn
from transformers.models.opt.modeling_opt import OPTDecoderLayer

from ..errors import ModelError
from ..spec import ARCHITECTURES, SessionSpec, TailSpec
from .layers import Parts
from .ragged import Padding
from .ragged_attention import attend
from .rotary_layer import RMSNorm, RotaryLayer

__all__ = ["Architecture", "architecture_of", "describe"]

_OPT_EPS = 1e-5  # that of torch's LayerNorm, which OPT does not change
_ATTENTION = "mobillm_ragged"
_ROTARY = ("default", "linear", "llama3")  # frequencies that do not depend on the sample


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How the layers of a model are made and named.

    Attributes:
        layer: makes a layer of what a spec says and its number above the tap.
        norm: makes the final norm of a width and an epsilon.
        some: computes a layer of ``[1, N, width]`` for distinct ``rows`` ``[R]`` alone.
        place: where the layers are in the model without its head.
        rotary: whether positions enter in each layer, as rotations.
        needs: what else a model's configuration must say.

    """

    layer: Callable[[SessionSpec, TailSpec, int], nn.Module]
    norm: Callable[[int, float], nn.Module]
    some: Callable[..., Tensor]
    place: str
    rotary: bool
    needs: dict[str, Any]


def _rotary(bias: bool) -> Callable[[SessionSpec, TailSpec, int], nn.Module]:
    def layer(spec: SessionSpec, tail: TailSpec, number: int) -> nn.Module:
        return RotaryLayer(
            width=spec.model.hidden_size,
            inner=tail.intermediate_size,
            heads=tail.heads,
            kv_heads=tail.kv_heads,
            eps=tail.eps,
            bias=bias,
            number=number,
        )

    return layer


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Padding | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' layers ask for it."""
    return attend(query, key, value, layout, scaling=scaling), None


transformers.AttentionInterface.register(_ATTENTION, _attend)


def _opt_layer(spec: SessionSpec, tail: TailSpec, number: int) -> nn.Module:
    config = transformers.OPTConfig(
        vocab_size=1,
        hidden_size=spec.model.hidden_size,
        ffn_dim=tail.intermediate_size,
        num_hidden_layers=len(tail.layers),
        num_attention_heads=tail.heads,
        word_embed_proj_dim=spec.model.hidden_size,
        dropout=0.0,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    config._attn_implementation = _ATTENTION
    return OPTDecoderLayer(config, number)


def _some_of_opt(layer: Any, hidden: Tensor, *, rows: Tensor, **named: Any) -> Tensor:
    mixed, _ = layer.self_attn(
        hidden_states=layer.self_attn_layer_norm(hidden), attention_mask=None, **named
    )  # fmt: skip
    chosen: Tensor = (hidden + mixed)[:, rows]
    inner = layer.activation_fn(layer.fc1(layer.final_layer_norm(chosen)))
    out: Tensor = chosen + layer.fc2(inner)
    return out


_KNOWN = {
    "llama": Architecture(
        layer=_rotary(bias=False),
        norm=RMSNorm,
        some=RotaryLayer.__call__,
        place="layers",
        rotary=True,
        needs={"attention_bias": False, "mlp_bias": False, "hidden_act": "silu", "is_causal": True},
    ),
    "qwen2": Architecture(
        layer=_rotary(bias=True),
        norm=RMSNorm,
        some=RotaryLayer.__call__,
        place="layers",
        rotary=True,
        needs={"use_sliding_window": False, "hidden_act": "silu", "is_causal": True},
    ),
    "opt": Architecture(
        layer=_opt_layer,
        norm=lambda width, eps: nn.LayerNorm(width, eps),
        some=_some_of_opt,
        place="decoder.layers",
        rotary=False,
        needs={
            "do_layer_norm_before": True,
            "_remove_final_layer_norm": False,
            "enable_bias": True,
            "layer_norm_elementwise_affine": True,
            "activation_function": "relu",
            "is_causal": True,
        },
    ),
}
assert tuple(_KNOWN) == ARCHITECTURES


def architecture_of(tail: TailSpec) -> Architecture:
    """Return how the layers of a tail are made."""
    return _KNOWN[tail.architecture]


def describe(parts: Parts) -> dict[str, Any]:
    """Return the fields of a :class:`~mobillm.spec.TailSpec` that are no blobs.

    Raises:
        ModelError: the layers are not of a known kind; the text says what is different.

    """
    config = parts.config
    known = _KNOWN.get(config.model_type)
    if known is None:
        raise ModelError(
            f"tail tuning does not know the architecture {config.model_type!r}, only "
            f"{', '.join(ARCHITECTURES)}; use --side-kind ladder"
        )
    opt = config.model_type == "opt"
    heads = config.num_attention_heads
    needs = known.needs | ({"word_embed_proj_dim": config.hidden_size} if opt else {})
    seen = {name: getattr(config, name, value) for name, value in needs.items()}
    if known.rotary:
        rotary: Any = getattr(parts.trunk, "rotary_emb", None)
        if config.rope_parameters["rope_type"] not in _ROTARY:
            needs["rope_type"], seen["rope_type"] = " or ".join(_ROTARY), config.rope_parameters["rope_type"]
        needs |= {"head_dim": config.hidden_size // heads, "the rotary scaling": 1.0}
        seen |= {
            "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
            "the rotary scaling": getattr(rotary, "attention_scaling", 1.0),
        }
    for name, value in needs.items():
        if seen[name] != value:
            raise ModelError(
                f"tail tuning needs {name} = {value!r} in a model of the architecture {config.model_type!r}, "
                f"this one has {seen[name]!r}; use --side-kind ladder"
            )
    return {
        "architecture": config.model_type,
        "intermediate_size": config.ffn_dim if opt else config.intermediate_size,
        "heads": heads,
        "kv_heads": heads if opt else config.num_key_value_heads,
        "eps": _OPT_EPS if opt else config.rms_norm_eps,
    }
