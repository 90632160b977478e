"""Tests of the texts that methods learn to continue."""

from __future__ import annotations

from pathlib import Path

from benchmarks.language import DEV, E2E_STEP, LANGUAGE
from mobillm.device.dataset import Example


def test_e2e(tmp_path: Path) -> None:
    """A sample is a prompt of attributes and a sentence, the next one some rows further on."""
    folder = tmp_path / "e2e_nlg"
    folder.mkdir()
    rows = "".join(f'"name[N{n}]","N{n} is nice."\n' for n in range(E2E_STEP * 601))
    for part in ("train", "dev"):
        (folder / f"{part}set.csv").write_text("mr,ref\n" + rows)
    train, dev = (LANGUAGE["e2e"].load(tmp_path, part).examples for part in ("train", "dev"))
    assert train[1] == Example(f"name[N{E2E_STEP}]\n", f"N{E2E_STEP} is nice.")
    assert (len(train), len(dev)) == (600, DEV)


def test_wikitext(tmp_path: Path) -> None:
    """Paragraphs are samples; headings and empty lines are none."""
    folder = tmp_path / "wikitext-2"
    folder.mkdir()
    for part in ("train", "valid"):
        (folder / f"wiki.{part}.tokens").write_text(f" \n = Title = \n \n One {part} . \n Two . \n")
    for part, name in (("train", "train"), ("dev", "valid")):
        assert LANGUAGE["wikitext"].load(tmp_path, part).examples == (
            Example(f"One {name} ."),
            Example("Two ."),
        )
