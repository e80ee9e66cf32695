"""Second pass: each bucket of users sorted, deduplicated, filtered, and appended to the columns of prepared data.

Legend: U users, N rows kept, I items of the catalogue, n records of a bucket.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from towers.columns import REMOVAL
from training.ingest import Ingested
from training.npy_stream import NpyWriter
from training.removals import taken_out
from training.spill import Records, join_keys, sort_bucket, user_starts


@dataclass
class Kept:
    """What the filters left.

    Attributes:
        offsets: int64 [U+1].
        rows, users: N and U.
        users_read: users with any accepted row.
        rows_filtered: rows of users or items below the least number of events.
        rows_weighed, targets: of N, rows whose own weight is above 0, and those of them whose event type's is too.
        overweight: rows whose own weight times their event type's is more than float32 holds.
    """

    offsets: NDArray[np.int64]
    rows: int
    users: int
    users_read: int
    rows_filtered: int
    rows_weighed: int
    targets: int
    overweight: int


def sort_buckets(log: Ingested, order: str, deduplicate: bool) -> Iterator[tuple[NDArray[np.int64], int, int]]:
    """Sort and deduplicate every bucket in place, and leave out what users took out of their histories.

    Yields:
        for each bucket: rows by item code (int64 [codes]), duplicates dropped, rows taken out.
    """
    removal = log.events.texts.index(REMOVAL) if REMOVAL in log.events.texts else -1
    for bucket in log.spill.buckets():
        records_n, duplicates = sort_bucket(log.spill.read(bucket), order, deduplicate)
        gone_n = taken_out(records_n, removal)
        log.spill.replace(bucket, records_n[~gone_n] if gone_n.any() else records_n)
        yield np.bincount(records_n["item"][~gone_n], minlength=len(log.items)), duplicates, int(np.count_nonzero(gone_n))


class Assembler:
    """Appends sorted buckets to the final columns, and to provisional ones under `work` that are encoded later.

    Args:
        log: after `sort_buckets`.
        folder: of the final columns.
        work: of provisional ones: `event` (codes), `context.<name>` (spilled form), and where they are asked for `split` and `ingest`.
        split_needs: those of `split` and `ingest` that the split reads.
    """

    def __init__(self, log: Ingested, folder: Path, work: Path, split_needs: Sequence[str] = ()) -> None:
        self._log, self._folder, self._work, self._split_needs = log, folder, work, split_needs

    def run(self, row_of_item: NDArray[np.int32], weight_of_event: NDArray[np.float32], min_user_events: int) -> Iterator[int]:
        """Write all buckets; yields the rows done after each.

        Args:
            row_of_item: catalogue row by item code, -1 = left out.
            weight_of_event: training weight by event code.
            min_user_events: users with fewer accepted rows are left out; items' filter does not change their count.
        """
        self._counts: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
        self._read, self._rows, self._seen, self._weighed, self._targets, self._over = 0, 0, 0, 0, 0, 0
        with ExitStack() as stack:
            writers = {name: stack.enter_context(writer) for name, writer in self._open().items()}
            for bucket in self._log.spill.buckets():
                records_n = self._log.spill.read(bucket)
                self._read += len(records_n)
                kept_n = self._keep(records_n, row_of_item, min_user_events)
                self._write(writers, kept_n, row_of_item, weight_of_event)
                self._log.spill.drop(bucket)
                yield self._read

    def finish(self) -> Kept:
        """Write the offsets; what was kept."""
        counts_U = np.concatenate(self._counts)
        offsets = np.concatenate([[0], np.cumsum(counts_U)]).astype(np.int64)
        np.save(self._folder / "offsets.npy", offsets)
        return Kept(offsets, self._rows, len(counts_U), self._seen, self._read - self._rows, self._weighed, self._targets, self._over)

    def _open(self) -> dict[str, NpyWriter]:
        writers = {
            "user_keys": NpyWriter(self._folder / "user_keys.npy", np.uint8, (16,)),
            "item": NpyWriter(self._folder / "item.npy", np.int32),
            "timestamp": NpyWriter(self._folder / "timestamp.npy", np.int64),
            "weight": NpyWriter(self._folder / "weight.npy", np.float32),
            "event": NpyWriter(self._work / "event.npy", np.int32),
        }
        for name in self._split_needs:
            writers[name] = NpyWriter(self._work / f"{name}.npy", np.uint8 if name == "split" else np.int64)
        for column in self._log.context:
            name = column.feature.input_name
            writers[name] = NpyWriter(self._work / f"{name}.npy", column.dtype, column.tail)
        return writers

    def _keep(self, records_n: Records, row_of_item: NDArray[np.int32], min_user_events: int) -> Records:
        starts = user_starts(records_n)
        counts = np.diff(starts)
        self._seen += len(counts)
        keep_n = np.repeat(counts >= min_user_events, counts) & (row_of_item[records_n["item"]] >= 0)
        return records_n if keep_n.all() else records_n[keep_n]

    def _write(
        self, writers: dict[str, NpyWriter], kept_n: Records, row_of_item: NDArray[np.int32], weight_of_event: NDArray[np.float32]
    ) -> None:
        if not len(kept_n):
            return
        starts = user_starts(kept_n)
        first = starts[:-1]
        self._counts.append(np.diff(starts))
        with np.errstate(over="ignore"):  # counted, for the whole log to be told of
            weight_n = kept_n["weight"] * weight_of_event[kept_n["event"]]
        self._rows += len(kept_n)
        self._weighed += int(np.count_nonzero(kept_n["weight"]))
        self._targets += int(np.count_nonzero(weight_n))
        self._over += int(np.count_nonzero(np.isinf(weight_n)))
        made = {
            "user_keys": join_keys(kept_n["key_hi"][first], kept_n["key_lo"][first]),
            "item": row_of_item[kept_n["item"]],
            "weight": weight_n,
        }
        for name, writer in writers.items():
            writer.append(made[name] if name in made else kept_n[name])
