from pathlib import Path

import numpy as np
import pytest

from towers.columns import NO_TIME
from training.npy_stream import NpyReader, NpyWriter
from training.spill import Spill, join_keys, sort_bucket, split_keys, user_starts

DTYPE = np.dtype(
    [("key_hi", "<u8"), ("key_lo", "<u8"), ("ingest", "<i8"), ("timestamp", "<i8"), ("item", "<i4"), ("event", "<i4"), ("event_id", "<i8")]
)


def records(rows: int, seed: int, times: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    made = np.zeros(rows, DTYPE)
    made["key_hi"], made["key_lo"] = rng.integers(0, 3, rows) << 56, rng.integers(0, 3, rows)
    made["ingest"] = np.arange(rows)
    made["timestamp"], made["item"], made["event"] = rng.integers(0, times, rows), rng.integers(0, 4, rows), rng.integers(0, 2, rows)
    return made


def reference(made: np.ndarray, order: str) -> list[int]:
    """Ingest numbers that remain, in order: rows taken one at a time, remembering what was seen."""
    key = ("key_hi", "key_lo")
    left, seen = [], set()
    for row in sorted(made, key=lambda r: (*(r[k] for k in key), r["timestamp"], r["ingest"])):
        user = tuple(int(row[k]) for k in key)
        place = int(row["ingest"]) if row["timestamp"] == NO_TIME and order != "set" else -1
        same = (user, int(row["timestamp"]), place, int(row["item"]), int(row["event"]))
        name = (user, int(row["event_id"]))
        repeated = same in seen or (name in seen and row["event_id"] != 0)
        seen |= {same, name}
        if not repeated:
            left.append(row)
    if order != "time":
        left.sort(key=lambda r: (*(r[k] for k in key), r["ingest"]))
    return [int(row["ingest"]) for row in left]


@pytest.mark.parametrize("order", ["time", "position", "set"])
@pytest.mark.parametrize("seed", range(3))
def test_sorting_and_deduplication_equal_a_slow_loop(order: str, seed: int) -> None:
    made = records(400, seed)
    if seed == 1:
        made["timestamp"] = NO_TIME
    if seed == 2:
        made["event_id"] = np.random.default_rng(9).integers(0, 200, len(made))
    done, dropped = sort_bucket(made, order, deduplicate=True)
    assert done["ingest"].tolist() == reference(made, order)
    assert dropped == len(made) - len(done)


def test_without_deduplication_every_row_stays() -> None:
    done, dropped = sort_bucket(records(400, 0), "time", deduplicate=False)
    assert (len(done), dropped) == (400, 0)


def test_buckets_read_in_order_hold_users_in_key_order(tmp_path: Path) -> None:
    keys = np.random.default_rng(0).integers(0, 256, (500, 16)).astype(np.uint8)
    halves = split_keys(keys)
    assert np.array_equal(join_keys(halves[:, 0], halves[:, 1]), keys)
    spill = Spill(tmp_path, DTYPE)
    made = records(500, 0)
    made["key_hi"], made["key_lo"] = halves[:, 0], halves[:, 1]
    spill.append(made[:200])
    spill.append(made[200:])
    found = np.concatenate([sort_bucket(spill.read(bucket), "time", False)[0] for bucket in spill.buckets()])
    assert [k.tobytes() for k in join_keys(found["key_hi"], found["key_lo"])] == sorted(k.tobytes() for k in keys)


def test_user_starts_divide_at_every_change_of_either_half() -> None:
    made = np.zeros(5, DTYPE)
    made["key_hi"], made["key_lo"] = [1, 1, 1, 2, 2], [1, 1, 2, 2, 2]
    assert user_starts(made).tolist() == [0, 2, 3, 5]


@pytest.mark.parametrize("tail", [(), (3,)])
def test_a_streamed_npy_file_is_what_numpy_would_write(tmp_path: Path, tail: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 100, (1001, *tail)).astype(np.int32)
    with NpyWriter(tmp_path / "a.npy", np.int32, tail) as writer:
        for block in np.array_split(array, 7):
            writer.append(block)
    assert np.array_equal(np.load(tmp_path / "a.npy", mmap_mode="r"), array)
    reader = NpyReader(tmp_path / "a.npy")
    assert np.array_equal(np.concatenate(list(reader.blocks(100))), array)
    assert np.array_equal(reader.read(990, 2000), array[990:])
