"""Whoever opens a file of the service's state closes it, also where something fails: no connection is left to the garbage collector."""

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import serving.run
from serving import feedback_job, recommend_job
from serving.config import ServingConfig
from serving.consent_store import CONSENT_FILE, ConsentStore
from serving.database import Database
from serving.impressions import OUTBOX_FILE, Outbox
from serving.item_changes import ITEMS_FILE, ItemChanges
from serving.retriever import Retriever
from serving.rights import Rights
from serving.sqlite_events import SqliteEvents
from towers.bundle import Bundle
from towers.errors import ConfigError, DataError, StorageError, TowersError
from towers.identity import UserKeys
from towers.live_logs import EVENTS_FILE

SECRET = b"fingerprint"


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[sqlite3.Connection]]:
    """All connections that a test opens, of which none may be open at its end."""
    connections: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def noted(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connections.append(connect(*args, **kwargs))
        return connections[-1]

    monkeypatch.setattr(sqlite3, "connect", noted)
    yield connections
    left = [connection for connection in connections if is_open(connection)]
    for connection in left:
        connection.close()
    assert connections and not left


def is_open(connection: sqlite3.Connection) -> bool:
    try:
        connection.total_changes  # noqa: B018 - asked for what it raises
    except sqlite3.ProgrammingError:
        return False
    return True


@pytest.fixture
def config(world: Any, tmp_path: Path) -> ServingConfig:
    made: ServingConfig = world.run(tmp_path / "run")
    made.serving.port = 0
    return made


def state(config: ServingConfig, file: str) -> Path:
    return Path(config.run_dir, "state", file)


def damage(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("no database at all " * 1000)


STORES: dict[str, Callable[[Path], Any]] = {
    "events": lambda path: SqliteEvents(path, SECRET),
    "consent": lambda path: ConsentStore(path, SECRET),
    "items": ItemChanges,
    "impressions": lambda path: Outbox(path, "settings"),
}


@pytest.mark.parametrize("name", STORES)
def test_a_store_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    damage(tmp_path / "state.db")
    with pytest.raises(DataError, match="cannot be opened"):
        STORES[name](tmp_path / "state.db")


@pytest.mark.parametrize("name", ["items", "impressions"])
def test_a_store_that_has_lost_its_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Database, "read", lambda *asked: [])
    with pytest.raises(ValueError, match="not enough values"):
        STORES[name](tmp_path / "state.db")


@pytest.mark.parametrize("name", ["events", "consent"])
def test_a_store_of_another_secret(tmp_path: Path, name: str) -> None:
    STORES[name](tmp_path / "state.db").close()
    with closing(Database(tmp_path / "state.db", ())) as database, database.transaction() as connection:
        connection.execute("UPDATE facts SET value = 'another' WHERE name = 'secret'")
    with pytest.raises(ConfigError, match="another secret"):
        STORES[name](tmp_path / "state.db")


def test_events_whose_set_of_users_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "state.users").mkdir()
    with pytest.raises(DataError, match="users cannot be opened"):
        STORES["events"](tmp_path / "state.db")


def test_lists_that_the_disk_does_not_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = STORES["impressions"](tmp_path / "state.db")

    def full(busy_s: float) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(outbox, "flush", full)
    with pytest.raises(StorageError, match="full"):
        outbox.close()


def test_rights_whose_receipts_cannot_be_read(config: ServingConfig, world: Any, tmp_path: Path) -> None:
    config.serving.receipts = str(tmp_path / "receipts")
    (tmp_path / "receipts").write_text("no line of a chain\n")
    with pytest.raises(TowersError, match="receipts"):
        Rights.open(config, UserKeys.open(str(world.key_file)))


def verified(config: ServingConfig) -> Future[Bundle]:
    done: Future[Bundle] = Future()
    done.set_result(Bundle.open(Path(config.run_dir, "bundles", "v1")))
    return done


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a service changes of its whole process stays as it is."""
    for name in ("leave_pandas_out", "log_to_stderr", "settle"):
        monkeypatch.setattr(serving.run, name, lambda: None)


@pytest.mark.usefixtures("in_this_process")
def test_a_service_that_was_stopped(config: ServingConfig, opened: list[sqlite3.Connection], monkeypatch: pytest.MonkeyPatch) -> None:
    open_while_it_answers: list[sqlite3.Connection] = []
    monkeypatch.setattr(serving.run, "serve", lambda *told: open_while_it_answers.extend(filter(is_open, opened)))
    serving.run.run(config, verified(config))
    assert len(open_while_it_answers) == 12, "two of each: decisions and events of requests, and of the process's own the same and two more"


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("file", [EVENTS_FILE, CONSENT_FILE, ITEMS_FILE, OUTBOX_FILE])
def test_a_service_that_cannot_open_a_file(config: ServingConfig, file: str) -> None:
    damage(state(config, file))
    with pytest.raises(DataError, match=f"{file} cannot be opened"):
        serving.run.run(config, verified(config))


@pytest.mark.parametrize("file", [EVENTS_FILE, CONSENT_FILE, ITEMS_FILE, OUTBOX_FILE])
def test_what_keeps_a_process_up_to_date(config: ServingConfig, retriever: Retriever, file: str) -> None:
    damage(state(config, file))
    with pytest.raises(DataError, match=f"{file} cannot be opened"), serving.run.live(config, retriever):
        pass


def test_a_job_of_lists_that_is_interrupted(config: ServingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*told: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(recommend_job, "lists", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recommend_job.run(config)


@pytest.mark.parametrize("file", [EVENTS_FILE, OUTBOX_FILE])
def test_a_job_of_feedback_that_cannot_open_a_file(config: ServingConfig, file: str) -> None:
    state(config, "impressions").mkdir(parents=True)
    damage(state(config, file))
    with pytest.raises(DataError, match=f"{file} cannot be opened"):
        feedback_job.run(config)
