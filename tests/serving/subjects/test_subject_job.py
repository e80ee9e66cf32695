"""Seeing what is held, deleting what is old, and `towers subject` over all of it."""

import json
import shutil
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.subject import main
from serving.subject_config import SubjectJobConfig, validate
from serving.subject_job import run
from towers.columns import NO_TIME
from towers.errors import ConfigError, DataError, GateError
from towers.held_out import HELD_OUT, HeldOut, write_held_out

USER, OTHER = "user-4", "user-9"


def test_what_is_held_of_a_person_can_be_read(used: Any) -> None:
    with used.served() as (_, rights):
        told = rights.held(USER)
        nobody = rights.held("nobody")
    found = json.loads(json.dumps(told))["held"]
    assert {place.partition(":")[0] for place in found} >= {
        "state/events.db",
        "state/impressions.db",
        "prepared",
        "audit.parquet",
        "export/histories.parquet",
    }
    assert sorted(event["event_id"] for event in found["state/events.db: events"]) == ["False", "True"]
    assert found["state/events.db: events"][0]["timestamp"].startswith("20")
    (history,) = found["export/histories.parquet"]
    assert len(history["item_ids"]) == 5 and history["timestamps"][0].startswith("2024") and "item_rows" not in history
    (shown,) = found["state/impressions.db: waiting"]
    assert len(shown["row"]["item_id"]) == 20 and shown["row"]["user_key"] == used.keys.key(USER).hex()
    assert [row["event_type"] for row in found["prepared"] if "item_id" in row] == ["play"] * 3 and found["prepared/rejected.parquet"][0][
        "reason"
    ] == "bad"
    assert nobody["held"] == {} and nobody["consent"]["train"] is True


def test_context_and_weight_of_prepared_rows_are_told(used: Any) -> None:
    place = [key.tobytes() for key in np.load(used.dir / "prepared" / "user_keys.npy")].index(used.keys.key(USER))
    rows = [row for row in used.rows(USER)["prepared"] if "item_id" in row]
    hours = [str((3 * place + number) % 24) for number in range(3)]
    assert [row["weight"] for row in rows] == [1.0] * 3
    assert [row["context"] for row in rows] == [{"hour": hours[0], "budget": 5.0}, {"hour": hours[1]}, {"hour": hours[2], "budget": 15.0}]


def test_when_each_decision_was_made_is_told(used: Any, tmp_path: Path) -> None:
    table = tmp_path / "consent.csv"
    table.write_text(f"user_id,purpose,granted,timestamp\n{USER},train,true,86400\n{USER},measure,false,2\n{OTHER},train,true,3\n")
    used.config.serving.consent = str(table)
    before = time.time()
    with used.served() as (_, rights):
        assert rights.held("nobody")["decisions"] == []
        rights.standing.decide(used.keys.key(USER), {"train": False, "personalize": True})
        told = rights.held(USER)
        personalize, of_table, of_service, measure = told["decisions"]
        assert of_table == {"purpose": "train", "granted": True, "timestamp": "1970-01-02T00:00:00+00:00", "source": "table"}
        assert measure == {"purpose": "measure", "granted": False, "timestamp": "1970-01-01T00:00:02+00:00", "source": "table"}
        assert (of_service["purpose"], of_service["granted"], of_service["source"]) == ("train", False, "told")
        assert before - 1 <= datetime.fromisoformat(of_service["timestamp"]).timestamp() <= time.time() + 1
        assert told["consent"]["personalize"] and personalize["timestamp"] == of_service["timestamp"]
        rights.subjects.forget([used.keys.key(USER)])
        assert [one["purpose"] for one in rights.held(USER)["decisions"] if one["source"] == "told"] == ["train"], "grants are forgotten"


def test_purge_removes_what_is_old_everybodys(used: Any) -> None:
    day = 86_400_000_000
    with used.served() as (retriever, rights):
        retriever.add_events([{"user_id": USER, "item_id": "item-05", "timestamp": time.time() - 40 * 86_400}])
        removed = rights.subjects.purge(30).rows
        assert removed["state/events.db"] == 1 and removed["export/histories.parquet"] > 1 and "audit.parquet" not in removed
        assert rights.subjects.purge(30)[:2] == ({}, {})
    left = pq.read_table(used.dir / "export" / "histories.parquet").to_pylist()
    assert all(t > time.time_ns() // 1000 - 30 * day for row in left for t in row["timestamps"])
    assert {row["likes"] and tuple(row["likes"]) for row in left} == {None, ("drama",)}, "users without events keep what they declared"
    assert used.holders(OTHER) and (used.dir / "prepared" / "user_keys.npy").exists()


def test_purge_removes_what_was_made_of_old_rows_alone_and_names_what_is_left(used: Any, capsys: pytest.CaptureFixture[str]) -> None:
    now, day = time.time_ns() // 1000, 86_400_000_000
    path, vectors = used.dir / "export" / "histories.parquet", used.dir / "export" / "users" / "part-00000.parquet"
    table = pq.read_table(path)
    histories = table.to_pylist()
    for row in histories:
        if row["user_key"] == used.keys.key(USER):
            row["timestamps"] = [now - day] * len(row["timestamps"])
    pq.write_table(pa.Table.from_pylist(histories, table.schema), path)
    unseen = {row["user_key"] for row in histories if not row["item_ids"]}
    moments = [now - day, now - 40 * day, NO_TIME]
    empty = pa.array([[], [], []], pa.list_(pa.string()))
    queries = HeldOut(
        pa.array([used.keys.key(USER)] * 3, pa.binary(16)), np.ones((3, 1, 4), np.float32), np.array(moments), empty, empty, empty
    )
    write_held_out(used.dir / "export" / HELD_OUT, {"valid": queries}, "of these weights")
    told = job(used, "purge", days=30)
    assert set(pq.read_table(vectors)["user_key"].to_pylist()) == {used.keys.key(USER), *unseen}
    left = HeldOut.read(used.dir / "export" / HELD_OUT, "valid", "of these weights")
    assert left.now_Q.tolist() == [now - day, NO_TIME] and told["rows"]["export/held_out.parquet"] == 1
    rows = len(np.load(used.dir / "prepared" / "timestamp.npy"))
    assert told["left"]["prepared"].startswith(f"{rows} older rows; run `towers prepare` with data.retention_days=30")
    assert f"left in prepared: {told['left']['prepared']}" in capsys.readouterr().out
    np.save(used.dir / "prepared" / "timestamp.npy", np.full(rows, now))
    assert job(used, "purge", days=30) == {"action": "purge", "days": 30, "rows": {}, "not_removed_from": {}, "left": {}}


def job(used: Any, action: str, **settings: Any) -> dict[str, Any]:
    config = SubjectJobConfig(**vars(used.config), action=action)
    for name, value in settings.items():
        setattr(config if name == "user" else config.subject, name, value)
    validate(config)
    document: dict[str, Any] = json.loads(Path(run(config)).read_text())
    return document


def test_the_job_does_the_same(used: Any, tmp_path: Path) -> None:
    out = tmp_path / "held.json"
    out.touch(0o644)  # of an export before, copied here
    assert job(used, "export", user=USER, out=str(out))["held"] and out.stat().st_mode & 0o777 == 0o600
    leavers = tmp_path / "leavers.txt"
    leavers.write_text(f"{USER}\nnobody\n{OTHER}\n")
    receipt = job(used, "forget", users=str(leavers))["receipt"]
    assert receipt["rows"]["prepared"] == 2 * 3 and used.bytes_of(USER) == used.bytes_of(OTHER) == []
    nowhere = SubjectJobConfig(**{**vars(used.config), "run_dir": str(tmp_path / "nowhere")}, action="verify")
    assert Path(run(nowhere)) == used.receipts and not (tmp_path / "nowhere").exists()
    assert job(used, "verify") == {"action": "verify", "receipts": 2, "last_hash": receipt["hash"], "forgotten": 3}
    assert job(used, "purge", days=1e6)["rows"] == {}
    used.receipts.write_bytes(used.receipts.read_bytes().replace(b'"found":true', b'"found":True'))
    with pytest.raises(DataError, match="line 2 is not what was written"):
        job(used, "verify")


@pytest.mark.parametrize(
    ("action", "settings", "said"),
    [
        ("forgive", {}, "action: got 'forgive', expected one of forget, export, purge, scan, verify"),
        ("forget", {}, "user: action=forget needs a user id"),
        ("forget", {"user": "a", "users": "b.txt"}, "and not both"),
        ("forget", {"user": ""}, "empty id"),
        ("export", {"user": "a"}, "subject.out"),
        ("export", {"user": "a", "out": "absent/folder/x"}, "absent/folder/x cannot be written"),
        ("purge", {"days": 0}, "subject.days: got 0"),
        ("scan", {"ids": "absent"}, "subject.ids: no file absent"),
    ],
)
def test_settings_that_cannot_be_meant(used: Any, action: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        job(used, action, **settings)


def test_without_the_secret_nobody_can_be_found(used: Any, tmp_path: Path) -> None:
    used.config.serving.key_file = str(tmp_path / "absent")
    with pytest.raises(ConfigError, match="another secret would make every user unknown"):
        job(used, "forget", user=USER)


def test_raw_ids_are_found_wherever_they_stand(used: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = tmp_path / "ids.csv"
    ids.write_text("user_id,city\n" + "".join(f"{user},x\n" for user in (USER, OTHER, "a", "12345678", "item-03")))
    (used.dir / "notes.txt").write_text(f"called {USER} today")
    with pytest.raises(GateError, match=r"raw user ids stand in 1 place:\n  notes.txt \(1\)"):
        job(used, "scan", ids=str(ids))
    told = json.loads((used.dir / "subject.json").read_text())
    assert told["hits"] == [{"place": "notes.txt", "ids": 1, "asked_for": False}]
    assert told["asked_for"] == ["prepared/raw_user_ids.parquet", "prepared/rejected.parquet"]
    assert told["not_looked_for"] == 3, "too short, a number, an item's id"
    parts = [next((used.dir / "state" / log).rglob("*.parquet")) for log in ("events", "impressions")]
    whole = [part.read_bytes() for part in parts]
    for part in parts:
        part.write_bytes(b"PAR1")
    with pytest.raises(GateError, match="2 places cannot be read, and may hold some"):
        job(used, "scan", ids=str(ids))
    (used.dir / "notes.txt").unlink()
    with pytest.raises(DataError, match="All else holds none") as raised:
        job(used, "scan", ids=str(ids))
    assert all(part.relative_to(used.dir).as_posix() in str(raised.value) for part in parts)
    assert len(json.loads((used.dir / "subject.json").read_text())["unread"]) == 2
    for part, content in zip(parts, whole, strict=True):
        part.write_bytes(content)
    capsys.readouterr()
    assert job(used, "scan", ids=str(ids))["hits"] == []
    said = capsys.readouterr().out
    assert "no raw user id of 2 looked for in" in said and "3 were NOT looked for: too short, plain numbers or ids of items" in said


def test_what_the_job_could_not_do_is_said_and_the_rest_is_done(used: Any, capfd: pytest.CaptureFixture[str]) -> None:
    parts = [next((used.dir / "state" / log).rglob("*.parquet")) for log in ("events", "impressions")]
    for part in parts:
        part.write_bytes(part.read_bytes()[:100])
    names = {part.relative_to(used.dir).as_posix() for part in parts}
    for action, settings, elsewhere in (("purge", {"days": 30}, "export/histories.parquet"), ("forget", {"user": USER}, "audit.parquet")):
        with pytest.raises(DataError) as raised:
            job(used, action, **settings)
        told = json.loads((used.dir / "subject.json").read_text())
        told = told.get("receipt", told)
        assert set(told["not_removed_from"]) == names and not names & set(told["rows"]) and told["rows"][elsewhere]
        assert all(str(part) in str(raised.value) for part in parts)
        assert f"delete it (with everybody's rows in it), then {action} again" in str(raised.value)
        assert f"All else is done, {sum(told['rows'].values())} rows in {len(told['rows'])} place" in str(raised.value)
    assert capfd.readouterr().err == "", "the error says all of it"
    for part in parts:
        part.unlink()
    assert used.bytes_of(USER) == []


@pytest.mark.parametrize("size", [100, 2 * 4096], ids=["no database", "pages missing"])
@pytest.mark.parametrize("name", ["events.db", "impressions.db"])
def test_a_damaged_database_keeps_nobody_elsewhere(used: Any, tmp_path: Path, name: str, size: int) -> None:
    damaged, out = used.dir / "state" / name, tmp_path / "held.json"
    for log in used.dir.glob(f"state/{name}-*"):
        log.unlink()
    damaged.write_bytes(damaged.read_bytes()[:size])
    with pytest.raises(DataError, match=rf"1 place cannot be read.*\n  state/{name}: "):
        job(used, "export", user=USER, out=str(out))
    assert json.loads(out.read_text())["held"]["audit.parquet"]
    with pytest.raises(DataError, match=rf"1 place could not be reached.*\n  .*{name}.*\nPut each back from a backup"):
        job(used, "forget", user=USER)
    damaged.unlink()
    for log in used.dir.glob(f"state/{name}-*"):
        log.unlink()
    assert used.bytes_of(USER) == []


def test_of_many_damaged_files_a_few_are_shown(used: Any) -> None:
    (part,) = (used.dir / "state" / "events").rglob("*.parquet")
    for number in range(7):
        part.with_name(f"part-damaged-{number:015d}.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="7 places could not be reached") as raised:
        job(used, "forget", user=USER)
    assert str(raised.value).count("part-damaged") == 5 and "and 2 more" in str(raised.value)
    assert len(json.loads((used.dir / "subject.json").read_text())["receipt"]["not_removed_from"]) == 7


@pytest.mark.parametrize("kept", ["state/events.db", "export/histories.parquet"])
def test_the_secret_of_others_finds_nobody_and_says_so(used: Any, tmp_path: Path, kept: str) -> None:
    used.config.serving.key_file, used.config.serving.receipts = str(tmp_path / "another"), None
    Path(used.config.serving.key_file).write_bytes(b"2" * 32)
    for place in {"state", "export"} - {kept.partition("/")[0]}:
        shutil.rmtree(used.dir / place)
    for action, settings in (("forget", {"user": USER}), ("export", {"user": USER, "out": str(tmp_path / "out")}), ("purge", {"days": 1})):
        with pytest.raises(ConfigError, match="keyed with"):
            job(used, action, **settings)
    assert (used.dir / kept).exists() and not (tmp_path / "another.receipts.jsonl").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["users.parquet", "timestamp.npy"])
def test_damaged_prepared_data_keep_nobody_elsewhere(used: Any, tmp_path: Path, name: str) -> None:
    damaged, out = used.dir / "prepared" / name, tmp_path / "held.json"
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(DataError, match=r"1 place cannot be read.*\n  prepared: ") as raised:
        job(used, "export", user=USER, out=str(out))
    assert f"{out} tells all else" in str(raised.value)
    told = json.loads(out.read_text())
    assert list(told["unread"]) == ["prepared"] and told["held"]["audit.parquet"]
    with pytest.raises(DataError, match="towers prepare"):
        job(used, "forget", user=USER)
    damaged.unlink()
    assert {place.partition("/")[0] for place in used.holders(USER)} == {"prepared"}
    assert not list(used.dir.rglob("*.leaving"))


def test_a_run_that_is_not_there_forgets_nobody(used: Any, tmp_path: Path) -> None:
    used.config.run_dir = str(tmp_path / "mistyped")
    with pytest.raises(ConfigError, match="run_dir"):
        job(used, "forget", user=USER)
    assert not (tmp_path / "mistyped").exists() and not used.receipts.exists()


def test_whoever_is_named_on_the_command_line_is_named_in_no_file(used: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [f"serving.key_file={used.config.serving.key_file}", f"serving.receipts={used.receipts}", f"run_dir={used.dir}"]
    monkeypatch.setattr("sys.argv", ["towers subject", "action=forget", f"user={USER}", *settings])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0 and used.bytes_of(USER) == []
