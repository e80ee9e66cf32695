"""The work of `towers export`: encode everyone and everything, write shards, seal the bundle core."""

import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from towers import bundle
from towers.alone import alone_in
from towers.batch import take
from towers.columns import ITEM_ID, USER_ID, USER_KEY
from towers.consent import MEASURE, PERSONALIZE
from towers.errors import ConfigError, DataError
from towers.held_out import HELD_OUT, keep_query_vectors, write_query_vectors
from towers.job import write_json
from towers.model import TwoTower
from towers.pointers import current, waiting
from towers.runtime import WEIGHTS_FILE, TorchRuntime, load_runtime
from towers.shards import Place, embedding_column, rename, write_shards
from training.ancestry import Learned
from training.batches import user_inputs
from training.bundle_parts import bundle_facts, bundle_parts, version_name
from training.config import TrainingConfig
from training.facts import Stopwatch, run_facts
from training.held_out import held_out_queries, write_queries
from training.histories import write_histories
from training.interactions import Interactions
from training.onnx_export import export_towers
from training.opening import check_trained_on, digest_of, open_prepared
from training.people import check_secret
from training.permission import Permission, last_look
from training.queries import make_queries
from training.rank_queries import encode_items, encode_users
from training.trained_with import refuse_other_training

USER_BLOCK = 4096
INDEX_QUERIES = 5000
ONNX_SAMPLE = 64


def run(config: TrainingConfig) -> Path:
    """Export the run's model; returns the path of export.json.

    Raises:
        DataError: there is no trained model or prepared data in run_dir, or nobody allows what export.held_out_queries asks for; or
            somebody was forgotten, and left the prepared data, while they were read.
        ConfigError: the users were keyed with another secret, or another process trains or prepares in run_dir.
        GateError: the ONNX towers differ from torch.
    """
    run_dir = Path(config.run_dir)
    prepared = run_dir / "prepared"
    before = _as_it_lies(prepared)
    try:
        with alone_in(run_dir, prepared.is_dir()):
            return _export(config)
    except Exception as error:
        if not before or before == _as_it_lies(prepared):
            raise
        raise DataError(
            f"{prepared}: somebody was forgotten, and left these data, while they were read ({error}). Run `towers export` again"
        ) from error


def _as_it_lies(prepared: Path) -> dict[Path, tuple[int, int]]:
    """Another one after each change of a file that rows of people are taken out of."""
    found = {}
    for path in (path for kind in ("*.npy", "*.parquet") for path in prepared.rglob(kind)):
        with suppress(FileNotFoundError):
            found[path] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return found


def _export(config: TrainingConfig) -> Path:
    watch, began = Stopwatch(), time.time_ns() // 1000
    run_dir = Path(config.run_dir)
    data = open_prepared(config)
    refuse_other_training(config)
    check_secret(run_dir / "prepared" / "users.parquet", config.identity.key_file)
    if not (run_dir / "model" / WEIGHTS_FILE).is_file():
        raise DataError(f"{run_dir / 'model'}: no trained model. Run `towers train` with the same run_dir first")
    check_trained_on(run_dir, data)
    permission = Permission.open(config)
    personal_U = permission.usable(data, PERSONALIZE)
    held_out = None
    if config.export.held_out_queries:  # first of all: where nobody allows them, nothing is replaced
        held_out = held_out_queries(data, personal_U & permission.allows(data.user_keys, MEASURE), config)
    runtime = load_runtime(run_dir / "model", data.preprocessor)
    model = runtime.model
    weights = bundle.sha256(run_dir / "model" / WEIGHTS_FILE)
    fingerprint = f"{weights[:16]}-{digest_of(data)[:16]}"  # of vectors: a user's depends on the history too
    vectors_ID = encode_items(runtime, data)
    vectors_for = np.flatnonzero(personal_U & permission.allows(data.user_keys, config.export.users_for))
    _export_items(run_dir, data, vectors_ID, fingerprint, config.export.rows_per_shard)
    if config.export.users:
        content = f"{fingerprint}-{permission.digest}-{config.export.users_for}"
        place = last_look(config, began, PERSONALIZE, config.export.users_for).place
        _export_users(run_dir, data, runtime, vectors_for, content, config, place)
    histories, users = run_dir / "export" / "histories.parquet", run_dir / "prepared" / "users.parquet"
    place = last_look(config, began, PERSONALIZE).place
    write_histories(histories, data, users, config.export.history_events, personal_U, began, place)
    write_query_vectors(run_dir / "export", _query_vectors(data, runtime, personal_U, config), weights)
    (run_dir / "export" / HELD_OUT).unlink(missing_ok=True)  # another model's would be refused, and nobody asked for this one's
    if held_out is not None:
        place = last_look(config, began, PERSONALIZE, MEASURE).place
        write_queries(run_dir / "export" / HELD_OUT, held_out, runtime, weights, Learned.of_run(run_dir).validation, place)
    with tempfile.TemporaryDirectory(dir=run_dir, prefix=".export-") as folder:
        difference = _onnx(model, data, Path(folder) / "onnx") if config.export.onnx else None
        parts = bundle_parts(run_dir, data, model, vectors_ID, Path(folder))
        facts = bundle_facts(run_dir, config, data)
        folder_made = bundle.publish(run_dir / "bundles", version_name(config.export.name, weights), parts, facts)
    keep_query_vectors(run_dir / "export", weights)  # not before: until now a bundle of other weights was to be indexed
    waits = waiting(run_dir / "bundles") == folder_made
    then = f"; it waits for `towers index`, {current(run_dir / 'bundles').name} stays in use until then" if waits else ""
    print(f"   {data.n_items:,} items, {data.n_users:,} users; bundle {folder_made.name}{then}", flush=True)
    document = {
        "run": run_facts(config, watch),
        "items": data.n_items,
        "users": len(vectors_for) if config.export.users else 0,
        "users_not_allowed": data.n_users - int(np.count_nonzero(personal_U)),
        "dim": int(vectors_ID.shape[1]),
        "bundle": str(folder_made),
        "waits_for_index": waits,
        "onnx_max_difference": difference,
    }
    return write_json(run_dir / "export.json", document)


def _export_items(run_dir: Path, data: Interactions, vectors_ID: NDArray[np.float32], fingerprint: str, rows_per_shard: int) -> None:
    ids = data.catalog.column(ITEM_ID)

    def make(start: int, stop: int) -> pa.Table:
        return pa.table({"item_id": ids.slice(start, stop - start), "embedding": embedding_column(vectors_ID[start:stop])})

    _drain("items", data.n_items, run_dir / "export" / "items", rows_per_shard, fingerprint, make)


def _export_users(
    run_dir: Path,
    data: Interactions,
    runtime: TorchRuntime,
    users_V: NDArray[np.int64],
    fingerprint: str,
    config: TrainingConfig,
    place: Place,
) -> None:
    """Vectors of some users as of the end of the log, without context (nobody knows the next request's)."""
    raw = _raw_ids(run_dir, data) if config.export.raw_user_ids else None
    now = data.newest()

    def make(start: int, stop: int) -> pa.Table:
        length = runtime.model.config.history.length
        blocks = [users_V[at : min(at + USER_BLOCK, stop)] for at in range(start, stop, USER_BLOCK)]
        vectors = np.concatenate([_user_vectors(data, runtime, users_B, now, length) for users_B in blocks])
        columns: dict[str, pa.Array] = {USER_KEY: _key_column(data.user_keys[users_V[start:stop]])}
        if raw is not None:
            columns[USER_ID] = raw.take(pa.array(users_V[start:stop]))
        return pa.table({**columns, "embedding": embedding_column(vectors)})

    content = f"{fingerprint}-raw" if raw is not None else fingerprint
    _drain("users", len(users_V), run_dir / "export" / "users", config.export.rows_per_shard, content, make, place)


def _user_vectors(data: Interactions, runtime: TorchRuntime, users_B: NDArray[np.int64], now: int, length: int) -> NDArray[np.float32]:
    context = data.preprocessor.encode("context", {}, len(users_B))
    now_B = np.full(len(users_B), now, np.int64)
    inputs = user_inputs(data, users_B, data.offsets[users_B + 1], now_B, context, length)
    vectors_BHD = runtime.user(inputs).vectors_BHD
    return vectors_BHD.reshape(len(users_B), -1)


def _drain(
    what: str,
    rows: int,
    folder: Path,
    rows_per_shard: int,
    fingerprint: str,
    make: Callable[[int, int], pa.Table],
    place: Place = rename,
) -> None:
    with tqdm(total=rows, desc=f"export {what}", unit="rows", disable=not sys.stderr.isatty()) as bar:
        for done in write_shards(folder, rows, rows_per_shard, fingerprint, make, place):
            bar.update(done)


def _query_vectors(data: Interactions, runtime: TorchRuntime, personal_U: NDArray[np.bool_], config: TrainingConfig) -> NDArray[np.float32]:
    """Held-out user vectors, float32 [Q, D] (each interest is one), on which the index is judged; kept outside the bundle."""
    split, unit = config.split.name, config.evaluate.unit
    queries = make_queries(data, "valid", unit, split, INDEX_QUERIES, config.seed, allowed_U=personal_U)
    vectors_QHD = np.empty((0, 1, runtime.model.config.width), np.float32)  # where nobody allows it
    if len(queries):
        vectors_QHD = encode_users(runtime, queries, runtime.model.config.history.length)
    return vectors_QHD.reshape(-1, vectors_QHD.shape[-1])


def _onnx(model: TwoTower, data: Interactions, folder: Path) -> float:
    """Export and compare on real rows: the first users with their whole history, the first items."""
    users = np.arange(min(ONNX_SAMPLE, data.n_users))
    context = data.preprocessor.encode("context", {}, len(users))
    now = np.full(len(users), data.newest(), np.int64)
    user = user_inputs(data, users, data.offsets[users + 1], now, context, model.config.history.length)
    return export_towers(model, user, take(data.item_features, slice(0, ONNX_SAMPLE)), folder)


def _raw_ids(run_dir: Path, data: Interactions) -> pa.ChunkedArray:
    path = run_dir / "prepared" / "raw_user_ids.parquet"
    if not path.is_file():
        raise ConfigError("export.raw_user_ids: raw ids were not kept; run `towers prepare` with identity.keep_raw_ids=true")
    table = pq.read_table(path)
    if len(table) != data.n_users:
        raise DataError(f"{path}: {len(table)} rows, expected {data.n_users}. Run `towers prepare` again")
    return table.column(USER_ID)


def _key_column(keys_U16: NDArray[np.uint8]) -> pa.Array:
    return pa.array([key.tobytes() for key in keys_U16], pa.binary(16))
