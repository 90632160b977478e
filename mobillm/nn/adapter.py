"""The files of a PEFT adapter, which is what tail tuning trains: any program that knows PEFT can load it."""

from __future__ import annotations

import json

from ..spec import SessionSpec

__all__ = ["ADAPTER_CONFIG", "ADAPTER_WEIGHTS", "MODULES", "SCALE", "adapter_json"]

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
SCALE = 2.0  # what the product of the two matrices is multiplied by, alpha / rank

_GATED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# The linear layers of each architecture.
MODULES = {"llama": _GATED, "qwen2": _GATED, "opt": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")}


def adapter_json(spec: SessionSpec) -> str:
    """Return the content of ``adapter_config.json``.

    Args:
        spec: a session of kind ``tail``.

    """
    assert spec.tail is not None
    language = spec.task == "causal-lm"
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if language else "SEQ_CLS",
        "base_model_name_or_path": spec.model.name,
        "r": spec.side.rank,
        "lora_alpha": int(SCALE * spec.side.rank),
        "lora_dropout": 0.0,
        "target_modules": list(MODULES[spec.tail.architecture]),
        "layers_to_transform": list(range(spec.model.taps[0], spec.model.layers)),
        "layers_pattern": "layers",
        "modules_to_save": None if language else ["score"],
        "inference_mode": True,
    }
    return json.dumps(content, indent=2) + "\n"
