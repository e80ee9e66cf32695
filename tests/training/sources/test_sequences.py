import json

import pyarrow as pa
import pytest

from towers.errors import DataError
from training.sources import open_source


def test_order_is_the_position_and_attributes_belong_to_items(data_config, tmp_path):
    (tmp_path / "Toys.txt").write_text("1 5 4 3\n2 5\n")
    (tmp_path / "Toys_item2attributes.json").write_text(json.dumps({"5": [1, 2], "4": []}))
    source = open_source(data_config("sequences", path=str(tmp_path), chunk_rows=3))
    log = pa.concat_tables(source.interactions())
    assert log["user_id"].to_pylist() == ["1", "1", "1", "2"] and log["item_id"].to_pylist() == ["5", "4", "3", "5"]
    assert log["timestamp"].null_count == 4 and "split" not in log.column_names
    assert source.items["item_id"].to_pylist() == ["5", "4"] and source.items["attributes"].to_pylist() == [["1", "2"], []]
    assert source.schema.order == "position"


def test_without_attributes_the_table_is_empty_and_typed(data_config, tmp_path):
    (tmp_path / "Toys.txt").write_text("1 5 4 3\n")
    items = open_source(data_config("sequences", path=str(tmp_path))).items
    assert len(items) == 0 and items.schema.field("attributes").type == pa.list_(pa.string())


def test_no_text_two_texts_and_broken_attributes_are_named(data_config, tmp_path):
    with pytest.raises(DataError, match=r"exactly one \*\.txt, found none"):
        open_source(data_config("sequences", path=str(tmp_path)))
    (tmp_path / "a.txt").write_text("1 2\n")
    (tmp_path / "a_item2attributes.json").write_text("[1, 2")
    with pytest.raises(DataError, match="expected a JSON object of item -> list"):
        open_source(data_config("sequences", path=str(tmp_path)))
    (tmp_path / "b.txt").write_text("1 2\n")
    with pytest.raises(DataError, match=r"found a\.txt, b\.txt"):
        open_source(data_config("sequences", path=str(tmp_path)))


@pytest.mark.realdata
def test_real_beauty(data_config, real_data):
    source = open_source(data_config("sequences", path=str(real_data("amazon-beauty"))))
    log = pa.concat_tables(source.interactions())
    assert len(log) == 198_502 and len(log["user_id"].unique()) == 22_363 and len(log["item_id"].unique()) == 12_101
    assert len(source.items) == 12_101


def test_pairs_in_order_are_sequences_too(data_config, tmp_path):
    (tmp_path / "ml-1m.txt").write_text("1 5\n1 4\n2 5\n1 5\n")
    log = pa.concat_tables(open_source(data_config("sequences", path=str(tmp_path))).interactions())
    assert list(zip(log["user_id"].to_pylist(), log["item_id"].to_pylist(), strict=True)) == [
        ("1", "5"),
        ("1", "4"),
        ("2", "5"),
        ("1", "5"),
    ]


def test_a_folder_of_several_sets_is_read_by_naming_the_file(data_config, tmp_path, monkeypatch):
    for name, item in (("Toys", "7"), ("Sports", "8")):
        (tmp_path / f"{name}.txt").write_text(f"1 {item} 4\n")
        (tmp_path / f"{name}_sample.txt").write_text("1 2 3\n")
        (tmp_path / f"{name}_item2attributes.json").write_text(json.dumps({item: [len(name)]}))
    with pytest.raises(DataError, match=r"found Sports\.txt, Toys\.txt.*may also name the file itself"):
        open_source(data_config("sequences", path=str(tmp_path)))
    for path in (str(tmp_path / "Toys.txt"), "Toys.txt"):
        source = open_source(data_config("sequences", path=path))
        log = pa.concat_tables(source.interactions())
        assert log["item_id"].to_pylist() == ["7", "4"] and source.items["attributes"].to_pylist() == [["4"]]
        monkeypatch.setenv("TOWERS_DATA_DIR", str(tmp_path))
    (tmp_path / "Toys_item2attributes.json").unlink()
    source = open_source(data_config("sequences", path=str(tmp_path / "Toys.txt")))
    assert len(source.items) == 0, "the attributes of Sports are not those of Toys"


def test_sampled_negatives_beside_a_text_are_no_second_text(data_config, tmp_path):
    (tmp_path / "Beauty.txt").write_text("1 5 4 3\n")
    (tmp_path / "Beauty_sample.txt").write_text("1 9 9\n")
    (tmp_path / "item2attributes.json").write_text("[]")
    source = open_source(data_config("sequences", path=str(tmp_path)))
    assert sum(map(len, source.interactions())) == 3 and source.notes["file"] == "Beauty.txt"
