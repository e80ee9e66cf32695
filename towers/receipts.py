"""Who was forgotten, when, and what was removed for it: a chain of receipts beside the secret of the user keys, outside every run.

One JSON object a line. Each begins with the SHA-256 of the hash before it and of its own remaining bytes, so that any byte that is changed
is found. Not found, from the file alone, is a chain that somebody made anew from a line on, or cut off at its end: keep the last hash
elsewhere (every receipt is answered with it). The beginning of a line after the last whole one is no change: it is what a death or a full
disk left of a receipt that nobody was given.

A receipt knows a person by a mark of the user key (`towers.identity.mark`), and what happened up to its moment is forgotten: it is dropped
wherever it turns up again, from a backup or in the log of the next `towers prepare`. What happens later counts anew.

Where the secret of the user keys was exchanged, a receipt tells from which to which, and the marks of forgotten people under the new one.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from towers.columns import NO_TIME
from towers.errors import ConfigError, DataError
from towers.identity import KEY_BYTES, key_file, mark

BEGINNING = "0" * 64
"""The hash before the first line."""
FORGET, REMOVED, REKEYED = "forget", "removed", "rekeyed"
_FIRST, _THEN = b'{"hash":"', b'",'


def receipts_file(path: str | None, secret: str | None) -> Path:
    """Where the chain lies: `path`, else beside the secret of the user keys."""
    if path:
        return Path(path).expanduser()
    beside = key_file(secret)
    return beside.with_name(f"{beside.name}.receipts.jsonl")


def sealed(document: Mapping[str, Any], before: str) -> tuple[bytes, str]:
    """A receipt's line and its hash.

    Args:
        before: hash of the line before.
    """
    rest = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()[1:]
    found = _hash(before, rest)
    return _FIRST + found.encode() + _THEN + rest + b"\n", found


class Receipts:
    """Reads a chain, and what is added to it.

    Args:
        path: the file; where there is none, nobody was forgotten.

    Attributes:
        count, last: lines read, and the hash of the last one.
        torn: bytes after it that are the beginning of a receipt, which was not written whole or is being written.
        unended: the last line lacks its end, as a tool may leave a file; its hash tells that it is whole, so it counts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count, self.last = 0, BEGINNING
        self.torn, self.unended, self._offset = 0, False, 0

    def fresh(self) -> list[dict[str, Any]]:
        """What was added since the last call.

        Raises:
            DataError: a line was changed; names it. Or the file became shorter.
        """
        try:
            with self.path.open("rb") as source:
                source.seek(0, 2)
                if source.tell() < self._offset:
                    raise DataError(f"{self.path}: shorter than it was; put the file back as it was after {self.count} receipts")
                source.seek(self._offset)
                content = source.read()
        except FileNotFoundError:
            if self._offset:
                raise DataError(f"{self.path} is gone; put it back: without it, forgotten people return with the next backup") from None
            return []
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}") from error
        before = self.count, self.last, self.unended, self._offset
        try:
            content = self._after_the_end(content)
            *lines, tail = content.split(b"\n")
            found = [self._read(line) for line in lines]
            if self._sound(tail):
                found.append(self._read(tail))
                self.unended, self._offset, tail = True, self._offset - 1, b""
            self._check_torn(tail)
        except DataError:
            self.count, self.last, self.unended, self._offset = before  # what was not returned is read again
            raise
        self.torn = len(tail)
        return found

    def _after_the_end(self, content: bytes) -> bytes:
        """What was added, without the end that the last line lacked until now."""
        if not (self.unended and content):
            return content
        if content[:1] != b"\n":
            raise self._changed()
        self.unended, self._offset = False, self._offset + 1
        return content[1:]

    def _sound(self, line: bytes) -> bool:
        told, then, rest = _parts(line)
        return line.startswith(_FIRST) and then == _THEN and told == _hash(self.last, rest).encode()

    def _read(self, line: bytes) -> dict[str, Any]:
        if not self._sound(line):
            raise self._changed()
        told, _, rest = _parts(line)
        document: dict[str, Any] = json.loads(b"{" + rest)
        self.count, self.last, self._offset = self.count + 1, told.decode(), self._offset + len(line) + 1
        return document

    def _check_torn(self, tail: bytes) -> None:
        """Whether what follows the last line is the beginning of one: a whole one with another byte after it was changed."""
        told, then, rest = _parts(tail)
        begins = (_FIRST.startswith(tail) or tail.startswith(_FIRST)) and not told.strip(b"0123456789abcdef") and _THEN.startswith(then)
        if not begins or (rest and told == _hash(self.last, rest[:-1]).encode()):
            raise self._changed()

    def _changed(self) -> DataError:
        return DataError(f"{self.path}: line {self.count + 1} is not what was written; every receipt before it is sound")


def _parts(line: bytes) -> tuple[bytes, bytes, bytes]:
    """Of a line without its end: the hash told, what stands behind it, and the rest."""
    start = len(_FIRST) + len(BEGINNING)
    return line[len(_FIRST) : start], line[start : start + len(_THEN)], line[start + len(_THEN) :]


class Erasures:
    """Forgotten people, as far as a chain was read.

    Args:
        secret: fingerprint of the secret that user keys are made with; None = it is not checked.
    """

    def __init__(self, receipts: Receipts, secret: bytes | None = None) -> None:
        self._receipts, self._secret = receipts, None if secret is None else secret.decode()
        self._under: dict[str, dict[bytes, int]] = {}
        self._replaced_by: dict[str, str] = {}
        self._moment_of: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._moment_of)

    def refresh(self) -> bool:
        """Read what was added; whether somebody was forgotten.

        Raises:
            DataError: the chain was changed.
            ConfigError: it is of another secret, so that nobody in it would be known again, or this one was exchanged.
        """
        fresh = [receipt for receipt in self._receipts.fresh() if receipt["what"] in (FORGET, REKEYED)]
        for receipt in fresh:
            secret = receipt.get("secret", "")
            told = receipt["forgotten"] if receipt["what"] == REKEYED else dict.fromkeys(receipt["marks"], receipt["moment"])
            known = self._under.setdefault(secret, {})
            for of, moment in told.items():
                known[bytes.fromhex(of)] = max(int(moment), known.get(bytes.fromhex(of), NO_TIME))
            if receipt["what"] == REKEYED:
                self._replaced_by[receipt["from"]] = secret
                self._replaced_by.pop(secret, None)  # a secret that came back
        self._check()
        self._moment_of = {of: moment for secret, known in self._under.items() if self._counts(secret) for of, moment in known.items()}
        return bool(fresh)

    def _counts(self, secret: str) -> bool:
        return self._secret in (None, secret)

    def _check(self) -> None:
        if self._secret in self._replaced_by:
            raise ConfigError(
                f"{self._receipts.path}: this user-key secret was exchanged for another. Point serving.key_file, identity.key_file or"
                " $TOWERS_KEY_FILE at the new one; data still under this one: `towers subject action=rekey`"
            )
        for secret in self._under if self._secret is not None else ():
            last = secret
            while last in self._replaced_by:
                last = self._replaced_by[last]
            if last != self._secret:
                raise ConfigError(
                    f"{self._receipts.path}: people in it were forgotten under another user-key secret, so none would be known again."
                    " Restore that secret (serving.key_file, identity.key_file, $TOWERS_KEY_FILE), exchange it for this one"
                    " (`towers subject action=rekey`), or name receipts of the new one (serving.receipts, identity.receipts) once no data"
                    " keyed with the old one are left"
                )

    def under(self, secret: bytes) -> Mapping[bytes, int]:
        """The same as `marks`, of those known under one secret."""
        return self._under.get(secret.decode(), {})

    def moment(self, user_key: bytes) -> int | None:
        """What a user did up to this moment (microseconds UTC) is forgotten; None = nothing is."""
        return self._moment_of.get(mark(user_key)) if self._moment_of else None

    def marks(self) -> Mapping[bytes, int]:
        """The same of all, by mark of their keys."""
        return self._moment_of

    def moments(self, keys_n: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The same for many: keys uint8 [n, 16] to int64 [n], NO_TIME where nothing is forgotten."""
        return _moments(self._moment_of, keys_n)

    def moments_under(self, secret: bytes, keys_n: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The same of those known under one secret alone, whose fingerprint it is."""
        return _moments(self.under(secret), keys_n)


def _moments(moment_of: Mapping[bytes, int], keys_n: NDArray[np.uint8]) -> NDArray[np.int64]:
    if not moment_of:
        return np.full(len(keys_n), NO_TIME, np.int64)
    joined = np.ascontiguousarray(keys_n, np.uint8).tobytes()
    found = [moment_of.get(mark(joined[at : at + KEY_BYTES]), NO_TIME) for at in range(0, len(joined), KEY_BYTES)]
    return np.array(found, np.int64)


def _hash(before: str, rest: bytes) -> str:
    return hashlib.sha256(before.encode() + rest).hexdigest()
