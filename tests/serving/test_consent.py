"""What a user has not allowed is not read, not listed and not noted, from the next request on, in every process."""

import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.config import ServingConfig
from serving.consent_store import ConsentStore
from serving.impressions import Outbox
from serving.profiles import Profiles, open_histories
from serving.recompute import recompute
from serving.retriever import Retriever
from serving.rights import consent_table
from serving.rolling import impression_table
from serving.sqlite_events import SqliteEvents
from serving.standing import ConsentTable, Standing
from towers.bundle import Bundle
from towers.consent import BITS, EVERYTHING, PURPOSES
from towers.errors import ConfigError, DataError
from towers.identity import UserKeys, mark
from towers.live_consent import LiveConsent

USER = "user-4"
NOW_S = 1_728_000_000.0


class Spy:
    """Counts what is asked of a store of users; `name` and `teach` read the items of all, `seal` tells the file: none is anybody's row."""

    def __init__(self, store: Any) -> None:
        self._store, self.asked = store, 0

    def __getattr__(self, name: str) -> Any:
        self.asked += name not in ("name", "teach", "seal")
        return getattr(self._store, name)


@pytest.fixture
def keys(world: Any) -> UserKeys:
    return UserKeys.open(str(world.key_file))


@pytest.fixture
def opened(world: Any, tmp_path: Path) -> Iterator[Any]:
    """`opened(standing)`: a retriever over spied stores, which logs what it shows."""
    files: list[Any] = []

    def open_(standing: Standing) -> Retriever:
        keys, histories = open_histories(world.histories, str(world.key_file))
        events = SqliteEvents(tmp_path / "events.db", keys.fingerprint())
        profiles = Profiles(keys, Spy(histories), Spy(events), standing=standing)  # type: ignore[arg-type]
        retriever = Retriever.load(Bundle.open(world.bundle), profiles)
        retriever.outbox = Outbox(tmp_path / "impressions.db", "settings")
        files.extend((retriever.outbox, events))
        return retriever

    yield open_
    for file in files:
        file.close()


def reads(retriever: Retriever) -> int:
    profiles: Any = retriever.profiles
    return int(profiles._histories.asked + profiles.events.asked)


def last_row(retriever: Retriever) -> dict[str, Any]:
    assert retriever.outbox is not None
    retriever.outbox.flush()
    rows: list[dict[str, Any]] = impression_table(retriever.outbox.waiting(1000, 1 << 30).rows).to_pylist()
    return rows[-1]


def write_table(path: Path, keys: UserKeys, granted: dict[str, bool], user: str = USER) -> Path:
    rows = [{"user_key": keys.key(user), "purpose": p, "granted": g, "timestamp": 1_700_000_000} for p, g in granted.items()]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_without_personalize_no_user_row_is_read_and_no_key_noted(opened: Any) -> None:
    retriever = opened(Standing())
    assert (retriever.recommend(user_id=USER).profile, reads(retriever) > 0) == ("used", True)
    before = reads(retriever)
    reply = retriever.recommend(user_id=USER, personalize=False, k=5)
    assert (reply.mode, reply.profile, reply.fallback and reply.fallback.reason) == ("fallback", "not_wanted", "not_wanted")
    row = last_row(retriever)
    assert reads(retriever) == before and row["user_key"] is None and row["consent_mask"] is None and len(row["item_id"]) == 5
    assert reply.items == retriever.recommend(k=5).items, "what anybody gets"


def test_what_the_request_itself_says_is_used(opened: Any) -> None:
    retriever = opened(Standing())
    told: dict[str, Any] = {"history": ["item-03", "item-10"], "context": {"hour": 5}, "preferences": ["drama"], "now": NOW_S}
    ours, theirs = retriever.recommend(user_id=USER, personalize=False, **told), retriever.recommend(**told)
    assert reads(retriever) == 0 and ours.items == theirs.items and (ours.mode, ours.profile) == ("personalized", "not_wanted")
    assert retriever.recommend(user_id=USER, personalize=False, preferences=["drama"]).mode == "cold"


@pytest.mark.parametrize("asked", [{"user_id": USER, "k": 7, "now": NOW_S}, {"user_id": "stranger", "history": ["item-01"], "now": NOW_S}])
def test_a_refusal_counts_from_the_next_request(opened: Any, keys: UserKeys, asked: dict[str, Any]) -> None:
    retriever = opened(Standing())
    first = retriever.recommend(**asked)
    retriever.profiles.standing.decide(keys.key(asked["user_id"]), {"personalize": False})
    before = reads(retriever)
    refused = retriever.recommend(**asked)
    assert refused.profile == "no_consent" and reads(retriever) == before
    assert refused.items == retriever.recommend(**{**asked, "user_id": None}).items
    row = last_row(retriever)
    assert refused.fallback is None or refused.fallback.reason == "no_consent"
    retriever.profiles.standing.decide(keys.key(asked["user_id"]), {"personalize": True})
    assert retriever.recommend(**asked).items == first.items
    assert row["user_key"] is None, "of a list for nobody"


def test_without_measure_lists_are_noted_for_nobody(opened: Any, keys: UserKeys) -> None:
    retriever = opened(Standing())
    key = keys.key(USER)
    assert retriever.profiles.standing.decide(key, {"measure": False}) == EVERYTHING & ~BITS["measure"]
    assert retriever.recommend(user_id=USER).profile == "used"
    row = last_row(retriever)
    assert row["user_key"] is None and row["consent_mask"] == EVERYTHING & ~BITS["measure"]
    assert [why.partition(":")[0] for why in recompute(retriever, row).moved] == ["user_key"], "whose rows were read is not known"
    retriever.profiles.standing.decide(key, {"measure": True, "personalize": False})
    retriever.recommend(user_id=USER)
    row = last_row(retriever)
    assert row["user_key"] == key and row["consent_mask"] == EVERYTHING & ~BITS["personalize"]


def test_without_measure_a_click_does_not_tell_whose_list_it_answers(opened: Any, keys: UserKeys, tmp_path: Path) -> None:
    retriever = opened(Standing())
    retriever.profiles.standing.decide(keys.key(USER), {"measure": False})
    click = {
        "user_id": USER,
        "item_id": "item-01",
        "event_id": "1",
        "recommendation_id": retriever.recommend(user_id=USER).recommendation_id,
    }
    assert retriever.add_events([click, {**click, "user_id": "other"}]).added == 2
    with closing(sqlite3.connect(tmp_path / "events.db")) as database:
        kept = dict(database.execute("SELECT user_key, recommendation_id FROM events").fetchall())
    assert kept == {keys.key(USER): None, keys.key("other"): click["recommendation_id"]}


def test_events_of_people_who_allow_no_use_of_them_are_not_kept(opened: Any, keys: UserKeys) -> None:
    retriever = opened(Standing())
    event = {"user_id": "new", "item_id": "item-01", "event_id": "1"}
    retriever.profiles.standing.decide(keys.key("new"), dict.fromkeys(PURPOSES, False) | {"marketing": True})
    assert retriever.add_events([event, {**event, "user_id": "other"}]).added == 1
    retriever.profiles.standing.decide(keys.key("new"), {"measure": True})
    assert retriever.add_events([event]).added == 1


def test_with_a_table_what_nobody_granted_is_denied_and_the_later_decision_counts(opened: Any, keys: UserKeys, tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.parquet", keys, {"personalize": True, "measure": False})
    standing = Standing(ConsentTable(path, keys))
    assert standing.mask(keys.key(USER)) == BITS["personalize"] and standing.mask(keys.key("user-5")) == 0
    retriever = opened(standing)
    assert retriever.recommend(user_id=USER).profile == "used" and retriever.recommend(user_id="user-5").profile == "no_consent"
    assert standing.decide(keys.key(USER), {"personalize": False}) == 0
    later = {"user_key": [keys.key(USER)], "purpose": ["personalize"], "granted": [True], "timestamp": [time.time()]}
    pq.write_table(pa.table(later), path)
    standing.refresh()
    assert standing.mask(keys.key(USER)) == BITS["personalize"], "the table's row is the later one"


def test_a_table_is_followed_and_a_bad_one_is_not(keys: UserKeys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_table(tmp_path / "t.parquet", keys, {"train": True})
    standing = Standing(ConsentTable(path, keys))
    path.write_bytes(b"half a file")
    standing.refresh()
    assert standing.mask(keys.key(USER)) == BITS["train"], "what was read before counts on"
    assert "t.parquet cannot be read" in standing.refused
    path.unlink()
    standing.refresh()
    assert standing.mask(keys.key(USER)) == BITS["train"]
    soon = {"user_key": [keys.key(USER)], "purpose": ["measure"], "granted": [True], "timestamp": [time.time() + 3600]}
    pq.write_table(pa.table(soon), path)
    standing.refresh()
    assert standing.mask(keys.key(USER)) == 0
    assert standing.refused == ""
    later = time.time_ns() + 3601 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: later)
    standing.refresh()
    assert standing.mask(keys.key(USER)) == BITS["measure"], "a row of the future comes into force"
    named = ServingConfig(run_dir=str(tmp_path))
    named.serving.consent = str(tmp_path / "absent.parquet")
    with pytest.raises(DataError, match=r"serving\.consent: got .*absent.parquet', no such file"):
        consent_table(named, keys)


def test_processes_learn_from_each_other_and_from_those_before(keys: UserKeys, tmp_path: Path) -> None:
    secret = keys.fingerprint()
    one, two = (Standing(store=ConsentStore(tmp_path / "consent.db", secret)) for _ in range(2))
    one.decide(keys.key(USER), {"train": False, "measure": False})
    two.refresh()
    two.decide(keys.key(USER), {"train": True})
    one.refresh()
    again = Standing(store=ConsentStore(tmp_path / "consent.db", secret))
    assert {standing.mask(keys.key(USER)) for standing in (one, two, again)} == {EVERYTHING & ~BITS["measure"]}
    assert again.mask(keys.key("other")) == EVERYTHING
    for standing in (one, two, again):
        standing.close()
    assert keys.key(USER) not in b"".join(path.read_bytes() for path in tmp_path.glob("consent.db*")), "known by a mark alone"


def test_the_file_for_the_training_jobs_follows_the_store(keys: UserKeys, tmp_path: Path) -> None:
    """Written when something changed and only then, also when something was removed or a backup of the store came back."""
    path, store = tmp_path / "consent.parquet", ConsentStore(tmp_path / "consent.db", keys.fingerprint())
    assert not store.export(path) and not path.exists(), "nobody decided anything"
    store.put(mark(keys.key(USER)), {"train": False, "measure": True}, 6_000_000)
    assert store.export(path) and not store.export(path) and path.stat().st_mode & 0o777 == 0o600
    table = pq.read_table(path)
    assert sorted(zip(*(table[name].to_pylist() for name in ("mark", "purpose", "granted")), strict=True)) == [
        (mark(keys.key(USER)), "measure", True), (mark(keys.key(USER)), "train", False),
    ]  # fmt: skip
    assert {int(time.timestamp()) for time in table["timestamp"].to_pylist()} == {6} and keys.key(USER) not in path.read_bytes()
    shutil.copy(path, tmp_path / "backup")
    store.forget({mark(keys.key(USER)): 6_000_000})
    assert store.export(path) and pq.read_table(path)["purpose"].to_pylist() == ["train"] and len(LiveConsent.open(path, keys)) == 1
    shutil.copy(tmp_path / "backup", path)
    assert not LiveConsent.open(path, keys, {mark(keys.key(USER)): 6_000_000}).settle(np.zeros(1, bool), keys.keys([USER]), "measure")
    assert LiveConsent.open(path, keys, {mark(keys.key(USER)): 5_999_999}).settle(np.zeros(1, bool), keys.keys([USER]), "measure")
    store.close()
    (tmp_path / "consent.db").unlink()
    fresh = ConsentStore(tmp_path / "consent.db", keys.fingerprint())
    assert fresh.export(path) and len(LiveConsent.open(path, keys)) == 0
    fresh.close()


def test_decisions_of_people_keyed_with_another_secret_are_refused(keys: UserKeys, tmp_path: Path) -> None:
    """They would be decisions of nobody: everyone's refusal would go unheard."""
    store = ConsentStore(tmp_path / "consent.db", keys.fingerprint())
    store.put(mark(keys.key(USER)), {"train": False}, 5)
    store.export(tmp_path / "consent.parquet")
    store.close()
    other = UserKeys(b"another secret of 32 bytes......")
    with pytest.raises(ConfigError, match="keyed with another secret"):
        ConsentStore(tmp_path / "consent.db", other.fingerprint())
    with pytest.raises(ConfigError, match="keyed with another secret"):
        LiveConsent.open(tmp_path / "consent.parquet", other)
    with pytest.raises(DataError, match="not a database"):
        (tmp_path / "text.db").write_text("no database at all" * 100)
        ConsentStore(tmp_path / "text.db", keys.fingerprint())


def test_a_store_from_before_it_noted_its_secret_is_taken_over(keys: UserKeys, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "consent.db")) as connection:
        connection.execute("""CREATE TABLE decisions (mark BLOB NOT NULL, purpose TEXT NOT NULL, granted INTEGER NOT NULL,
            timestamp INTEGER NOT NULL, generation INTEGER NOT NULL, PRIMARY KEY (mark, purpose)) WITHOUT ROWID""")
        connection.execute("INSERT INTO decisions VALUES (?, 'train', 0, 5, 7)", (mark(keys.key(USER)),))
        connection.commit()
    store = ConsentStore(tmp_path / "consent.db", keys.fingerprint())
    assert store.since(0) == ({mark(keys.key(USER)): {"train": (False, 5)}}, 7)
    store.put(mark(keys.key("other")), {"train": False}, 6)
    assert store.since(7) == ({mark(keys.key("other")): {"train": (False, 6)}}, 8)
    store.close()


def test_a_list_for_one_who_refused_is_computed_again_without_their_rows(opened: Any, keys: UserKeys) -> None:
    retriever = opened(Standing())
    retriever.profiles.standing.decide(keys.key(USER), {"personalize": False})
    reply = retriever.recommend(user_id=USER, k=6, now=NOW_S)
    row = last_row(retriever)
    retriever.profiles.standing.decide(keys.key(USER), {"personalize": True})
    assert recompute(retriever, row).items == reply.items


def test_over_http(client: httpx.Client, world: Any) -> None:
    """Decisions by the caller's id, however odd; what is no decision is refused by name."""
    path = "/v1/users/a%2Fb%20%C3%BCn%C3%AF/consent"
    assert client.get(path).json() == dict.fromkeys(PURPOSES, True)
    assert client.put(path, json={"personalize": False, "marketing": False}).json()["personalize"] is False
    reply = client.post("/v1/recommend", json={"user_id": "a/b \u00fcn\u00ef"}).json()
    assert (reply["profile"], reply["fallback"]["reason"]) == ("no_consent", "no_consent")
    assert client.post("/v1/rerank", json={"user_id": "a/b \u00fcn\u00ef", "items": ["item-01"]}).json()["profile"] == "no_consent"
    assert client.put(path, json={"personalize": True}).json() == {**dict.fromkeys(PURPOSES, True), "marketing": False}
    for body, field in (({"profiling": True}, "profiling"), ({}, "body"), ({"train": "yes"}, "train")):
        refused = client.put(path, json=body)
        assert (refused.status_code, refused.json()["field"]) == (422, field)
    assert client.get(f"/v1/users/{'x' * 300}/consent").status_code == 422
