"""User keys: the only form in which artefacts know a person.

A key is the first 16 bytes of HMAC-SHA256 (RFC 2104) of the raw user id under a secret that lies outside every run and bundle.
Whoever holds an artefact but not the secret cannot test whether a given person is in it.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from towers.errors import ConfigError

KEY_BYTES = 16
SECRET_BYTES = 32
SECRET_FINGERPRINT = b"towers.secret_fingerprint"
"""Key, in the metadata of a Parquet file of user keys, of their secret's fingerprint."""
_CHECK = b"\xff which secret is this"
"""No user id: 0xff occurs in no UTF-8 text."""


def key_file(path: str | None) -> Path:
    """Where the secret lies: `path`, else $TOWERS_KEY_FILE, else ~/.towers/user_key."""
    return Path(path or os.environ.get("TOWERS_KEY_FILE") or Path.home() / ".towers" / "user_key").expanduser()


class UserKeys:
    """Turns raw user ids into keys under one secret."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != SECRET_BYTES:
            raise ConfigError(
                f"the user-key secret has {len(secret)} bytes, expected {SECRET_BYTES}; restore the key file that training used"
            )
        self._hmac = hmac.new(secret, digestmod=hashlib.sha256)

    @classmethod
    def open(cls, path: str | None, create: bool = False) -> "UserKeys":
        """Read the secret; with `create`, make it (mode 0600) where it is absent.

        Raises:
            ConfigError: no secret there, or it cannot be read.
        """
        file = key_file(path)
        if create and not file.exists():
            keep_secret(file, new_secret())  # or use the one that another process has just made
        try:
            return cls(file.read_bytes())
        except OSError as error:
            raise ConfigError(
                f"user-key secret {file}: {error.strerror}. Point identity.key_file / serving.key_file or $TOWERS_KEY_FILE"
                " at the file that `towers prepare` used; another secret would make every user unknown"
            ) from error

    @staticmethod
    def warning(path: str | None) -> str:
        """What is to be told of who else can read the secret; empty where nobody can."""
        file = key_file(path)
        mode = file.stat().st_mode & 0o777
        if not mode & 0o077:
            return ""
        return f"user-key secret {file} has mode {mode:04o}: others on this machine can read or change it. Run `chmod 600 {file}`"

    def key(self, user_id: str) -> bytes:
        """The 16-byte key of one raw user id."""
        mac = self._hmac.copy()
        mac.update(user_id.encode("utf-8", "surrogatepass"))
        return mac.digest()[:KEY_BYTES]

    def fingerprint(self) -> bytes:
        """16 hex digits that tell this secret from others and nothing about it; kept beside keys, to notice when another is used."""
        mac = self._hmac.copy()
        mac.update(_CHECK)
        return mac.digest()[:8].hex().encode()

    def keys(self, user_ids: Sequence[str]) -> NDArray[np.uint8]:
        """Keys of many: uint8 [n, 16]."""
        joined = b"".join(self.key(user_id) for user_id in user_ids)
        return np.frombuffer(joined, np.uint8).reshape(-1, KEY_BYTES)


def mark(user_key: bytes) -> bytes:
    """16 bytes that recognise a key and do not hold it: what stands for a user of whom nothing else may stay."""
    return hashlib.blake2b(user_key, digest_size=KEY_BYTES, person=b"towers-mark").digest()


def new_secret() -> bytes:
    """A secret that nobody has."""
    return secrets.token_bytes(SECRET_BYTES)


def keep_secret(file: Path, secret: bytes) -> bool:
    """Write a secret (mode 0600) where there is none. False: there was one by then, and it stays."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as sink:
        sink.write(secret)
        sink.flush()
        os.fsync(sink.fileno())
    try:
        # link, unlike rename, fails if another process made the secret first: two secrets would split the users
        os.link(temporary, file)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True
