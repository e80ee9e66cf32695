"""Copies of people's rows that killed jobs left beside the files whose places they were to take: a removal finds none of them again."""

import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from serving import feedback_job
from serving.rolling import Rolling
from serving.sqlite_events import SqliteEvents
from towers.alone import LISTING, alone_in
from towers.errors import ConfigError

USER, OTHER = "user-4", "user-9"


def copied(run: Path) -> list[Path]:
    """What jobs leave when they are killed before a rename, of the rows that are there."""
    log = next((run / "state" / "impressions").rglob("part-*.parquet"))
    tables = {
        "export/users/part-00001.parquet.tmp": "export/users/part-00000.parquet",
        "export/histories.tmp": "export/histories.parquet",
        "export/histories.tmp.left": "export/histories.parquet",
        "export/held_out.tmp": "export/histories.parquet",
        "export/users/.part-00009.parquet.cut": "export/users/part-00000.parquet",
        "recommendations/part-00001.parquet.tmp": "recommendations/part-00000.parquet",
        "sweep/lists.tmp": "recommendations/part-00000.parquet",
        "audit.parquet.tmp": "audit.parquet",
        "feedback.tmp/part-00000.parquet": "recommendations/part-00000.parquet",
        log.with_name(f".{log.name}.tmp").relative_to(run).as_posix(): log.relative_to(run).as_posix(),
    }
    for left, of in tables.items():
        (run / left).parent.mkdir(exist_ok=True)
        shutil.copy(run / of, run / left)
    (run / "feedback.tmp" / "part-00001.parquet").write_bytes(b"PAR1, half of it")
    for folder in ("prepared.tmp", "prepared.old"):
        shutil.copytree(run / "prepared", run / folder)
    return [run / left for left in (*tables, "prepared.tmp", "prepared.old")]


def test_what_killed_jobs_left_goes_with_the_rest(used: Any) -> None:
    left = copied(used.dir)
    with used.served() as (_, rights):
        receipt = rights.subjects.forget([used.keys.key(USER)])
    assert [path for path in left if path.exists()] == [] and receipt["not_removed_from"] == {}
    assert used.bytes_of(USER) == [] and used.bytes_of(OTHER)


def test_what_a_job_at_work_writes_stays(used: Any) -> None:
    writing = used.dir / "recommendations" / "part-00001.parquet.tmp"
    with alone_in(used.dir, work=LISTING):
        copied(used.dir)
        with used.served() as (_, rights):
            rights.subjects.forget([used.keys.key(USER)])
        assert writing.exists() and not (used.dir / "prepared.tmp").exists()
        with pytest.raises(ConfigError, match=r"another making of lists \(pid \d+\) runs in"), alone_in(used.dir, work=LISTING):
            pass
    with alone_in(used.dir, work=LISTING):
        assert not writing.exists(), "whoever is at work finds nothing of others"


def test_data_that_were_moved_aside_when_a_job_was_killed_are_the_runs(used: Any) -> None:
    (used.dir / "prepared").rename(used.dir / "prepared.old")
    with used.served() as (_, rights):
        assert rights.subjects.forget([used.keys.key(USER)])["rows"]["prepared"] == 3
    assert (used.dir / "prepared").is_dir() and used.bytes_of(USER) == []


def test_copies_in_the_logs_are_kept_no_longer_than_an_hour(used: Any) -> None:
    state = used.dir / "state"
    log = next((state / "events").rglob("part-*.parquet"))
    left = log.with_name(f".{log.name}.tmp")
    shutil.copy(log, left)
    events = SqliteEvents(state / "events.db", used.keys.fingerprint())
    Rolling(state, None, events, None, None).roll(time.time_ns() // 1000 + 3_600_000_000)
    events.close()
    assert log.exists() and not left.exists()


def test_who_is_forgotten_while_feedback_is_joined_is_not_in_it(used: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    join, done = feedback_job.Answers.join, []

    def slowly(answers: Any, lists: Any) -> Any:
        table = join(answers, lists)
        if not done:
            with used.served() as (_, rights):
                done.append(rights.subjects.forget([used.keys.key(USER)]))
        return table

    monkeypatch.setattr(feedback_job.Answers, "join", slowly)
    feedback_job.run(used.config)
    keys = pq.read_table(used.dir / "feedback")["user_key"].to_pylist()
    assert done and used.keys.key(USER) not in keys and used.keys.key(OTHER) in keys
    assert used.bytes_of(USER) == []
