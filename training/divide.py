"""The split stage of prepare: codes for every row, block by block, and what each side holds.

Legend: N rows, U users, I items.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from towers.columns import SPLIT_NAMES, TEST, TRAIN
from towers.errors import DataError
from training import split
from training.data_config import SplitConfig
from training.npy_stream import BLOCK_ROWS, NpyReader, NpyWriter


@dataclass
class Division:
    """What each side holds.

    Attributes:
        rows, targets, users: by split code, [3]: rows, rows with weight above 0, users with such rows.
        train_items, test_items: targets by catalogue row, int64 [I].
        seen_items: training rows of any weight by catalogue row, int64 [I].
        train_users: whether a user has a training row, bool [U].
        cuts: the times of global_temporal, microseconds: first of valid, first of test.
        note: how validation rows were chosen, where that is not the split's name.
    """

    rows: NDArray[np.int64]
    targets: NDArray[np.int64]
    users: NDArray[np.int64]
    train_items: NDArray[np.int64]
    test_items: NDArray[np.int64]
    seen_items: NDArray[np.int64]
    train_users: NDArray[np.bool_]
    cuts: tuple[int, int] | None = None
    note: str = ""


class Divider:
    """Writes split.npy.

    Args:
        folder: prepared columns (`timestamp`, `weight`, `item`).
        work: provisional columns (`split` for `given`, `ingest` for splits that draw by row).
        config: the split.
        offsets: int64 [U+1].
        items: I.
    """

    def __init__(self, folder: Path, work: Path, config: SplitConfig, offsets: NDArray[np.int64], items: int) -> None:
        self._folder, self._work, self._config = folder, work, config
        self._offsets, self._items = offsets, items
        self._columns = {name: NpyReader(folder / f"{name}.npy") for name in ("timestamp", "weight", "item")}

    def run(self) -> Division:
        """Split, check, and count.

        Raises:
            DataError: a side is empty, or no test item was seen in training; names the knob.
        """
        users, items = len(self._offsets) - 1, self._items
        rows, targets, with_targets = np.zeros((3, 3), np.int64)
        train_items, test_items, seen_items = np.zeros((3, items), np.int64)
        self._done = Division(rows, targets, with_targets, train_items, test_items, seen_items, np.zeros(users, bool))
        self._plan()
        with NpyWriter(self._folder / "split.npy", np.uint8) as writer:
            for first, last in user_blocks(self._offsets):
                codes = self._codes(first, last)
                writer.append(codes)
                self._count(first, last, codes)
        self._check()
        return self._done

    def _plan(self) -> None:
        config, name = self._config, self._config.name
        if name == "global_temporal":
            timestamp = self._columns["timestamp"]
            self._done.cuts = split.temporal_cuts(timestamp.blocks, timestamp.rows, config.valid_share, config.test_share)
        elif name == "item_cold":
            seen_I = np.zeros(self._items, bool)
            for block in self._columns["item"].blocks():
                seen_I[block] = True
            self._code_of_item = np.full(self._items, TRAIN, np.uint8)
            self._code_of_item[seen_I] = split.cold_items(int(seen_I.sum()), config.valid_share, config.test_share, config.seed)
        elif name == "given":
            given = NpyReader(self._work / "split.npy")
            self._carve = not any((block == SPLIT_NAMES.index("valid")).any() for block in given.blocks())
            if self._carve:
                self._done.note = f"no validation rows were given: {config.valid_share:.0%} of each user's training rows, drawn by seed"

    def _codes(self, first: int, last: int) -> split.Codes:
        start, stop = int(self._offsets[first]), int(self._offsets[last])
        offsets = self._offsets[first : last + 1] - start
        if self._config.name == "global_temporal" and self._done.cuts:
            return split.global_temporal(self._columns["timestamp"].read(start, stop), self._done.cuts)
        if self._config.name == "item_cold":
            cold: split.Codes = self._code_of_item[self._columns["item"].read(start, stop)]
            return split.warm_too(offsets, self._columns["weight"].read(start, stop), cold) if self._config.warm_too else cold
        if self._config.name == "leave_one_out":
            return split.leave_one_out(offsets, self._columns["weight"].read(start, stop))
        if self._config.name in ("random", "user_cold"):
            ingest, shares = NpyReader(self._work / "ingest.npy").read(start, stop), (self._config.valid_share, self._config.test_share)
            if self._config.name == "random":
                return split.random_rows(split.draws(ingest, self._config.seed), *shares)
            return split.cold_users(offsets, ingest, *shares, self._config.seed)
        given = NpyReader(self._work / "split.npy").read(start, stop)
        if not self._carve:
            return given
        drawn = split.draws(NpyReader(self._work / "ingest.npy").read(start, stop), self._config.seed)
        return split.share_of_each_user(offsets, given, drawn, self._config.valid_share)

    def _count(self, first: int, last: int, codes: split.Codes) -> None:
        start, stop = int(self._offsets[first]), int(self._offsets[last])
        begins = self._offsets[first:last] - start
        item, target = self._columns["item"].read(start, stop), self._columns["weight"].read(start, stop) > 0
        done = self._done
        done.rows += np.bincount(codes, minlength=3)
        done.targets += np.bincount(codes[target], minlength=3)
        done.users += [int(np.logical_or.reduceat(target & (codes == code), begins).sum()) for code in range(3)]
        done.train_items += np.bincount(item[target & (codes == TRAIN)], minlength=self._items)
        done.test_items += np.bincount(item[target & (codes == TEST)], minlength=self._items)
        done.seen_items += np.bincount(item[codes == TRAIN], minlength=self._items)
        done.train_users[first:last] = np.logical_or.reduceat(codes == TRAIN, begins)

    def _check(self) -> None:
        name, targets = self._config.name, self._done.targets
        found = ", ".join(f"{side} {count:,}" for side, count in zip(SPLIT_NAMES, targets.tolist(), strict=True))
        if (targets == 0).any():
            raise DataError(f"split {name}: a side has no positive interaction ({found}). {_ADVICE[name]}")
        unseen = not (self._done.test_items[self._done.seen_items > 0]).any()
        if unseen and name != "item_cold":
            raise DataError(
                f"split {name}: none of the {targets[TEST]:,} test interactions is of an item seen in training. Check item ids on both"
                " sides, give training more of the log (split.test_share), or measure new items on purpose with split=item_cold"
            )


_ADVICE = {
    "global_temporal": ("Raise split.valid_share or split.test_share; where most rows share a few times, use split=leave_one_out."),
    "leave_one_out": f"It needs users with at least {split.LEAST_EVENTS} positive interactions; use split=global_temporal for short logs.",
    "given": "Mark rows 'train' and 'test' (and 'valid') in the split column; with few rows a user, raise split.valid_share.",
    "random": "With few rows, raise split.valid_share and split.test_share.",
    "user_cold": "With few users, raise split.valid_share and split.test_share.",
    "item_cold": "With few items, raise split.valid_share and split.test_share.",
}


def user_blocks(offsets: NDArray[np.int64], rows: int = BLOCK_ROWS) -> Iterator[tuple[int, int]]:
    """Ranges of users whose rows number about `rows`; a user is never divided."""
    first, users = 0, len(offsets) - 1
    while first < users:
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + rows, side="right")) - 1)
        yield first, min(last, users)
        first = last
