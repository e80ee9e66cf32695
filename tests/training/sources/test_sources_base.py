import re
import shlex

import pyarrow as pa
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from towers.errors import ConfigError, DataError
from towers.schema import Feature, make_schema
from training.data_config import DataConfig
from training.sources import SOURCES, open_source
from training.sources.base import empty_table, find_folder, missing_column, require_folder, side_table


def test_every_source_has_a_config_that_declares_valid_features(data_config):
    for name in SOURCES:
        extra = {"interactions": "log.csv"} if name == "table" else {}
        assert data_config(name, **extra).name == name


def test_unknown_source_names_the_choices():
    with pytest.raises(ConfigError, match=r"data\.name: got 'movies', expected one of synthetic, ml_1m"):
        open_source(DataConfig(name="movies"))


def test_side_table_types_fixed_and_declared_columns_and_drops_the_rest():
    features = [
        Feature("brand", "categorical", "item"),
        Feature("words", "text", "item", column="title"),
        Feature("a", "numeric", "user"),
    ]
    schema = make_schema(features, "time", {})
    table = side_table(schema, "item", {"item_id": ["a"], "title": ["A"], "brand": ["x"], "price": [1.0]}, "shop")
    assert table.column_names == ["item_id", "title", "categories", "created_at", "is_hidden", "brand"]
    assert table.schema.field("categories").type == pa.list_(pa.string()) and table["categories"].to_pylist() == [None]
    assert table.schema == empty_table(schema, "item", known=["brand"]).schema


def test_declared_feature_without_a_column_is_an_error():
    schema = make_schema([Feature("brand", "categorical", "item")], "time", {})
    with pytest.raises(DataError, match=r"shop: no column for 'brand'.*found are item_id, Brands\. Is it 'Brands'\?"):
        side_table(schema, "item", {"item_id": ["a"], "Brands": ["x"]}, "shop")
    with pytest.raises(DataError, match="no table: no column for 'brand'"):
        empty_table(schema, "item", "no table")


def test_missing_column_shows_the_line_to_write():
    error = str(missing_column("user_id", ["userId", "movieId"], "log.csv", "every log needs it"))
    assert "+data.columns.user_id=userId" in error and "columns: {user_id: userId}" in error


def test_the_line_to_write_can_be_pasted_where_a_column_has_spaces_and_signs():
    theirs = "user id, (hash)"
    error = str(missing_column("user_id", [theirs, "sku"], "log.csv", "every log needs it"))
    (typed,) = shlex.split(re.search(r"Name it: (.+) \(in YAML", error)[1])
    override = OverridesParser.create().parse_override(typed)
    assert (override.key_or_group, override.value()) == ("data.columns.user_id", theirs)
    assert yaml.safe_load(re.search(r"`(columns: .+)`", error)[1]) == {"columns": {"user_id": theirs}}


def test_folder_is_the_path_as_given_then_under_the_data_directory(tmp_path, monkeypatch):
    (tmp_path / "ml-1m").mkdir()
    monkeypatch.delenv("TOWERS_DATA_DIR", raising=False)
    assert find_folder(DataConfig(path=str(tmp_path / "ml-1m")), "x") == tmp_path / "ml-1m"
    assert find_folder(DataConfig(), "ml-1m") is None
    with pytest.raises(DataError, match=r"data\.path: not set.*TOWERS_DATA_DIR \(not set\).*train\.txt"):
        require_folder(DataConfig(name="lightgcn"), "gowalla", "train.txt")
    monkeypatch.setenv("TOWERS_DATA_DIR", str(tmp_path))
    assert find_folder(DataConfig(), "ml-1m") == tmp_path / "ml-1m"
    assert find_folder(DataConfig(path="ml-1m"), "x") == tmp_path / "ml-1m"
    with pytest.raises(DataError, match=r"data\.path: no folder 'nowhere'"):
        find_folder(DataConfig(path="nowhere"), "ml-1m")
    absent = str(tmp_path / "absent")
    with pytest.raises(DataError, match=f"looked at {absent}. Give"):
        find_folder(DataConfig(path=absent), "ml-1m")
