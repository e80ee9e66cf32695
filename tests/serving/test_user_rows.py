"""No row of a user crosses a purpose that the user denies: random states of everybody, on every path that reads or writes such rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving import feedback_job, recommend_job
from serving.messages import RecommendRequest
from serving.page_messages import BatchRequest, RerankRequest, Shelf
from serving.profiles import Profiles, open_histories
from serving.retriever import Retriever
from serving.rights import Rights
from serving.run import events, live
from serving.shelves import answer_rerank, answer_rows
from serving.sqlite_events import SqliteEvents
from serving.standing import Standing
from towers.bundle import Bundle
from towers.consent import BITS, EVERYTHING, PURPOSES, purposes_of
from towers.identity import UserKeys, mark
from towers.live_logs import EVENTS, IMPRESSIONS

PERSONALIZE, MEASURE = BITS["personalize"], BITS["measure"]
USES = BITS["personalize"] | BITS["train"] | BITS["measure"]
SOME = 12
"""Users whose every state is drawn; the rest allow everything."""


class Watched:
    """Notes whose rows are read from a store."""

    def __init__(self, store: Any) -> None:
        self._store, self.read = store, set[bytes]()

    def get(self, user_key: bytes) -> Any:
        self.read.add(user_key)
        return self._store.get(user_key)

    def history(self, user_key: bytes, now: int, arrived: int | None = None) -> Any:
        self.read.add(user_key)
        return self._store.history(user_key, now, arrived)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class Noted:
    """An outbox that keeps the keys that it would write."""

    def __init__(self) -> None:
        self.keys = set[bytes]()

    def add(self, shown: Any) -> None:
        self.keys |= {shown.asked.known.logged_key} - {None}


@pytest.fixture
def watched(world: Any, tmp_path: Path) -> Iterator[Any]:
    """A retriever, what is read of whom, and what is noted."""
    keys, histories = open_histories(world.histories, str(world.key_file))
    store = SqliteEvents(tmp_path / "events.db", keys.fingerprint())
    stores = Watched(histories), Watched(store)
    retriever = Retriever.load(Bundle.open(world.bundle), Profiles(keys, *stores))  # type: ignore[arg-type]
    yield retriever, stores
    store.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.integers(0, EVERYTHING), min_size=SOME, max_size=SOME), st.integers(0, SOME - 1), st.booleans())
def test_requests_read_and_note_what_is_allowed_and_nothing_else(watched: Any, masks: list[int], page_of: int, personalize: bool) -> None:
    retriever, stores = watched
    keys, noted, standing = retriever.profiles.keys, Noted(), Standing()
    retriever.profiles.standing, retriever.outbox = standing, noted
    users = {f"user-{i}": mask for i, mask in enumerate(masks)}
    for user, mask in users.items():
        standing.decide(keys.key(user), purposes_of(mask))
    for store in stores:
        store.read.clear()
    wanted = users if personalize else {}
    one = {"user_id": f"user-{page_of}", "personalize": personalize}
    for user in users:
        retriever.answer(RecommendRequest(user_id=user, personalize=personalize, k=2))
    answer_rows(retriever, BatchRequest(**one, rows=[Shelf(k=2), Shelf(k=1)]))
    answer_rerank(retriever, RerankRequest(**one, items=["item-01"]))
    readable = {keys.key(user) for user, mask in wanted.items() if mask & PERSONALIZE}
    assert stores[0].read == stores[1].read == readable
    assert noted.keys == {keys.key(user) for user, mask in wanted.items() if mask & MEASURE}
    number = str(np.random.default_rng().integers(2**60))
    rows = [{"user_id": user, "item_id": "item-01", "event_id": number} for user in users]
    assert retriever.add_events(rows).added == sum(bool(mask & USES) for mask in masks)


def test_a_hundred_thousand_states_are_told_as_they_were_decided() -> None:
    standing, keys = Standing(), UserKeys(b"k" * 32)
    masks = np.random.default_rng(0).integers(0, EVERYTHING + 1, 100_000).tolist()
    of = [number.to_bytes(16, "big") for number in range(len(masks))]
    for key, mask in zip(of[:1000], masks, strict=False):
        standing.decide(key, purposes_of(mask))
    standing._decided |= {key: value for key, value in _decisions(of[1000:], masks[1000:]).items()}
    assert [standing.mask(key) for key in of] == masks and standing.mask(keys.key("somebody else")) == EVERYTHING


def _decisions(of: list[bytes], masks: list[int]) -> dict[bytes, Any]:
    return {mark(key): {p: (bool(mask & bit), 1) for p, bit in BITS.items()} for key, mask in zip(of, masks, strict=True)}


@pytest.mark.parametrize("seed", [0, 1])
def test_jobs_list_and_join_what_is_allowed_and_nothing_else(world: Any, tmp_path: Path, seed: int) -> None:
    config = world.run(tmp_path)
    config.serving.receipts = str(tmp_path / "receipts")
    keys = UserKeys.open(str(world.key_file))
    users = sorted(world.users)
    masks = dict(zip(users, np.random.default_rng(seed).integers(0, EVERYTHING + 1, len(users)).tolist(), strict=True))
    _, histories = open_histories(world.histories, str(world.key_file))
    rights = Rights.open(config, keys)
    profiles = Profiles(keys, histories, events(config.serving, tmp_path / "state", keys), standing=rights.standing)
    retriever = Retriever.load(Bundle.open(world.bundle), profiles)
    with live(config, retriever):
        for user in users:
            shown = retriever.recommend(user_id=user, k=2)
            clicked = {"user_id": user, "item_id": shown.items[0].item_id, "event_id": "1", "recommendation_id": shown.recommendation_id}
            retriever.add_events([clicked])
    for user, mask in masks.items():
        rights.standing.decide(keys.key(user), purposes_of(mask))
    rights.close()
    profiles.events.close()

    def listed(folder: str) -> set[bytes]:
        tables = [pq.read_table(path, partitioning=None) for path in sorted((tmp_path / folder).glob("part-*.parquet"))]
        return {key for table in tables for key in table["user_key"].to_pylist() if key is not None}

    def allowing(*purposes: str) -> set[bytes]:
        return {keys.key(user) for user, mask in masks.items() if all(mask & BITS[purpose] for purpose in purposes)}

    for purpose in PURPOSES:
        config.recommend.purpose = purpose
        recommend_job.run(config)
        assert listed("recommendations") == allowing("personalize", purpose)
    feedback_job.run(config)
    assert listed("feedback") == allowing("measure")
    joined = pa.concat_tables([pq.read_table(path) for path in sorted((tmp_path / "feedback").glob("part-*.parquet"))])
    assert sum(joined["clicked"].to_pylist()) == len(allowing("measure"))
    assert {EVENTS, IMPRESSIONS} <= {path.name for path in (tmp_path / "state").iterdir()}
