"""Made-up texts of two classes."""

from __future__ import annotations

import random

from mobillm.device.dataset import Example

__all__ = ["examples"]


def examples(count: int, seed: int = 0) -> list[Example]:
    """Draw texts of two kinds of words, each kind a class."""
    generator = random.Random(seed)
    found = []
    for _ in range(count):
        kind = generator.randrange(2)
        words = [f"w{generator.randrange(3, 20) + 18 * kind}" for _ in range(generator.randrange(3, 9))]
        found.append(Example(" ".join(words), target=kind))
    return found
