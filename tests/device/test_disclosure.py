"""What a run says will leave the device."""

from __future__ import annotations

from mobillm.device.disclosure import disclosure
from mobillm.spec import CodecSpec, SideSpec
from tests.sessions import spec


def test_each_task_says_what_its_targets_are() -> None:
    """The most telling part of each task is named in plain words."""
    classes = disclosure(spec(), 100, 1000)
    assert "layers 2, 4 of 4" in classes
    assert "about 0.2 kB per sample (10 tokens), 0.0 MB for all 100" in classes
    assert "class number" in classes
    assert "the model's name, 'tiny', and the options of training" in classes
    assert "What does not leave it: texts, token ids" in classes
    assert "target value" in disclosure(spec(task="regression", outputs=1), 100, 1000)
    language = disclosure(spec(task="causal-lm", head="0" * 64), 100, 1000, head=2_500_000)
    assert "NEXT TOKEN'S ID IN PLAIN" in language
    assert "texts, token ids" not in language
    assert "LM head (public weights, 2.5 MB)" in language
    smaller = disclosure(spec(codec=CodecSpec(block=32, compression="zstd")), 100, 1000)
    assert "packed as asym4 and compressed: at most 0.2 kB per sample" in smaller
    one = disclosure(spec(side=SideSpec(kind="head"), tokens="last"), 100, 100)
    assert "hidden states of each sample's last token" in one
    assert "number of tokens of each sample that are sent" in one
    for text in (classes, language, one):
        assert "can be inverted" in text
