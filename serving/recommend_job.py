"""The work of `towers recommend`: every known user's list, as a request of that moment would get it, by the block.

Legend: B users of a block, D dimensions, H heads.
"""

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from serving.config import ServingConfig, state_dir
from serving.consent_store import CONSENT_FILE, ConsentStore
from serving.fallback import most_popular
from serving.index.exact import ExactIndex
from serving.index.interface import SearchResult
from serving.messages import RecommendRequest
from serving.profiles import Profiles
from serving.retriever import Retriever
from serving.run import consent_table, events, histories, limits, users
from serving.selector import Candidates, Policy, select
from serving.signals import FALLBACK, Signals, read_signals
from serving.standing import Standing
from towers.bundle import Bundle, current, sha256
from towers.columns import USER_KEY
from towers.consent import BITS, PERSONALIZE
from towers.errors import DataError
from towers.job import write_json
from towers.shards import write_shards

STARTED = "_started.json"


def run(config: ServingConfig) -> str:
    """Write run_dir/recommendations/part-*.parquet; interrupted, the same command goes on with the shards that are missing.

    Returns:
        path of run_dir/recommend.json.

    Raises:
        DataError: there is no bundle or no histories, or one is damaged.
        ConfigError: the users' secret is not where it should be.
    """
    began = time.perf_counter()
    settings, run_dir, folder = config.serving, Path(config.run_dir), Path(config.run_dir) / "recommendations"
    keys, known = users(settings, run_dir)
    stored = histories(settings, run_dir)
    if known is None or stored is None:
        raise DataError(f"{run_dir / 'export' / 'histories.parquet'}: no histories of users. Run `towers export`, or set serving.history")
    bundle = Bundle.open(Path(settings.bundle) if settings.bundle else current(run_dir / "bundles"))
    retriever = Retriever.load(bundle, None, limits(settings), settings.runtime, settings.device)
    state = state_dir(config)
    standing = Standing(consent_table(settings, keys), ConsentStore(state / CONSENT_FILE))
    retriever.profiles = Profiles(keys, known, events(settings, state, keys), settings.user_events, standing)
    needed = BITS[PERSONALIZE] | BITS[config.recommend.purpose]
    wanted = [key for key in known.keys(0, len(known)) if standing.mask(key) & needed == needed]
    content = {
        "bundle": bundle.version, "histories": sha256(stored), "k": config.recommend.k, "exclude_seen": config.recommend.exclude_seen,
        "now": config.recommend.now, "purpose": config.recommend.purpose, "user_keys": hashlib.sha256(b"".join(wanted)).hexdigest(),
    }  # fmt: skip
    now = _moment(folder / STARTED, content)
    request = RecommendRequest(k=config.recommend.k, exclude_seen=config.recommend.exclude_seen, now=now / 1e6)

    def make(start: int, stop: int) -> pa.Table:
        size = config.recommend.block_users
        blocks = [wanted[at : min(at + size, stop)] for at in range(start, stop, size)]
        tables = []
        for block in blocks:
            tables.append(lists(retriever, block, request, now))
            bar.update(len(block))
        return pa.concat_tables(tables)

    fingerprint = hashlib.sha256(json.dumps({**content, "now": now}, sort_keys=True).encode()).hexdigest()
    with tqdm(total=len(wanted), desc="recommend", unit="users", disable=not sys.stderr.isatty()) as bar:
        for _ in write_shards(folder, len(wanted), config.recommend.users_per_shard, fingerprint, make):
            pass
    write_json(folder / STARTED, {"content": content, "now": now, "finished": True})
    document = {
        **content,
        "now": now / 1e6,
        "users": len(wanted),
        "users_not_allowed": len(known) - len(wanted),
        "modes": dict(sorted(_modes(folder).items())),
        "wall_s": round(time.perf_counter() - began, 2),
    }
    return str(write_json(run_dir / "recommend.json", document))


def lists(retriever: Retriever, user_keys: Sequence[bytes], request: RecommendRequest, now: int) -> pa.Table:
    """Lists of a block of users: user_key, mode, item_ids and scores, best first; the request's own user is left out of account.

    Args:
        now: microseconds UTC.
    """
    encoder, order = retriever.encoder, retriever.encoder.preprocessor.schema.order
    signals = [
        read_signals(request, retriever.profiles.get(key, order, now)[0], True, encoder.preprocessor, encoder.length, now)
        for key in user_keys
    ]
    found = _searched(retriever, signals, request)
    policy = Policy(request.k)
    chosen = [select(candidates, policy) for candidates in found]
    ids = [retriever.catalog.ids(one.rows_k) for one in chosen]
    return pa.table(
        {
            USER_KEY: pa.array(list(user_keys), pa.binary(16)),
            "mode": [one.mode for one in signals],
            "item_ids": pa.array(ids, pa.list_(pa.string())),
            "scores": pa.array([one.scores_k for one in chosen], pa.list_(pa.float32())),
        }
    )


def _searched(retriever: Retriever, signals: Sequence[Signals], request: RecommendRequest) -> list[Candidates]:
    """Candidates of each user, the encodings of all made at once and, with an exact index, the search too."""
    allowed, count = retriever.item_filter.allowed(request.filter), Policy(request.k).candidates
    excluded = [retriever.catalog.rows(one.seen if request.exclude_seen else ()) for one in signals]
    personal = [place for place, one in enumerate(signals) if one.mode != FALLBACK]
    found: dict[int, SearchResult] = {}
    if personal:
        vectors_BHD = retriever.encoder.users([signals[place].row for place in personal]).vectors_BHD
        own = [excluded[place] for place in personal]
        if isinstance(retriever.index, ExactIndex):
            results = retriever.index.search_many(vectors_BHD, count, allowed, own)
        else:
            results = [retriever.index.search(vectors_HD, count, allowed, rows) for vectors_HD, rows in zip(vectors_BHD, own, strict=True)]
        found = dict(zip(personal, results, strict=True))
    return [
        Candidates(found[place].rows, found[place].scores) if place in found else most_popular(retriever.catalog, count, allowed, rows)
        for place, rows in enumerate(excluded)
    ]


def _moment(path: Path, content: Mapping[str, Any]) -> int:
    """The moment the lists are for, microseconds UTC: of the interrupted job that this one continues, else as told, else now."""
    if path.is_file():
        before = json.loads(path.read_text())
        if before["content"] == content and not before["finished"]:
            return int(before["now"])
    now = time.time_ns() // 1000 if content["now"] is None else round(content["now"] * 1_000_000)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"content": dict(content), "now": now, "finished": False})
    return now


def _modes(folder: Path) -> Counter[str]:
    """How many users got which kind of list, over all shards."""
    counted: Counter[str] = Counter()
    for path in sorted(folder.glob("part-*.parquet")):
        for entry in pq.read_table(path, columns=["mode"]).column("mode").value_counts().to_pylist():
            counted[entry["values"]] += entry["counts"]
    return counted
