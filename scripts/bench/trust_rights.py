"""Rights: do rows of people cross a purpose that they deny, and what is left of people who wished to be forgotten?

    python scripts/bench/trust_rights.py [--quick]

25,000 people (2,500 with `--quick`) with histories of 50 events on a drawn world of 5,000 items, and the people of the synthetic log.

- residual: everything is granted, everybody asks for a list and answers it, lists are made for all and joined with the answers; then one
  person in a hundred is forgotten, while the service's files stay open and lists of theirs wait in its memory. Counted are the bytes of
  their ids and keys, as bytes and as digits, in every file of the run: state and its write-ahead logs, logs, exports, lists, receipts;
  compressed tables are looked through as plain ones
- denied: of each person it is drawn which of the four purposes are granted. Then everybody asks and answers again, lists are made for every
  purpose (`towers recommend`) and joined with the answers (`towers feedback`), and a log is prepared and exported under a table of such
  decisions. Counted is each row of a person that is read or written where the person denies it: histories and events read for a
  list, keys in the log of lists, events kept, lists, joined rows, users prepared, audit columns, exported histories and vectors
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from report import finish, say
from serving_world import make_run

from serving import feedback_job, recommend_job
from serving.config import ServingConfig
from serving.messages import RecommendRequest
from serving.profiles import Profiles, open_histories
from serving.raw_scan import RawIds
from serving.retriever import Retriever
from serving.rights import Rights
from serving.run import events, live
from towers.bundle import Bundle, current
from towers.consent import BITS, EVERYTHING, PURPOSES, purposes_of
from towers.identity import UserKeys
from towers.live_logs import EVENTS, IMPRESSIONS
from towers.model import TwoTower
from towers.model_config import ModelConfig
from towers.runtime import save_model
from training import exporting, prepare_run
from training.config import TrainingConfig
from training.interactions import Interactions

ITEMS, SHARE_LEAVING = 5000, 100
USES = BITS["personalize"] | BITS["train"] | BITS["measure"]

NUMBERED = {EVENTS: "event_id", IMPRESSIONS: "recommendation_id"}
"""Logs, and what tells their rows apart."""

Masks = Mapping[bytes, int]
"""Purposes that people allow, by key."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the people")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as scratch:
        found = rights(Path(scratch), quick)
    finish("trust_rights", [("what", "measured"), *((name, f"{value:.6g}") for name, value in found.items())], {}, found)


def rights(runs: Path, quick: bool) -> dict[str, float]:
    """All figures by name."""
    people = 2_500 if quick else 25_000
    drawn = make_run(runs / f"people-{people}", ITEMS, people, index=False)
    with tempfile.TemporaryDirectory(dir=runs) as folder:
        run_dir = Path(folder) / "run"
        shutil.copytree(drawn, run_dir)  # people leave it
        key_file = shutil.move(run_dir / "key", Path(folder) / "key")
        config = ServingConfig(run_dir=str(run_dir))
        config.serving.key_file, config.serving.receipts = str(key_file), str(run_dir / "receipts.jsonl")
        users = [f"u{number}" for number in range(people)]
        found = residual(config, users)
        crossed = {**served(config, users), **learned(Path(folder) / "log")}
    states, rows = crossed.pop("states"), sum(crossed.values())
    for place, count in crossed.items():
        say(f"   rows across a denied purpose, {place}: {count}")
    return {**found, "denied_rows": rows, "denied_states": states}


def residual(config: ServingConfig, users: Sequence[str]) -> dict[str, float]:
    """Bytes of the leaving people's ids and keys before and after, and how long their leaving took."""
    leaving = [user for user in users if len(user) >= 5][::SHARE_LEAVING]  # shorter ids stand anywhere by chance
    with opened(config) as (retriever, rights, _):
        with live(config, retriever):
            traffic(retriever, users, "before")
        recommend_job.run(config)
        feedback_job.run(config)
        keys = [rights.keys.key(user) for user in leaving]
        wanted = RawIds([*keys, *(key.hex().encode() for key in keys), *(user.encode() for user in leaving)])
        with live(config, retriever):
            traffic(retriever, leaving, "waiting")
            before = bytes_of(wanted, Path(config.run_dir))
            began = time.perf_counter()
            rights.subjects.forget(keys)
            took_s = time.perf_counter() - began
            assert retriever.outbox is not None
            retriever.outbox.flush()
            left = bytes_of(wanted, Path(config.run_dir))
        left = max(left, bytes_of(wanted, Path(config.run_dir)))  # and with everything written and closed
    return {"residual_bytes": left, "bytes_before": before, "forgotten": len(leaving), "forgetting_s": took_s}


def bytes_of(wanted: RawIds, folder: Path) -> int:
    """In each file of a folder, each id once."""
    return sum(len(text) for path in folder.rglob("*") if path.is_file() for text in wanted.within(plain(path)))


def plain(path: Path) -> bytes:
    """What a file holds, without compression."""
    content = path.read_bytes()
    if path.suffix == ".parquet":
        sink = pa.BufferOutputStream()
        table = pq.ParquetFile(path).read()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        content += sink.getvalue().to_pybytes()
    return content


def served(config: ServingConfig, users: Sequence[str]) -> dict[str, int]:
    """Rows that cross in the service and its jobs, by place, and how many states were drawn."""
    run_dir = Path(config.run_dir)

    def logged(name: str) -> list[tuple[bytes, str]]:
        return keyed((run_dir / "state" / name).rglob("*.parquet"), NUMBERED[name])

    with opened(config) as (retriever, rights, stores):
        drawn = np.random.default_rng(1).integers(0, EVERYTHING + 1, len(users)).tolist()
        masks = {rights.keys.key(user): mask for user, mask in zip(users, drawn, strict=True)}
        with live(config, retriever):
            traffic(retriever, users[: len(users) // 2], "granted")  # rows that were taken when nobody denied anything
        for key, mask in masks.items():
            rights.standing.decide(key, purposes_of(mask))
        before = {name: {of for _, of in logged(name)} for name in NUMBERED}
        for store in stores:
            store.read.clear()
        with live(config, retriever):
            traffic(retriever, users, "drawn")
        crossed = {"read for a list": sum(denied(store.read, masks, BITS["personalize"]) for store in stores)}
    new = {name: [key for key, of in logged(name) if of not in before[name]] for name in NUMBERED}
    crossed["events kept"] = sum(not masks[key] & USES for key in new[EVENTS])
    crossed["log of lists"] = denied(new[IMPRESSIONS], masks, BITS["measure"])
    for purpose in PURPOSES:
        config.recommend.purpose = purpose
        recommend_job.run(config)
        crossed[f"lists for {purpose}"] = denied(keys_of(run_dir / "recommendations"), masks, BITS["personalize"], BITS[purpose])
    feedback_job.run(config)
    crossed["joined rows"] = denied(keys_of(run_dir / "feedback"), masks, BITS["measure"])
    return {**crossed, "states": len(PURPOSES) * len(users)}


def learned(folder: Path) -> dict[str, int]:
    """Rows that cross where the synthetic log is prepared and exported, by place."""
    config = TrainingConfig(run_dir=str(folder / "all"))
    config.identity.key_file, config.identity.keep_raw_ids = str(folder / "key"), True
    prepare_run.run(config)
    users = pq.read_table(folder / "all" / "prepared" / "raw_user_ids.parquet")["user_id"].to_pylist()
    drawn = np.random.default_rng(2).integers(0, EVERYTHING + 1, len(users)).tolist()
    granted = [(user, purpose) for user, mask in zip(users, drawn, strict=True) for purpose, given in purposes_of(mask).items() if given]
    table = {"user_id": [user for user, _ in granted], "purpose": [purpose for _, purpose in granted]}
    pq.write_table(pa.table({**table, "granted": [True] * len(granted), "timestamp": [5] * len(granted)}), folder / "consent.parquet")
    config.run_dir, config.data.consent, config.identity.keep_raw_ids = str(folder / "some"), str(folder / "consent.parquet"), False
    data = Interactions.open(Path(prepare_run.run(config)))
    model = TwoTower(ModelConfig(dim=8), data.preprocessor.inputs, data.preprocessor.event_rows).eval()
    (folder / "some" / "model").mkdir()
    save_model(model, folder / "some" / "model")
    config.export.onnx = False
    exporting.run(config)
    keys = UserKeys.open(str(folder / "key"))
    masks = {keys.key(user): mask for user, mask in zip(users, drawn, strict=True)}
    exported = [*keys_of(folder / "some" / "export" / "users"), *keys_of(folder / "some" / "export", "histories.parquet")]
    return {
        "prepared rows": denied([key.tobytes() for key in data.user_keys], masks, BITS["train"]),
        "audit columns": denied(keys_of(folder / "some", "audit.parquet"), masks, BITS["measure"]),
        "exported rows": denied(exported, masks, BITS["train"], BITS["personalize"]),
    }


def traffic(retriever: Retriever, users: Sequence[str], named: str) -> None:
    """Everybody asks for a list and answers its first item."""
    for number, user in enumerate(users):
        shown = retriever.answer(RecommendRequest(user_id=user, k=2))
        answered = {"item_id": shown.items[0].item_id, "event_id": f"{named} {number}", "recommendation_id": shown.recommendation_id}
        retriever.add_events([{"user_id": user, **answered}])


@contextmanager
def opened(config: ServingConfig) -> Iterator[tuple[Retriever, Rights, list["Watched"]]]:
    """What a worker of a service has, and its stores of users' rows."""
    run_dir, key_file = Path(config.run_dir), str(config.serving.key_file)
    keys, histories = open_histories(run_dir / "export" / "histories.parquet", key_file)
    rights = Rights.open(config, keys)
    stores = [Watched(histories), Watched(events(config.serving, run_dir / "state", keys))]
    profiles = Profiles(keys, *stores, standing=rights.standing)  # type: ignore[arg-type]
    try:
        yield Retriever.load(Bundle.open(current(run_dir / "bundles")), profiles), rights, stores
    finally:
        stores[1].close()
        rights.close()


class Watched:
    """Notes whose rows are read from a store."""

    def __init__(self, store: Any) -> None:
        self._store, self.read = store, set[bytes]()

    def get(self, user_key: bytes) -> Any:
        self.read.add(user_key)
        return self._store.get(user_key)

    def history(self, user_key: bytes, *more: Any) -> Any:
        self.read.add(user_key)
        return self._store.history(user_key, *more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def denied(found: Iterable[bytes], masks: Masks, *needed: int) -> int:
    """How many of the keys are of people who do not allow all that is needed."""
    return sum(any(not masks[key] & bit for bit in needed) for key in found)


def keys_of(folder: Path, pattern: str = "part-*.parquet") -> list[bytes]:
    """User keys in the tables of a folder, one a row."""
    return [key for key, _ in keyed(folder.glob(pattern))]


def keyed(paths: Iterable[Path], named: str = "user_key") -> list[tuple[bytes, str]]:
    """Key and another column of the rows that have a key."""
    tables = [pq.ParquetFile(path).read(columns=list({"user_key", named})) for path in sorted(paths)]
    pairs = [pair for table in tables for pair in zip(table["user_key"].to_pylist(), table[named].to_pylist(), strict=True)]
    return [(key, of) for key, of in pairs if key is not None]


if __name__ == "__main__":
    main()
