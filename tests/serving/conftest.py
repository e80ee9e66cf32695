"""A small world with everything that makes serving hard: odd ids, a hidden item, an item the model never saw, two kinds of users."""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from serving.app import AppOptions, Server, build_app
from serving.bounds import Limits
from serving.config import ServingConfig
from serving.engine import Engine
from serving.metrics import Metrics
from serving.retriever import Retriever
from serving.routes import ROUTE_NAMES
from serving.run import listen, url
from towers.bundle import Bundle, publish, write_vectors
from towers.columns import FIRST_ROW, NO_TIME
from towers.encoder import Encoder, UserRow
from towers.identity import SECRET_FINGERPRINT, UserKeys
from towers.model import TwoTower
from towers.model_config import HistoryConfig, ModelConfig
from towers.preprocess import Preprocessor
from towers.runtime import TorchRuntime, save_model
from towers.schema import Feature, Schema, make_schema
from towers.vocab import Vocabulary
from training.half_tables import round_tables
from training.onnx_export import export_towers

ODD_IDS = ["100%", "a/b c", "a/similar", "ünï-код-日本", "?k=1"]
ITEMS = sorted([f"item-{i:02d}" for i in range(35)] + ODD_IDS, key=str.encode)
HIDDEN, UNTRAINED = "item-07", "item-08"
LABELS = ["comedy", "drama", "news"]
LENGTH = 6
DAY_US = 86_400_000_000
NOW_US = 20_000 * DAY_US


@dataclass(frozen=True)
class World:
    """A published bundle and what stands beside it."""

    bundle: Path
    histories: Path
    key_file: Path
    model: TwoTower
    preprocessor: Preprocessor
    catalog: pa.Table
    users: dict[str, list[str]]

    def run(self, run_dir: Path) -> ServingConfig:
        """A copy of its bundles and exports, for a test to change, and the settings of that run."""
        shutil.copytree(self.bundle.parent, run_dir / "bundles")
        shutil.copytree(self.histories.parent, run_dir / "export")
        config = ServingConfig(run_dir=str(run_dir))
        config.serving.key_file = str(self.key_file)
        return config


def schema() -> Schema:
    features = [
        Feature("categories", "multi_categorical", "item"),
        Feature("hour", "categorical", "context"),
        Feature("budget", "numeric", "context"),
        Feature("likes", "preferences", "user", like="categories"),
    ]
    return make_schema(features, "time", {})


def preprocessor() -> Preprocessor:
    vocabularies = {
        "item_id": Vocabulary.fit([item for item in ITEMS if item != UNTRAINED]),
        "event_type": Vocabulary.fit(["play", "skip"]),
        "categories": Vocabulary.fit(LABELS),
        "hour": Vocabulary.fit([str(hour) for hour in range(24)]),
    }
    return Preprocessor(schema(), vocabularies, {"context.budget": (10.0, 5.0)})


def catalog() -> pa.Table:
    count = len(ITEMS)
    return pa.table(
        {
            "item_id": ITEMS,
            "title": [f"Title of {item}" if i % 9 else None for i, item in enumerate(ITEMS)],
            "categories": pa.array([[LABELS[i % 3]] if i % 5 else None for i in range(count)], pa.list_(pa.string())),
            "created_at": pa.array([NOW_US] * count, pa.timestamp("us", "UTC")),
            "is_hidden": [item == HIDDEN for item in ITEMS],
            "train_count": pa.array([(i * 7) % 11 for i in range(count)], pa.int64()),
        }
    )


def write_histories(path: Path, keys: UserKeys, users: dict[str, list[str]]) -> None:
    ordered = sorted(users, key=keys.key)
    table = pa.table(
        {
            "user_key": pa.array([keys.key(user) for user in ordered], pa.binary(16)),
            "item_ids": [users[user] for user in ordered],
            "event_types": [["play"] * len(users[user]) for user in ordered],
            "timestamps": pa.array(
                [[NOW_US - DAY_US * (len(users[user]) - i) for i in range(len(users[user]))] for user in ordered], pa.list_(pa.int64())
            ),
            "likes": pa.array([["drama"] if user == "likes-only" else None for user in ordered], pa.list_(pa.string())),
        },
        metadata={SECRET_FINGERPRINT: keys.fingerprint()},
    )
    pq.write_table(table, path, row_group_size=3)


def make_world(folder: Path, history_name: str = "mean", half: bool = False) -> World:
    """Publish a bundle of random, untrained towers: what serving must get right does not depend on training."""
    torch.manual_seed(0)
    fitted = preprocessor()
    mean = history_name == "mean"
    signs = {"signed_events": mean, "negative_push": 1.5 * mean}
    config = ModelConfig(dim=8, history=HistoryConfig(name=history_name, length=LENGTH, layers=1, **signs))
    model = TwoTower(config, fitted.inputs, fitted.event_rows).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("log_weight", "event_push")):  # all equal in a fresh model: nothing would notice their loss
                parameter.normal_(std=0.1 if name.endswith("push") else 1.0)
        if mean:
            model.history.mark_negative(fitted.vocabularies["event_type"].rows(["skip", "abandon"]))
    if half:
        assert round_tables(model, 1) == [*model.tables]
    table = catalog()
    columns = {"item_id": table["item_id"].to_pylist(), "categories": table["categories"].to_pylist()}
    encoder = Encoder(fitted, TorchRuntime(model), LENGTH)
    vectors_ID = encoder.items(columns, len(table))
    parts = folder / "parts"
    parts.mkdir(parents=True)
    fitted.save(parts)
    save_model(model, parts)
    write_vectors(parts / "item_vectors.arrow", vectors_ID)
    pq.write_table(table, parts / "catalog.parquet")
    pq.write_table(pa.table({"item_id": table["item_id"], "count": table["train_count"]}), parts / "popularity.parquet")
    (parts / "tables").mkdir()
    for name, rows_VD in model.table_arrays().items():
        np.save(parts / "tables" / f"{name}.npy", rows_VD)
    sample = encoder.user_batch([UserRow(["item-01", "item-02"], ["play"] * 2, [NOW_US] * 2, NOW_US), UserRow()])
    items = fitted.encode("item", columns, len(table))
    assert len(items["item.item_id"]) == len(table) > FIRST_ROW and NO_TIME < 0
    export_towers(model, sample, items, parts / "onnx")
    (parts / "index.json").write_text(json.dumps(exact_index_json(vectors_ID, parts / "item_vectors.arrow")))
    files: dict[str, Path | bytes] = {p.relative_to(parts).as_posix(): p for p in parts.rglob("*") if p.is_file()}
    bundle = publish(folder / "bundles", "v1", files, {"name": "test", "phrases": {"play": "you played {}", "hour": "it is {} o'clock"}})
    key_file = folder / "key"
    keys = UserKeys.open(str(key_file), create=True)
    users = {f"user-{i}": [ITEMS[(i * 5 + j * 3) % len(ITEMS)] for j in range(i + 1)] for i in range(12)}
    users |= {"empty": [], "likes-only": [], "ünï/user": ["item-01", "item-02"]}
    (folder / "export").mkdir()
    write_histories(folder / "export" / "histories.parquet", keys, users)
    return World(bundle, folder / "export" / "histories.parquet", key_file, model, fitted, table, users)


def exact_index_json(vectors_ID: np.ndarray, path: Path) -> dict[str, object]:
    rows, dim = vectors_ID.shape
    return {
        "kind": "exact", "factory": "", "metric": "inner_product", "rows": rows, "dim": dim, "nlist": 0, "nprobe": 0,
        "item_vectors_sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "largest_norm": 1.0, "k": 10, "queries": 0,
        "recall": 1.0, "recall_floor": 0.95, "search_us": 1.0, "exact_us": 1.0, "curve": [],
    }  # fmt: skip


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def half_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Its tables are in half precision."""
    return make_world(tmp_path_factory.mktemp("half"), half=True)


@pytest.fixture(scope="session")
def half_transformer_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("half-transformer"), "transformer", half=True)


@pytest.fixture(scope="session")
def transformer_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("transformer"), "transformer")


@pytest.fixture(scope="session")
def retriever(world: World) -> Retriever:
    return Retriever.open(world.bundle, world.histories, world.key_file, Limits(max_k=1000, max_history=500))


@pytest.fixture(scope="session")
def bundle(world: World) -> Bundle:
    return Bundle.open(world.bundle)


@pytest.fixture(scope="session")
def client(retriever: Retriever) -> Iterator[httpx.Client]:
    """A client of a real server on loopback."""
    with answering(retriever) as connection:
        yield connection


@contextmanager
def answering(retriever: Retriever, head_s: float = 10.0, body_s: float = 10.0) -> Iterator[httpx.Client]:
    """A client of a real server on loopback, which waits so long for a head, and for a body."""
    with listen("127.0.0.1", 0) as listener:
        ready = threading.Event()
        app = build_app(Engine(retriever), AppOptions(Metrics(ROUTE_NAMES), read_timeout_s=body_s))
        server = Server(app, ready.set, head_s)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert ready.wait(10)
            with httpx.Client(base_url=url("127.0.0.1", listener), timeout=10, trust_env=False) as connection:
                yield connection
        finally:
            server.should_exit = True
            thread.join(10)
