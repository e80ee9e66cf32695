"""Item vectors and user vectors as two towers make them, of any size, sealed in a bundle as `towers export` leaves it.

Topics are drawn around 48 broad directions whose columns lose variance as a trained model's do; an item is its topic plus noise, of unit
norm; topics differ much in size. A user is the mean of 6 to 33 items out of three topics, plus noise: users lie between topics, away from
every item, so an index that was fitted to items alone has to prove itself on them. Half of the users are kept to tune on, the others are
measured. Numbers made here measure speed and the recall of search, nothing else.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse
import scipy.sparse.linalg
from report import say

from serving import index_job
from serving.config import IndexConfig, ServingConfig
from towers.bundle import Bundle, current, publish, write_vectors
from towers.held_out import write_query_vectors
from towers.model_config import ModelConfig
from towers.schema import Feature, make_schema

BLOCK = 65_536


@dataclass(frozen=True)
class VectorWorld:
    """Vectors of items, of users to tune on and of users to measure with; similarity as the model says it."""

    item_ID: np.ndarray
    tune_QD: np.ndarray
    test_QD: np.ndarray
    similarity: str = "cosine"


@dataclass(frozen=True)
class Topics:
    """Drawn items by topic: their vectors, and which of them belong to each topic (items_TN[offsets[t] : offsets[t + 1]])."""

    item_ID: np.ndarray
    order_I: np.ndarray
    starts_T: np.ndarray
    size_T: np.ndarray
    decay_D: np.ndarray

    def liked(self, rng: np.random.Generator, few: int, many: int) -> np.ndarray:
        """Items that somebody chose: out of three topics, each `few` to `many` - 1 of them."""
        spans = [(self.starts_T[t], self.starts_T[t + 1]) for t in rng.choice(len(self.size_T), 3, p=self.size_T)]
        chosen = [self.order_I[rng.integers(low, high, rng.integers(few, many))] for low, high in spans if high > low]
        return np.concatenate(chosen) if chosen else rng.integers(len(self.item_ID), size=1)


def by_topic(items: int, dim: int, rng: np.random.Generator) -> Topics:
    """Items of two towers; see the module."""
    topics = max(8, round(items**0.5))
    decay_D = (1 + np.arange(dim)) ** -0.35
    broad = rng.standard_normal((48, dim)) * decay_D
    topic_TD = broad[rng.integers(48, size=topics)] + 0.9 * rng.standard_normal((topics, dim)) * decay_D
    size_T = rng.dirichlet(np.full(topics, 0.5))
    topic_I = rng.choice(topics, items, p=size_T)
    item_ID = np.empty((items, dim), np.float32)
    for start in range(0, items, BLOCK):
        mine = topic_I[start : start + BLOCK]
        item_ID[start : start + BLOCK] = unit(topic_TD[mine] + 0.9 * rng.standard_normal((len(mine), dim)) * decay_D)
    order_I = np.argsort(topic_I, kind="stable")
    return Topics(item_ID, order_I, np.searchsorted(topic_I[order_I], np.arange(topics + 1)), size_T, decay_D)


def two_towers(items: int, dim: int, users: int = 2000, seed: int = 0) -> VectorWorld:
    """See the module."""
    rng = np.random.default_rng(seed)
    drawn = by_topic(items, dim, rng)
    user_QD = np.empty((users, dim))
    for q in range(users):
        mean_D = drawn.item_ID[drawn.liked(rng, 2, 12)].mean(0)
        noise_D = rng.standard_normal(dim) * drawn.decay_D
        user_QD[q] = mean_D + 0.15 * np.linalg.norm(mean_D) / np.linalg.norm(drawn.decay_D) * noise_D
    user_QD = unit(user_QD)
    return VectorWorld(drawn.item_ID, user_QD[: users // 2], user_QD[users // 2 :])


def gowalla_factors(dim: int = 64, seed: int = 0) -> VectorWorld:
    """Raw dot factors: the truncated SVD of Gowalla's training interactions, each divided by the roots of its user's and item's counts.

    Items are the singular vectors times the root of the singular value and of the item's count, so that norms spread as popularity does;
    users are the sums of the plain ones over their training items (low-pass filtering, as LightGCN does without training).
    """
    train = [line.split() for line in (Path(os.environ["TOWERS_DATA_DIR"]) / "gowalla" / "train.txt").read_text().splitlines()]
    user = np.concatenate([np.full(len(line) - 1, row) for row, line in enumerate(train)])
    item = np.concatenate([np.array(line[1:], np.int64) for line in train])
    users, items = len(train), int(item.max()) + 1
    size_U, size_I = np.bincount(user, minlength=users), np.bincount(item, minlength=items)
    weight = 1 / np.sqrt(size_U[user] * size_I[item])
    normal = scipy.sparse.csr_matrix((weight, (user, item)), (users, items))
    _, value_D, right_DI = scipy.sparse.linalg.svds(normal, dim, random_state=seed)
    item_ID = np.ascontiguousarray((right_DI.T * np.sqrt(value_D)) * np.sqrt(size_I)[:, None], np.float32)
    history = scipy.sparse.csr_matrix((1 / np.sqrt(size_I[item]), (user, item)), (users, items))
    user_QD = np.ascontiguousarray(history @ (right_DI.T * np.sqrt(value_D)), np.float32)
    chosen = np.random.default_rng(seed).permutation(np.flatnonzero(size_U))[:2000]
    return VectorWorld(item_ID, user_QD[chosen[:1000]], user_QD[chosen[1000:]], "dot")


def unit(vectors: np.ndarray) -> np.ndarray:
    """float32, each row of norm 1."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def catalogue(items: int, seed: int = 0) -> pa.Table:
    """Item ids, one category of ten (5 % to 15 % of the items each), and times of creation, all at random."""
    rng = np.random.default_rng(seed)
    category = rng.choice(10, items, p=rng.permutation(np.linspace(0.05, 0.15, 10)))
    return pa.table(
        {
            "item_id": [f"i{row:07d}" for row in range(items)],
            "title": pa.nulls(items, pa.string()),
            "categories": [[f"c{c}"] for c in category.tolist()],
            "created_at": pa.array(rng.permutation(items) * 1_000_000, pa.timestamp("us", "UTC")),
            "is_hidden": np.zeros(items, bool),
        }
    )


def indexed(folder: Path, world: VectorWorld, floor: float, name: str = "ivf", parts: bool = False, queries: int = 1000) -> Bundle:
    """The world's bundle with its index, built and tuned by `towers index`."""
    run_dir = folder / f"run-{floor}-{name}"
    items, dim = world.item_ID.shape
    (run_dir / "export").mkdir(parents=True)
    write_query_vectors(run_dir / "export", world.tune_QD, weights_sha256="")
    write_vectors(folder / "vectors", world.item_ID)
    pq.write_table(catalogue(items), folder / "catalog")
    schema = make_schema([Feature("categories", "multi_categorical", "item")], "time", {})
    files: dict[str, Path | bytes] = {
        "item_vectors.arrow": folder / "vectors",
        "catalog.parquet": folder / "catalog",
        "schema.json": json.dumps(schema.to_json()).encode(),
        "model_config.json": json.dumps(asdict(ModelConfig(dim=dim, similarity=world.similarity))).encode(),
    }
    publish(run_dir / "bundles", "v1", files, {"name": "bench"})
    index = IndexConfig(name=name, recall_floor=floor, queries=queries, parts=["categories"] if parts else [])
    say(f"towers index: {items:,} x {dim}, recall {floor}")
    index_job.run(ServingConfig(run_dir=str(run_dir), index=index))
    return Bundle.open(current(run_dir / "bundles"))
