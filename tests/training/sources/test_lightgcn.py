import pyarrow as pa
import pytest

from towers.errors import DataError
from training.sources import open_source


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return str(folder)


def rows(source):
    log = pa.concat_tables(source.interactions())
    return list(zip(log["user_id"].to_pylist(), log["item_id"].to_pylist(), log["split"].to_pylist(), strict=True))


def test_valid_is_taken_out_of_train_and_both_counts_are_told(data_config, tmp_path):
    path = write(tmp_path, train="0 1 2 3\n1\n2 1 4 \n", valid="0 2\n2 4 9\n", test="0 5\n1 1\n")
    source = open_source(data_config("lightgcn", path=path, chunk_rows=2))
    assert sorted(rows(source)) == [
        ("0", "1", "train"), ("0", "2", "valid"), ("0", "3", "train"), ("0", "5", "test"), ("1", "1", "test"),
        ("2", "1", "train"), ("2", "4", "valid"), ("2", "9", "valid"),
    ]  # fmt: skip
    assert source.notes["train_rows"] == "5 in train.txt, 3 after taking out valid.txt"
    assert source.notes["valid_rows"] == "3 in valid.txt, 2 of them inside train.txt"
    log = pa.concat_tables(source.interactions())
    assert log["timestamp"].null_count == len(log)
    assert max(len(chunk) for chunk in source.interactions()) == 2
    assert len(source.items) == 0 and "item_id" in source.items.column_names and len(source.users) == 0


def test_without_valid(data_config, tmp_path):
    source = open_source(data_config("lightgcn", path=write(tmp_path, train="a x y\n", test="a z\n")))
    assert rows(source) == [("a", "x", "train"), ("a", "y", "train"), ("a", "z", "test")]
    assert "valid_rows" not in source.notes


def test_missing_test_file_and_features_without_a_table(data_config, tmp_path):
    path = write(tmp_path, train="0 1\n")
    with pytest.raises(DataError, match=r"no file 'test\.txt'"):
        open_source(data_config("lightgcn", path=path))
    write(tmp_path, test="0 2\n")
    with pytest.raises(DataError, match=r"no column for 'brand'.*declares it for the item"):
        open_source(data_config("lightgcn", path=path, features=[{"name": "brand", "kind": "categorical", "owner": "item"}]))


@pytest.mark.realdata
def test_real_gowalla(data_config, real_data):
    source = open_source(data_config("lightgcn", path=str(real_data("gowalla"))))
    splits = pa.concat_tables(source.interactions())["split"].value_counts().to_pylist()
    assert {s["values"]: s["counts"] for s in splits} == {"train": 810_128 - 91_047, "valid": 91_047, "test": 217_242}
    assert source.notes["valid_rows"] == "91,047 in valid.txt, 91,047 of them inside train.txt"


def test_lines_without_items_side_files_and_any_ids(data_config, tmp_path):
    (tmp_path / "user_list.txt").write_text("org_id remap_id\nA1 0\n")
    path = write(tmp_path, train="0 70000 3\n9\n5  8 \n", test="0 12\n9 \n5 3")
    source = open_source(data_config("lightgcn", path=path))
    assert rows(source) == [("0", "70000", "train"), ("0", "3", "train"), ("5", "8", "train"), ("0", "12", "test"), ("5", "3", "test")]


@pytest.mark.parametrize("value", ["1", "1.0"])
def test_values_are_not_taken_for_items(data_config, tmp_path, value):
    path = write(tmp_path, train="".join(f"{user} {user + 3} {value}\n" for user in range(30)), test="0 5\n")
    with pytest.raises(DataError, match=rf"train\.txt: its lines look like `user item value` \(all end in '{value}'\).*cut -d"):
        open_source(data_config("lightgcn", path=path))


def test_one_item_or_two_a_line_are_items(data_config, tmp_path):
    two = "".join(f"{user} {user + 3} {user % 4}\n" for user in range(30))
    path = write(tmp_path, train=two, test="".join(f"{user} 5\n" for user in range(30)))
    assert len(rows(open_source(data_config("lightgcn", path=path)))) == 90
