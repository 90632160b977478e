"""What is known of the layers of those architectures whose upper layers can be trained apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import transformers
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm
from transformers.models.opt.modeling_opt import OPTDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from ..errors import ModelError
from ..spec import ARCHITECTURES, SessionSpec, TailSpec
from .layers import Parts

__all__ = ["Architecture", "architecture_of", "describe"]

_OPT_EPS = 1e-5  # that of torch's LayerNorm, which OPT does not change
_NO_TOKENS: dict[str, Any] = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
_ROTARY = ("default", "linear", "llama3")  # frequencies that do not depend on the sample


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How the layers of a model are made and named.

    Attributes:
        config: makes the configuration of layers that a spec describes.
        layer: makes a layer of a configuration and its number.
        norm: makes the final norm of a width and an epsilon.
        norms: names of a layer's norms, before attention and before what follows it.
        inner: computes what follows attention and the second norm in a layer.
        place: where the layers are in the model without its head.
        rotary: whether positions enter in each layer, as rotations.
        needs: what else a model's configuration must say.

    """

    config: Callable[[SessionSpec, TailSpec], Any]
    layer: Callable[[Any, int], nn.Module]
    norm: Callable[[int, float], nn.Module]
    norms: tuple[str, str]
    inner: Callable[[Any, Tensor], Tensor]
    place: str
    rotary: bool
    needs: dict[str, Any]


def _rotary_config(kind: Callable[..., Any]) -> Callable[[SessionSpec, TailSpec], Any]:
    def config(spec: SessionSpec, tail: TailSpec) -> Any:
        return kind(
            vocab_size=1,
            hidden_size=spec.model.hidden_size,
            intermediate_size=tail.intermediate_size,
            num_hidden_layers=len(tail.layers),
            num_attention_heads=tail.heads,
            num_key_value_heads=tail.kv_heads,
            rms_norm_eps=tail.eps,
            **_NO_TOKENS,
        )

    return config


def _opt_config(spec: SessionSpec, tail: TailSpec) -> Any:
    return transformers.OPTConfig(
        vocab_size=1,
        hidden_size=spec.model.hidden_size,
        ffn_dim=tail.intermediate_size,
        num_hidden_layers=len(tail.layers),
        num_attention_heads=tail.heads,
        word_embed_proj_dim=spec.model.hidden_size,
        dropout=0.0,
        **_NO_TOKENS,
    )


_KNOWN = {
    "llama": Architecture(
        config=_rotary_config(transformers.LlamaConfig),
        layer=LlamaDecoderLayer,
        norm=LlamaRMSNorm,
        norms=("input_layernorm", "post_attention_layernorm"),
        inner=lambda layer, values: layer.mlp(values),
        place="layers",
        rotary=True,
        needs={"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"},
    ),
    "qwen2": Architecture(
        config=_rotary_config(transformers.Qwen2Config),
        layer=Qwen2DecoderLayer,
        norm=LlamaRMSNorm,
        norms=("input_layernorm", "post_attention_layernorm"),
        inner=lambda layer, values: layer.mlp(values),
        place="layers",
        rotary=True,
        needs={"use_sliding_window": False, "hidden_act": "silu"},
    ),
    "opt": Architecture(
        config=_opt_config,
        layer=OPTDecoderLayer,
        norm=lambda width, eps: nn.LayerNorm(width, eps),
        norms=("self_attn_layer_norm", "final_layer_norm"),
        inner=lambda layer, values: layer.fc2(layer.activation_fn(layer.fc1(values))),
        place="decoder.layers",
        rotary=False,
        needs={
            "do_layer_norm_before": True,
            "_remove_final_layer_norm": False,
            "enable_bias": True,
            "layer_norm_elementwise_affine": True,
            "activation_function": "relu",
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
        needs |= {"head_dim": config.hidden_size // heads, "the rotary scaling": 1.0}
        seen |= {
            "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
            "the rotary scaling": getattr(rotary, "attention_scaling", 1.0),
        }
        if config.rope_parameters["rope_type"] not in _ROTARY:
            needs["rope_type"], seen["rope_type"] = " or ".join(_ROTARY), config.rope_parameters["rope_type"]
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
