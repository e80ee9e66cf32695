from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from towers.columns import NO_TIME
from towers.errors import DataError
from towers.fitting import PreprocessorFit
from towers.schema import Feature, make_schema
from training.interactions import Interactions, write_prepared


def tiny() -> Interactions:
    schema = make_schema([Feature("hour", "categorical", "context"), Feature("color", "categorical", "item")], "time", {})
    fit = PreprocessorFit(schema)
    ids, colors, hours = ["a", "b", "c"], ["red", "blue", None], ["1", "2", "1", "1", None]
    fit.see("item", {"item_id": ids, "color": colors})
    fit.see("context", {"hour": hours})
    fit.see_events(["view"])
    preprocessor = fit.finish()
    return Interactions(
        schema=schema,
        preprocessor=preprocessor,
        offsets=np.array([0, 3, 5]),
        user_keys=np.arange(32, dtype=np.uint8).reshape(2, 16),
        item=np.array([0, 1, 0, 2, 0], np.int32),
        timestamp=np.array([1, 2, 3, NO_TIME, 5]),
        event=np.full(5, 3, np.int32),
        weight=np.array([1, 0, 1, 1, 2], np.float32),
        split=np.array([0, 0, 0, 0, 2], np.uint8),
        context=preprocessor.encode("context", {"hour": hours}, 5),
        user_features={},
        item_features=preprocessor.encode("item", {"item_id": ids, "color": colors}, 3),
        catalog=pa.table({"item_id": ids}),
        facts={"data": {"name": "tiny"}},
    )


def test_what_is_written_is_read_back_memory_mapped(tmp_path: Path) -> None:
    data = tiny()
    opened = Interactions.open(write_prepared(tmp_path, data))
    for name in ("offsets", "user_keys", "item", "timestamp", "event", "weight", "split"):
        assert np.array_equal(getattr(opened, name), getattr(data, name)), name
        assert isinstance(getattr(opened, name), np.memmap)
        assert getattr(opened, name).dtype == getattr(data, name).dtype
    for mine, theirs in ((opened.context, data.context), (opened.item_features, data.item_features)):
        assert mine.keys() == theirs.keys()
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    assert (opened.n_users, opened.n_items, len(opened)) == (2, 3, 5)
    assert opened.facts["data"]["name"] == "tiny"
    assert opened.schema == data.schema


def test_training_counts_are_of_training_targets(tmp_path: Path) -> None:
    assert tiny().train_counts().tolist() == [2, 0, 1]
    assert tiny().users_of(np.array([0, 2, 3, 4])).tolist() == [0, 0, 1, 1]


def test_the_newest_event_is_found_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.interactions.BLOCK_ROWS", 2)
    opened = Interactions.open(write_prepared(tmp_path, tiny()))
    assert opened.newest() == 5
    assert replace(opened, timestamp=opened.timestamp[:0], item=opened.item[:0]).newest() == NO_TIME


def test_mapped_columns_cannot_be_changed_by_accident(tmp_path: Path) -> None:
    opened = Interactions.open(write_prepared(tmp_path, tiny()))
    with pytest.raises(ValueError, match="read-only"):
        opened.item[0] = 5


def test_an_absent_folder_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Run `towers prepare`"):
        Interactions.open(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["item.npy", "catalog.parquet", "preprocess.json", "items/color.npy"])
def test_a_missing_file_is_a_data_error(tmp_path: Path, name: str) -> None:
    write_prepared(tmp_path, tiny())
    (tmp_path / name).unlink()
    with pytest.raises(DataError):
        Interactions.open(tmp_path)


def test_a_truncated_column_is_refused(tmp_path: Path) -> None:
    write_prepared(tmp_path, tiny())
    whole = (tmp_path / "item.npy").read_bytes()
    (tmp_path / "item.npy").write_bytes(whole[:-4])
    with pytest.raises(DataError, match="damaged"):
        Interactions.open(tmp_path)


def test_columns_of_two_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="weight: 4 rows, expected 5"):
        write_prepared(tmp_path, replace(tiny(), weight=np.ones(4, np.float32)))
