"""Held-out queries of one model as a file: what serving jobs are judged by, and what `towers report` judges them with.

`run_dir/export/queries-<start of the weights' digest>.npy`: user vectors alone, which an index is tuned on. An export that publishes
nothing leaves those of the bundle that stays.

`run_dir/export/held_out.parquet`, written by `towers export` where `export.held_out_queries` asks for it; it holds histories of people by
key, so it lies beside the bundle and never in it. A row is a query; items that its person has seen are no answers.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from towers.columns import USER_KEY
from towers.errors import ConfigError, DataError
from towers.identity import KEY_BYTES
from towers.shards import Place, embedding_column, rename

HELD_OUT = "held_out.parquet"
QUERY_VECTORS = "queries*.npy"
"""Of any model; those of before their names told the weights are among them."""
COLUMNS = (USER_KEY, "vector", "now", "liked", "seen", "relevant")
_WEIGHTS, _HEADS, _LEARNED = b"towers.weights_sha256", b"towers.heads", b"towers.learned_splits"


@dataclass(frozen=True)
class HeldOut:
    """Queries of a split.

    Attributes:
        user_keys: 16 bytes of each query's person.
        vectors_QHD: what the user tower makes of it.
        now_Q: its moment, microseconds UTC; NO_TIME where there is none.
        liked: item ids of the history whose events speak for them, oldest first.
        seen: distinct item ids that may not be recommended.
        relevant: distinct item ids that answer it.
        learned: whether the model was trained on these answers (a refit), so that they cannot judge it.
    """

    user_keys: pa.Array
    vectors_QHD: NDArray[np.float32]
    now_Q: NDArray[np.int64]
    liked: pa.ListArray
    seen: pa.ListArray
    relevant: pa.ListArray
    learned: bool = False

    def __len__(self) -> int:
        return len(self.vectors_QHD)

    def table(self, split: str) -> pa.Table:
        """As the file holds them."""
        return pa.table(
            {
                "split": pa.array([split] * len(self), pa.string()),
                USER_KEY: self.user_keys,
                "vector": embedding_column(self.vectors_QHD.reshape(len(self), -1)),
                "now": pa.array(self.now_Q, pa.int64()),
                "liked": self.liked,
                "seen": self.seen,
                "relevant": self.relevant,
            }
        )

    @classmethod
    def read(cls, path: Path, split: str, weights_sha256: str) -> "HeldOut":
        """The queries of a split, checked to be of the model with these weights.

        Raises:
            DataError: there are none, or they are another model's.
        """
        again = "run `towers export export.held_out_queries=10000` with the settings that the run was trained with"
        if not path.is_file():
            raise DataError(f"{path}: no held-out queries; {again}")
        try:
            table = pq.read_table(path)
            told = table.schema.metadata or {}
            table = table.filter(pc.field("split") == split).combine_chunks()
            heads, learned = int(told[_HEADS]), told[_LEARNED].decode().split(",")
            columns = {name: table.column(name) for name in COLUMNS}
        except (pa.ArrowInvalid, KeyError) as error:
            raise DataError(f"{path}: not a file of held-out queries ({error}); {again}") from error
        if told[_WEIGHTS].decode() != weights_sha256:
            raise DataError(f"{path}: queries of another model than the bundle's; {again}, then `towers index`")
        if not len(table):
            raise DataError(f"{path}: no queries of split {split!r}; {again}")
        key, vector, now, liked, seen, relevant = (pa.concat_arrays(column.chunks) for column in columns.values())
        return cls(key, vector.flatten().to_numpy().reshape(len(table), heads, -1), now.to_numpy(), liked, seen, relevant, split in learned)

    def check_judges(self, split: str) -> None:
        """Raises:
        ConfigError: the model has learned the answers of this split, whose queries these are.
        """
        if self.learned:
            raise ConfigError(
                f"sweeping.split: the model has learned the answers of split {split!r} (trainer.refit, or the run it started from), so they"
                " cannot judge it. Run `towers recommend sweep=true sweeping.split=test`, or choose by a run with trainer.refit=false"
            )


def query_vectors_file(export_dir: Path, weights_sha256: str) -> Path:
    """Where the user vectors of the model with these weights lie, float32 [Q, D], on which its index is tuned."""
    return export_dir / f"queries-{weights_sha256[:16] or 'none'}.npy"


def write_query_vectors(export_dir: Path, vectors_QD: NDArray[np.float32], weights_sha256: str) -> None:
    """Write them, atomically, beside those of other weights."""
    path = query_vectors_file(export_dir, weights_sha256)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as sink:
        np.save(sink, vectors_QD, allow_pickle=False)
    temporary.replace(path)


def keep_query_vectors(export_dir: Path, weights_sha256: str) -> None:
    """Remove user vectors of other weights than these."""
    for path in export_dir.glob(QUERY_VECTORS):
        if path != query_vectors_file(export_dir, weights_sha256):
            path.unlink(missing_ok=True)


def write_held_out(path: Path, splits: dict[str, HeldOut], weights_sha256: str, place: Place = rename) -> None:
    """Write the queries of some splits, atomically; `place` as in `towers.shards`."""
    tables = [held.table(split) for split, held in splits.items()]
    heads = next(iter(splits.values())).vectors_QHD.shape[1]
    told = {_WEIGHTS: weights_sha256, _HEADS: str(heads), _LEARNED: ",".join(split for split, held in splits.items() if held.learned)}
    table = pa.concat_tables(tables).replace_schema_metadata({name: fact.encode() for name, fact in told.items()})
    temporary = path.with_suffix(".tmp")
    pq.write_table(table, temporary, compression="zstd")
    place(temporary, path)


def key_column(keys_U16: NDArray[np.uint8]) -> pa.Array:
    """User keys, uint8 [U, 16], as a column."""
    return pa.array([key.tobytes() for key in keys_U16], pa.binary(KEY_BYTES))
