"""Looking for raw user ids in everything that a run has left, byte by byte and, where files are compressed, value by value."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from towers.columns import ITEM_ID, USER_ID
from towers.errors import DataError

LEAST_BYTES, LEAST_DIGITS = 5, 9
"""Shorter ids, and shorter ones of digits alone, stand everywhere by chance."""
_CHUNK = 1 << 22
_HASHES = 1 << 22
_PREFIX = 8


@dataclass(frozen=True)
class Found:
    """Raw ids in one place.

    Attributes:
        place: path within the folder.
        ids: different ones.
        asked_for: the place is a column `user_id`, which is written where a setting asks for raw ids.
    """

    place: str
    ids: int
    asked_for: bool


class Scanned(NamedTuple):
    """What a search came to.

    Attributes:
        found: places with ids in them.
        unread: why a file could not be looked through, by path within the folder.
        not_looked_for: ids that are too short, plain numbers, or ids of items as well.
    """

    found: list[Found]
    unread: dict[str, str]
    not_looked_for: int


class RawIds:
    """Finds ids in bytes, many at once.

    Args:
        ids: those looked for.
    """

    def __init__(self, ids: Sequence[bytes]) -> None:
        self._width = min([_PREFIX, *map(len, ids)])
        self._longest = max(map(len, ids), default=1)
        self._by_prefix: dict[bytes, list[bytes]] = {}
        for text in ids:
            self._by_prefix.setdefault(text[: self._width], []).append(text)
        self._maybe = np.zeros(_HASHES, bool)
        for prefix in self._by_prefix:
            self._maybe[_hashes(np.frombuffer(prefix, np.uint8), self._width)] = True

    def within(self, data: bytes) -> set[bytes]:
        """Those that stand in some bytes."""
        found: set[bytes] = set()
        for start in range(0, len(data), _CHUNK):
            chunk = np.frombuffer(data[start : start + _CHUNK + self._longest - 1], np.uint8)
            if len(chunk) >= self._width:
                places = np.flatnonzero(self._maybe[_hashes(chunk, self._width)]) + start
                found.update(text for at in places.tolist() for text in self._at(data, at))
        return found

    def _at(self, data: bytes, at: int) -> Iterator[bytes]:
        for text in self._by_prefix.get(data[at : at + self._width], ()):
            if data.startswith(text, at) and not (text.isdigit() and _in_a_number(data, at, at + len(text))):
                yield text


def scan(folder: Path, ids: Sequence[str]) -> Scanned:
    """Where ids stand under a folder. A file that cannot be read is named, and the others are looked through.

    Raises:
        DataError: none of the ids can be told from other content.
    """
    items = _item_ids(folder)
    wanted = [text.encode() for text in dict.fromkeys(ids) if _telling(text) and text not in items]
    if not wanted:
        raise DataError(
            f"subject.ids: none of the {len(ids)} ids can be told from other content: expected {LEAST_BYTES} characters or more"
            f" ({LEAST_DIGITS} digits, where it is a number) that are no item's id"
        )
    finder, found, unread = RawIds(wanted), [], {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        place = path.relative_to(folder).as_posix()
        try:
            plain, asked_for = _contents(path)
        except FileNotFoundError:
            continue  # its time was over meanwhile
        except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
            unread[place] = str(error).partition("\n")[0]
            continue
        hits, on_purpose = finder.within(plain), finder.within(asked_for)
        found += [Found(place, len(hits), False)] if hits else []
        found += [Found(place, len(on_purpose), True)] if on_purpose else []
    return Scanned(found, unread, len(set(ids)) - len(wanted))


def read_ids(path: Path) -> list[str]:
    """User ids of a Parquet or CSV file's column user_id, or of a text file, one a line; raises DataError."""
    try:
        if path.suffix not in (".parquet", ".csv"):
            return [line for line in path.read_text(encoding="utf-8").splitlines() if line]
        as_written = pyarrow.csv.ConvertOptions(column_types={USER_ID: pa.string()})  # 007 is not 7
        table = (
            pyarrow.csv.read_csv(path, convert_options=as_written)
            if path.suffix == ".csv"
            else pq.read_table(path, columns=[USER_ID], partitioning=None)
        )
        return [str(value) for value in table.column(USER_ID).unique().to_pylist() if value is not None]
    except (OSError, UnicodeDecodeError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read ({error}); expected a text file with a user id a line, or a column {USER_ID}") from error


def _contents(path: Path) -> tuple[bytes, bytes]:
    """All that a file says, and of it the columns of raw ids that were asked for."""
    if path.suffix == ".parquet":
        return _texts(pq.ParquetFile(path).read())
    if path.suffix == ".arrow":
        with pa.memory_map(str(path)) as source:
            return _texts(pa.ipc.open_file(source).read_all())
    return path.read_bytes(), b""


def _texts(table: pa.Table) -> tuple[bytes, bytes]:
    kept: dict[bool, list[bytes]] = {False: [str(table.schema.metadata or "").encode()], True: []}
    for name, column in zip(table.column_names, table.columns, strict=True):
        kept[name == USER_ID].extend(_values(column.combine_chunks()))
    return b"\0".join(kept[False]), b"\0".join(kept[True])


def _values(array: Any) -> Iterator[bytes]:
    """Different texts and byte strings of an array, however deep in lists."""
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        array = array.flatten()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind):
        for value in array.unique().to_pylist():
            if value is not None:
                yield value if isinstance(value, bytes) else value.encode()


def _telling(text: str) -> bool:
    return len(text.encode()) >= (LEAST_DIGITS if text.isdigit() else LEAST_BYTES)


def _item_ids(folder: Path) -> set[str]:
    """Of every catalogue in the folder that can be read."""
    found: set[str] = set()
    for path in folder.rglob("catalog.parquet"):
        with suppress(OSError, pa.ArrowException):  # `scan` meets it again, and names it
            found.update(map(str, pq.read_table(path, columns=[ITEM_ID], partitioning=None).column(0).to_pylist()))
    return found


def _in_a_number(data: bytes, start: int, stop: int) -> bool:
    """A digit stands before or after: it is part of another number."""
    return data[max(0, start - 1) : start].isdigit() or data[stop : stop + 1].isdigit()


def _hashes(data: NDArray[np.uint8], width: int) -> NDArray[np.int64]:
    """A number below _HASHES for the `width` bytes that begin at each place: [n - width + 1]."""
    places = len(data) - width + 1
    code_n = np.zeros(places, np.uint64)
    for byte in range(width):
        code_n = code_n << np.uint64(8) | data[byte : byte + places]
    return ((code_n * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(42)).astype(np.int64)
