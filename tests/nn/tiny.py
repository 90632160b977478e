"""Tiny models with random weights, one per architecture, and batches of taps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, cast

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

from mobillm.nn.backbone import Backbone
from mobillm.nn.heads import FrozenHead, export_lm_head
from mobillm.nn.tail import TailBlobs
from mobillm.spec import ModelSpec, OptimizerSpec, SessionSpec, SideSpec

__all__ = [
    "DECODERS",
    "ENCODERS",
    "SAMPLES",
    "VOCABULARY",
    "collect",
    "language_session",
    "session",
    "sink_taps",
    "tail_session",
    "tiny_model",
    "tiny_tokenizer",
]

VOCABULARY = 40
SAMPLES = [[5, 6, 7, 8, 9], [3, 4], [11, 12, 13, 14]]
_ROTARY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_BERT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}


def _opt(**changes: Any) -> Any:
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "ffn_dim": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "word_embed_proj_dim": 16,
    }
    return transformers.OPTConfig(**(settings | changes))


def _gpt2() -> Any:
    return transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=3, n_head=2, n_positions=32)


def _without_head_dim() -> dict[str, Any]:
    return {key: value for key, value in _ROTARY.items() if key not in ("head_dim", "num_key_value_heads")}


DECODERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**_ROTARY),
    "opt": _opt,
    "opt-350m": lambda: _opt(do_layer_norm_before=False, word_embed_proj_dim=8),
    "gpt2": _gpt2,
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**_without_head_dim()),
    "qwen2": lambda: transformers.Qwen2Config(**{k: v for k, v in _ROTARY.items() if k != "head_dim"}),
    "gemma": lambda: transformers.GemmaConfig(**_ROTARY),
    "gemma2": lambda: transformers.Gemma2Config(**_ROTARY, final_logit_softcapping=4.0),
}
ENCODERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertConfig(**_BERT, pad_token_id=0),
    "roberta": lambda: transformers.RobertaConfig(**_BERT, pad_token_id=1),
}


def tiny_model(architecture: str, lm_head: bool = True) -> nn.Module:
    """Build a tiny model whose every weight, norms included, is random but fixed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if architecture in ENCODERS:
            kind: Any = transformers.AutoModel
            model = kind.from_config(ENCODERS[architecture]())
        else:
            kind = transformers.AutoModelForCausalLM if lm_head else transformers.AutoModel
            model = kind.from_config(DECODERS[architecture]())
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return cast(nn.Module, model.eval())


def tiny_tokenizer(bert: bool = False) -> Any:
    """Build a tokenizer of the words ``w3`` to ``w39``; ids 0 to 2 are special."""
    words = ["<pad>", "<s>", "</s>", *(f"w{number}" for number in range(3, VOCABULARY))]
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="w3")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    if bert:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        special |= {"cls_token": "<s>", "sep_token": "</s>"}
    make: Any = transformers.PreTrainedTokenizerFast
    return make(tokenizer_object=tokenizer, **special)


def collect(backbone: Backbone, samples: list[list[int]]) -> list[Tensor]:
    """Return the taps of a batch as tensors that training may use."""
    found: list[tuple[int, Tensor]] = []
    backbone.forward(samples, lambda index, hidden: found.append((index, hidden)))
    assert [index for index, _ in found] == list(range(len(backbone.taps)))
    return [hidden.clone() for _, hidden in found]


def sink_taps(tokens: int, count: int = 3, width: int = 16, seed: int = 0) -> list[Tensor]:
    """Draw taps whose first token is a sink of the size that real models show."""
    generator = torch.Generator().manual_seed(seed)
    taps = [torch.randn(tokens, width, generator=generator) for _ in range(count)]
    for tap in taps:
        tap[0, 3] = 27_000.0
    return taps


def session(
    task: str = "classification", outputs: int = 2, head: str | None = None, **side: Any
) -> SessionSpec:
    """Return a session on three taps of a model of width 16 with three layers."""
    defaults: dict[str, Any] = {"width": 8, "heads": 2, "dropout": 0.0}
    return SessionSpec(
        task=task,
        outputs=outputs,
        model=ModelSpec(name="tiny", hidden_size=16, layers=3, taps=(1, 2, 3)),
        side=SideSpec(**(defaults | side)),
        optimizer=OptimizerSpec(schedule="constant"),
        head=head,
    )


def language_session(model: nn.Module, **side: Any) -> tuple[SessionSpec, FrozenHead]:
    """Return a causal-lm session for a tiny decoder, and its LM head."""
    data = export_lm_head(model)
    spec = session("causal-lm", VOCABULARY, hashlib.sha256(data).hexdigest(), **side)
    return spec, FrozenHead.from_bytes(data)


def tail_session(backbone: Backbone, **changes: Any) -> tuple[SessionSpec, dict[str, bytes]]:
    """Return a session of kind ``tail`` for a tiny decoder with one tap, and its blobs by SHA-256."""
    tail = TailBlobs(backbone)
    settings: dict[str, Any] = {
        "task": "classification",
        "outputs": 2,
        "model": backbone.model_spec(),
        "side": SideSpec(kind="tail", rank=4, dropout=0.0),
        "optimizer": OptimizerSpec(lr=1e-2, schedule="constant"),
        "tail": tail.spec,
    }
    return SessionSpec(**(settings | changes)), {hashlib.sha256(blob).hexdigest(): blob for blob in tail}
