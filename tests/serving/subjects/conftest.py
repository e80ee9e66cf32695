"""A run after some use, with rows of users in every file that can hold them."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.config import ServingConfig
from serving.impressions import Outbox
from serving.profiles import Profiles, open_histories
from serving.retriever import Retriever
from serving.rights import Rights
from serving.rolling import Rolling
from serving.sqlite_events import SqliteEvents
from towers.bundle import Bundle
from towers.columns import FIRST_ROW
from towers.identity import UserKeys
from towers.preprocess import Preprocessor
from towers.schema import Feature, make_schema
from towers.shards import embedding_column
from towers.vocab import Vocabulary

USER, OTHER = "user-4", "user-9"


@dataclass
class Run:
    """A run as it is after some use."""

    config: ServingConfig
    keys: UserKeys

    @property
    def dir(self) -> Path:
        return Path(self.config.run_dir)

    @property
    def receipts(self) -> Path:
        return Path(str(self.config.serving.receipts))

    def bytes_of(self, user: str) -> list[str]:
        """Files that hold the user's key, as bytes, digits or a value of a table."""
        key = self.keys.key(user)
        found = []
        for path in sorted(path for path in [*self.dir.rglob("*"), self.receipts] if path.is_file()):
            content = path.read_bytes()
            if path.suffix == ".parquet":
                values = [value for column in pq.ParquetFile(path).read().columns for value in column.to_pylist()]
                content += b"".join(value if isinstance(value, bytes) else str(value).encode() for value in values)
            if key in content or key.hex().encode() in content or user.encode() in content:
                found.append(path.relative_to(self.dir).as_posix() if path.is_relative_to(self.dir) else path.name)
        return found

    @contextmanager
    def served(self) -> Iterator[tuple[Retriever, Rights]]:
        """What a worker of a service has, its logs written at the end."""
        state = self.dir / "state"
        rights = Rights.open(self.config, self.keys)
        _, histories = open_histories(self.dir / "export" / "histories.parquet", self.config.serving.key_file)
        profiles = Profiles(self.keys, histories, SqliteEvents(state / "events.db", self.keys.fingerprint()), standing=rights.standing)
        retriever = Retriever.load(Bundle.open(self.dir / "bundles" / "v1"), profiles)
        retriever.outbox = Outbox(state / "impressions.db", "settings", 0.0, rights.standing.forgotten)
        try:
            yield retriever, rights
        finally:
            retriever.outbox.close()
            profiles.events.close()
            rights.close()

    def holders(self, user: str) -> list[str]:
        """The same, log files by their folder."""
        names = {name if not name.startswith("state/") else "/".join(name.split("/")[:2]) for name in self.bytes_of(user)}
        return sorted(names - {"state/events.db-wal", "state/impressions.db-wal"})

    def rows(self, user: str) -> dict[str, Any]:
        """What is held of a user, by place."""
        with self.served() as (_, rights):
            found: dict[str, Any] = rights.held(user)["held"]
            return found

    def roll(self) -> None:
        """Move the logs on to Parquet."""
        state = self.dir / "state"
        outbox, events = Outbox(state / "impressions.db", "settings"), SqliteEvents(state / "events.db", self.keys.fingerprint())
        Rolling(state, outbox, events, None, None).roll(time.time_ns() // 1000, everything=True)
        outbox.close()
        events.close()


def prepared(folder: Path, keys: UserKeys, users: list[str]) -> None:
    """Prepared columns, three rows a user, as `towers prepare` lays them out."""
    for name in ("context", "users", "items"):
        (folder / name).mkdir(parents=True)
    ordered = sorted(users, key=keys.key)
    count = 3 * len(users)
    columns = {
        "offsets": np.arange(0, count + 1, 3), "user_keys": keys.keys(ordered), "item": np.arange(count, dtype=np.int32),
        "timestamp": np.arange(count) + 1_000_000, "event": np.full(count, FIRST_ROW + 1, np.int32), "weight": np.ones(count, np.float32),
        "split": np.zeros(count, np.uint8), "context/hour": FIRST_ROW + np.arange(count) % 24,
        "context/budget": np.stack([np.arange(count) % 3 - 1.0, np.arange(count) % 3 == 1], axis=1).astype(np.float32),
        "users/age": np.arange(len(users)),
        "items/item_id": np.arange(9),
    }  # fmt: skip
    for name, values in columns.items():
        np.save(folder / f"{name}.npy", values)
    table = pa.table({"user_key": pa.array(list(map(keys.key, ordered)), pa.binary(16)), "age": [str(i) for i in range(len(users))]})
    pq.write_table(table, folder / "users.parquet")
    pq.write_table(pa.table({"user_id": ordered}), folder / "raw_user_ids.parquet")
    pq.write_table(pa.table({"user_id": [USER, "other"], "reason": ["bad", "bad"]}), folder / "rejected.parquet")
    pq.write_table(pa.table({"item_id": [f"i{i}" for i in range(count)]}), folder / "catalog.parquet")
    hours = [str(hour) for hour in range(24)]
    vocabularies = {"event_type": Vocabulary.fit(["like", "play"]), "hour": Vocabulary.numbered(hours)}
    features = [Feature("hour", "categorical", "context"), Feature("budget", "numeric", "context")]
    Preprocessor(make_schema(features, "time", {}), vocabularies, {"context.budget": (10.0, 5.0)}).save(folder)
    (folder / "prepare.json").write_text(json.dumps({"data": {"users": len(users), "digest": "before"}}))


@pytest.fixture
def used(world: Any, tmp_path: Path) -> Run:
    """Exports, prepared data, lists, audit columns, events and impressions, in SQLite and as Parquet, of two users among others."""
    root = tmp_path / "run"
    config = world.run(root)
    config.serving.receipts = str(tmp_path / "receipts.jsonl")
    made = Run(config, UserKeys.open(str(world.key_file)))
    users = sorted(world.users, key=made.keys.key)
    keyed = {"user_key": pa.array(list(map(made.keys.key, users)), pa.binary(16))}
    vectors = embedding_column(np.random.default_rng(0).normal(size=(len(users), 8)).astype(np.float32))
    for name in ("export/users", "recommendations"):
        (root / name).mkdir(parents=True)
        pq.write_table(pa.table({**keyed, "embedding": vectors}), root / name / "part-00000.parquet")
    pq.write_table(pa.table({**keyed, "gender": ["F"] * len(users)}), root / "audit.parquet")
    prepared(root / "prepared", made.keys, users)
    for roll in (True, False):
        with made.served() as (retriever, _):
            for user in (USER, OTHER):
                retriever.add_events([{"user_id": user, "item_id": "item-01", "event_id": str(roll)}])
                retriever.recommend(user_id=user)
        if roll:
            made.roll()
    return made
