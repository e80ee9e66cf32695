"""Prepared data as training reads it: user-sorted, memory-mapped columns, opened read-only.

Legend: U users, N interactions, I items of the catalogue. Rows offsets[u] .. offsets[u+1] are the interactions of user u,
ordered by (timestamp, ingest order). An example is a pair (user row, position); nothing here holds raw user ids.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from towers.columns import NO_TIME, TRAIN
from towers.errors import DataError
from towers.prepared import COLUMNS, FEATURE_FOLDERS, ROW_COLUMNS
from towers.preprocess import Preprocessor
from towers.schema import Schema
from training.shuffle import release

Array = NDArray[Any]

BLOCK_ROWS = 1 << 20
"""Rows looked at in one go, so that work on a log larger than memory stays bounded."""


@dataclass(frozen=True)
class Interactions:
    """A prepared dataset. `open` maps one from disk; the constructor takes arrays, and `write_prepared` saves them.

    Attributes:
        schema: declared features.
        preprocessor: fitted on training rows.
        offsets: int64 [U+1]; where each user's rows start.
        user_keys: uint8 [U, 16], ascending.
        item: int32 [N], catalogue rows.
        timestamp: int64 [N], UTC microseconds, columns.NO_TIME where unknown.
        event: int32 [N], rows of the event_type vocabulary.
        weight: float32 [N], event weight x row weight; 0 = never a target.
        split: uint8 [N]: 0 train, 1 valid, 2 test.
        context: encoded context features by input name (`context.hour`), [N, ...].
        user_features: encoded user features by input name, [U, ...].
        item_features: encoded item features by input name, [I, ...]; always holds `item.item_id` (int32 [I], id rows).
        catalog: pa.Table in catalogue row order = ascending item_id; train_count says how often each was seen in training.
        facts: the content of prepare.json.
    """

    schema: Schema
    preprocessor: Preprocessor
    offsets: NDArray[np.int64]
    user_keys: NDArray[np.uint8]
    item: NDArray[np.int32]
    timestamp: NDArray[np.int64]
    event: NDArray[np.int32]
    weight: NDArray[np.float32]
    split: NDArray[np.uint8]
    context: Mapping[str, Array]
    user_features: Mapping[str, Array]
    item_features: Mapping[str, Array]
    catalog: pa.Table
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map the folder that prepare wrote.

        Raises:
            DataError: the folder is absent, incomplete, or its columns disagree in length.
        """
        folder = Path(folder)
        if not (folder / "prepare.json").is_file():
            raise DataError(f"{folder}: no prepared data (prepare.json is missing). Run `towers prepare` with the same run_dir")
        try:
            schema = Schema.from_json(json.loads((folder / "schema.json").read_text()))
            opened = cls(
                schema=schema,
                preprocessor=Preprocessor.open(folder),
                **{name: _map(folder / f"{name}.npy") for name in COLUMNS},
                context=_features(folder, "context", schema),
                user_features=_features(folder, "users", schema),
                item_features=_features(folder, "items", schema),
                catalog=pq.read_table(folder / "catalog.parquet", memory_map=True),
                facts=json.loads((folder / "prepare.json").read_text()),
            )
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{folder}: the prepared data is damaged ({error}). Run `towers prepare` again") from error
        opened.check()
        return opened

    @property
    def n_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_items(self) -> int:
        return len(self.catalog)

    def __len__(self) -> int:
        return len(self.item)

    def train_counts(self) -> NDArray[np.int64]:
        """int64 [I]: how often each catalogue row is a training target (weight above 0)."""
        counts = np.zeros(self.n_items, np.int64)
        for start in range(0, len(self), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            target = (self.split[rows] == TRAIN) & (self.weight[rows] > 0)
            counts += np.bincount(self.item[rows][target], minlength=self.n_items)
        return counts

    def users_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The user row of each position [P] -> int64 [P]."""
        found: NDArray[np.int64] = np.searchsorted(self.offsets, positions, side="right").astype(np.int64) - 1
        return found

    def newest(self) -> int:
        """The greatest timestamp in microseconds, NO_TIME without rows; the column is read in blocks and given back."""
        found = NO_TIME
        for start in range(0, len(self), BLOCK_ROWS):
            found = max(found, int(self.timestamp[start : start + BLOCK_ROWS].max()))
            release((self.timestamp,))
        return found

    def release(self) -> None:
        """Give the resident pages of the mapped columns back: a process that wanders through a large log would end with all of it in its
        resident set, since the kernel maps the neighbours of each page that is touched."""
        release((self.item, self.timestamp, self.event, self.weight, self.split, *self.context.values(), *self.user_features.values()))

    def check(self) -> None:
        """Lengths agree and every row points inside.

        Raises:
            DataError: names the column at fault.
        """
        rows, users, items = len(self.item), self.n_users, self.n_items
        expected: dict[str, tuple[Array, int]] = {name: (getattr(self, name), rows) for name in ROW_COLUMNS}
        expected |= {"user_keys": (self.user_keys, users)}
        expected |= {name: (array, rows) for name, array in self.context.items()}
        expected |= {name: (array, users) for name, array in self.user_features.items()}
        expected |= {name: (array, items) for name, array in self.item_features.items()}
        for name, (array, length) in expected.items():
            if len(array) != length:
                raise DataError(f"prepared column {name}: {len(array)} rows, expected {length}. Run `towers prepare` again")
        if self.offsets[0] != 0 or self.offsets[-1] != rows:
            raise DataError(f"prepared column offsets: ends at {self.offsets[-1]}, expected {rows}. Run `towers prepare` again")


def write_prepared(folder: Path, data: Interactions) -> Path:
    """Save arrays as a prepared folder that `Interactions.open` reads; for small data and fixtures (prepare streams instead)."""
    data.check()
    for name in FEATURE_FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in COLUMNS:
        np.save(folder / f"{name}.npy", getattr(data, name))
    for kind, arrays in (("context", data.context), ("users", data.user_features), ("items", data.item_features)):
        for name, array in arrays.items():
            np.save(folder / kind / feature_file(name), array)
    pq.write_table(data.catalog, folder / "catalog.parquet")
    data.preprocessor.save(folder)
    (folder / "prepare.json").write_text(json.dumps(dict(data.facts), indent=2))
    return folder


def feature_file(input_name: str) -> str:
    """`item.categories` -> `categories.npy`: the folder says whose it is."""
    return input_name.partition(".")[2] + ".npy"


def _features(folder: Path, kind: str, schema: Schema) -> dict[str, Array]:
    declared = schema.owned_by(FEATURE_FOLDERS[kind])
    return {f.input_name: _map(folder / kind / feature_file(f.input_name)) for f in declared}


def _map(path: Path) -> Array:
    mapped: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped
