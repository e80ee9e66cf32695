"""Rejected rows: counted by reason, shown as examples, kept in a Parquet file."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from towers.columns import MAX_ID_BYTES, USER_ID, USER_KEY
from towers.errors import DataError

EXPECTED = {
    "malformed_line": "as many fields as the header has",
    "missing_user_id": "a user id in every row",
    "missing_item_id": "an item id in every row",
    "id_too_long": f"at most {MAX_ID_BYTES} bytes of UTF-8",
    "bad_timestamp": "seconds, milliseconds or microseconds of one unit in the whole log, ISO 8601 text or dates, from 1980 to 2100",
    "future_timestamp": "times up to now",
    "not_finite_value": "finite numbers, at most 3.4e38 in size",
    "negative_weight": "weights of 0 or more",
    "unknown_split": "train, valid or test",
    "bad_vector": "vectors of as many numbers as declared",
}
"""What a row of each reason should have held."""

EXAMPLES = 3
_SHOWN = 60

KeyColumn = Callable[[pa.ChunkedArray], pa.Array]


class RejectLog:
    """Writes rejected rows as they come; `rejected.parquet` exists from the first chunk on, also without rows.

    Args:
        path: the Parquet file.
        keys: turns raw user ids into user keys, which stand in the file instead; None keeps the raw ids (identity.keep_raw_ids).
    """

    def __init__(self, path: Path, keys: KeyColumn | None) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self._path, self._keys = path, keys
        self._writer: pq.ParquetWriter | None = None

    def start(self, chunk: pa.Table) -> None:
        """Take the columns from the first chunk."""
        fields = chunk.schema.append(pa.field("row", pa.int64())).append(pa.field("reason", pa.string()))
        self._writer = pq.ParquetWriter(self._path, self._hide_users(fields.empty_table()).schema)

    def add(self, rejected: pa.Table) -> None:
        """Count and keep rows that carry `row` and `reason`."""
        if self._writer is None:
            raise ValueError("RejectLog.start comes first")
        self.counts.update(rejected.column("reason").to_pylist())
        kept = self._hide_users(rejected)
        for reason in set(rejected.column("reason").to_pylist()):
            shown = self.examples.setdefault(reason, [])
            if len(shown) < EXAMPLES:
                mask = pa.compute.equal(kept.column("reason"), reason)
                shown += [_example(row) for row in kept.filter(mask).slice(0, EXAMPLES - len(shown)).to_pylist()]
        try:
            self._writer.write_table(kept.cast(self._writer.schema))
        except (pa.ArrowInvalid, ValueError) as error:
            raise DataError(f"interactions: a column changes its type on the way ({error}). Give the log one type a column") from error

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def check_share(self, rows: int, most: float) -> None:
        """Stop where too much was rejected.

        Raises:
            DataError: counts by reason, examples, and the knob.
        """
        total = self.counts.total()
        if rows == 0 or total / rows <= most:
            return
        lines = [
            f"  {reason}: {count:,}, as {'; '.join(self.examples[reason])}; expected {EXPECTED[reason]}"
            for reason, count in self.counts.most_common()
        ]
        raise DataError(
            f"interactions: {total:,} of {rows:,} rows ({total / rows:.1%}) cannot be used, at most {most:.1%} may be:\n"
            + "\n".join(lines)
            + "\nMend the log, check data.columns and data.timestamp_unit, or allow more with data.max_rejected_share"
        )

    def _hide_users(self, rows: pa.Table) -> pa.Table:
        if self._keys is None:
            return rows
        place = rows.column_names.index(USER_ID)
        return rows.set_column(place, USER_KEY, self._keys(rows.column(USER_ID)))


def _example(row: dict[str, Any]) -> str:
    shown = {name: value for name, value in row.items() if name not in ("row", "reason", USER_KEY, USER_ID) and value is not None}
    text = ", ".join(f"{name.removeprefix('_bad_')}={_short(value)}" for name, value in list(shown.items())[:5])
    return f"row {row['row']:,} ({text})"


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
