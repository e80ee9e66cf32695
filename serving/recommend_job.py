"""The work of `towers recommend`: every known user's list, as a request of that moment would get it, by the block. Known are those whom
export wrote a history of, and those of whom a service was told events since.

Legend: B users of a block, D dimensions, H heads.
"""

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from serving import sweep_job
from serving.asked import USED, Asked, Known
from serving.choosing import Search
from serving.config import ServingConfig, state_dir
from serving.index.interface import SearchResult
from serving.index.rowset import RowSet
from serving.item_changes import ITEMS_FILE, ItemChanges
from serving.live_items import LiveItems
from serving.messages import RecommendRequest
from serving.policy import Policy
from serving.profiles import Profiles
from serving.retriever import Retriever
from serving.rights import Rights
from serving.run import events, histories, opened, users
from serving.selector import Candidates
from serving.signals import FALLBACK, Signals, read_signals
from serving.sqlite_events import SqliteEvents
from serving.standing import Standing
from serving.user_state import UserHistories
from towers.alone import LISTING, alone_in
from towers.bundle import Bundle, current, sha256
from towers.columns import USER_KEY
from towers.consent import BITS, PERSONALIZE
from towers.errors import DataError
from towers.job import write_json
from towers.last_look import LastLook
from towers.shards import write_shards

STARTED = "_started.json"


def run(config: ServingConfig) -> str:
    """Write run_dir/recommendations/part-*.parquet; interrupted, the same command goes on with the shards that are missing.

    Returns:
        path of run_dir/recommend.json; of run_dir/sweep.json where the settings ask for a sweep.

    Raises:
        DataError: there is no bundle or no histories, or one is damaged.
        ConfigError: the users' secret is not where it should be, or another process makes lists in the same run.
    """
    if config.sweep:
        return sweep_job.run(config)
    with alone_in(Path(config.run_dir), work=LISTING):
        return _run(config)


def _run(config: ServingConfig) -> str:
    began, began_us = time.perf_counter(), time.time_ns() // 1000
    settings, run_dir, folder = config.serving, Path(config.run_dir), Path(config.run_dir) / "recommendations"
    keys, known = users(settings, run_dir)
    stored = histories(settings, run_dir)
    if known is None or stored is None:
        raise DataError(f"{run_dir / 'export' / 'histories.parquet'}: no histories of users. Run `towers export`, or set serving.history")
    bundle = Bundle.open(Path(settings.bundle) if settings.bundle else current(run_dir / "bundles"))
    state = state_dir(config)
    retriever, changes = _with_changes(opened(bundle, settings, Profiles(keys, known)), state / ITEMS_FILE)
    retriever.chooser.warn_of_unknown()
    with closing(Rights.open(config, keys)) as rights, closing(events(settings, state, keys)) as live:
        standing = rights.standing
        retriever.profiles = Profiles(keys, known, live, settings.user_events, standing)
        job = {
            "bundle": bundle.version, "histories": sha256(stored), "k": config.recommend.k, "exclude_seen": config.recommend.exclude_seen,
            "now": config.recommend.now, "purpose": config.recommend.purpose, "selector": asdict(settings.selector),
            "item_changes": changes,
        }  # fmt: skip
        needed = BITS[PERSONALIZE] | BITS[config.recommend.purpose]
        start = _start(folder / STARTED, job, live, lambda now, arrived: _people(known, live, standing, needed, now, arrived))
        content, now, wanted = start.content, start.now, start.people.wanted
        request = RecommendRequest(k=config.recommend.k, exclude_seen=config.recommend.exclude_seen, now=now / 1e6)

        def make(start: int, stop: int) -> pa.Table:
            size = config.recommend.block_users
            blocks = [wanted[at : min(at + size, stop)] for at in range(start, stop, size)]
            tables = []
            for block in blocks:
                tables.append(lists(retriever, block, request, now))
                bar.update(len(block))
            return pa.concat_tables(tables)

        def may_stand(keys_n: NDArray[np.uint8]) -> NDArray[np.bool_]:
            standing.refresh()
            keys_of = (key.tobytes() for key in keys_n)
            return np.array([standing.mask(key) & needed == needed and (standing.forgotten(key) or 0) < began_us for key in keys_of], bool)

        place = LastLook(state, may_stand).place
        fingerprint = hashlib.sha256(json.dumps({**content, "now": now}, sort_keys=True).encode()).hexdigest()
        with tqdm(total=len(wanted), desc="recommend", unit="users", disable=not sys.stderr.isatty()) as bar:
            for _ in write_shards(folder, len(wanted), config.recommend.users_per_shard, fingerprint, make, place):
                pass
    start.write(folder / STARTED, finished=True)
    modes = _modes(folder)
    document = {
        **content,
        "now": now / 1e6,
        "users": modes.total(),
        "users_not_allowed": start.people.not_allowed,
        "modes": dict(sorted(modes.items())),
        "wall_s": round(time.perf_counter() - began, 2),
    }
    return str(write_json(run_dir / "recommend.json", document))


def lists(retriever: Retriever, user_keys: Sequence[bytes], request: RecommendRequest, now: int) -> pa.Table:
    """Lists of a block of users: user_key, mode, item_ids and scores, best first; the request's own user is left out of account.

    Args:
        now: microseconds UTC.
    """
    encoder, schema = retriever.encoder, retriever.encoder.preprocessor.schema
    stored = [retriever.profiles.get(key, schema.order, now, None, [f.name for f in schema.in_history])[0] for key in user_keys]
    signals = [read_signals(request, one, True, encoder.preprocessor, encoder.length, now) for one in stored]
    policies = [_policy(retriever, request.k, key, now) for key in user_keys]
    asked = _asked(retriever, signals, user_keys, request, now)
    allowed = retriever.item_filter.allowed(request.filter)
    found = _searched(retriever, asked, policies[0].candidates, allowed)
    chosen = [
        retriever.chooser.choose(candidates, policy, one, _further(retriever, one, allowed))
        for candidates, policy, one in zip(found, policies, asked, strict=True)
    ]
    ends = pa.array(np.cumsum([0, *(len(one.rows_k) for one in chosen)]), pa.int32())
    ids = retriever.catalog.id_column(np.concatenate([one.rows_k for one in chosen]))
    return pa.table(
        {
            USER_KEY: pa.array(list(user_keys), pa.binary(16)),
            "mode": [one.mode for one in signals],
            "item_ids": pa.ListArray.from_arrays(ends, ids),
            "scores": pa.ListArray.from_arrays(ends, pa.array(np.concatenate([one.scores_k for one in chosen]), pa.float32())),
        }
    )


def _policy(retriever: Retriever, k: int, user_key: bytes, now: int) -> Policy:
    """The deployment's; draws are by user and moment, so that a job that continues another makes the same lists."""
    policy = retriever.chooser.policy(k, None)
    return replace(policy, seed=int.from_bytes(hashlib.sha256(user_key + b"%d" % now).digest()[:7])) if policy.seed else policy


def _asked(
    retriever: Retriever, signals: Sequence[Signals], user_keys: Sequence[bytes], request: RecommendRequest, now: int
) -> list[Asked]:
    """Each user as one who asks, the encodings of all made at once."""
    personal = [one.row for one in signals if one.mode != FALLBACK]
    vectors = iter(retriever.encoder.users(personal).vectors_BHD if personal else ())
    blocked = retriever.chooser.blocked
    return [
        Asked(
            mode=one.mode,
            reason=one.reason,
            unknown_items=one.unknown_items,
            profile=USED,
            known=Known(key, now, None),
            excluded=retriever.catalog.rows(one.seen if request.exclude_seen else (), blocked),
            vectors_BHD=None if one.mode == FALLBACK else next(vectors)[None],
            signals=one,
        )
        for key, one in zip(user_keys, signals, strict=True)
    ]


def _searched(retriever: Retriever, asked: Sequence[Asked], count: int, allowed: RowSet | None) -> list[Candidates]:
    """Candidates of each user; the search of all is one."""
    personal = [one for one in asked if one.vectors_BHD is not None]
    vectors = [one.vectors_BHD for one in personal if one.vectors_BHD is not None]
    excluded = [one.excluded for one in personal]
    results = iter(retriever.index.search_many(np.concatenate(vectors), count, allowed, excluded) if vectors else ())
    return [retriever.candidates(one, count, allowed) if one.vectors_BHD is None else _found(next(results)) for one in asked]


def _found(result: SearchResult) -> Candidates:
    return Candidates(result.rows, result.scores)


def _with_changes(retriever: Retriever, changes_file: Path) -> tuple[Retriever, int]:
    """With the items that a service was told of since, and without those it was told are gone; and the last change's generation."""
    if not changes_file.is_file():
        return retriever, 0
    with closing(ItemChanges(changes_file)) as changes:
        live = LiveItems(retriever, changes)
        return live.refreshed() or retriever, live.generation


def _further(retriever: Retriever, asked: Asked, allowed: RowSet | None) -> Search:
    return lambda count, excluded: retriever.candidates(asked, count, allowed, excluded=excluded)


@dataclass(frozen=True)
class _People:
    """Keys of those who get a list, ascending, and how many known ones do not allow it."""

    wanted: Sequence[bytes]
    not_allowed: int


@dataclass(frozen=True)
class _Start:
    """What a job is about.

    Attributes:
        content: equal where a job continues another.
        now: the moment that the lists are for, microseconds UTC.
        arrived: number of the last live event that makes somebody known: those who come while it is interrupted do not start it anew.
    """

    content: Mapping[str, Any]
    now: int
    arrived: int
    people: _People

    def write(self, path: Path, finished: bool) -> None:
        write_json(path, {"content": dict(self.content), "now": self.now, "arrived": self.arrived, "finished": finished})


def _start(path: Path, job: Mapping[str, Any], live: SqliteEvents, people_at: Callable[[int, int], _People]) -> _Start:
    """That of the interrupted job which this one continues, else one of its own."""

    def at(now: int, arrived: int) -> _Start:
        people = people_at(now, arrived)
        content = {**job, "user_keys": hashlib.sha256(b"".join(people.wanted)).hexdigest()}
        return _Start(content, now, arrived, people)

    before = json.loads(path.read_text()) if path.is_file() else None
    if before is not None and not before["finished"]:
        continued = at(before["now"], before.get("arrived", 0))
        if continued.content == before["content"]:
            return continued
    start = at(time.time_ns() // 1000 if job["now"] is None else round(job["now"] * 1_000_000), live.taken())
    start.write(path, finished=False)
    return start


def _people(known: UserHistories, live: SqliteEvents, standing: Standing, needed: int, now: int, arrived: int) -> _People:
    """Everybody whom a request of that moment would know, and who allows what is needed."""
    told = [key for key, newest in live.users(now, arrived) if (moment := standing.forgotten(key)) is None or newest > moment]
    stored = [key for key in known.keys(0, len(known)) if not _forgotten(key, known, standing)]
    both = sorted([*stored, *told])
    people = [key for key, last in zip(both, [None, *both], strict=False) if key != last]
    wanted = [key for key in people if standing.mask(key) & needed == needed]
    return _People(wanted, len(people) - len(wanted))


def _forgotten(key: bytes, known: UserHistories, standing: Standing) -> bool:
    """Whether nothing of a stored history is left of what its user had forgotten, as in a file that came back from a backup."""
    moment = standing.forgotten(key)
    return moment is not None and known.left_of(key, moment) is None


def _modes(folder: Path) -> Counter[str]:
    """How many users got which kind of list, over all shards."""
    counted: Counter[str] = Counter()
    for path in sorted(folder.glob("part-*.parquet")):
        for entry in pq.read_table(path, columns=["mode"]).column("mode").value_counts().to_pylist():
            counted[entry["values"]] += entry["counts"]
    return counted
