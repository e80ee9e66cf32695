import dataclasses
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from towers.errors import ConfigError, DataError
from training.sources import movielens, open_source

SENSITIVE = {"name": "gender", "kind": "categorical", "owner": "user"}


@pytest.fixture
def ml_1m(tmp_path):
    (tmp_path / "ratings.dat").write_bytes(b"2::10::5::978300019\n1::11::3::978300019\n1::10::4::978300018\n")
    (tmp_path / "movies.dat").write_bytes('10::Café "Noir" (1995)::Comedy|Film-Noir\n11::Odd: A::Drama\n'.encode("latin-1"))
    (tmp_path / "users.dat").write_bytes(b"1::F::1::10::48067\n2::M::56::16::02460\n")
    return tmp_path


@pytest.fixture
def ml_100k(tmp_path):
    (tmp_path / "u.data").write_text("196\t242\t3\t881250949\n186\t242\t2\t891717742\n")
    (tmp_path / "u.genre").write_text("unknown|0\nAction|1\nComedy|2\n\n")
    (tmp_path / "u.item").write_bytes("242|Amélie (1996)|24-Jan-1997||http://x|0|1|1\n267|unknown||||1|0|0\n".encode("latin-1"))
    (tmp_path / "u.user").write_text("196|49|M|writer|55105\n186|39|F|executive|00000\n")
    return tmp_path


def test_ml_1m_in_file_order_with_titles_and_a_separate_audit_table(data_config, ml_1m):
    source = open_source(data_config("ml_1m", path=str(ml_1m), chunk_rows=2))
    log = pa.concat_tables(source.interactions())
    assert [len(chunk) for chunk in source.interactions()] == [2, 1]
    assert log.column_names == ["user_id", "item_id", "timestamp", "value"]
    assert log["user_id"].to_pylist() == ["2", "1", "1"] and log["value"].to_pylist() == [5.0, 3.0, 4.0]
    assert log["timestamp"].to_pylist()[0] == datetime(2000, 12, 31, 22, 0, 19, tzinfo=UTC)
    assert source.items["title"].to_pylist() == ['Café "Noir" (1995)', "Odd: A"]
    assert source.items["categories"].to_pylist() == [["Comedy", "Film-Noir"], ["Drama"]]
    assert source.items["year"].to_pylist() == [1995.0, None]
    assert source.users.column_names == ["user_id"]
    assert source.audit is not None
    assert source.audit.to_pylist()[1] == {"user_id": "2", "gender": "M", "age": "56+", "occupation": "self-employed", "zip": "02460"}


def test_ml_100k(data_config, ml_100k):
    source = open_source(data_config("ml_100k", path=str(ml_100k)))
    log = pa.concat_tables(source.interactions())
    assert log["user_id"].to_pylist() == ["196", "186"] and log["value"].to_pylist() == [3.0, 2.0]
    assert source.items["title"].to_pylist() == ["Amélie (1996)", "unknown"]
    assert source.items["categories"].to_pylist() == [["Action", "Comedy"], ["unknown"]]
    assert source.audit is not None and source.audit["zip"].to_pylist() == ["55105", "00000"]


def test_audit_columns_are_features_only_with_a_purpose(data_config, ml_1m):
    with pytest.raises(ConfigError, match="'gender' is an audit column"):
        open_source(data_config("ml_1m", path=str(ml_1m), features=[SENSITIVE]))
    with pytest.raises(ConfigError, match="it is sensitive"):
        open_source(data_config("ml_1m", path=str(ml_1m), features=[{**SENSITIVE, "sensitive": True}]))
    allowed = {**SENSITIVE, "sensitive": True, "purposes": ["personalize"]}
    assert open_source(data_config("ml_1m", path=str(ml_1m), features=[allowed])).users["gender"].to_pylist() == ["F", "M"]


def test_missing_or_foreign_files_are_named(data_config, ml_1m):
    (ml_1m / "movies.dat").unlink()
    with pytest.raises(DataError, match=r"no file 'movies\.dat', which ml_1m needs; the folder holds ratings\.dat, users\.dat"):
        open_source(data_config("ml_1m", path=str(ml_1m)))
    (ml_1m / "ratings.dat").write_text("userId,movieId,rating\n1,2,3\n")
    with pytest.raises(DataError, match=r"ratings\.dat: not as published, lines of 4 fields"):
        open_source(data_config("ml_1m", path=str(ml_1m)))
    (ml_1m / "ratings.dat").unlink()
    with pytest.raises(DataError, match=r"no file 'ratings\.dat', which ml_1m \(or u\.data, or ratings\.csv\) needs"):
        open_source(data_config("ml_1m", path=str(ml_1m)))


def test_another_set_of_the_same_publisher_needs_only_its_folder(data_config, ml_100k):
    source = open_source(data_config("ml_1m", path=str(ml_100k)))
    assert pa.concat_tables(source.interactions())["user_id"].to_pylist() == ["196", "186"]
    assert source.audit is not None and source.name == "ml_1m"


def test_ml_10m_is_utf_8_and_tells_nothing_about_people(data_config, tmp_path):
    (tmp_path / "ratings.dat").write_text("2::10::4.5::978300019\n1::10::0.5::978300018\n")
    (tmp_path / "movies.dat").write_text("10::Amélie (2001)::Comedy|Romance\n", encoding="utf-8")
    source = open_source(data_config("ml_1m", path=str(tmp_path)))
    assert pa.concat_tables(source.interactions())["value"].to_pylist() == [4.5, 0.5]
    assert source.items["title"].to_pylist() == ["Amélie (2001)"] and source.items["year"].to_pylist() == [2001.0]
    assert source.audit is None and source.users["user_id"].to_pylist() == ["2", "1"]
    assert "nothing is published about people" in source.notes["audit"]


def test_ml_20m_has_headers_quoted_titles_and_films_without_genres(data_config, tmp_path):
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n1,29,4.0,1112484676\n2,2,1.0,1112484676\n")
    movies = 'movieId,title,genres\n2,"Postino, Il (1994)",Drama|Romance\n29,Café,(no genres listed)\n'
    (tmp_path / "movies.csv").write_bytes(movies.replace("\n", "\r\n").encode())
    source = open_source(data_config("ml_1m", path=str(tmp_path)))
    log = pa.concat_tables(source.interactions())
    assert log["item_id"].to_pylist() == ["2", "29", "2"] and log["value"].to_pylist() == [3.5, 4.0, 1.0]
    assert source.items["title"].to_pylist() == ["Postino, Il (1994)", "Café"]
    assert source.items["categories"].to_pylist() == [["Drama", "Romance"], []]
    (tmp_path / "ratings.csv").write_text("user,item,rating,timestamp\n1,2,3.5,1112486027\n")
    with pytest.raises(DataError, match=r"ratings\.csv: not as published, the first line is 'user,item,rating,timestamp'"):
        open_source(data_config("ml_1m", path=str(tmp_path)))


def test_without_a_folder_it_downloads_and_says_so_when_it_cannot(data_config, tmp_path, monkeypatch):
    monkeypatch.setenv("TOWERS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(movielens, "ML_1M", dataclasses.replace(movielens.ML_1M, url="http://127.0.0.1:9/ml-1m.zip"))
    with pytest.raises(DataError, match=r"127\.0\.0\.1:9/ml-1m\.zip: cannot download.*set data\.path"):
        open_source(data_config("ml_1m"))
    assert not (tmp_path / "cache" / "towers" / "ml-1m").exists()


@pytest.mark.realdata
def test_real_ml_1m(data_config, real_data):
    source = open_source(data_config("ml_1m", path=str(real_data("ml-1m"))))
    log = pa.concat_tables(source.interactions())
    assert len(log) == 1_000_209
    assert len(log["user_id"].unique()) == 6040 and len(log["item_id"].unique()) == 3706
    assert len(source.items) == 3883 and source.items["title"].to_pylist()[0] == "Toy Story (1995)"
    assert source.audit is not None and len(source.audit) == 6040


def test_preferences_are_simulated_from_the_first_liked_films_and_those_ratings_are_no_targets(data_config, tmp_path):
    """Films 1..15 in time order, the file's order reversed; 1-9 rated 3, but 4 and 7 rated 5; what follows the first ten tells nothing."""
    stars = {4: 5, 7: 4}
    lines = [f"1::{film}::{5 if film > 10 else stars.get(film, 3)}::{978300000 + film}" for film in range(15, 0, -1)]
    (tmp_path / "ratings.dat").write_text("\n".join([*lines, "2::1::3::978300000"]) + "\n")
    genres = {4: "Drama|War", 7: "Crime|Drama", 11: "Horror"}
    (tmp_path / "movies.dat").write_text("".join(f"{film}::Film (1990)::{genres.get(film, 'Comedy')}\n" for film in range(1, 16)))
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::02460\n")
    told = {"name": "preferences", "kind": "preferences", "owner": "user", "like": "categories"}
    categories = {"name": "categories", "kind": "multi_categorical", "owner": "item"}
    source = open_source(data_config("ml_1m", path=str(tmp_path), features=[categories, told]))
    assert source.users["preferences"].to_pylist() == [["Drama", "Crime", "War"], []]
    log = pa.concat_tables(source.interactions())
    weights = dict(zip(log["item_id"].to_pylist()[:15], log["weight"].to_pylist()[:15], strict=True))
    assert {film for film, weight in weights.items() if weight == 0} == {str(film) for film in range(1, 11)}
    plain = open_source(data_config("ml_1m", path=str(tmp_path)))
    assert "weight" not in pa.concat_tables(plain.interactions()).column_names
