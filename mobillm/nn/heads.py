"""Heads: the frozen final norm and LM head of a backbone, and the trained head of pooled tasks."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelError
from .layers import Parts, find_parts

__all__ = ["FrozenHead", "PooledHead", "export_lm_head"]

_FORMAT = 1
_KEY = "mobillm"  # one metadata entry only: safetensors does not order several, and the bytes are hashed
_NORMS = ("rmsnorm", "layernorm", "none")
_CHUNK_VALUES = 1 << 24  # logits held at once: 64 MiB in fp32
_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_LARGEST = torch.finfo(torch.float64).max  # of a setting; what is larger, or not finite, is not one
_PROBE = 8  # hidden states that an exported head is tried on


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """What the tensors do not say: the norm and how logits are scaled and capped."""

    norm: str
    eps: float
    softcap: float | None
    scale: float
    format: int = _FORMAT

    def __post_init__(self) -> None:
        numbers: tuple[object, ...] = (self.eps, self.scale, 1.0 if self.softcap is None else self.softcap)
        # JSON of other languages writes 1.0 as 1.
        usable = all(type(n) in (int, float) and abs(cast(float, n)) <= _LARGEST for n in numbers)
        if self.format != _FORMAT or self.norm not in _NORMS or not usable or self.softcap == 0:
            raise ModelError(f"the LM head has settings this version cannot use: {dataclasses.asdict(self)}")


def _read_settings(data: bytes) -> dict[str, Any]:
    """Return what the metadata of a safetensors file that could be read says of a head."""
    length = int.from_bytes(data[:8], "little")
    text = json.loads(data[8 : 8 + length]).get("__metadata__", {}).get(_KEY)
    if text is None:
        raise ModelError(f"the LM head's __metadata__ lacks the key {_KEY!r}; export it again")
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"the LM head's settings are no JSON ({error}); export it again") from error
    if not isinstance(settings, dict):
        raise ModelError("the LM head's settings are no map; export it again")
    return settings


class FrozenHead(nn.Module):
    """The part of a decoder after its last layer: final norm, optional projection, LM head.

    ``logits(normalise(h))`` equals the model's own logits for hidden states ``h`` of the last layer.
    A side network adds its output between the two. Nothing here is trained, and nothing is part of a
    ``state_dict``.
    """

    def __init__(self, tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
        super().__init__()
        fields = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(_Settings)}
        for name in sorted(fields.keys() | settings.keys()):
            if fields.get(name, False) and name not in settings:
                raise ModelError(f"the LM head's settings lack {name!r}; export it again")
        unknown = len(settings.keys() - fields.keys())
        if unknown:
            raise ModelError(f"the LM head has {unknown} settings that this version does not know")
        self._settings = _Settings(**settings)
        _check_tensors(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(name.replace(".", "_"), tensor.float(), persistent=False)

    @classmethod
    def from_bytes(cls, data: bytes) -> FrozenHead:
        """Read what :func:`export_lm_head` wrote; the weights are held in fp32.

        Raises:
            ModelError: the bytes are no such head, or their tensors do not fit together.

        """
        try:
            tensors = safetensors.torch.load(data)
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            raise ModelError(f"the LM head is no safetensors file ({error}); export it again") from error
        return cls(tensors, _read_settings(data))

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states that go in."""
        inner = self._get("project_weight")
        return self._head().shape[1] if inner is None else inner.shape[1]

    @property
    def vocabulary(self) -> int:
        """Number of logits."""
        return self._head().shape[0]

    @property
    def rows(self) -> int:
        """Rows of logits that are held at once where there may be many."""
        return max(1, _CHUNK_VALUES // self.vocabulary)

    def normalise(self, hidden: Tensor) -> Tensor:
        """Apply the final norm in fp32.

        Args:
            hidden: ``[..., hidden_size]`` output of the last layer.

        Returns:
            ``[..., hidden_size]`` fp32.

        """
        hidden = hidden.float()
        weight, bias, eps = self._get("norm_weight"), self._get("norm_bias"), self._settings.eps
        if self._settings.norm == "rmsnorm":
            return F.rms_norm(hidden, hidden.shape[-1:], weight, eps)
        if self._settings.norm == "layernorm":
            return F.layer_norm(hidden, hidden.shape[-1:], weight, bias, eps)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Turn normalised hidden states into logits.

        Args:
            hidden: ``[..., hidden_size]`` fp32, normalised.

        Returns:
            ``[..., vocabulary]`` fp32.

        """
        inner = self._get("project_weight")
        if inner is not None:
            hidden = F.linear(hidden, inner, self._get("project_bias"))
        logits = F.linear(hidden, self._head(), self._get("head_bias"))
        if self._settings.scale != 1.0:
            logits = logits * self._settings.scale
        cap = self._settings.softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _get(self, name: str) -> Tensor | None:
        return self._buffers.get(name)

    def _head(self) -> Tensor:
        return cast(Tensor, self._buffers["head_weight"])


def _check_tensors(tensors: dict[str, Tensor]) -> None:
    """Check a head's tensors before any of them is widened."""
    head, inner = tensors.get("head.weight"), tensors.get("project.weight")
    if head is None or head.dim() != 2 or (inner is not None and inner.dim() != 2):
        raise ModelError("the LM head lacks a matrix head.weight [vocabulary, width]; export it again")
    vocabulary, width = head.shape
    hidden = width if inner is None else inner.shape[1]
    expected = {
        "norm.weight": (hidden,),
        "norm.bias": (hidden,),
        "project.weight": (width, hidden),
        "project.bias": (width,),
        "head.weight": (vocabulary, width),
        "head.bias": (vocabulary,),
    }
    for name, tensor in tensors.items():
        if name not in expected:
            raise ModelError(f"the LM head has a tensor other than {', '.join(expected)}; export it again")
        if tuple(tensor.shape) != expected[name]:
            seen = tuple(tensor.shape)
            raise ModelError(f"the LM head's {name} has shape {seen}, expected {expected[name]}")
        if tensor.dtype not in _TYPES:
            raise ModelError(f"the LM head's {name} holds {tensor.dtype}, expected F32, F16 or BF16")


def export_lm_head(model: nn.Module) -> bytes:
    """Write a decoder's final norm and LM head as safetensors.

    The same model gives the same bytes, so their SHA-256 names the head. The result is tried on a few
    hidden states before it is returned, so an architecture that does something else after its last
    layer is refused, not exported wrongly.

    Args:
        model: a decoder of transformers with its LM head (``AutoModelForCausalLM``).

    Returns:
        safetensors bytes: ``norm.weight``, ``norm.bias``, ``project.weight``, ``project.bias``,
        ``head.weight``, ``head.bias``, those that exist, in the model's own type.

    Raises:
        ModelError: the model has no LM head, or one of an unknown form.

    """
    parts = find_parts(model)
    whole: Any = model
    linear = whole.get_output_embeddings()
    if not isinstance(linear, nn.Linear) or whole.base_model is model:
        raise ModelError(f"{type(model).__name__} was loaded without its LM head; load it with lm_head=True")
    tensors: dict[str, Tensor | None] = {"head.weight": linear.weight, "head.bias": linear.bias}
    norm, eps = _norm_of(parts.final_norm, tensors)
    if isinstance(parts.project_out, nn.Linear):
        tensors |= {"project.weight": parts.project_out.weight, "project.bias": parts.project_out.bias}
    config = parts.config
    divisor = getattr(config, "logits_scaling", None) or 1.0
    softcap = getattr(config, "final_logit_softcapping", None)
    settings = _Settings(
        norm=norm,
        eps=eps,
        softcap=None if softcap is None else float(softcap),
        scale=float(getattr(config, "logit_scale", None) or 1.0) / float(divisor),
    )
    present = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in tensors.items()
        if tensor is not None
    }
    text = json.dumps(dataclasses.asdict(settings), sort_keys=True)
    data = safetensors.torch.save(present, {_KEY: text})
    _verify(whole, parts, FrozenHead.from_bytes(data))
    return data


def _norm_of(norm: nn.Module | None, tensors: dict[str, Tensor | None]) -> tuple[str, float]:
    """Add the norm's tensors and return its kind and epsilon."""
    if norm is None:
        return "none", 0.0
    if isinstance(norm, nn.LayerNorm):
        tensors |= {"norm.weight": norm.weight, "norm.bias": norm.bias}
        return "layernorm", float(norm.eps)
    weight = getattr(norm, "weight", None)
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if not isinstance(weight, Tensor) or eps is None:
        raise ModelError(f"the final norm {type(norm).__name__} is neither a LayerNorm nor an RMSNorm")
    # Gemma scales by 1 + weight. A row of ones shows the scale in effect, whatever the class is called.
    with torch.inference_mode():
        seen = norm(torch.ones(1, weight.shape[0], dtype=weight.dtype, device=weight.device))[0].float()
    shifted = weight.detach().float() + 1.0
    plain = (seen - weight.detach().float()).abs().sum() <= (seen - shifted).abs().sum()
    tensors["norm.weight"] = weight if plain else shifted
    return "rmsnorm", float(eps)


def _verify(model: Any, parts: Parts, head: FrozenHead) -> None:
    """Compare the exported head with the model's own logits for the last layer's output."""
    caught: list[Tensor] = []

    def catch(_module: nn.Module, _inputs: Any, output: Any) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output)

    device = parts.first_weight.device
    ids = torch.arange(_PROBE, device=device)[None] % int(parts.config.vocab_size)
    handle = parts.layers[-1].register_forward_hook(catch)
    training = model.training
    try:
        with torch.inference_mode():
            own = model.eval()(input_ids=ids, use_cache=False).logits.float().cpu()
            ours = head.logits(head.normalise(caught[0].cpu()))
    finally:
        handle.remove()
        model.train(training)
    tolerance = 1e-3 if parts.first_weight.dtype == torch.float32 else 0.1
    scale = float(own.abs().max().clamp(min=1e-6))
    if float((own - ours).abs().max()) > tolerance * scale:
        raise ModelError(
            f"the LM head of {type(model).__name__} computes something that cannot be exported; "
            "use another backbone for causal-lm"
        )


class PooledHead(nn.Module):
    """The trained head of classification and regression.

    Args:
        width: of the pooled vector.
        outputs: classes; 1 makes a regression head.
        bias: whether there is one.

    """

    def __init__(self, width: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self._outputs = outputs
        self.linear = nn.Linear(width, outputs, bias=bias)
        for parameter in self.linear.parameters():
            nn.init.zeros_(parameter)

    def forward(self, pooled: Tensor) -> Tensor:
        """Map ``[B, width]`` to logits ``[B, outputs]``, or to values ``[B]`` when there is one output."""
        out: Tensor = self.linear(pooled)
        return out.squeeze(-1) if self._outputs == 1 else out
