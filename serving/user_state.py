"""What is stored about users: their histories, found by user key. Raw user ids never get here."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from towers.columns import CATALOG, FIRST_ROW, ITEM_ROWS, MADE, NO_TIME, PURGED, USER_KEY
from towers.errors import DataError
from towers.identity import KEY_BYTES, SECRET_FINGERPRINT
from towers.vocab import Coded, Vocabulary, digest_of

ITEMS, EVENTS, TIMES = "item_ids", "event_types", "timestamps"


CONTEXT = "context."

_NUMBERS = {TIMES: pa.int64(), ITEM_ROWS: pa.int32()}
"""Lists of events that hold no text."""

_NOTHING: Mapping[str, Any] = {}


def of_events(column: str) -> bool:
    """Whether a column of user histories is of lists with an entry for each event."""
    return column in (ITEMS, ITEM_ROWS, EVENTS, TIMES) or column.startswith(CONTEXT)


class StoredUser(NamedTuple):
    """A known user.

    Attributes:
        items: item ids, oldest first.
        events: event type of each.
        timestamps: microseconds UTC of each, NO_TIME where unknown.
        features: value by user feature.
        contexts: by context feature that events keep, the value of each; none of a feature that is not known of any.
    """

    items: Sequence[str]
    events: Sequence[str | None]
    timestamps: Sequence[int]
    features: Mapping[str, Any] = _NOTHING
    contexts: Mapping[str, Sequence[str | None]] = _NOTHING

    def before(self, moment: int) -> "StoredUser":
        """The same without the events at `moment` (microseconds UTC) or after it; those of unknown time stay."""
        kept = [place for place, time in enumerate(self.timestamps) if time < moment]
        return self if len(kept) == len(self.timestamps) else self._of(kept, self.features)

    def after(self, moment: int) -> "StoredUser | None":
        """What is left of a user of whom everything up to `moment` is forgotten: later events, no feature, for nothing dates those."""
        kept = [place for place, time in enumerate(self.timestamps) if time > moment]
        return self._of(kept, {}) if kept else None

    def newer(self, moment: int) -> "StoredUser | None":
        """What is left when everybody's events up to `moment` are deleted: those of unknown time stay, and features of whom any stay."""
        kept = [place for place, time in enumerate(self.timestamps) if time > moment or time == NO_TIME]
        if len(kept) == len(self.timestamps):
            return self
        return self._of(kept, self.features) if kept else None

    def _of(self, kept: Sequence[int], features: Mapping[str, Any]) -> "StoredUser":
        items, events = list(self.items), list(self.events)
        contexts = {name: [values[i] for i in kept] for name, values in self.contexts.items()}
        return StoredUser([items[i] for i in kept], [events[i] for i in kept], [self.timestamps[i] for i in kept], features, contexts)


class UserHistories:
    """Histories of a Parquet file sorted by user key; ids are held once each, an event costs 16 bytes.

    Args:
        table: columns user_key, item_ids, event_types, timestamps, `context.<feature>` of context that events keep, and user features,
            sorted by user_key. Without item_ids, but with item_rows, `name` gives the ids.

    Attributes:
        secret_fingerprint: of the secret that the keys were made with; None where the file does not say.
        made: when the export began that wrote them, microseconds UTC; NO_TIME where the file does not say.
        seal: of the file as it was read, see `seal_of`; None where there was none.

    Raises:
        DataError: the columns do not hold what their names say.
    """

    seal: tuple[int, ...] | None = None
    _path: Path | str = ""

    def __init__(self, table: pa.Table) -> None:
        self.secret_fingerprint: bytes | None = (table.schema.metadata or {}).get(SECRET_FINGERPRINT)
        self.made = int((table.schema.metadata or {}).get(MADE, NO_TIME))
        self._catalog: bytes | None = (table.schema.metadata or {}).get(CATALOG)
        self._columns = {name: _one_array(table.column(name)) for name in table.column_names}
        _check_events(self._columns)
        lists = [name for name in table.column_names if of_events(name)]
        self._features = [name for name in table.column_names if name != USER_KEY and name not in lists]
        self._contexts = {name.removeprefix(CONTEXT): _coded(self._columns.pop(name)) for name in lists if name.startswith(CONTEXT)}
        rows = self._columns.pop(ITEM_ROWS, None)
        ids = self._columns.pop(ITEMS, None)
        self._item_ids: pa.StringArray | None = None
        if ids is None:
            self._items = _Lists(rows.offsets.to_numpy(), rows.values.to_numpy())
        else:
            self._items, self._item_ids = _coded(ids)
        self._taught = False
        self._events, self._event_types = _coded(self._columns.pop(EVENTS))
        times = self._columns.pop(TIMES)
        self._times = _Lists(times.offsets.to_numpy(), times.values.cast(pa.int64()).fill_null(NO_TIME).to_numpy())
        self._keys_U16 = _key_bytes(self._columns.pop(USER_KEY))
        # the first 8 bytes find the place by binary search, all 16 decide
        prefix_U = np.ascontiguousarray(self._keys_U16[:, :8]).view(">u8").ravel().astype(np.uint64)
        if np.any(prefix_U[1:] < prefix_U[:-1]):
            raise DataError(f"user histories are not sorted by {USER_KEY}; write them with `towers export`")
        self._prefix_U = prefix_U.data  # of plain numbers: a search by NumPy's scalars takes three times as long

    @classmethod
    def open(cls, path: Path | str, unnamed: bool = False) -> "UserHistories":
        """Read the file that `towers export` wrote.

        Args:
            unnamed: leave the ids of items aside where the file has their rows in a catalogue, for `name` to give: of a million ids that
                saves half a second.

        Raises:
            DataError: the file is missing, damaged or of another layout.
        """
        dictionaries, seal = [f"{name}.list.element" for name in (ITEMS, EVENTS)], seal_of(path)
        try:
            # pq.read_table imports Arrow's datasets, and each thread that decodes leaves an arena of memory behind
            with pq.ParquetFile(path, memory_map=True, read_dictionary=dictionaries) as file:
                schema = file.schema_arrow
                missing = {USER_KEY, ITEMS, EVENTS, TIMES} - set(schema.names)
                if missing:
                    raise DataError(f"user histories {path}: no column {', '.join(sorted(missing))}; write them with `towers export`")
                by_row = unnamed and ITEM_ROWS in schema.names and CATALOG in (schema.metadata or {})
                columns = [name for name in schema.names if name != (ITEMS if by_row else ITEM_ROWS)]
                groups = [file.read_row_group(number, columns, use_threads=False) for number in range(file.num_row_groups)]
                table = pa.concat_tables(groups or [schema.empty_table().select(columns)]).unify_dictionaries()
            opened = cls(table)
            opened.seal = seal  # taken before: what was replaced meanwhile is read anew next time
            opened._path = path
            return opened
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"user histories {path} cannot be read: {error}. Run `towers export` again, or set serving.history") from error

    def __len__(self) -> int:
        return len(self._keys_U16)

    def keys(self, start: int, stop: int) -> list[bytes]:
        """Keys of the users at places [start, stop), in the order of keys."""
        return [key.tobytes() for key in self._keys_U16[start:stop]]

    def left_of(self, user_key: bytes, forgotten: int) -> StoredUser | None:
        """What is left of a user who asked at a moment (microseconds UTC) to be forgotten: nothing of histories that were exported before,
        whatever time they say an event is of, for clocks may be ahead."""
        found = self.get(user_key) if self.made > forgotten else None
        return None if found is None else found.after(forgotten)

    def get(self, user_key: bytes) -> StoredUser | None:
        """The user with this 16-byte key, None where there is none."""
        if self._item_ids is None:  # nobody has named the items: their ids stand in the file
            self._read_ids()
        prefix = int.from_bytes(user_key[:8], "big")
        place = bisect_left(self._prefix_U, prefix)
        while place < len(self._prefix_U) and self._prefix_U[place] == prefix:
            if self._keys_U16[place].tobytes() == user_key:
                return self._at(place)
            place += 1
        return None

    def name(self, catalog: Vocabulary) -> None:
        """Give items that are known by their row in a catalogue their ids; where that was another catalogue, the file is read again.

        Raises:
            DataError: it cannot be, or a row is past the catalogue's end.
        """
        if self._item_ids is not None:
            return
        if self._catalog != digest_of(catalog.values()):
            self._read_ids()
            return
        if len(self._items.flat_N) and not 0 <= self._items.flat_N.min() <= self._items.flat_N.max() < len(catalog.values()):
            raise DataError(f"user histories {self._path}: {ITEM_ROWS} reach past the catalogue; write them anew with `towers export`")
        self._item_ids, self._taught = catalog.values(), True

    def _read_ids(self) -> None:
        vars(self).update(vars(UserHistories.open(self._path)))

    def teach(self, items: Vocabulary, events: Vocabulary, contexts: Mapping[str, Vocabulary] = _NOTHING) -> None:
        """Have vocabularies look up all items, event types and context of the histories now: see `Vocabulary.learn`.

        Where the first that comes knows all items, histories name them by its rows from then on and hold no ids of their own.
        """
        if self._item_ids is None:
            self._read_ids()
        if not self._taught:
            self._taught = True  # only once: others may be reading when the next one comes
            row_D = items.rows_of(self._item_ids) - FIRST_ROW
            if row_D.min(initial=0) >= 0:
                self._items, self._item_ids = _Lists(self._items.ends_U, row_D[self._items.flat_N]), items.values()
        items.learn(self._item_ids)
        events.learn(self._event_types)
        for name, vocabulary in contexts.items():
            if name in self._contexts:
                vocabulary.learn(self._contexts[name][1])

    def _at(self, row: int) -> StoredUser:
        items = cast(Sequence[str], Coded(self._items.at(row), self._item_ids))
        events: Sequence[str | None] = Coded(self._events.at(row), self._event_types) or [None] * len(items)
        times: list[int] = self._times.at(row).tolist() or [NO_TIME] * len(items)
        contexts: dict[str, Sequence[str | None]] = {
            name: Coded(lists.at(row), distinct) for name, (lists, distinct) in self._contexts.items()
        }
        return StoredUser(items, events, times, {name: self._columns[name][row].as_py() for name in self._features}, contexts)


@dataclass(frozen=True)
class _Lists:
    """A column of lists as plain arrays, to be read without an Arrow object for each: list u is flat_N[ends_U[u] : ends_U[u + 1]]."""

    ends_U: NDArray[np.int32]
    flat_N: NDArray[Any]

    def at(self, row: int) -> NDArray[Any]:
        return self.flat_N[self.ends_U[row] : self.ends_U[row + 1]]


def purged_of(path: Path | str) -> int:
    """Up to when (microseconds UTC) events were taken out of a file of histories; NO_TIME = none were, or it cannot be read."""
    try:
        return int((pq.read_schema(path).metadata or {}).get(PURGED, NO_TIME))
    except (OSError, pa.ArrowException):
        return NO_TIME


def seal_of(path: Path | str) -> tuple[int, ...] | None:
    """Another one after each writing of a file; None where there is none."""
    try:
        stat = Path(path).stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _coded(lists: pa.ListArray) -> tuple[_Lists, pa.StringArray]:
    """Lists of text as places among its distinct values; null is one of them."""
    values = lists.values
    if not pa.types.is_dictionary(values.type):
        values = values.cast(pa.string()).dictionary_encode()
    codes, distinct = values.indices, values.dictionary
    if codes.null_count:
        codes, distinct = codes.fill_null(len(distinct)), pa.concat_arrays([distinct, pa.nulls(1, pa.string())])
    small = np.int8 if len(distinct) < 128 else np.int32  # event types are few
    return _Lists(lists.offsets.to_numpy(), codes.to_numpy().astype(small, copy=False)), distinct


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    if not column.num_chunks:
        return pa.array([], column.type)
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _check_events(columns: Mapping[str, pa.Array]) -> None:
    """Item ids and event types are lists of text, times and rows lists of numbers; a user has as many of each, or no types or times."""
    for name in filter(of_events, columns):
        found = columns[name].type
        inner = found.value_type if pa.types.is_list(found) else found
        inner = inner.value_type if pa.types.is_dictionary(inner) else inner
        if not pa.types.is_list(found) or (inner != _NUMBERS.get(name, pa.string()) and inner != pa.null()):
            raise DataError(f"user histories: column {name} is {found}; write them with `towers export`")
        count_U = _lengths(columns[name])
        wrong = np.flatnonzero((count_U != _lengths(columns[ITEMS if ITEMS in columns else ITEM_ROWS])) & (count_U != 0))
        if len(wrong):
            raise DataError(f"user histories: row {wrong[0]} has {count_U[wrong[0]]} {name}; expected one for each of its item ids")


def _lengths(lists: pa.Array) -> NDArray[np.int64]:
    return np.asarray(pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False), np.int64)


def _key_bytes(keys: pa.Array) -> NDArray[np.uint8]:
    if keys.type != pa.binary(KEY_BYTES) or keys.null_count:
        raise DataError(f"user histories: column {USER_KEY} is {keys.type}, expected {KEY_BYTES} bytes in every row")
    data = keys.buffers()[1]
    flat = np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)
    return flat[keys.offset * KEY_BYTES : (keys.offset + len(keys)) * KEY_BYTES].reshape(-1, KEY_BYTES)
