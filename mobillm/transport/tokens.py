"""Token files: whose secret is which, one tenant per line; both sides read the same file.

A line is ``TENANT:SECRET``, or a bare secret, which is that of the tenant ``default``. Blank lines and
lines that begin with ``#`` are left out.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from pathlib import Path

from ..errors import ConfigError

__all__ = ["DEFAULT_TENANT", "create_token_file", "parse_tokens", "read_token_file"]

logger = logging.getLogger("mobillm.transport")

DEFAULT_TENANT = "default"
_LONGEST_TENANT = 64  # as the handshake allows
_PRIVATE = 0o077  # permission bits that a private file does not have


def parse_tokens(text: str, source: str) -> dict[str, str]:
    """Read the content of a token file.

    Args:
        text: the content.
        source: where it comes from, for errors, which never show a secret.

    Returns:
        the secret of each tenant, in the order of the lines.

    Raises:
        ConfigError: there is no token, or a line is no token.

    """
    tokens: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        tenant, colon, secret = line.partition(":")
        if not colon:
            tenant, secret = DEFAULT_TENANT, line
        tenant, secret = tenant.strip(), secret.strip()
        where = f"{source}, line {number}"
        if not secret or any(character.isspace() for character in secret):
            raise ConfigError(where, "not a token", "TENANT:SECRET or a bare SECRET without blanks")
        if not 1 <= len(tenant) <= _LONGEST_TENANT:
            raise ConfigError(where, f"a tenant of {len(tenant)} characters", f"1 to {_LONGEST_TENANT}")
        if tenant in tokens:
            raise ConfigError(where, f"a second token of {tenant!r}", "one token for each tenant")
        tokens[tenant] = secret
    if not tokens:
        raise ConfigError(source, "empty", "a line TENANT:SECRET or a bare SECRET")
    return tokens


def read_token_file(path: Path) -> dict[str, str]:
    """Read a token file; warn when other users of the machine can read it, too.

    Returns:
        the secret of each tenant, in the order of the lines.

    Raises:
        ConfigError: the file is missing, cannot be read, or is not a token file.

    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        mode = path.stat().st_mode
    except OSError as exc:
        raise ConfigError(
            "token file", str(path), f"a file that can be read ({exc.strerror}); copy it from the server"
        ) from exc
    except UnicodeDecodeError as exc:
        raise ConfigError("token file", str(path), "UTF-8 text, one TENANT:SECRET a line") from exc
    if os.name == "posix" and mode & _PRIVATE:
        logger.warning("! other users can read the token file %s; run: chmod 600 %s", path, path)
    return parse_tokens(text, str(path))


def create_token_file(path: Path) -> bool:
    """Make a token file with one random secret that only its owner can read; keep one that exists.

    Returns:
        whether the file was made.

    Raises:
        ConfigError: it cannot be written.

    """
    if path.exists():
        return False
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Whole or absent for whoever reads it meanwhile: write beside it, then link, which never replaces.
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(f"{secrets.token_urlsafe(32)}\n")
            with contextlib.suppress(FileExistsError):
                os.link(partial, path)
                return True
        finally:
            partial.unlink()
    except OSError as exc:
        raise ConfigError("token file", str(path), f"a place that can be written ({exc.strerror})") from exc
    return False
