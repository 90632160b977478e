"""Tests of texts as token ids, in use as in training."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobillm.device.batches import make_batches
from mobillm.device.dataset import Example
from mobillm.errors import ModelError
from mobillm.nn import inputs
from mobillm.nn.backbone import Backbone
from mobillm.nn.inputs import input_ids
from mobillm.nn.saved import SideConfig, save_side
from mobillm.nn.side import SideNetwork
from mobillm.nn.sidetuned import SideTuned
from tests.nn.tiny import session, tiny_model, tiny_tokenizer


def _backbone() -> Backbone:
    return Backbone.from_model(tiny_model("llama"), tiny_tokenizer(), name="tiny")


@pytest.mark.parametrize("pair", [None, " w8 w9 "])
def test_ids_are_those_of_training(tmp_path: Path, pair: str | None) -> None:
    """Blanks, the start token, the mark at the end and the longest length are as in training."""
    config = SideConfig(spec=session(outputs=2), max_length=6, ending=" .", pairs=pair is not None)
    save_side(tmp_path, b"", config)
    backbone = _backbone()
    for text in (" w5 w6 ", "w5 w6 .", "w5 w6 w7 w8 w9 w10"):
        example = Example(text, pair=pair, target=0)
        (batch,) = make_batches(
            backbone, [example], task="classification", batch_size=1, max_length=6, seed=0, ending=" ."
        )
        assert (
            input_ids(tmp_path, tiny_tokenizer(), [text if pair is None else (text, pair)]) == batch.input_ids
        )


def test_blanks_around_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are dropped before a tokenizer sees them; what ends in a word gets the mark."""
    seen: list[object] = []
    for name in ("tokenize", "tokenize_pairs"):
        monkeypatch.setattr(inputs, name, lambda tokenizer, texts, length: seen.append(texts))
    inputs.encode(None, [" a ", "b! "], max_length=9, ending=" .")
    inputs.encode(None, [(" a ", " b ")], max_length=9, ending=".")
    assert seen == [["a .", "b!"], [("a", "b.")]]


def test_single_texts_are_no_pairs(tmp_path: Path) -> None:
    """What was trained on one kind is not asked of the other, whoever makes the ids."""
    backbone = _backbone()
    network = SideNetwork.from_spec(session(outputs=2))
    texts: dict[bool, str | tuple[str, str]] = {False: "w5", True: ("w5", "w6")}
    for pairs in (False, True):
        save_side(tmp_path, network.state_bytes(), SideConfig(spec=network.spec, max_length=8, pairs=pairs))
        tuned = SideTuned.from_pretrained(backbone, tmp_path)
        assert len(tuned.predict([texts[pairs]])) == 1
        assert input_ids(tmp_path, backbone.tokenizer, [texts[pairs]]) == [[1, 5, 6] if pairs else [1, 5]]
        for ask in (tuned.predict, lambda given: input_ids(tmp_path, backbone.tokenizer, given)):
            with pytest.raises(ModelError, match="text 2: the side network was trained on"):
                ask([texts[pairs], texts[not pairs]])
