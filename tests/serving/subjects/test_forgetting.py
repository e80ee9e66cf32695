"""Forgetting reaches every file of a run and every process of its service; what comes back from a backup goes again."""

import json
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving import feedback_job, recommend_job, subjects
from serving.subjects import verify
from towers.columns import MADE

USER, OTHER = "user-4", "user-9"
HOLDERS = [
    "audit.parquet", "export/histories.parquet", "export/users/part-00000.parquet", "prepared/raw_user_ids.parquet",
    "prepared/rejected.parquet", "prepared/user_keys.npy", "prepared/users.parquet", "recommendations/part-00000.parquet",
]  # fmt: skip


def test_forgetting_leaves_no_byte_and_touches_nobody_else(used: Any) -> None:
    state = ["state/events", "state/events.db", "state/impressions", "state/impressions.db"]
    assert used.holders(USER) == sorted([*HOLDERS, *state])
    before = {user: used.rows(user) for user in (USER, OTHER)}
    with used.served() as (_, rights):
        receipt = rights.subjects.forget([used.keys.key(USER)])
    assert used.bytes_of(USER) == []
    assert used.rows(OTHER) == before[OTHER], "nobody else lost a row"
    removed = receipt["rows"]
    assert receipt["found"] and removed["export/histories.parquet"] == removed["audit.parquet"] == 1
    assert removed["prepared"] == 3, "rows, as everywhere"
    assert removed["state/events.db"] == 2 and removed["state/impressions.db"] == 1 and sum(n.startswith("state/") for n in removed) == 4
    assert receipt["still_learned_from"] == ["bundles/v1"] and receipt["retrain_by"] > receipt["at"]
    assert verify(used.receipts) == {"receipts": 2, "last_hash": receipt["hash"], "forgotten": 1}


def test_prepared_columns_agree_after_somebody_left(used: Any) -> None:
    folder = used.dir / "prepared"
    before = {path.relative_to(folder).as_posix(): np.load(path) for path in folder.rglob("*.npy")}
    place = [key.tobytes() for key in before["user_keys.npy"]].index(used.keys.key(USER))
    with used.served() as (_, rights):
        rights.subjects.forget([used.keys.key(USER)])
    gone = slice(3 * place, 3 * place + 3)
    for name in ("item", "timestamp", "weight", "split", "event", "context/hour"):
        assert np.array_equal(np.load(folder / f"{name}.npy"), np.delete(before[f"{name}.npy"], gone))
    for name in ("user_keys", "users/age"):
        assert np.array_equal(np.load(folder / f"{name}.npy"), np.delete(before[f"{name}.npy"], place, axis=0))
    assert np.array_equal(np.load(folder / "offsets.npy"), before["offsets.npy"][:-1])
    assert len(pq.read_table(folder / "users.parquet")) == len(before["user_keys.npy"]) - 1
    facts = json.loads((folder / "prepare.json").read_text())["data"]
    assert facts["forgotten_users"] == 1 and facts["users"] == len(before["user_keys.npy"]) - 1 and facts["digest"] != "before"
    assert not list(folder.rglob("*.leaving"))


def test_nobody_and_twice_are_no_errors_and_say_that_nothing_was_found(used: Any) -> None:
    with used.served() as (_, rights):
        rights.subjects.forget([used.keys.key(USER)])
        for user in (USER, "nobody"):
            receipt = rights.subjects.forget([used.keys.key(user)])
            assert (receipt["found"], receipt["rows"], receipt["still_learned_from"], receipt["retrain_by"]) == (False, {}, [], None)
    assert verify(used.receipts)["receipts"] == 6


def test_it_counts_at_the_next_request_of_every_process_and_later_events_count_anew(used: Any) -> None:
    with used.served() as (one, _), used.served() as (two, rights):
        assert one.recommend(user_id=USER).profile == two.recommend(user_id=USER).profile == "used"
        moment = time.time() - 60
        rights.subjects.forget([used.keys.key(USER)])
        reply = one.recommend(user_id=USER)
        assert (reply.mode, reply.profile, reply.fallback and reply.fallback.reason) == ("fallback", "none", "unknown_user")
        late = {"user_id": USER, "item_id": "item-02", "timestamp": moment}
        assert one.add_events([late]).ignored == 1, "what happened before and comes late is forgotten as well"
        assert one.add_events([{"user_id": USER, "item_id": "item-03", "event_id": "new"}]).added == 1
        assert two.recommend(user_id=USER, k=40).items == two.recommend(history=["item-03"], k=40).items
        assert one.recommend(user_id=OTHER).profile == "used"


def test_what_other_processes_were_about_to_write_is_not_written(used: Any) -> None:
    with used.served() as (one, _), used.served() as (_, rights):
        one.recommend(user_id=USER, k=3)
        one.recommend(user_id=OTHER, k=3)
        rights.subjects.forget([used.keys.key(USER)])
        assert one.outbox is not None
        one.outbox.flush()
        one.recommend(user_id=USER, k=4)
        waiting = one.outbox
        waiting.flush()
        assert [json.loads(row)["k"] for row in waiting.waiting(100, 1 << 20).rows][-2:] == [3, 4], "the other's list, and a later one"


def test_an_event_that_waited_for_a_busy_store_is_not_stored_after_the_removal(used: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is busy from when the event was looked at until its user's rows are removed, by another process."""
    ahead = {"user_id": USER, "item_id": "item-03", "timestamp": time.time() + 100}
    with used.served() as (one, _), used.served() as (_, rights):
        store = one.profiles.events
        append = store.append

        def late(*told: Any) -> int:
            assert rights.subjects.forget([used.keys.key(USER)])["found"]
            added: int = append(*told)
            return added

        monkeypatch.setattr(store, "append", late)
        told = one.add_events([ahead, {**ahead, "user_id": OTHER}, {"user_id": USER, "item_id": "item-02", "event_id": "e"}])
        assert (told.added, told.ignored) == (1, 2)
    assert "state/events.db: events" not in used.rows(USER) and used.holders(USER) == []


def test_what_a_backup_brings_back_goes_at_the_next_start(used: Any, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    shutil.copytree(used.dir, backup)
    with used.served() as (_, rights):
        rights.subjects.forget([used.keys.key(USER)])
        assert rights.subjects.replay() is None, "nothing came back yet"
    shutil.rmtree(used.dir)
    backup.rename(used.dir)
    assert used.bytes_of(USER)
    with used.served() as (retriever, rights):
        assert retriever.profiles.get(used.keys.key(USER), "time", time.time_ns() // 1000) == (None, 0), "nobody reads it, removed or not"
        before = used.rows(OTHER)
        receipt = rights.subjects.replay()
    assert receipt is not None and receipt["forget"] is None and receipt["rows"]["prepared"] == 3
    assert used.bytes_of(USER) == [] and used.rows(OTHER) == before


def test_jobs_pass_over_what_a_backup_brought_back_before_any_service_starts(used: Any, tmp_path: Path) -> None:
    for user in (USER, OTHER):
        with used.served() as (retriever, _):
            shown = retriever.recommend(user_id=user)
            answer = {"user_id": user, "item_id": shown.items[0].item_id, "recommendation_id": shown.recommendation_id}
            retriever.add_events([{**answer, "event_id": "click"}])
    backup = tmp_path / "backup"
    shutil.copytree(used.dir, backup)
    with used.served() as (_, rights):
        rights.subjects.forget([used.keys.key(USER)])
    shutil.rmtree(used.dir)
    backup.rename(used.dir)
    feedback_job.run(used.config)
    slots = pa.concat_tables(map(pq.read_table, sorted((used.dir / "feedback").iterdir()))).to_pylist()
    assert {slot["user_key"] for slot in slots} == {used.keys.key(OTHER)} and sum(slot["clicked"] for slot in slots) == 1
    recommend_job.run(used.config)
    lists = pa.concat_tables(map(pq.read_table, sorted((used.dir / "recommendations").glob("part-*.parquet"))))
    keys = lists["user_key"].to_pylist()
    assert used.keys.key(USER) not in keys and used.keys.key(OTHER) in keys
    assert json.loads((used.dir / "recommend.json").read_text())["users_not_allowed"] == 0, "somebody forgotten is nobody who refuses"


def test_a_history_with_later_events_keeps_those_alone(used: Any, tmp_path: Path) -> None:
    path = used.dir / "export" / "histories.parquet"
    with used.served() as (_, rights):
        rights.subjects.forget([used.keys.key(USER)])
    moment = time.time_ns() // 1000
    row = {"user_key": used.keys.key(USER), "item_ids": ["old", "undated", "new"], "event_types": ["play"] * 3,
           "timestamps": [moment - 10**9, None, moment + 10**9], "likes": ["drama"]}  # fmt: skip
    table = pq.read_table(path)
    grown = pa.concat_tables([table, pa.Table.from_pylist([row], schema=table.schema)])
    grown = grown.replace_schema_metadata({**table.schema.metadata, MADE: str(moment + 1).encode()})
    pq.write_table(grown.take(pa.array(np.argsort([k for k in grown["user_key"].to_pylist()], kind="stable"))), path)
    with used.served() as (retriever, rights):
        known = retriever.profiles.get(used.keys.key(USER), "time", moment)[0]
        assert known is not None and known.items == ["new"] and not known.features
        rights.subjects.replay()
    (left,) = [r for r in pq.read_table(path).to_pylist() if r["user_key"] == used.keys.key(USER)]
    assert (left["item_ids"], left["event_types"], left["likes"]) == (["new"], ["play"], None)
    assert pq.read_schema(path).metadata == grown.schema.metadata


def test_what_was_exported_before_is_forgotten_though_its_clock_was_ahead(used: Any) -> None:
    path, key, moment = used.dir / "export" / "histories.parquet", used.keys.key(USER), time.time_ns() // 1000
    table = pq.read_table(path)
    ahead = [[moment + 8 * 3600 * 10**6 + place for place in range(len(items))] for items in table["item_ids"].to_pylist()]
    place = table.column_names.index("timestamps")
    table = table.set_column(place, "timestamps", pa.array(ahead, pa.list_(pa.int64())))
    table = table.replace_schema_metadata({**table.schema.metadata, MADE: str(moment).encode()})
    pq.write_table(table, path)
    with used.served() as (retriever, rights):
        assert retriever.recommend(user_id=USER).profile == "used"
        rights.subjects.forget([key])
        assert retriever.recommend(user_id=USER).profile == "none"
        pq.write_table(table, path)  # from a backup
        assert rights.subjects.replay()["rows"] == {"export/histories.parquet": 1}
    assert key not in pq.read_table(path)["user_key"].to_pylist() and len(pq.read_table(path)) == len(table) - 1


def test_grants_are_forgotten_and_refusals_are_not(used: Any) -> None:
    with used.served() as (_, rights):
        rights.standing.decide(used.keys.key(USER), {"train": False, "measure": True})
        assert rights.subjects.forget([used.keys.key(USER)])["rows"]["state/consent.db"] == 1
    with used.served() as (_, rights):
        assert rights.held(USER)["consent"] == {"personalize": True, "train": False, "marketing": True, "measure": True}
    with closing(sqlite3.connect(used.dir / "state" / "consent.db")) as connection:
        assert connection.execute("SELECT purpose FROM decisions").fetchall() == [("train",)]
    assert pq.read_table(used.dir / "state" / "consent.parquet")["purpose"].to_pylist() == ["train"], "for the training jobs too"


def test_a_grant_is_forgotten_in_every_process_and_stays_so_after_a_backup(used: Any, tmp_path: Path) -> None:
    table = tmp_path / "consent.csv"
    table.write_text("user_id,purpose,granted,timestamp\nsomebody,train,true,1\n")
    used.config.serving.consent = str(table)
    key, consent = used.keys.key(USER), used.dir / "state" / "consent.db"
    with used.served() as (one, first), used.served() as (two, _):
        first.standing.decide(key, {"personalize": True})
        assert one.recommend(user_id=USER).profile == two.recommend(user_id=USER).profile == "used"
        with closing(sqlite3.connect(consent)) as source, closing(sqlite3.connect(tmp_path / "backup.db")) as backup:
            source.backup(backup)
        first.subjects.forget([key])
        assert one.recommend(user_id=USER).profile == two.recommend(user_id=USER).profile == "no_consent", "as the table says"
        first.standing.decide(key, {"personalize": True})
        assert two.recommend(user_id=USER).profile == "none", "who returns may grant anew"
    for path in consent.parent.glob("consent.db*"):
        path.unlink()
    shutil.copy(tmp_path / "backup.db", consent)
    with used.served() as (one, rights):
        assert one.recommend(user_id=USER).profile == "no_consent"
        receipt = rights.subjects.replay()
        assert receipt is not None and receipt["rows"] == {"state/consent.db": 1}


def test_a_refusal_reaches_every_process_after_the_last_grant_was_forgotten(used: Any) -> None:
    with used.served() as (one, _), used.served() as (two, rights):
        rights.standing.decide(used.keys.key(USER), {"marketing": True})
        assert one.recommend(user_id=USER).profile == "used"
        rights.subjects.forget([used.keys.key(USER)])
        rights.standing.decide(used.keys.key(OTHER), {"personalize": False})
        assert one.recommend(user_id=OTHER).profile == two.recommend(user_id=OTHER).profile == "no_consent"


def test_a_log_file_cut_in_half_keeps_nobody_in_the_other_files(used: Any) -> None:
    part = next((used.dir / "state" / "impressions").rglob("*.parquet"))
    whole, name = part.read_bytes(), part.relative_to(used.dir).as_posix()
    part.write_bytes(whole[: len(whole) // 2])
    with used.served() as (_, rights):
        told = rights.held(USER)
        assert told["held"]["audit.parquet"] and list(told["unread"]) == [name]
        receipt = rights.subjects.forget([used.keys.key(USER)])
        assert receipt["found"] and list(receipt["not_removed_from"]) == [name]
        part.unlink()
        assert used.bytes_of(USER) == []
        part.write_bytes(whole)
        again = rights.subjects.replay()
    assert again is not None and again["rows"] == {name: 1} and again["not_removed_from"] == {} and used.bytes_of(USER) == []


def test_what_was_learned_is_told_where_nothing_could_be_removed(used: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows then whether there were rows: the person is told what somebody is told who was found."""
    with used.served() as (_, rights):
        assert not rights.subjects.forget([used.keys.key("nobody")])["still_learned_from"]
        monkeypatch.setattr(subjects, "cut_everywhere", lambda *_: subjects.Removed({}, {"prepared": "No space left on device"}))
        receipt = rights.subjects.forget([used.keys.key(USER)])
    assert receipt["found"] and receipt["still_learned_from"] and receipt["retrain_by"] and receipt["rows"] == {}
