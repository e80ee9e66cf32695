import json
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from towers.columns import REMOVAL, SPLIT_NAMES
from towers.errors import DataError
from towers.identity import SECRET_FINGERPRINT, UserKeys
from training.config import TrainingConfig
from training.histories import write_histories
from training.interactions import Interactions

TIME = pa.timestamp("us", "UTC")
START_US = 1_700_000_000_000_000
TYPES = ("view", "buy", "skip")


def expected_rows(log: dict[str, list[Any]], keys: UserKeys, least_user: int, least_item: int) -> list[dict[str, Any]]:
    """What prepare keeps, by plain Python: sort, drop repeats, drop rare users and items."""
    rows = [dict(zip(log, values, strict=True)) for values in zip(*log.values(), strict=True)]
    rows.sort(key=lambda row: (keys.key(row["user_id"]), row["timestamp"]))
    seen, unique = set(), []
    for row in rows:
        same = (row["user_id"], row["item_id"], row["timestamp"], row["event_type"])
        if same not in seen:
            unique.append(row)
        seen.add(same)
    users, items = Counter(r["user_id"] for r in unique), Counter(r["item_id"] for r in unique)
    return [r for r in unique if users[r["user_id"]] >= least_user and items[r["item_id"]] >= least_item]


@pytest.mark.parametrize(("rows", "least_user", "least_item", "chunk"), [(600, 1, 1, 64), (600, 12, 30, 7), (300, 1, 8, 1000)])
def test_columns_equal_a_plain_python_prepare(
    config: TrainingConfig, prepare: Any, rows: int, least_user: int, least_item: int, chunk: int, events: Any
) -> None:
    log = events(rows, 40, 20)
    for name, values in log.items():
        values += values[:30] if name != "marker" else [-1.0] * 30  # repeats, of which the first must stay
    config.data.min_user_events, config.data.min_item_events = least_user, least_item
    data = prepare(log, chunk=chunk)
    keys = UserKeys.open(config.identity.key_file)
    expected = expected_rows(log, keys, least_user, least_item)
    ids = data.catalog.column("item_id").to_pylist()
    users = np.repeat(np.arange(data.n_users), np.diff(data.offsets))
    assert [ids[row] for row in data.item] == [row["item_id"] for row in expected]
    assert data.timestamp.tolist() == [row["timestamp"] for row in expected]
    assert [data.user_keys[user].tobytes() for user in users] == [keys.key(row["user_id"]) for row in expected]
    weights = {"view": 1.0, "buy": 3.0, "skip": 0.0}
    assert data.weight.tolist() == [weights[row["event_type"]] * row["weight"] for row in expected]
    events_seen = data.preprocessor.vocabularies["event_type"]
    assert data.event.tolist() == events_seen.rows([row["event_type"] for row in expected]).tolist()
    raw = {name: [row[name] for row in expected] for name in ("marker", "device")}
    for name, array in data.preprocessor.encode("context", raw, len(expected)).items():
        assert np.array_equal(data.context[name], array)
    cut = sorted(row["timestamp"] for row in expected)[int(len(expected) * 0.9)]
    assert data.timestamp[data.split == 2].min() == cut
    assert (data.timestamp[data.split != 2] < cut).all()
    assert ids == sorted(ids, key=str.encode)
    assert ("cold" in ids) == (least_item == 1)


def test_vocabularies_and_statistics_come_from_training_rows_only(prepare: Any, events: Any) -> None:
    log = events(400, 30, 20)
    last = START_US + 400 * 1_000_000
    for name, value in (
        ("item_id", "late"),
        ("user_id", "u0"),
        ("event_type", "gift"),
        ("weight", 1.0),
        ("device", "watch"),
        ("marker", 1e9),
    ):
        log[name] += [value] * 3
    log["timestamp"] += [last, last + 1, last + 2]
    data = prepare(log)
    late = data.catalog.column("item_id").to_pylist().index("late")
    assert data.item_features["item.item_id"][late] == 1
    assert data.catalog.column("train_count")[late].as_py() == 0
    assert data.preprocessor.vocabularies["event_type"].values().to_pylist() == sorted(TYPES)
    assert "watch" not in data.preprocessor.vocabularies["device"].values().to_pylist()
    train = np.asarray(data.split) == 0
    markers = [m for m, t in zip(log["marker"], log["timestamp"], strict=True) if t < data.timestamp[~train].min()]
    assert data.preprocessor.numbers["context.marker"] == pytest.approx((np.mean(markers), np.std(markers)))
    rows = np.unique(data.item[train])
    trained = set(data.catalog.column("item_id").take(pa.array(rows)).to_pylist())
    prices = np.array(data.catalog.column("price").take(pa.array(rows)).to_pylist())
    assert data.preprocessor.numbers["item.price"] == pytest.approx((prices.mean(), prices.std()))
    assert set(data.preprocessor.vocabularies["item_id"].values().to_pylist()) == trained


def test_train_count_is_what_the_reader_counts(prepare: Any, events: Any) -> None:
    data = prepare(events(400, 30, 20))
    assert data.catalog.column("train_count").to_pylist() == data.train_counts().tolist()


def test_min_count_of_items_is_of_training_rows(prepare: Any, events: Any, schema: Any) -> None:
    schema = replace(schema, features=tuple(replace(f, min_count=15) if f.name == "item_id" else f for f in schema.features))
    data = prepare(events(400, 30, 20), schema=schema)
    train = np.asarray(data.split) == 0
    often = np.flatnonzero(np.bincount(data.item[train], minlength=data.n_items) >= 15)
    ids = data.catalog.column("item_id").take(pa.array(often)).to_pylist()
    assert 0 < len(ids) < 20
    assert data.preprocessor.vocabularies["item_id"].values().to_pylist() == ids


def test_users_items_and_raw_ids_are_aligned_with_their_rows(config: TrainingConfig, prepare: Any, events: Any) -> None:
    data = prepare(events(400, 30, 20))
    folder = Path(config.run_dir) / "prepared"
    keys = UserKeys.open(config.identity.key_file)
    raw = pq.read_table(folder / "raw_user_ids.parquet")
    assert [keys.key(user) for user in raw.column("user_id").to_pylist()] == [key.tobytes() for key in data.user_keys]
    assert raw.column("user_key").to_pylist() == [key.tobytes() for key in data.user_keys]
    cities = pq.read_table(folder / "users.parquet").column("city").to_pylist()
    without = sorted(set(raw.column("user_id").to_pylist()))[0]
    assert [city is None for city in cities] == [user == without for user in raw.column("user_id").to_pylist()]
    assert np.array_equal(data.preprocessor.encode("user", {"city": cities}, 30)["user.city"], data.user_features["user.city"])
    write_histories(folder / "histories.parquet", data, folder / "users.parquet", 5, np.ones(data.n_users, bool))
    assert pq.read_schema(folder / "histories.parquet").metadata[SECRET_FINGERPRINT] == keys.fingerprint()
    facts = data.facts
    assert facts["users"] == {"without_interactions": 1, "not_in_users_table": 1, "repeated": 0}
    assert facts["items"]["without_interactions"] == 1
    assert facts["missing_values"]["item.price"] == 1


def test_repeated_items_and_users_take_their_last_row(prepare: Any, events: Any) -> None:
    log = events(300, 10, 5)
    items = pa.table({
        "item_id": ["i0", "i1", "i2", "i3", "i4", "i0", None, "x" * 300],
        "title": ["old", "1", "2", "3", "4", "new", "-", "-"],
        "categories": pa.array([["a"]] * 8),
        "price": pa.array([1.0, float("inf"), 2, 3, 4, 5, 6, 7]),
    })  # fmt: skip
    users = pa.table({"user_id": ["u1", "u2", "u1"], "city": ["old", "b", "new"]})
    data = prepare(log, items=items, users=users)
    assert data.catalog.column("title").to_pylist() == ["new", "1", "2", "3", "4"]
    assert data.catalog.column("price").to_pylist() == [5, None, 2, 3, 4]
    assert data.facts["items"]["repeated"] == 1
    assert data.facts["items"]["bad_ids"] == 2
    assert data.facts["users"]["repeated"] == 1
    assert "new" in data.preprocessor.vocabularies["city"].values().to_pylist()
    assert "old" not in data.preprocessor.vocabularies["city"].values().to_pylist()


def test_no_raw_user_id_stays_unless_asked_for(config: TrainingConfig, prepare: Any, events: Any) -> None:
    config.identity.keep_raw_ids = False
    log = events(300, 5, 20)
    log["user_id"] = [f"person-{u}" for u in log["user_id"]]
    log["item_id"][7] = None
    audit = pa.table({"user_id": sorted(set(log["user_id"])), "gender": ["F"] * 5})
    prepare(log, audit=audit)
    for path in Path(config.run_dir).rglob("*"):
        if path.is_file():
            assert b"person-" not in path.read_bytes(), path
    kept = pq.read_table(Path(config.run_dir) / "audit.parquet")
    assert kept.column_names == ["user_key", "gender"]
    assert not list((Path(config.run_dir) / "prepared").rglob("audit*"))


def test_side_table_rows_without_a_user_belong_to_nobody(config: TrainingConfig, prepare: Any, events: Any) -> None:
    log = events(300, 5, 20)
    users = sorted(set(log["user_id"]))
    prepare(log, audit=pa.table({"user_id": [*users, None, ""], "gender": ["F"] * (len(users) + 2)}))
    assert len(pq.read_table(Path(config.run_dir) / "audit.parquet")) == len(users)


def test_given_validation_rows_are_taken_as_they_are(config: TrainingConfig, prepare: Any, events: Any) -> None:
    config.split.name = "given"
    log = events(300, 10, 20)
    log["split"] = [SPLIT_NAMES[i % 3] for i in range(300)]
    data = prepare(log)
    order = np.rint(np.asarray(data.context["context.marker"])[:, 0] * data.preprocessor.numbers["context.marker"][1]
                    + data.preprocessor.numbers["context.marker"][0]).astype(int)  # fmt: skip
    assert (np.asarray(data.split) == order % 3).all()


def test_the_seeded_share_of_given_does_not_depend_on_the_secret(config: TrainingConfig, prepare: Any, tmp_path: Path, events: Any) -> None:
    config.split.name = "given"
    log = events(600, 20, 20)
    log["split"] = ["test" if i % 5 == 0 else "train" for i in range(600)]
    chosen = []
    for key in ("one", "two"):
        config.identity.key_file = str(tmp_path / key)
        UserKeys.open(config.identity.key_file, create=True)
        data = prepare(log)
        rows = np.asarray(data.split) == 1
        chosen.append(sorted(np.asarray(data.context["context.marker"])[rows, 0].tolist()))
    assert chosen[0] == chosen[1]
    assert chosen[0]


def test_prepare_again_gives_the_same_bytes_and_chunks_do_not_matter(config: TrainingConfig, prepare: Any, events: Any) -> None:
    log = events(500, 30, 20)
    prepare(log, chunk=500)
    folder = Path(config.run_dir) / "prepared"
    first = {path.name: path.read_bytes() for path in folder.rglob("*.npy")}
    prepare(log, chunk=9)
    assert first == {path.name: path.read_bytes() for path in folder.rglob("*.npy")}
    assert sorted(p.name for p in folder.parent.iterdir()) == [".training.lock", "prepare.json", "prepared"]
    assert not (folder / "work").exists()


def test_the_result_file_and_the_data_card_say_what_happened(config: TrainingConfig, prepare: Any, events: Any) -> None:
    log = events(400, 30, 20)
    log["item_id"][5] = ""
    log["colour"] = ["red"] * 400
    prepare(log)
    facts = json.loads((Path(config.run_dir) / "prepare.json").read_text())
    assert facts["data"]["rows_read"] == 400
    assert facts["rejected"] == {"rows": 1, "reasons": {"missing_item_id": 1}}
    assert facts["dropped_columns"] == {"colour": 400}
    assert facts["run"]["seed"] == 0
    assert sum(facts["data"]["event_types"].values()) == facts["data"]["rows"] == 399 - facts["data"]["duplicates"]
    card = (Path(config.run_dir) / "prepared" / "data_card.md").read_text()
    for words in (
        "global_temporal",
        "missing_item_id: 1",
        "row 5",
        "colour (400)",
        "| view |",
        "| 50% |",
        facts["data"]["split"]["test_from"],
    ):
        assert words in card


def test_items_may_be_older_than_any_log(prepare: Any, events: Any, source: Any) -> None:
    log = events(200, 10, 5)
    made = source(log).items
    film = datetime(1927, 1, 10, tzinfo=UTC)
    data = prepare(log, items=made.append_column("created_at", pa.array([film + timedelta(days=1)] * len(made), TIME)))
    assert set(data.catalog.column("created_at").to_pylist()) == {film + timedelta(days=1)}
    assert data.catalog.column("is_hidden").to_pylist() == [False] * data.n_items


def test_what_users_removed_is_in_no_history_and_counts_nowhere(config: TrainingConfig, prepare: Any, events: Any) -> None:
    """Against the same log without the rows that were removed."""
    log = events(500, 12, 9)
    rng = np.random.default_rng(1)
    removing = {int(row): REMOVAL for row in rng.integers(0, 500, 40)}
    log["event_type"] = [removing.get(row, kind) for row, kind in enumerate(log["event_type"])]
    rows = sorted(range(500), key=lambda row: (log["timestamp"][row], row))
    last = {(log["user_id"][row], log["item_id"][row]): at for at, row in enumerate(rows) if log["event_type"][row] == REMOVAL}
    kept = {row for at, row in enumerate(rows) if at > last.get((log["user_id"][row], log["item_id"][row]), -1)}
    data = prepare(log)
    facts = json.loads((Path(config.run_dir) / "prepare.json").read_text())["data"]
    found = {name: np.load(Path(config.run_dir) / "prepared" / f"{name}.npy") for name in ("item", "timestamp", "event", "offsets")}
    ids = data.catalog.column("item_id").to_pylist()
    prepare({name: [value for row, value in enumerate(values) if row in kept] for name, values in log.items()})
    plain = json.loads((Path(config.run_dir) / "prepare.json").read_text())["data"]
    assert ids == Interactions.open(Path(config.run_dir) / "prepared").catalog.column("item_id").to_pylist()
    for name, values in found.items():
        assert np.array_equal(values, np.load(Path(config.run_dir) / "prepared" / f"{name}.npy")), name
    assert plain["rows"] == facts["rows"] and plain["event_types"] == facts["event_types"] and REMOVAL not in facts["event_types"]
    assert facts["rows_removed_by_users"] == 500 - facts["duplicates"] - facts["rows"] > 40 and plain["rows_removed_by_users"] == 0


def test_items_that_the_table_lacks_are_told_loudly(
    config: TrainingConfig, prepare: Any, events: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(events(400, 30, 20))
    assert "warning" not in capsys.readouterr().err
    ids = ["i0", "i1", *(f"i0{n}" for n in range(2, 20))]
    some = pa.table({"item_id": ids, "categories": pa.array([["a"]] * 20), "price": pa.array([1.0] * 20)})
    prepare(events(400, 30, 20), items=some)
    told, card = capsys.readouterr().err, (Path(config.run_dir) / "prepared" / "data_card.md").read_text()
    assert "warning: the items table holds 2 of the log's 20 items (10.0%), and" in told
    assert "only in the table: 'i02', 'i03'" in told and "**Warning:** the items table holds 2 of" in card
    with pytest.raises(DataError, match=r"none of the log's 20 items\. The log has 'i\d+', 'i\d+', the table 'i02', 'i03'") as error:
        prepare(events(400, 30, 20), items=some.slice(2))
    assert error.value.exit_code == 3


def test_values_that_are_not_there_are_counted_on_all_sides(
    config: TrainingConfig, prepare: Any, events: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    log = events(400, 30, 20) | {"device": [None] * 400}
    items = pa.table(
        {
            "item_id": [f"i{n}" for n in range(20)],
            "categories": pa.array([None] * 20, pa.list_(pa.string())),
            "price": pa.array([None, float("nan"), *[1.0] * 18]),
        }
    )
    users = pa.table({"user_id": [f"u{n}" for n in range(30)], "city": pa.array([None] * 3 + ["x"] * 27)})
    data = prepare(log, items=items, users=users)
    missing = {"context.device": 400, "item.price": 2, "item.genres": 20, "user.city": 3}
    assert data.facts["missing_values"] == missing
    card, told = (Path(config.run_dir) / "prepared" / "data_card.md").read_text(), capsys.readouterr().err
    assert "item.genres (20)" in card and "user.city (3)" in card
    for name in ("device", "genres"):
        assert f"warning: data.features: '{name}' has not one value" in told and f"data.features: '{name}' has not" in card
    assert told.count("warning") == 2
