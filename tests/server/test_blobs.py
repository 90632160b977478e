"""Blobs: checked by their hash, uploaded by several devices at once."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib

import pytest

from mobillm.errors import ConfigError, ModelError, StorageError
from mobillm.nn.backbone import Backbone
from mobillm.protocol import Blob
from mobillm.server.blobs import BlobStore, BlobUpload, check_total
from mobillm.server.registry import Registry
from mobillm.spec import ARCHITECTURES
from tests.helpers import make_spec
from tests.nn.tiny import tail_session, tiny_model

DATA = bytes(range(256)) * 4
DIGEST = hashlib.sha256(DATA).digest()


def part(offset: int, size: int, data: bytes = DATA) -> Blob:
    """Return one part of the blob."""
    return Blob(stream=1, digest=DIGEST, total=len(DATA), offset=offset, payload=data[offset : offset + size])


def test_two_uploads_at_once(tmp_path: pathlib.Path, registry: Registry, no_fd_leak: None) -> None:
    """Each writes its own file; the blob is there as soon as the first is whole, and stays."""
    store = BlobStore(tmp_path / "blobs", registry)
    first, second = BlobUpload(store, part(0, 512)), BlobUpload(store, part(0, 512))
    assert not first.add(part(0, 512))
    assert not second.add(part(0, 512))
    assert not store.has(DIGEST)
    assert first.add(part(512, 512))
    assert store.read(DIGEST) == DATA
    assert second.add(part(512, 512))
    assert store.read(DIGEST) == DATA
    assert os.listdir(tmp_path / "blobs") == [DIGEST.hex()]
    assert store.path(DIGEST).stat().st_mode & 0o777 == 0o600


def test_wrong_content(tmp_path: pathlib.Path, registry: Registry, no_fd_leak: None) -> None:
    """Content with another hash is refused and deleted."""
    store = BlobStore(tmp_path, registry)
    upload = BlobUpload(store, part(0, 1024))
    with pytest.raises(ConfigError, match="content with the SHA-256 that its parts name"):
        upload.add(part(0, 1024, bytes(1024)))
    upload.discard()
    assert os.listdir(tmp_path) == []


def test_damage_on_the_disk(tmp_path: pathlib.Path, registry: Registry) -> None:
    """A blob that has changed, or is not there, is not used."""
    store = BlobStore(tmp_path, registry)
    with pytest.raises(StorageError, match="is gone; restore it from a backup"):
        store.read(DIGEST)
    store.path(DIGEST).write_bytes(b"other")
    with pytest.raises(StorageError, match="is damaged"):
        store.read(DIGEST)


def test_disk_full(
    tmp_path: pathlib.Path, registry: Registry, monkeypatch: pytest.MonkeyPatch, no_fd_leak: None
) -> None:
    """A disk that fails is a storage error, and nothing is left."""
    store = BlobStore(tmp_path, registry)
    upload = BlobUpload(store, part(0, 1024))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StorageError, match="No space left"):
        upload.add(part(0, 1024))
    assert os.listdir(tmp_path) == []


def test_broken_off_uploads_are_deleted(tmp_path: pathlib.Path, registry: Registry) -> None:
    """What a crash left is gone at the next start."""
    BlobUpload(BlobStore(tmp_path, registry), part(0, 10))._file.close()
    assert len(os.listdir(tmp_path)) == 1
    BlobStore(tmp_path, registry)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_length_of_a_layer(architecture: str) -> None:
    """[W-21] [W-23] A layer fits, and so does what follows the layers; a blob of twice the size does not."""
    backbone = Backbone.from_model(tiny_model(architecture), name="tiny", taps=[1])
    spec, blobs = tail_session(backbone)
    for blob in blobs.values():
        check_total(spec, DIGEST, len(blob))
    most = 4 * 16 * (16 + 8 * (2 if architecture == "opt" else 1)) + 6 * 16 * 24 + 32 * (16 + 24) + 65536
    check_total(spec, DIGEST, most)
    with pytest.raises(ConfigError, match=rf"BLOB\.total is {most + 1}; expected at most {most}"):
        check_total(spec, DIGEST, most + 1)
    check_total(make_spec(), DIGEST, 1 << 40)
    language = dataclasses.replace(spec, task="causal-lm", outputs=9000, head=DIGEST.hex())
    largest = 4 * (9000 * 17 + 16 * 19) + 65536
    check_total(language, DIGEST, largest)
    with pytest.raises(ConfigError, match=rf"BLOB\.total is {largest + 1}; .* for the LM head"):
        check_total(language, DIGEST, largest + 1)
    with pytest.raises(ConfigError, match=r"BLOB\.total"):
        check_total(language, DIGEST[::-1], most + 1)


def test_a_blob_of_another_session(tmp_path: pathlib.Path, registry: Registry) -> None:
    """[W-23] What came with a session that it fits is not read for one that it cannot fit."""
    spec, blobs = tail_session(Backbone.from_model(tiny_model("llama"), name="tiny", taps=[1]))
    assert spec.tail is not None
    large = bytes(200_000)
    digest = hashlib.sha256(large).digest()
    store = BlobStore(tmp_path, registry)
    for content in (*blobs.values(), large):
        store.path(hashlib.sha256(content).digest()).write_bytes(content)
    assert store.read_all(spec) == blobs
    layers = (spec.tail.layers[0], digest.hex())
    other = dataclasses.replace(spec, tail=dataclasses.replace(spec.tail, layers=layers))
    with pytest.raises(ModelError, match=rf"blob {digest.hex()}: BLOB\.total is 200000; expected at most"):
        store.read_all(other)
