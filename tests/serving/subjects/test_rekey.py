"""Exchanging the secret of the user keys: every place that holds keys holds the new ones, whatever kills the job on the way."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from serving import recommend_job, rekey_files
from serving.database import Database
from serving.subject_config import SubjectJobConfig, validate
from serving.subject_job import run
from towers.errors import ConfigError, DataError
from towers.identity import SECRET_FINGERPRINT, UserKeys, mark
from towers.live_consent import LiveConsent
from towers.receipts import Erasures, Receipts
from towers.rekeying import JOURNAL, refuse_unfinished
from training.config import TrainingConfig
from training.permission import Permission

USER, OTHER, THIRD = "user-4", "user-9", "user-2"


class Exchange:
    """A used run, and all that is needed to give it another secret."""

    def __init__(self, used: Any, users: list[str], folder: Path) -> None:
        self.used, self.users, self.folder = used, users, folder
        self.old_file = used.config.serving.key_file
        self.old, self.new_file = used.keys, folder / "new_key"
        self.new_file.write_bytes(b"n" * 32)
        self.new = UserKeys(b"n" * 32)
        self.name(users)

    def name(self, users: list[str]) -> None:
        (self.folder / "ids.csv").write_text("user_id\n" + "\n".join(users) + "\n")

    def run(self, **settings: Any) -> dict[str, Any]:
        config = SubjectJobConfig(**vars(self.used.config), action="rekey")
        config.serving.key_file = str(self.new_file)
        config.subject.old_key, config.subject.ids = str(self.old_file), str(self.folder / "ids.csv")
        for name, value in settings.items():
            setattr(config.subject, name, value)
        validate(config)
        receipt: dict[str, Any] = json.loads(Path(run(config)).read_text())["receipt"]
        self.used.keys = self.new
        return receipt

    def holders(self, keys: UserKeys) -> dict[str, set[str]]:
        """Users whose key under a secret, or its mark, stands in a file, by file."""
        found: dict[str, set[str]] = {}
        for path in sorted(path for path in self.used.dir.rglob("*") if path.is_file() and not path.name.endswith("-shm")):
            content = path.read_bytes()
            if path.suffix == ".parquet":
                values = [value for column in pq.ParquetFile(path).read().columns for value in column.to_pylist()]
                content += b"\0".join(value if isinstance(value, bytes) else str(value).encode() for value in values)
            for user in self.users:
                key = keys.key(user)
                if any(text in content for text in (key, key.hex().encode(), mark(key), mark(key).hex().encode())):
                    found.setdefault(path.relative_to(self.used.dir).as_posix(), set()).add(user)
        return found


@pytest.fixture
def exchange(used: Any, world: Any, tmp_path: Path) -> Exchange:
    with used.served() as (_, rights):
        rights.standing.decide(used.keys.key(USER), {"train": False, "measure": True})
        rights.standing.decide(used.keys.key(OTHER), {"marketing": False})
        rights.subjects._consent.export(used.dir / "state" / "consent.parquet")
    return Exchange(used, sorted(world.users), tmp_path)


def settled(used: Any) -> None:  # no row waits in a write-ahead log, and no connection is left that takes its log away later
    for path in (used.dir / "state").glob("*.db"):
        database = Database(path, ())
        database.checkpoint()
        database.close()


def test_every_place_that_held_old_keys_holds_new_ones_of_the_same_people(exchange: Exchange) -> None:
    used = exchange.used
    settled(used)
    before, rows = exchange.holders(exchange.old), {user: used.rows(user) for user in (USER, OTHER)}
    places = {name if not name.startswith("state/") else "/".join(name.split("/")[:2]) for name in before}
    assert places >= {
        "audit.parquet", "export/histories.parquet", "export/users/part-00000.parquet", "prepared/user_keys.npy", "prepared/users.parquet",
        "recommendations/part-00000.parquet", "state/consent.db", "state/consent.parquet", "state/events", "state/events.db",
        "state/impressions", "state/impressions.db",
    }  # fmt: skip
    receipt = exchange.run()
    settled(used)
    assert exchange.holders(exchange.old) == {} and exchange.holders(exchange.new) == before
    assert receipt["deleted"] == {} and receipt["rows"]["state/impressions.db"] == 2
    old, new = (keys.key(user).hex() for keys, user in ((exchange.old, USER), (exchange.new, USER)))
    after = {user: used.rows(user) for user in (USER, OTHER)}
    assert json.dumps(rows[USER]).replace(old, new) == json.dumps(after[USER]), "the same rows, in the same order"
    for path in used.dir.rglob("*.parquet"):
        if "user_key" in pq.read_schema(path).names and "bundles" not in path.parts:
            assert (pq.read_schema(path).metadata or {}).get(SECRET_FINGERPRINT) == exchange.new.fingerprint(), path
    assert not list(used.dir.rglob("*.rekeyed*")) and not (used.dir / JOURNAL).exists()


def test_what_lies_in_the_order_of_keys_does_so_again_and_rows_stay_with_their_people(exchange: Exchange) -> None:
    folder = exchange.used.dir / "prepared"
    names = ("item", "timestamp", "weight", "split", "event", "context/hour")

    def read(keys: UserKeys) -> dict[str, Any]:
        of = {keys.key(user): user for user in exchange.users}
        keys_U, offsets = np.load(folder / "user_keys.npy"), np.load(folder / "offsets.npy")
        assert sorted(of) == [key.tobytes() for key in keys_U], "in their order"
        columns = {name: np.load(folder / f"{name}.npy") for name in names}
        age, told = np.load(folder / "users" / "age.npy"), pq.read_table(folder / "users.parquet").to_pylist()
        raw = pq.read_table(folder / "raw_user_ids.parquet")["user_id"].to_pylist()
        assert raw == [of[key.tobytes()] for key in keys_U] and [row["user_key"] for row in told] == sorted(of)
        rows = [{name: column[offsets[u] : offsets[u + 1]].tolist() for name, column in columns.items()} for u in range(len(keys_U))]
        return {of[key.tobytes()]: (rows[u], age[u], told[u]["age"]) for u, key in enumerate(keys_U)}

    before, digest = read(exchange.old), json.loads((folder / "prepare.json").read_text())["data"]["digest"]
    exchange.run()
    assert read(exchange.new) == before
    facts = json.loads((folder / "prepare.json").read_text())["data"]
    assert facts["digest"] != digest and facts["users"] == len(exchange.users) and facts["rows"] == 3 * len(exchange.users)
    keys = pq.read_table(exchange.used.dir / "export" / "histories.parquet")["user_key"].to_pylist()
    assert keys == sorted(exchange.new.key(user) for user in exchange.users)


def test_shards_are_one_table_in_order(exchange: Exchange) -> None:
    folder = exchange.used.dir / "export" / "users"
    whole = pq.read_table(folder / "part-00000.parquet")
    for number, start in enumerate(range(0, len(whole), 3)):
        pq.write_table(whole.slice(start, 3), folder / f"part-{number:05d}.parquet")
    (folder / "_shards.json").write_text("{}")
    of = {exchange.new.key(user): exchange.old.key(user) for user in exchange.users}
    vectors = {row["user_key"]: row["embedding"] for row in whole.to_pylist()}
    exchange.run()
    parts = [pq.read_table(path) for path in sorted(folder.glob("part-*.parquet"))]
    rows = [row for part in parts for row in part.to_pylist()]
    assert [row["user_key"] for row in rows] == sorted(of) and all(len(part) == 3 for part in parts[:-1])
    assert all(row["embedding"] == vectors[of[row["user_key"]]] for row in rows)


def test_afterwards_the_new_secret_alone_serves(exchange: Exchange, tmp_path: Path) -> None:
    used = exchange.used
    exchange.run()
    with used.served() as (retriever, rights):
        rights.check_secret()
        assert retriever.recommend(user_id=USER).profile == "used" and rights.held(OTHER)["held"]
        assert rights.held(USER)["consent"] == {"personalize": True, "train": False, "marketing": True, "measure": True}
        assert retriever.add_events([{"user_id": USER, "item_id": "item-07", "event_id": "late"}]).added == 1
        assert not rights.held(OTHER)["consent"]["marketing"]
    told = LiveConsent.open(used.dir / "state" / "consent.parquet", exchange.new)
    assert not told.settle(np.ones(1, bool), exchange.new.keys([USER]), "train")[0] and len(told) == 2
    used.config.recommend.k = 3
    recommend_job.run(used.config)
    (part,) = (used.dir / "recommendations").glob("part-*.parquet")
    assert exchange.new.key(USER) in pq.read_table(part)["user_key"].to_pylist()
    used.roll()
    with used.served() as (_, rights):
        assert rights.subjects.forget([exchange.new.key(USER)])["found"]
    settled(used)
    assert USER not in set().union(*(users for name, users in exchange.holders(exchange.new).items() if "consent" not in name))
    used.config.serving.key_file, used.keys = str(exchange.old_file), exchange.old
    with pytest.raises(ConfigError, match=r"another secret|not the one|exchanged"), used.served():
        pass


@pytest.mark.parametrize("kill_at", [0, 1, 2, 5, 9, 14, 20])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_killed_anywhere_it_is_all_old_or_goes_on_to_all_new(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch, step: str, kill_at: int
) -> None:
    used = exchange.used
    settled(used)
    before = exchange.holders(exchange.old)
    child = os.fork()
    if not child:
        try:
            die_at(monkeypatch, step, kill_at)
            exchange.run()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    killed, decided = os.WIFSIGNALED(status), (used.dir / JOURNAL).is_file()
    if decided:
        for opening in (used.served().__enter__, lambda: Permission.open(TrainingConfig(run_dir=str(used.dir)))):
            with pytest.raises(ConfigError, match=JOURNAL):
                opening()
        exchange.name(["nobody"])  # what is decided needs no ids any more
    elif killed:
        assert exchange.holders(exchange.old).items() >= before.items(), "nothing has changed"
        with used.served() as (retriever, _):
            assert retriever.recommend(user_id=USER).profile == "used"
    if killed:
        exchange.run()
    refuse_unfinished(used.dir)
    settled(used)
    assert exchange.holders(exchange.old) == {} and exchange.holders(exchange.new) == before
    assert [line["what"] for line in Receipts(used.receipts).fresh()] == ["rekeyed"]


def die_at(monkeypatch: pytest.MonkeyPatch, step: str, kill_at: int) -> None:
    real, calls = getattr(os, step), [0]

    def counted(*given: Any) -> None:
        if calls[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        calls[0] += 1
        real(*given)

    monkeypatch.setattr(os, step, counted)


def test_whoever_is_not_named_is_refused_with_a_count_or_deleted(exchange: Exchange) -> None:
    used = exchange.used
    exchange.name([user for user in exchange.users if user not in (USER, THIRD)])
    settled(used)
    before = {path: path.read_bytes() for path in used.dir.rglob("*") if path.suffix in (".parquet", ".npy", ".db")}
    with pytest.raises(DataError, match=r"state/impressions.db: 1.*prepared/user_keys.npy: 2.*Nothing was changed"):
        exchange.run()
    assert {path: path.read_bytes() for path in before} == before and not list(used.dir.rglob("*.rekeyed*"))
    receipt = exchange.run(unnamed="delete")
    assert receipt["deleted"]["prepared/user_keys.npy"] == 2 and receipt["deleted"]["state/events.db"] == 2
    settled(used)
    assert exchange.holders(exchange.old) == {}
    assert not {USER, THIRD} & set().union(*exchange.holders(exchange.new).values())
    assert used.rows(OTHER)["prepared"] and len(np.load(used.dir / "prepared" / "item.npy")) == 3 * (len(exchange.users) - 2)


def test_a_service_that_runs_is_not_pulled_from_under(exchange: Exchange) -> None:
    with exchange.used.served() as (retriever, _):
        with pytest.raises(ConfigError, match="a service or another job is using it"):
            exchange.run()
        assert retriever.recommend(user_id=USER).profile == "used"
    exchange.run()


def test_who_was_forgotten_stays_so_under_the_new_secret_and_in_older_backups(exchange: Exchange, tmp_path: Path) -> None:
    used, backup = exchange.used, tmp_path / "backup"
    shutil.copytree(used.dir, backup)
    with used.served() as (_, rights):
        rights.subjects.forget([exchange.old.key(USER)])
    exchange.name([user for user in exchange.users if user != USER])
    with pytest.raises(DataError, match="1 forgotten people"):
        exchange.run()
    exchange.name(exchange.users)
    receipt = exchange.run()
    assert (receipt["forgotten"], receipt["forgotten_unnamed"]) == (1, 0)
    *_, told = Receipts(used.receipts).fresh()
    assert list(told["forgotten"]) == [mark(exchange.new.key(USER)).hex()], "in the chain, and not within the run"
    with used.served() as (_, rights):
        moment = rights.standing.forgotten(exchange.new.key(USER))
        assert moment == told["forgotten"][mark(exchange.new.key(USER)).hex()] and rights.subjects.replay() is None
        rights.subjects.forget([exchange.new.key(OTHER)])  # after the exchange
    shutil.rmtree(used.dir)
    backup.rename(used.dir)  # from before both: under the old secret
    with pytest.raises(ConfigError), used.served():
        pass
    exchange.run()
    settled(used)
    left = set().union(*(users for name, users in exchange.holders(exchange.new).items() if "consent" not in name))
    assert exchange.holders(exchange.old) == {} and not {USER, OTHER} & left and THIRD in left
    erasures = Erasures(Receipts(used.receipts), exchange.new.fingerprint())
    assert erasures.refresh() and erasures.moment(exchange.new.key(USER)) == moment and erasures.moment(exchange.new.key(OTHER))
    with pytest.raises(ConfigError, match="was exchanged for another"):
        Erasures(Receipts(used.receipts), exchange.old.fingerprint()).refresh()


def test_what_cannot_be_done_is_said_before_anything_changes(exchange: Exchange, used: Any, tmp_path: Path) -> None:
    (third := tmp_path / "third").write_bytes(b"3" * 32)
    for settings, said in (
        ({"old_key": str(tmp_path / "none")}, "subject.old_key: no file"),
        ({"old_key": str(exchange.new_file)}, "same secret"),
        ({"old_key": None}, "subject.old_key: action=rekey needs"),
        ({"ids": str(tmp_path / "none")}, "subject.ids: no file"),
        ({"unnamed": "ignore"}, "subject.unnamed: got 'ignore'"),
        ({"old_key": str(third)}, "neither of the two"),
    ):
        with pytest.raises(ConfigError, match=said):
            exchange.run(**settings)
    assert exchange.holders(exchange.new) == {}
    damaged = next((used.dir / "state" / "impressions").rglob("*.parquet"))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:200])
    with pytest.raises(DataError, match=damaged.name):
        exchange.run()
    damaged.write_bytes(whole)
    (used.dir / "prepared" / "schema.json").write_text(json.dumps({"features": [{"name": "user_id", "owner": "user"}]}))
    with pytest.raises(ConfigError, match="prepare and train anew"):
        exchange.run()
    shutil.copy(exchange.old_file, tmp_path / "apart")
    (tmp_path / "apart.receipts.jsonl").touch()
    used.config.serving.receipts = None
    with pytest.raises(ConfigError, match="receipts: those of the old secret are .* move them to"):
        exchange.run(old_key=str(tmp_path / "apart"))
    assert exchange.holders(exchange.new) == {} and not list(used.dir.rglob(f"*{rekey_files.BESIDE}*"))
