"""A run to serve, of any size, without training: towers with drawn tables, users with histories, a tuned index. It measures speed alone.

Rows of the item table are drawn by topic as in vector_world.py, and users read from three topics each, so that user vectors are what a mean
of history rows is: between topics, away from every item. The index is tuned on such user vectors.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from vector_world import Topics, by_topic

from serving.config import ServingConfig
from serving.index_job import run as build_index
from serving.runtimes import open_encoder
from towers.bundle import Bundle, current, publish, write_vectors
from towers.columns import CATALOG, ITEM_ROWS
from towers.encoder import Encoder, UserRow
from towers.fitting import PreprocessorFit
from towers.held_out import write_query_vectors
from towers.identity import SECRET_FINGERPRINT, UserKeys
from towers.model import TwoTower
from towers.model_config import HistoryConfig, ModelConfig
from towers.preprocess import Preprocessor
from towers.runtime import TorchRuntime, save_model
from towers.schema import Feature, make_schema
from towers.vocab import digest_of
from training.config import TrainerConfig
from training.half_tables import round_tables
from training.onnx_export import export_towers

LENGTH, DIM, QUERIES = 50, 64, 2000
NOW_US = 1_790_000_000_000_000
CHOICES = {"hour": 24, "weekday": 7, "device": 5, "channel": 8, "country": 60}
LABELS = [f"label {i}" for i in range(40)]


def requests(seed: int, users: int, count: int, k: int) -> list[dict[str, object]]:
    """Request bodies: stored users, all six context features, exclude_seen."""
    rng = np.random.default_rng(seed)
    return [
        {
            "user_id": f"u{rng.integers(users)}",
            "context": {**{name: str(rng.integers(n)) for name, n in CHOICES.items()}, "budget": float(np.round(rng.normal(10, 4), 2))},
            "k": k,
        }
        for _ in range(count)
    ]


def user_rows(seed: int, items: int, count: int) -> list[UserRow]:
    """What the encoder is given: histories of 50 events of two types with their times, six context features."""
    rng = np.random.default_rng(seed)
    rows = []
    for body in requests(seed, 1, count, 1):
        ages = np.sort(rng.integers(1, 10**13, LENGTH))[::-1]
        ids = [item_id(row) for row in rng.integers(0, items, LENGTH).tolist()]
        rows.append(UserRow(ids, ["play", "like"] * (LENGTH // 2), (NOW_US - ages).tolist(), NOW_US, body["context"], {}))  # type: ignore[arg-type]
    return rows


def item_id(row: int) -> str:
    """Ids in catalogue order."""
    return f"item-{row:08d}"


def make_run(run_dir: Path, items: int, users: int, history: str = "mean", index: bool = True) -> Path:
    """A run folder with `bundles/`, `export/histories.parquet` and `key`; kept from call to call, so remove it to draw it anew."""
    done = run_dir / f"made-{items}-{users}-{history}-{index}"
    if done.exists():
        return run_dir
    (run_dir / "export").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    drawn = by_topic(items, DIM, rng)
    fitted = _fitted(items)
    model = _model(fitted, history, drawn.item_ID)
    vectors_ID = _publish_core(run_dir, fitted, model, items, rng)
    read_UL = _read(rng, drawn, users + QUERIES)
    _write_histories(run_dir, read_UL[:users], items)
    held_out = [UserRow([item_id(i) for i in row.tolist()], now=NOW_US) for row in read_UL[users:]]
    queries_QHD = Encoder(fitted, TorchRuntime(model), LENGTH).users(held_out).vectors_BHD
    weights = Bundle.open(current(run_dir / "bundles")).weights_sha256
    write_query_vectors(run_dir / "export", queries_QHD.reshape(len(held_out), vectors_ID.shape[1]), weights)
    if index:
        config = ServingConfig(run_dir=str(run_dir))
        config.index.name = "ivf"  # at 20,000 items too, where the exact scan would be taken and be most of a request
        config.index.k, config.index.recall_floor, config.index.parts = 100, 0.955, []
        build_index(config)
    done.touch()
    return run_dir


def fast_encoder(bundle: Bundle) -> Encoder:
    """As `towers serve` opens it."""
    return open_encoder(bundle, "onnx")


def _fitted(items: int) -> Preprocessor:
    features = [Feature(name, "categorical", "context") for name in CHOICES]
    features += [Feature("budget", "numeric", "context"), Feature("categories", "multi_categorical", "item")]
    fit = PreprocessorFit(make_schema(features, "time", {}))
    fit.see("item", {"item_id": pa.array([item_id(row) for row in range(items)]), "categories": [[label] for label in LABELS]})
    fit.see("context", {name: [str(i) for i in range(n)] for name, n in CHOICES.items()})
    fit.see("context", {"budget": [6.0, 10.0, 14.0]})
    fit.see_events(["play", "like"])
    return fit.finish()


def _model(fitted: Preprocessor, history: str, item_ID: NDArray[np.float32]) -> TwoTower:
    torch.manual_seed(0)
    config = ModelConfig(dim=DIM, history=HistoryConfig(name=history, length=LENGTH, share_item_table=True))
    model = TwoTower(config, fitted.inputs, fitted.event_rows).eval()
    with torch.no_grad():
        model.tables["item_id"].weight[-len(item_ID) :] = torch.from_numpy(item_ID)
    round_tables(model, TrainerConfig().half_from)
    return model


def _publish_core(run_dir: Path, fitted: Preprocessor, model: TwoTower, items: int, rng: np.random.Generator) -> NDArray[np.float32]:
    parts = run_dir / "parts"
    parts.mkdir(exist_ok=True)
    ids = [item_id(row) for row in range(items)]
    label_I = rng.integers(0, len(LABELS), items)
    categories = [[LABELS[label]] for label in label_I.tolist()]
    encoder = Encoder(fitted, TorchRuntime(model), LENGTH)
    blocks = [slice(start, start + 65_536) for start in range(0, items, 65_536)]
    columns = [{"item_id": pa.array(ids[block]), "categories": categories[block]} for block in blocks]
    vectors_ID = np.concatenate([encoder.items(part, len(part["categories"])) for part in columns])
    fitted.save(parts)
    save_model(model, parts)
    write_vectors(parts / "item_vectors.arrow", vectors_ID)
    created = pa.array(rng.integers(NOW_US - 10**14, NOW_US, items), pa.timestamp("us", "UTC"))
    count_I = (1e6 / (np.arange(items) + 30.0)).astype(np.int64)[rng.permutation(items)]
    table = {"item_id": ids, "title": [f"Title of number {row}" for row in range(items)], "categories": categories, "created_at": created}
    pq.write_table(pa.table({**table, "is_hidden": np.zeros(items, bool), "train_count": count_I}), parts / "catalog.parquet")
    pq.write_table(pa.table({"item_id": ids, "count": count_I}), parts / "popularity.parquet")
    (parts / "tables").mkdir(exist_ok=True)
    for name, rows_VD in model.table_arrays().items():
        np.save(parts / "tables" / f"{name}.npy", rows_VD)
    sample = encoder.user_batch(user_rows(1, items, 4))
    export_towers(model, sample, fitted.encode("item", {"item_id": ids[:8], "categories": categories[:8]}, 8), parts / "onnx")
    files: dict[str, Path | bytes] = {p.relative_to(parts).as_posix(): p for p in parts.rglob("*") if p.is_file()}
    publish(run_dir / "bundles", "drawn", files, {"name": "drawn"})
    for path in files.values():
        Path(str(path)).unlink()
    return vectors_ID


def _read(rng: np.random.Generator, drawn: Topics, users: int) -> NDArray[np.int64]:
    """int64 [users, LENGTH]: each reads from three topics."""
    held_T = np.diff(drawn.starts_T)
    liked_U3 = rng.choice(len(held_T), (users, 3), p=held_T / held_T.sum())
    liked_UL = np.take_along_axis(liked_U3, rng.integers(0, 3, (users, LENGTH)), axis=1)
    place_UL = drawn.starts_T[liked_UL] + (rng.random((users, LENGTH)) * held_T[liked_UL]).astype(np.int64)
    return np.asarray(drawn.order_I[place_UL], np.int64)


def _write_histories(run_dir: Path, read_UL: NDArray[np.int64], items: int) -> None:
    users = len(read_UL)
    keys = UserKeys.open(str(run_dir / "key"), create=True)
    key_of = [keys.key(f"u{user}") for user in range(users)]
    order = sorted(range(users), key=key_of.__getitem__)
    offsets = pa.array(np.arange(users + 1) * LENGTH, pa.int32())
    times_UL = np.broadcast_to(NOW_US - np.arange(LENGTH, 0, -1) * 3_600_000_000, (users, LENGTH))
    names = pa.array([item_id(row) for row in range(int(read_UL.max()) + 1)])
    table = pa.table(
        {
            "user_key": pa.array([key_of[user] for user in order], pa.binary(16)),
            "item_ids": pa.ListArray.from_arrays(offsets, names.take(pa.array(read_UL[order].ravel()))),
            ITEM_ROWS: pa.ListArray.from_arrays(offsets, pa.array(read_UL[order].ravel(), pa.int32())),
            "event_types": pa.ListArray.from_arrays(offsets, pa.array(["play", "like"] * (users * LENGTH // 2))),
            "timestamps": pa.ListArray.from_arrays(offsets, pa.array(times_UL.ravel())),
        },
        metadata={SECRET_FINGERPRINT: keys.fingerprint(), CATALOG: digest_of(pa.array([item_id(row) for row in range(items)]))},
    )
    pq.write_table(table, run_dir / "export" / "histories.parquet", compression="zstd", dictionary_pagesize_limit=1 << 28)
