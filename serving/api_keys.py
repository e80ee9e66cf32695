"""Who may ask for what: keys of callers, kept as hashes."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from towers.errors import ConfigError, RequestError

ApiScope = Literal["recommend", "events", "items", "subjects", "metrics"]
SCOPES: tuple[str, ...] = get_args(ApiScope)
FIELD = "authorization"


class _Entry(Struct, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    scopes: Annotated[list[ApiScope], Meta(min_length=1)]


class _File(Struct, forbid_unknown_fields=True):
    keys: Annotated[list[_Entry], Meta(min_length=1)]


class ApiKeys:
    """Keys that are accepted, and what each may ask.

    A key is looked up by its hash, so the time that takes tells nothing about any key. A plain hash is enough for random keys, not for
    words that people think up.

    Args:
        scopes: by SHA-256 digest of a key.
    """

    def __init__(self, scopes: Mapping[bytes, frozenset[str]]) -> None:
        self._scopes = dict(scopes)

    @classmethod
    def open(cls, path: Path | str) -> "ApiKeys":
        """Read `{"keys": [{"name": "gateway", "sha256": "<hex>", "scopes": ["recommend"]}]}`.

        Raises:
            ConfigError: it cannot be read, or is not that.
        """
        try:
            found = msgspec.json.decode(Path(path).read_bytes(), type=_File)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(
                f'serving.api_keys: {path}: {error}. Expected {{"keys": [{{"name": ..., "sha256": the key\'s 64 hex digits, "scopes":'
                f" some of {', '.join(SCOPES)}}}]}}"
            ) from error
        scopes = {bytes.fromhex(entry.sha256): frozenset[str](entry.scopes) for entry in found.keys}
        if len(scopes) < len(found.keys):
            raise ConfigError(f"serving.api_keys: {path}: two keys have one hash; give each caller a key of its own")
        return cls(scopes)

    def check(self, key: bytes, scope: str) -> None:
        """Whether the caller may ask this.

        Args:
            key: as sent; b"" for none.

        Raises:
            RequestError: 401 without a known key, 403 where it lacks the scope.
        """
        if not key:
            raise RequestError(FIELD, "a key is needed: `authorization: Bearer <key>` or `x-api-key: <key>`", 401)
        scopes = self._scopes.get(hashlib.sha256(key).digest())
        if scopes is None:
            raise RequestError(FIELD, "the key is not known", 401)
        if scope not in scopes:
            raise RequestError(FIELD, f"the key lacks the scope {scope!r}; it has {', '.join(sorted(scopes))}", 403)
