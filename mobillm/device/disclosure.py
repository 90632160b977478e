"""What will leave the device, in plain words."""

from __future__ import annotations

from ..formats import row_size
from ..spec import SessionSpec

__all__ = ["disclosure"]

_WHICH = {
    "all": "every token",
    "loss": "each token that has a target",
    "last": "each sample's last token",
}


def disclosure(spec: SessionSpec, samples: int, tokens: int, *, head: int = 0, tail: int = 0) -> str:
    """Say what a session sends and what it does not.

    Args:
        spec: the session.
        samples: how many will be sent, held-out ones included.
        tokens: how many of their tokens are sent.
        head: bytes of the LM head's blob.
        tail: bytes of the blobs of the layers above the tap.

    Returns:
        a few lines for a person.

    """
    smallest, largest = spec.codec.formats[0], spec.codec.formats[-1]
    row = row_size(largest, spec.codec.block, spec.model.hidden_size)
    names = smallest.name.lower() if smallest is largest else f"{smallest.name} to {largest.name}".lower()
    compressed = spec.codec.compression != "none"
    about = "about" if smallest is largest and not compressed else "at most"
    size = tokens * row * len(spec.model.taps)
    layers = ", ".join(map(str, spec.model.taps))
    lines = [
        "What leaves this device:",
        f"  hidden states of {_WHICH[spec.tokens]} after layers {layers} of {spec.model.layers}, "
        f"{spec.model.hidden_size} values each, packed as {names}{' and compressed' if compressed else ''}: "
        f"{about} {size / samples / 1000:.1f} kB per sample ({tokens / samples:.0f} tokens), "
        f"{size / 1e6:.1f} MB for all {samples}, held-out ones included",
        "  the number of tokens of each sample"
        + ("" if spec.tokens == "all" else " that are sent")
        + (", and once the typical size of each channel" if spec.codec.equalize else ""),
    ]
    lines.append(f"  the model's name, {spec.model.name!r}, and the options of training")
    if spec.task == "causal-lm":
        lines += [
            "  the target of each token, which is the NEXT TOKEN'S ID IN PLAIN: the server can read the text",
            f"  the model's final norm and LM head (public weights, {head / 1e6:.1f} MB), "
            "if the server lacks them",
        ]
    elif spec.task == "regression":
        lines.append("  the target value of each sample, in plain")
    else:
        lines.append("  the class number of each sample, in plain; not the names of the classes")
    if spec.tail is not None:
        lines.append(
            f"  the model's {len(spec.tail.layers)} layers above (public weights, {tail / 1e6:.1f} MB), as "
            "far as the server lacks them"
        )
    if spec.task == "causal-lm":
        lines.append("What does not leave it: label names, the names of data files, attention masks.")
    else:
        lines.append(
            "What does not leave it: texts, token ids, attention masks, label names, the names of data files."
        )
    lines.append(
        "Hidden states of a public model can be inverted: a server you do not trust may recover text."
    )
    return "\n".join(lines)
