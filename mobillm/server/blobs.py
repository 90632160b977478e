"""Content-addressed blobs: frozen weights that sessions share, uploaded once and checked by their hash."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib

from ..errors import ConfigError, DamageError, ModelError, StorageError
from ..protocol import Blob
from ..spec import SessionSpec
from .files import private, sync_directory
from .registry import Registry

__all__ = ["BlobReader", "BlobStore", "BlobUpload", "check_total"]

HEADER = 1 << 16  # bytes of a safetensors header of a few dozen tensors, and more


def check_total(spec: SessionSpec, digest: bytes, total: int) -> None:
    """Check the length of a blob before any of it is stored or read: what it may be follows from the spec.

    Args:
        spec: the session.
        digest: SHA-256 of the blob.
        total: its length in bytes.

    Raises:
        ConfigError: it is longer than any blob of the session needs to be.

    """
    width = spec.model.hidden_size
    if digest.hex() == spec.head:
        most, what = 4 * (spec.outputs * (width + 1) + width * (width + 3)) + HEADER, "the LM head"
    elif spec.tail is not None:
        inner = spec.tail.intermediate_size
        values = 2 * width * (width + width // spec.tail.heads * spec.tail.kv_heads) + 3 * width * inner
        most, what = (
            2 * (values + 16 * (width + inner)) + HEADER,
            "the layers of tail",
        )  # with biases and norms
    else:
        return
    if total > most:
        raise ConfigError("BLOB.total", total, f"at most {most}, for {what}")


class BlobReader:
    """A directory of blobs, each named by its SHA-256; read wherever the data directory can be.

    Args:
        directory: may be missing, as long as nothing is read.

    """

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory

    def path(self, digest: bytes) -> pathlib.Path:
        """Return where the blob with this digest is or would be."""
        return self.directory / digest.hex()

    def has(self, digest: bytes) -> bool:
        """Tell whether the blob is there."""
        return self.path(digest).is_file()

    def check(self, digest: bytes) -> None:
        """Check that a blob is there.

        Raises:
            DamageError: it is not.

        """
        if not self.has(digest):
            raise DamageError(
                f"{self.path(digest)} is gone; restore it from a backup, or start the device's run again, "
                "which uploads it"
            )

    def read(self, digest: bytes) -> bytes:
        """Return a blob.

        Raises:
            DamageError: it is not there, or its content does not have its digest.
            StorageError: it cannot be read.

        """
        self.check(digest)
        try:
            data = self.path(digest).read_bytes()
        except OSError as exc:
            raise StorageError(f"blob {digest.hex()} cannot be read: {exc.strerror}") from exc
        if hashlib.sha256(data).digest() != digest:
            raise DamageError(
                f"{self.path(digest)} is damaged; restore it from a backup, or delete it and start the "
                "device's run again, which uploads it"
            )
        return data

    def read_all(self, spec: SessionSpec) -> dict[str, bytes]:
        """Return the blobs of a session by their SHA-256 in hex.

        Raises:
            ModelError: one is longer than the session's may be; it came with another session.
            StorageError: as from :meth:`read`.

        """
        digests = [bytes.fromhex(digest) for digest in spec.blobs]
        for digest in digests:
            self.check(digest)
            try:
                check_total(spec, digest, self.path(digest).stat().st_size)
            except ConfigError as exc:
                raise ModelError(f"blob {digest.hex()}: {exc}") from exc
            except OSError as exc:
                raise StorageError(f"blob {digest.hex()} cannot be read: {exc.strerror}") from exc
        return {digest.hex(): self.read(digest) for digest in digests}


class BlobStore(BlobReader):
    """A directory of blobs that takes new ones in.

    Args:
        directory: made if there is none; what uploads that broke off have left in it is deleted.
        registry: notes which blobs there are.

    Raises:
        StorageError: the disk is full or broken.

    """

    def __init__(self, directory: pathlib.Path, registry: Registry) -> None:
        super().__init__(directory)
        self._registry = registry
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for part in directory.glob("*.part"):
            part.unlink(missing_ok=True)
        self.note()

    def note(self) -> None:
        """Have the registry say what is in the directory.

        Raises:
            StorageError: the disk is full or broken.

        """
        found = {path.name: path.stat().st_size for path in self.directory.iterdir() if not path.suffix}
        self._registry.note_blobs(found)


class BlobUpload:
    """A blob on its way in; the protocol core has checked the order of its parts.

    Args:
        store: where it will be.
        first: its first part.

    Raises:
        StorageError: the disk is full or broken.

    """

    def __init__(self, store: BlobStore, first: Blob) -> None:
        self.digest = first.digest
        self.total = first.total
        self._store = store
        self._hash = hashlib.sha256()
        self._count = 0
        # Two devices may upload the same blob at once; each writes its own file.
        self._beside = store.path(first.digest).with_suffix(f".{os.urandom(8).hex()}.part")
        try:
            self._file = open(self._beside, "xb", opener=private)  # noqa: SIM115 (open across calls; closed by finish or discard)
        except OSError as exc:
            raise StorageError(f"{self._beside} cannot be written: {exc.strerror}") from exc

    def add(self, part: Blob) -> bool:
        """Write one part; return whether the blob is now whole and stored.

        Raises:
            StorageError: the disk is full or broken.
            ConfigError: the content does not have its digest.

        """
        if self._file.closed:
            return False  # given up while this part waited for its thread
        try:
            self._file.write(part.payload)
            self._hash.update(part.payload)
            self._count += len(part.payload)
            if self._count < self.total:
                return False
            if self._hash.digest() != self.digest:
                self.discard()
                seen = self._hash.hexdigest()
                raise ConfigError("blob", seen, "content with the SHA-256 that its parts name")
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._beside, self._store.path(self.digest))
            sync_directory(self._store.directory)
        except OSError as exc:
            self.discard()
            raise StorageError(f"{self._beside} cannot be written: {exc.strerror}") from exc
        self._store.note()
        return True

    def discard(self) -> None:
        """Give the upload up and delete what was written."""
        with contextlib.suppress(OSError):  # closing writes what is still buffered
            self._file.close()
        self._beside.unlink(missing_ok=True)
