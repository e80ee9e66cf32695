"""What is stored about users: their histories, found by user key. Raw user ids never get here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from towers.columns import NO_TIME, USER_KEY
from towers.errors import DataError
from towers.identity import KEY_BYTES, SECRET_FINGERPRINT

ITEMS, EVENTS, TIMES = "item_ids", "event_types", "timestamps"


@dataclass(frozen=True)
class StoredUser:
    """A known user.

    Attributes:
        items: item ids, oldest first.
        events: event type of each.
        timestamps: microseconds UTC of each, NO_TIME where unknown.
        features: value by user feature.
    """

    items: list[str]
    events: list[str | None]
    timestamps: list[int]
    features: Mapping[str, Any] = field(default_factory=dict)

    def before(self, moment: int) -> "StoredUser":
        """The same without the events at `moment` (microseconds UTC) or after it; those of unknown time stay."""
        kept = [place for place, time in enumerate(self.timestamps) if time < moment]
        if len(kept) == len(self.timestamps):
            return self
        return StoredUser([self.items[i] for i in kept], [self.events[i] for i in kept], [self.timestamps[i] for i in kept], self.features)


class UserHistories:
    """Histories of a Parquet file sorted by user key; ids are held once each, an event costs 16 bytes.

    Args:
        table: columns user_key, item_ids, event_types, timestamps and user features, sorted by user_key.

    Attributes:
        secret_fingerprint: of the secret that the keys were made with; None where the file does not say.

    Raises:
        DataError: the columns do not hold what their names say.
    """

    def __init__(self, table: pa.Table) -> None:
        self.secret_fingerprint: bytes | None = (table.schema.metadata or {}).get(SECRET_FINGERPRINT)
        self._columns = {name: _one_array(table.column(name)) for name in table.column_names}
        _check_events(self._columns)
        self._features = [name for name in table.column_names if name not in (USER_KEY, ITEMS, EVENTS, TIMES)]
        self._keys_U16 = _key_bytes(self._columns.pop(USER_KEY))
        # the first 8 bytes find the place by binary search, all 16 decide
        self._prefix_U = np.ascontiguousarray(self._keys_U16[:, :8]).view(">u8").ravel().astype(np.uint64)
        if np.any(self._prefix_U[1:] < self._prefix_U[:-1]):
            raise DataError(f"user histories are not sorted by {USER_KEY}; write them with `towers export`")

    @classmethod
    def open(cls, path: Path | str) -> "UserHistories":
        """Read the file that `towers export` wrote.

        Raises:
            DataError: the file is missing, damaged or of another layout.
        """
        dictionaries = [f"{name}.list.element" for name in (ITEMS, EVENTS)]
        try:
            table = pq.read_table(path, memory_map=True, read_dictionary=dictionaries).unify_dictionaries()
            missing = {USER_KEY, ITEMS, EVENTS, TIMES} - set(table.column_names)
            if missing:
                raise DataError(f"user histories {path}: no column {', '.join(sorted(missing))}; write them with `towers export`")
            return cls(table)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"user histories {path} cannot be read: {error}. Run `towers export` again, or set serving.history") from error

    def __len__(self) -> int:
        return len(self._keys_U16)

    def keys(self, start: int, stop: int) -> list[bytes]:
        """Keys of the users at places [start, stop), in the order of keys."""
        return [key.tobytes() for key in self._keys_U16[start:stop]]

    def get(self, user_key: bytes) -> StoredUser | None:
        """The user with this 16-byte key, None where there is none."""
        prefix = np.uint64(int.from_bytes(user_key[:8], "big"))
        place = int(np.searchsorted(self._prefix_U, prefix))
        while place < len(self._prefix_U) and self._prefix_U[place] == prefix:
            if self._keys_U16[place].tobytes() == user_key:
                return self._at(place)
            place += 1
        return None

    def _at(self, row: int) -> StoredUser:
        items, events, times = (_listed(self._columns[name], row) for name in (ITEMS, EVENTS, TIMES))
        return StoredUser(
            items=items,
            events=events or [None] * len(items),
            timestamps=[NO_TIME if time is None else time for time in times] or [NO_TIME] * len(items),
            features={name: self._columns[name][row].as_py() for name in self._features},
        )


def _listed(lists: pa.Array, row: int) -> list[Any]:
    """A row's entries. Through arrays: a scalar for each entry would cost ten times as much."""
    entries = lists[row].values
    if entries is None:
        return []
    if pa.types.is_dictionary(entries.type):
        entries = entries.dictionary_decode()
    found: list[Any] = entries.to_pylist()
    return found


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    if not column.num_chunks:
        return pa.array([], column.type)
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _check_events(columns: Mapping[str, pa.Array]) -> None:
    """Item ids and event types are lists of text, times lists of whole numbers; a user has as many of each, or no types or times."""
    for name in (ITEMS, EVENTS, TIMES):
        found = columns[name].type
        inner = found.value_type if pa.types.is_list(found) else found
        inner = inner.value_type if pa.types.is_dictionary(inner) else inner
        if not pa.types.is_list(found) or (inner != (pa.int64() if name == TIMES else pa.string()) and inner != pa.null()):
            raise DataError(f"user histories: column {name} is {found}; write them with `towers export`")
        count_U = _lengths(columns[name])
        wrong = np.flatnonzero((count_U != _lengths(columns[ITEMS])) & (count_U != 0))
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
