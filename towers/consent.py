"""Who allows what: purposes, and the table of users' decisions that prepare, export, recommend and the service ask.

Where a table is configured, what nobody granted is denied; where none is, everything is allowed. A decision says for what a person's rows
may be used from now on; it deletes nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from towers.columns import NO_TIME, TIMESTAMP, USER_ID, USER_KEY
from towers.errors import DataError
from towers.identity import KEY_BYTES, UserKeys

PERSONALIZE: Final = "personalize"
"""Stored rows of a person shape the lists that this person gets."""
TRAIN: Final = "train"
"""They are learned from, and what was learned is measured on them."""
MARKETING: Final = "marketing"
"""They leave the service for messages that the person did not ask for."""
MEASURE: Final = "measure"
"""They are looked at to judge the service: the person's key in the log of lists, audit columns, histories shown beside a model."""
PURPOSES: Final = (PERSONALIZE, TRAIN, MARKETING, MEASURE)
BITS: Final = {purpose: 1 << place for place, purpose in enumerate(PURPOSES)}
"""Of a mask of allowed purposes, as it stands in logs."""
EVERYTHING: Final = (1 << len(PURPOSES)) - 1

PURPOSE, GRANTED = "purpose", "granted"
_COLUMNS = (PURPOSE, GRANTED, TIMESTAMP)
_AS_WRITTEN = pyarrow.csv.ConvertOptions(column_types={name: pa.string() for name in (USER_ID, USER_KEY)})
"""Ids are text, as logs have them: 007 is not 7."""


def named_table(setting: str, value: str) -> Path:
    """The file of decisions that a setting names; raises DataError where there is none."""
    path = Path(value).expanduser()
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise DataError(
            f"{setting}: got {value!r}, {found}. Expected a Parquet or .csv file with a row a decision: {USER_ID} (or {USER_KEY}),"
            f" {', '.join(_COLUMNS[:-1])} and {_COLUMNS[-1]}"
        )
    return path


class Consent:
    """Decisions of many users, as of one moment.

    Args:
        keys_U: uint8 [U, 16], ascending, each once.
        masks_U: uint8 [U]; bits of the purposes that each user allows.
        times_UP: int64 [U, purposes], microseconds UTC of each decision, NO_TIME where there is none.
        future: rows that are not yet in force.
        due: microseconds UTC when the first of them will be; None where there is none.
    """

    def __init__(
        self,
        keys_U: NDArray[np.uint8],
        masks_U: NDArray[np.uint8],
        times_UP: NDArray[np.int64],
        future: int = 0,
        due: int | None = None,
    ) -> None:
        self._keys_U = _sortable(keys_U)
        self._masks_U, self._times_UP = masks_U, times_UP
        self.future, self.due = future, due

    @classmethod
    def open(cls, path: Path | str, keys: UserKeys, now: int) -> "Consent":
        """Read a table: `user_id` or `user_key` (16 bytes, or 32 hex digits), `purpose`, `granted`, `timestamp`; Parquet, or CSV.

        Rows may stand in any order. Of the rows of one user and purpose the latest counts, of those of one moment the last in the file.
        Rows after `now` are counted and not yet in force.

        Args:
            now: microseconds UTC.

        Raises:
            DataError: the file cannot be read, a column is missing or of another type, or a purpose is unknown; names it.
        """
        path = Path(path)
        table = _read(path)
        keys_n = _keys(path, table, keys)
        purpose_n = _purposes(path, table.column(PURPOSE))
        granted_n, time_n = _granted(path, table.column(GRANTED)), _times(path, table.column(TIMESTAMP))
        in_force = time_n <= now
        later = time_n[~in_force]
        due = int(later.min()) if len(later) else None
        return cls._decided(keys_n[in_force], purpose_n[in_force], granted_n[in_force], time_n[in_force], len(later), due)

    @classmethod
    def _decided(
        cls,
        keys_n: NDArray[np.uint8],
        purpose_n: NDArray[np.int64],
        granted_n: NDArray[np.bool_],
        time_n: NDArray[np.int64],
        future: int,
        due: int | None,
    ) -> "Consent":
        order = np.argsort(time_n, kind="stable")
        unique_U, user_n = np.unique(_sortable(keys_n)[order], return_inverse=True)
        granted_UP = np.zeros((len(unique_U), len(PURPOSES)), bool)
        times_UP = np.full(granted_UP.shape, NO_TIME, np.int64)
        # where a place is assigned several times, the last counts
        granted_UP[user_n, purpose_n[order]] = granted_n[order]
        times_UP[user_n, purpose_n[order]] = time_n[order]
        masks_U = (granted_UP @ np.array(list(BITS.values()))).astype(np.uint8)
        return cls(unique_U.view(np.uint8).reshape(-1, KEY_BYTES), masks_U, times_UP, future, due)

    def to_bytes(self) -> bytes:
        """As `from_bytes` reads it in another process of this machine."""
        facts = np.array([len(self), self.future, NO_TIME if self.due is None else self.due], np.int64)
        return b"".join(array.tobytes() for array in (facts, self._keys_U, self._masks_U, self._times_UP))

    @classmethod
    def from_bytes(cls, content: bytes) -> "Consent":
        """What `to_bytes` wrote."""
        count, future, due = np.frombuffer(content, np.int64, 3).tolist()
        sizes = np.cumsum([24, count * KEY_BYTES, count]).tolist()
        keys, masks, times = (content[start:stop] for start, stop in zip(sizes, [*sizes[1:], None], strict=True))
        return cls(
            np.frombuffer(keys, np.uint8).reshape(-1, KEY_BYTES),
            np.frombuffer(masks, np.uint8),
            np.frombuffer(times, np.int64).reshape(-1, len(PURPOSES)),
            future,
            None if due == NO_TIME else due,
        )

    def __len__(self) -> int:
        return len(self._masks_U)

    def mask(self, user_key: bytes) -> int:
        """What a user allows; nothing where the table does not know them."""
        place = self._place(user_key)
        return 0 if place is None else int(self._masks_U[place])

    def times(self, user_key: bytes) -> list[int]:
        """When a user decided on each purpose, microseconds UTC; NO_TIME where they did not."""
        place = self._place(user_key)
        found: list[int] = [NO_TIME] * len(PURPOSES) if place is None else self._times_UP[place].tolist()
        return found

    def allowed(self, keys_n: NDArray[np.uint8], purpose: str) -> NDArray[np.bool_]:
        """Whether each of many users (keys uint8 [n, 16]) allows a purpose: bool [n]."""
        asked_n = _sortable(keys_n)
        if not len(self):
            return np.zeros(len(asked_n), bool)
        place_n = np.minimum(np.searchsorted(self._keys_U, asked_n), len(self) - 1)
        allowed_n: NDArray[np.bool_] = (self._keys_U[place_n] == asked_n) & (self._masks_U[place_n] & BITS[purpose] > 0)
        return allowed_n

    def _place(self, user_key: bytes) -> int | None:
        asked_1 = _sortable(np.frombuffer(user_key, np.uint8))
        place = int(np.searchsorted(self._keys_U, asked_1)[0])
        # as arrays: an element of its own has lost the zeros that its key may end in
        return place if place < len(self) and self._keys_U[place : place + 1] == asked_1 else None


def purposes_of(mask: int) -> dict[str, bool]:
    """A mask in words."""
    return {purpose: bool(mask & bit) for purpose, bit in BITS.items()}


def _sortable(keys_n: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    return np.ascontiguousarray(keys_n, np.uint8).reshape(-1, KEY_BYTES).view(f"S{KEY_BYTES}").reshape(-1)


def _read(path: Path) -> pa.Table:
    try:
        table = pyarrow.csv.read_csv(path, convert_options=_AS_WRITTEN) if path.suffix == ".csv" else pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"consent table {path} cannot be read: {error}. Expected Parquet or .csv") from error
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if not {USER_ID, USER_KEY} & set(table.column_names):
        missing.insert(0, f"{USER_ID} or {USER_KEY}")
    if missing:
        raise DataError(f"consent table {path}: no column {', '.join(missing)}; found are {', '.join(table.column_names)}")
    for name in (*_COLUMNS, USER_KEY if USER_KEY in table.column_names else USER_ID):
        if table.column(name).null_count:
            raise DataError(f"consent table {path}: {table.column(name).null_count} rows without {name}; every row needs one")
    return table


def _keys(path: Path, table: pa.Table, keys: UserKeys) -> NDArray[np.uint8]:
    if USER_KEY not in table.column_names:
        return keys.keys(table.column(USER_ID).cast(pa.string()).to_pylist())
    try:
        found = [key if isinstance(key, bytes) else bytes.fromhex(key) for key in table.column(USER_KEY).to_pylist()]
    except (TypeError, ValueError):
        found = [b""]
    if any(len(key) != KEY_BYTES for key in found):
        raise DataError(f"consent table {path}: column {USER_KEY} holds other than {KEY_BYTES} bytes or {2 * KEY_BYTES} hex digits a row")
    return np.frombuffer(b"".join(found), np.uint8).reshape(-1, KEY_BYTES)


def _purposes(path: Path, column: pa.ChunkedArray) -> NDArray[np.int64]:
    names: Sequence[Any] = column.unique().to_pylist()
    unknown = sorted({str(name) for name in names} - set(PURPOSES))
    if unknown:
        raise DataError(f"consent table {path}: unknown purpose {unknown[0]!r}; expected one of {', '.join(PURPOSES)}")
    place = {name: PURPOSES.index(name) for name in names}
    return np.array([place[name] for name in column.to_pylist()], np.int64)


def _granted(path: Path, column: pa.ChunkedArray) -> NDArray[np.bool_]:
    values = set(column.unique().to_pylist())
    if not values <= {True, False}:  # 1 and 0 are equal to them
        raise DataError(f"consent table {path}: column {GRANTED} holds {sorted(map(str, values))[:3]}; expected true and false")
    return np.array(column.to_pylist(), bool)


def _times(path: Path, column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Microseconds UTC, of times (without a zone: UTC) or Unix seconds."""
    if not len(column):
        return np.empty(0, np.int64)  # of a .csv without rows nothing tells the type: nobody has granted anything
    if pa.types.is_timestamp(column.type):
        return np.asarray(column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64()).to_numpy(), np.int64)
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        seconds: NDArray[np.float64] = column.cast(pa.float64()).to_numpy()
        return np.round(seconds * 1e6).astype(np.int64)
    raise DataError(f"consent table {path}: column {TIMESTAMP} is {column.type}; expected times or Unix seconds")
