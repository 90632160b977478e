"""What will leave the device, in plain words."""

from __future__ import annotations

from ..formats import Format, row_size
from ..spec import SessionSpec

__all__ = ["disclosure"]


def disclosure(spec: SessionSpec, tokens_per_sample: float) -> str:
    """Say what a session sends and what it does not.

    Args:
        spec: the session.
        tokens_per_sample: mean tokens of a sample.

    Returns:
        a few lines for a person.

    """
    fmt = Format.parse(spec.codec.format)
    row = row_size(fmt, spec.codec.block, spec.model.hidden_size)
    size = tokens_per_sample * row * len(spec.model.taps)
    layers = ", ".join(map(str, spec.model.taps))
    lines = [
        "What leaves this device:",
        f"  hidden states of every token after layers {layers} of {spec.model.layers}, "
        f"{spec.model.hidden_size} values each, packed as {spec.codec.format}: "
        f"about {size / 1000:.1f} kB per sample ({tokens_per_sample:.0f} tokens)",
        "  the number of tokens of each sample",
    ]
    if spec.task == "causal-lm":
        lines += [
            "  the target of each token, which is the NEXT TOKEN'S ID IN PLAIN: the server can read the text",
            "  the model's final norm and LM head (public weights), once per model",
        ]
    elif spec.task == "regression":
        lines.append("  the target value of each sample, in plain")
    else:
        lines.append("  the class number of each sample, in plain; not the names of the classes")
    if spec.task == "causal-lm":
        lines.append("What does not leave it: label names, file names, attention masks.")
    else:
        lines.append("What does not leave it: texts, token ids, attention masks, label names, file names.")
    lines.append(
        "Hidden states of a public model can be inverted: a server you do not trust may recover text."
    )
    return "\n".join(lines)
