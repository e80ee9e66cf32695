import json
from datetime import UTC, date, datetime

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from towers.errors import ConfigError, DataError
from training.sources import open_source

NOON = datetime(2024, 1, 31, 12, tzinfo=UTC)
NOON_S = 1_706_702_400


@pytest.fixture
def opened(data_config, tmp_path):
    """Write a log (CSV text, or columns for Parquet), open it as `table` with settings."""

    def make(log, **settings):
        name = "log.csv" if isinstance(log, str) else "log.parquet"
        if isinstance(log, str):
            (tmp_path / name).write_text(log, encoding="utf-8")
        else:
            pq.write_table(pa.table(log), tmp_path / name)
        return open_source(data_config("table", path=str(tmp_path), **{"interactions": name, **settings}))

    return make


def rows(source):
    return pa.concat_tables(source.interactions()).to_pylist()


def test_csv_keeps_ids_exactly_and_takes_optional_columns(opened):
    log = 'user_id,item_id,timestamp,event_type,weight,junk\n007,"a, b",1706702400,view,0.5,x\n ü x ,NA,1706702401,,,y\n'
    source = opened(log)
    first, second = rows(source)
    assert first["user_id"] == "007" and first["item_id"] == "a, b" and first["timestamp"] == NOON
    assert second["user_id"] == " ü x " and second["item_id"] == "NA"
    assert (first["event_type"], first["weight"], second["event_type"], second["weight"]) == ("view", 0.5, None, None)
    assert source.notes["dropped_columns_of_interactions"] == "junk"
    assert len(source.items) == 0 and source.items.column_names[0] == "item_id" and source.audit is None


def test_parquet_number_ids_become_digits(opened):
    log = {"user_id": pa.array([1, 2]), "item_id": pa.array([7.0, None]), "timestamp": pa.array([NOON_S, NOON_S])}
    assert [(r["user_id"], r["item_id"]) for r in rows(opened(log))] == [("1", "7"), ("2", None)]
    log["item_id"] = pa.array(["x", "y"]).dictionary_encode()
    log["user_id"] = pa.array([10**15, 1]).cast(pa.float64())
    assert [(r["user_id"], r["item_id"]) for r in rows(opened(log))] == [("1000000000000000", "x"), ("1", "y")]


def test_streams_by_row_group_and_shards_and_reads_again(data_config, tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    for shard in range(3):
        table = pa.table(
            {"user_id": ["u"] * 10, "item_id": [f"{shard}-{i}" for i in range(10)], "timestamp": [NOON_S + i for i in range(10)]}
        )
        pq.write_table(table, folder / f"part-{shard}.parquet", row_group_size=4)
    (folder / "_SUCCESS").write_text("")
    source = open_source(data_config("table", interactions=str(folder), chunk_rows=4))
    assert max(len(chunk) for chunk in source.interactions()) <= 4
    items = [r["item_id"] for r in rows(source)]
    assert items == [f"{shard}-{i}" for shard in range(3) for i in range(10)]
    assert [r["item_id"] for r in rows(source)] == items
    pq.write_table(pa.table({"user_id": ["u"], "item": ["x"], "timestamp": [1]}), folder / "part-9.parquet")
    with pytest.raises(DataError, match=r"part-9\.parquet: no column 'item_id', which part-0\.parquet has"):
        rows(open_source(data_config("table", interactions=str(folder))))


def test_packed_and_tab_separated_csv(data_config, tmp_path):
    table = pa.table({"user_id": ["a"] * 5, "item_id": list("vwxyz"), "timestamp": [NOON_S] * 5})
    with pa.output_stream(tmp_path / "log.csv.gz", compression="gzip") as out:
        pacsv.write_csv(table, out)
    source = open_source(data_config("table", path=str(tmp_path), interactions="log.csv.gz", chunk_rows=2))
    assert [len(chunk) for chunk in source.interactions()] == [2, 2, 1]
    (tmp_path / "log.tsv").write_text('user_id\titem_id\ttimestamp\na\t5" nail\t1706702400\n')
    assert rows(open_source(data_config("table", path=str(tmp_path), interactions="log.tsv")))[0]["item_id"] == '5" nail'


def test_byte_order_mark_and_malformed_lines(opened):
    found = rows(opened("\ufeffuser_id,item_id,timestamp\na,x,1706702400\nbroken,line\nb,y,1706702401\n"))
    assert [r["user_id"] for r in found] == ["a", None, "b"]


DEVICE = {"name": "device", "kind": "categorical", "owner": "context"}
LOG = "user_id,item_id,timestamp\na,x,1\n"
WRONG_FILES = {
    "misnamed": (
        {},
        "userId,movieId,timestamp\na,x,1\n",
        r"'user_id' \(every log needs it\).*userId, movieId.*\+data\.columns\.user_id=userId",
    ),
    "no time": ({}, "user_id,item_id,when\na,x,1\n", r"'timestamp' \(data\.order is 'time'; without times use data\.order=position"),
    "wrong map": ({"columns": {"user_id": "usr"}}, LOG, r"no column for 'user_id' \(data\.columns names it 'usr'\)"),
    "no context": ({"features": [DEVICE]}, "user_id,item_id,timestamp,Device\na,x,1,tv\n", r"no column for 'device'.*Is it 'Device'\?"),
    "no items": ({"items": "none.csv"}, LOG, r"data\.items: no Parquet or CSV file at .*none\.csv"),
    "empty": ({}, "", r"log\.csv: empty"),
    "twice": ({}, "user_id,item_id,item_id,timestamp\n", r"column 'item_id' is there 2 times"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_files_are_named_before_a_row_is_read(opened, case):
    setting, log, message = WRONG_FILES[case]
    with pytest.raises(DataError, match=message):
        opened(log, **setting)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"columns": {"usr_id": "a"}}, r"data\.columns\.usr_id: 'usr_id' is no column of ours.*mean 'user_id'"),
        ({"columns": {"things.item_id": "a"}}, r"data\.columns\.things\.item_id"),
        ({"preset": "spotify"}, r"data\.preset: got 'spotify', expected one of movielens"),
        ({"timestamp_unit": "minutes"}, r"data\.timestamp_unit: got 'minutes'"),
    ],
)
def test_wrong_settings_are_named(opened, setting, message):
    with pytest.raises(ConfigError, match=message):
        rows(opened("user_id,item_id,timestamp\na,x,1\n", **setting))


def test_not_utf8_and_damaged_parquet(opened, tmp_path, data_config):
    (tmp_path / "bad.csv").write_bytes(b"user_id,item_id,timestamp\na\xff,x,1\n")
    with pytest.raises(DataError, match=r"bad\.csv: cannot be read"):
        rows(opened("user_id\n", interactions="bad.csv"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"bad\.parquet: cannot read its header"):
        opened("user_id\n", interactions="bad.parquet")


def test_wrong_type_is_named(opened):
    with pytest.raises(DataError, match=r"interactions: column 'user_id' \(user_id\) is of type list<.*expected text or numbers"):
        rows(opened({"user_id": [["a"]], "item_id": ["x"], "timestamp": [NOON_S]}))
    with pytest.raises(DataError, match=r"column 'weight' \(weight\) holds text such as 'heavy', expected numbers"):
        rows(opened("user_id,item_id,timestamp,weight\na,x,1706702400,heavy\nb,x,1706702400,light\n"))


TIMES = {
    "s": [NOON_S], "ms": [NOON_S * 1000], "us": [NOON_S * 10**6], "ns": [NOON_S * 10**9], "float": [float(NOON_S)],
    "text": [str(NOON_S)], "iso": ["2024-01-31T12:00:00"], "iso_z": ["2024-01-31 12:00:00Z"], "iso_zone": ["2024-01-31T13:00:00+01:00"],
    "arrow_ns": pa.array([NOON_S * 10**9 + 7]).cast(pa.timestamp("ns")),
    "arrow_zone": pa.array([NOON_S]).cast(pa.timestamp("s", "Europe/Berlin")),
}  # fmt: skip


@pytest.mark.parametrize("form", TIMES)
def test_times_in_any_form(opened, form):
    (row,) = rows(opened({"user_id": ["a"], "item_id": ["x"], "timestamp": TIMES[form]}))
    assert row["timestamp"] == NOON and row["_bad_timestamp"] is None


def test_dates_and_explicit_units(opened):
    (row,) = rows(opened({"user_id": ["a"], "item_id": ["x"], "timestamp": [date(2024, 1, 31)]}))
    assert row["timestamp"] == datetime(2024, 1, 31, tzinfo=UTC)
    (row,) = rows(opened({"user_id": ["a"], "item_id": ["x"], "timestamp": [NOON_S]}, timestamp_unit="ms"))
    assert row["timestamp"].year == 1970


@pytest.mark.parametrize(
    ("times", "bad"),
    [
        ([NOON_S, NOON_S + 1, NOON_S * 1000, None], [False, False, True, False]),
        ([NOON_S * 1000, NOON_S * 1000 + 1, NOON_S, None], [False, False, True, False]),
        ([float(NOON_S), float("inf"), float("nan"), 1e30], [False, True, False, True]),
        (["2024-01-31", "yesterday", "", "2024-01-31T12:00:00Z"], [False, True, False, False]),
        ([str(NOON_S), str(NOON_S + 5), "2024-01-31", "-"], [False, False, True, True]),
        (["2024-01-31", "2024-02-01", "2024-13-01", str(NOON_S)], [False, False, True, True]),
        (pa.array([NOON_S, 2**61, None, NOON_S]).cast(pa.timestamp("ms")), [False, True, False, False]),
    ],
)
def test_mixed_times_are_marked_never_guessed(opened, times, bad):
    found = rows(opened({"user_id": list("abcd"), "item_id": list("wxyz"), "timestamp": times}))
    assert [r["_bad_timestamp"] is not None for r in found] == bad
    assert all(r["timestamp"] is None for r in found if r["_bad_timestamp"])


def test_a_later_chunk_cannot_change_the_unit(opened):
    times = [NOON_S, NOON_S + 1, NOON_S * 1000, NOON_S * 1000 + 1]
    found = rows(opened({"user_id": list("abcd"), "item_id": list("wxyz"), "timestamp": times}, chunk_rows=2))
    assert [r["_bad_timestamp"] for r in found] == [None, None, str(NOON_S * 1000), str(NOON_S * 1000 + 1)], "kept as it stands"


def test_items_users_audit_with_features_of_every_kind(opened, tmp_path):
    (tmp_path / "items.csv").write_text(
        "sku,name,genres,price,vec,added,hidden,brand\n1,Tea,Hot|Drink,2.5,0.1 0.2,2024-01-31,true,\n2,Cup,,x,,,no,Acme\n3,Pot,,1,,,,B\n"
    )
    pq.write_table(pa.table({"user_id": ["a"], "likes": [["Hot"]], "joined": [NOON_S], "city": ["Graz"]}), tmp_path / "users.parquet")
    (tmp_path / "audit.csv").write_text("user_id,gender,age\na,F,25\n")
    features = [
        {"name": "price", "kind": "numeric", "owner": "item"},
        {"name": "vec", "kind": "dense", "owner": "item", "width": 2},
        {"name": "maker", "kind": "categorical", "owner": "item", "column": "brand"},
        {"name": "categories", "kind": "multi_categorical", "owner": "item"},
        {"name": "likes", "kind": "preferences", "owner": "user", "like": "categories"},
        {"name": "joined", "kind": "time", "owner": "user"},
    ]
    columns = {"items.item_id": "sku", "title": "name", "categories": "genres", "created_at": "added", "is_hidden": "hidden"}
    source = opened(
        "user_id,item_id,timestamp\na,1,1706702400\n",
        items="items.csv", users="users.parquet", audit="audit.csv", features=features, columns=columns,
    )  # fmt: skip
    tea, cup, pot = source.items.to_pylist()
    assert tea["item_id"] == "1" and tea["title"] == "Tea" and tea["categories"] == ["Hot", "Drink"] and tea["is_hidden"] is True
    assert tea["created_at"] == datetime(2024, 1, 31, tzinfo=UTC) and tea["vec"] == pytest.approx([0.1, 0.2])
    assert (tea["brand"], cup["brand"], cup["is_hidden"], pot["is_hidden"]) == (None, "Acme", False, None)
    assert tea["price"] == 2.5 and cup["price"] != cup["price"]  # NaN: there, and no number
    assert source.users.to_pylist() == [{"user_id": "a", "likes": ["Hot"], "joined": NOON}]
    assert source.audit is not None and source.audit.to_pylist() == [{"user_id": "a", "gender": "F", "age": "25"}]
    assert source.notes["dropped_columns_of_users"] == "city"


def test_a_users_table_with_lists_can_be_the_audit_table(opened, tmp_path):
    users = {"user_id": ["a", "b"], "gender": ["F", None], "likes": [["Hot"], []], "at": [{"lat": 1.0}, None]}
    pq.write_table(pa.table(users), tmp_path / "users.parquet")
    source = opened("user_id,item_id,timestamp\na,1,1706702400\n", audit="users.parquet")
    assert source.audit is not None and source.audit.to_pylist() == [{"user_id": "a", "gender": "F"}, {"user_id": "b", "gender": None}]
    assert source.notes["dropped_columns_of_audit"] == "likes, at"


PRESET_LOGS = {
    "movielens": ("log.csv", "userId,movieId,rating,timestamp\n1,2,3.5,1706702400\n"),
    "personalize": ("log.csv", "USER_ID,ITEM_ID,EVENT_TYPE,EVENT_VALUE,TIMESTAMP\n1,2,view,3.5,1706702400\n"),
    "recbole": ("log.inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t2\t3.5\t1706702400\n"),
    "gorse": ("log.csv", "FeedbackType,UserId,ItemId,Timestamp\nview,1,2,2024-01-31T12:00:00Z\n"),
    "rectools": ("log.csv", "user_id,item_id,datetime,weight\n1,2,2024-01-31 12:00:00,3.5\n"),
}
PRESET_ITEMS = {
    "movielens": ("items.csv", 'movieId,title,genres\n2,"Heat, The (1995)",Action|Crime\n'),
    "personalize": ("items.csv", "ITEM_ID,CREATION_TIMESTAMP,CATEGORIES\n2,1706702400,Action|Crime\n"),
    "recbole": ("log.item", "item_id:token\tcategories:token_seq\n2\tAction Crime\n"),
    "gorse": ("items.csv", "ItemId,IsHidden,Categories,Timestamp\n2,false,Action|Crime,2024-01-31T12:00:00Z\n"),
    "rectools": ("items.csv", "item_id,categories\n2,Action|Crime\n"),
}


@pytest.mark.parametrize("preset", PRESET_LOGS)
def test_presets(data_config, tmp_path, preset):
    for name, text in (PRESET_LOGS[preset], PRESET_ITEMS[preset]):
        (tmp_path / name).write_text(text)
    settings = {"interactions": PRESET_LOGS[preset][0], "items": PRESET_ITEMS[preset][0], "preset": preset}
    source = open_source(data_config("table", path=str(tmp_path), **settings))
    (row,) = rows(source)
    assert (row["user_id"], row["item_id"], row["timestamp"]) == ("1", "2", NOON)
    assert row.get("event_type") == ("view" if preset in ("personalize", "gorse") else None)
    assert row.get("value") == (3.5 if preset in ("movielens", "personalize", "recbole") else None)
    assert row.get("weight") == (3.5 if preset == "rectools" else None)
    assert source.items["categories"].to_pylist() == [["Action", "Crime"]]
    assert source.items["created_at"].to_pylist() == [NOON if preset in ("personalize", "gorse") else None]


def test_columns_go_over_a_preset(opened):
    log = "userId,sku,timestamp\n1,2,1706702400\n"
    assert rows(opened(log, preset="movielens", columns={"item_id": "sku"}))[0]["item_id"] == "2"


def test_a_value_of_a_megabyte_streams(opened):
    found = rows(opened(f"user_id,item_id,timestamp\n{'u' * 10**6},x,1706702400\nb,y,1706702401\n"))
    assert [len(r["user_id"]) for r in found] == [10**6, 1]


def test_dense_text_must_be_numbers(opened, tmp_path):
    (tmp_path / "items.csv").write_text('item_id,vec\n1,"[1, 2]"\n2,one two\n3,three four\n')
    with pytest.raises(DataError, match="holds 'one two', expected numbers such as"):
        opened(
            "user_id,item_id,timestamp\n",
            items="items.csv",
            features=[{"name": "vec", "kind": "dense", "owner": "item", "width": 2}],
        )


def test_a_dense_text_that_is_no_vector_is_one_bad_value(opened):
    log = "user_id,item_id,timestamp,mood\na,x,1706702400,1 2\nb,x,1706702400,one two\nc,x,1706702400,\nd,x,1706702400,3 4\n"
    found = rows(opened(log, features=[{"name": "mood", "kind": "dense", "owner": "context", "width": 2}]))
    assert [row["mood"] for row in found] == [[1.0, 2.0], [], None, [3.0, 4.0]], "an empty vector fits no width, so prepare counts the row"


def test_a_log_without_rows_yields_none(opened):
    assert sum(len(chunk) for chunk in opened("user_id,item_id,timestamp\n").interactions()) == 0


def test_json_dense_vectors_of_parquet_and_context_columns(opened):
    log = {
        "user_id": ["a"], "item_id": ["x"], "timestamp": [NOON_S], "device": ["tv"], "speed": ["3.5"], "mood": [json.dumps([1, 2])],
    }  # fmt: skip
    features = [
        {"name": "device", "kind": "categorical", "owner": "context"},
        {"name": "speed", "kind": "numeric", "owner": "context"},
        {"name": "mood", "kind": "dense", "owner": "context", "width": 2},
    ]
    (row,) = rows(opened(log, features=features))
    assert (row["device"], row["speed"], row["mood"]) == ("tv", 3.5, [1.0, 2.0])
