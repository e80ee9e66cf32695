"""Sharded Parquet: whole shards only, finished ones kept, another model's removed, equal bytes for equal content."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from towers.shards import embedding_column, write_shards

VECTORS = np.random.default_rng(0).normal(size=(25, 6)).astype(np.float32)
IDS = [f"item {i:02d}" for i in range(25)]


def table(start: int, stop: int) -> pa.Table:
    return pa.table({"item_id": IDS[start:stop], "embedding": embedding_column(VECTORS[start:stop])})


def write(folder: Path, fingerprint: str = "a", rows_per_shard: int = 10, make=table) -> list[int]:
    return list(write_shards(folder, 25, rows_per_shard, fingerprint, make))


def read(folder: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("part-*.parquet")))


def test_all_rows_in_order_as_fixed_size_lists(tmp_path: Path) -> None:
    assert write(tmp_path) == [10, 10, 5]
    got = read(tmp_path)
    assert got.column("item_id").to_pylist() == IDS
    assert got.schema.field("embedding").type == pa.list_(pa.float32(), 6)
    np.testing.assert_array_equal(np.array(got.column("embedding").to_pylist(), np.float32), VECTORS)
    encodings = pq.ParquetFile(tmp_path / "part-00000.parquet").metadata.row_group(0).column(1)
    assert "BYTE_STREAM_SPLIT" in encodings.encodings and encodings.compression == "ZSTD"


def test_interrupted_export_continues_with_the_missing_shard(tmp_path: Path) -> None:
    def failing(start: int, stop: int) -> pa.Table:
        if start == 10:
            raise KeyboardInterrupt
        return table(start, stop)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, make=failing)
    first = (tmp_path / "part-00000.parquet").stat().st_mtime_ns
    made: list[int] = []

    def counting(start: int, stop: int) -> pa.Table:
        made.append(start)
        return table(start, stop)

    assert write(tmp_path, make=counting) == [10, 10, 5]
    assert made == [10, 20] and (tmp_path / "part-00000.parquet").stat().st_mtime_ns == first
    assert read(tmp_path).column("item_id").to_pylist() == IDS


@pytest.mark.parametrize(("fingerprint", "rows_per_shard"), [("b", 10), ("a", 20)])
def test_another_model_or_size_starts_over(tmp_path: Path, fingerprint: str, rows_per_shard: int) -> None:
    write(tmp_path)
    made: list[int] = []

    def counting(start: int, stop: int) -> pa.Table:
        made.append(start)
        return table(start, stop)

    write(tmp_path, fingerprint, rows_per_shard, counting)
    assert made == list(range(0, 25, rows_per_shard))
    assert read(tmp_path).column("item_id").to_pylist() == IDS


def test_two_exports_are_equal_to_the_byte(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name)
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
