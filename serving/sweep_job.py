"""The work of `towers recommend sweep=true`: lists for held-out queries, once for every value of every dial.

What they are worth is told by `towers report sweep=true`, which reads these files.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from serving.choosing import further
from serving.config import ServingConfig, SweepConfig, state_dir
from serving.messages import Steer
from serving.policy import Policy
from serving.profiles import Profiles
from serving.retriever import Retriever
from serving.rights import Rights
from serving.run import opened
from serving.selector import Candidates, Selection, select
from serving.signals import PERSONALIZED, Signals
from serving.standing import Standing
from serving.waterfall import Stage, waterfall
from towers.alone import SWEEPING, alone_in
from towers.bundle import Bundle, current
from towers.columns import ITEM_ID, USER_KEY
from towers.consent import BITS, MEASURE, PERSONALIZE
from towers.encoder import UserRow
from towers.errors import ConfigError, DataError, RequestError
from towers.held_out import HELD_OUT, HeldOut
from towers.identity import KEY_BYTES, UserKeys
from towers.job import write_json
from towers.last_look import LastLook
from towers.shards import Place

FOLDER = "sweep"
_NEEDED = BITS[PERSONALIZE] | BITS[MEASURE]
_SCHEMA = pa.schema(
    [
        ("policy", pa.int32()),
        ("query", pa.int32()),
        (USER_KEY, pa.binary(KEY_BYTES)),
        ("now", pa.int64()),
        ("item_ids", pa.list_(pa.string())),
    ]
)


def run(config: ServingConfig) -> str:
    """Write run_dir/sweep/lists.parquet (policy, query, its user_key and now, item_ids), stages.parquet (the same, by stage of the
    waterfall in place of policy) and run_dir/sweep.json, whose path is returned.

    Raises:
        DataError: there is no bundle, or no held-out queries of its model, or they are of people who may not be asked about any more.
        ConfigError: a dial does not exist, is out of bounds, or needs an attribute that items lack; or the model has learned the answers;
            or the secret of the users is not where it should be, or another process sweeps in the same run.
    """
    with alone_in(Path(config.run_dir), work=SWEEPING), closing(Rights.open(config, UserKeys.open(config.serving.key_file))) as rights:
        rights.check_secret()
        return _run(config, rights.standing)


def _run(config: ServingConfig, standing: Standing) -> str:
    settings, run_dir, sweep, began_us = config.serving, Path(config.run_dir), config.sweeping, time.time_ns() // 1000
    bundle = Bundle.open(Path(settings.bundle) if settings.bundle else current(run_dir / "bundles"))
    held = HeldOut.read(run_dir / "export" / HELD_OUT, sweep.split, bundle.weights_sha256)
    held.check_judges(sweep.split)
    _refuse_others(held, standing)

    def may_stand(keys_n: NDArray[np.uint8]) -> NDArray[np.bool_]:
        standing.refresh()
        return np.array([(standing.forgotten(key.tobytes()) or 0) < began_us for key in keys_n], bool)

    place = LastLook(state_dir(config), may_stand).place
    retriever = opened(bundle, settings, Profiles.open(None, None))
    policies = [Policy(sweep.k), *(_policy(retriever, sweep.k, point) for point in points(sweep))]
    usual = retriever.chooser.policy(sweep.k, None)
    asked = [_Query.of(retriever, held, place, max(policy.candidates for policy in (*policies, usual))) for place in range(len(held))]
    ids = retriever.stock.table.column(ITEM_ID).combine_chunks()
    told: list[dict[str, Any]] = []
    target = run_dir / FOLDER / "lists.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(target.with_suffix(".tmp"), _SCHEMA, compression="zstd") as writer:
        for number, policy in enumerate(tqdm(policies, desc="sweep", unit="policies", disable=not sys.stderr.isatty())):
            began = time.process_time()
            chosen = [query.listed(retriever, replace(policy, seed=place)) for place, query in enumerate(asked)]
            us = 1e6 * (time.process_time() - began) / len(asked)
            told.append({"policy": policy.to_row(), "us_per_list": round(us, 1)})
            writer.write_table(_table(number, [one.rows_k for one in chosen], ids, held))
    place(target.with_suffix(".tmp"), target)
    stages = waterfall(retriever, held, sweep.k, lambda place: asked[place].listed(retriever, replace(usual, seed=place)).rows_k)
    names = _write_stages(target.with_name("stages.parquet"), stages, ids, held, place)
    document = {"bundle": str(bundle.folder), "split": sweep.split, "queries": len(held), "k": sweep.k, "policies": told, "stages": names}
    return str(write_json(run_dir / "sweep.json", document))


def _refuse_others(held: HeldOut, standing: Standing) -> None:
    """Raise DataError where queries are of people who withdrew since, or were forgotten and came back with a backup."""

    def allowed(key: bytes, now: int) -> bool:
        moment = standing.forgotten(key)
        return standing.mask(key) & _NEEDED == _NEEDED and (moment is None or now > moment)

    others = {key for key, now in zip(held.user_keys.to_pylist(), held.now_Q.tolist(), strict=True) if not allowed(key, now)}
    if others:
        raise DataError(
            f"{HELD_OUT}: queries of {len(others):,} people who were forgotten, or do not allow {PERSONALIZE} and {MEASURE} any more."
            " Run `towers export export.held_out_queries=10000` again, which leaves them out"
        )


def _write_stages(target: Path, stages: Iterator[Stage], ids: pa.Array, held: HeldOut, place: Place) -> list[str]:
    """The lists of each stage, by number; their names."""
    names: list[str] = []
    with pq.ParquetWriter(target.with_suffix(".tmp"), _SCHEMA, compression="zstd") as writer:
        for stage in tqdm(stages, desc="waterfall", unit="stages", disable=not sys.stderr.isatty()):
            writer.write_table(_table(len(names), stage.lists, ids, held))
            names.append(stage.name)
    place(target.with_suffix(".tmp"), target)
    return names


def points(sweep: SweepConfig) -> Iterator[Mapping[str, float]]:
    """Every value of every dial by itself, then the combinations asked for."""
    for name, values in asdict(sweep.dials).items():
        yield from ({name: value} for value in values)
    yield from sweep.together


def _policy(retriever: Retriever, k: int, point: Mapping[str, float]) -> Policy:
    try:
        policy = retriever.chooser.policy(k, msgspec.convert(dict(point), Steer))
    except msgspec.ValidationError as error:
        raise ConfigError(f"sweeping.dials: {error}") from None
    except RequestError as error:
        raise ConfigError(f"sweeping.dials: {error.field.removeprefix('policy.')}: {error.message}") from None
    return policy


@dataclass(frozen=True)
class _Query:
    """A held-out query and its best candidates, which all policies choose from."""

    vector_HD: NDArray[np.float32]
    excluded: NDArray[np.int64]
    found: Candidates
    signals: Signals
    now: int

    @classmethod
    def of(cls, retriever: Retriever, held: HeldOut, place: int, count: int) -> "_Query":
        seen, liked = held.seen[place].as_py(), held.liked[place].as_py()
        excluded = retriever.catalog.rows([*seen, *retriever.chooser.blocked])
        found = retriever.index.search(held.vectors_QHD[place], count, retriever.item_filter.allowed(), excluded)
        signals = Signals(UserRow(), liked, [None] * len(liked), PERSONALIZED, "", 0)
        return cls(held.vectors_QHD[place], excluded, Candidates(found.rows, found.scores), signals, int(held.now_Q[place]))

    def listed(self, retriever: Retriever, policy: Policy) -> Selection:
        def search(count: int, excluded: NDArray[np.int64]) -> Candidates:
            found = retriever.index.search(self.vector_HD, count, retriever.item_filter.allowed(), excluded)
            return Candidates(found.rows, found.scores)

        best = Candidates(self.found.rows_C[: policy.candidates], self.found.scores_C[: policy.candidates])
        parts = retriever.chooser.parts(policy, self.signals, self.now)
        return select(best, policy, parts, further(self.excluded, search))


def _table(number: int, chosen: Sequence[NDArray[np.integer]], ids: pa.Array, held: HeldOut) -> pa.Table:
    """Lists of rows, of one policy or stage; whose they are and of when, so that they go when the queries do."""
    offsets = np.concatenate([[0], np.cumsum([len(rows_k) for rows_k in chosen])])
    flat = ids.take(pa.array(np.concatenate(chosen)))  # plain: removals read batches, which dictionaries in lists do not come in
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)
    queries = np.arange(len(chosen), dtype=np.int32)
    number_Q = pa.array(np.full(len(chosen), number, np.int32))
    return pa.table([number_Q, pa.array(queries), held.user_keys, pa.array(held.now_Q), lists], schema=_SCHEMA)
