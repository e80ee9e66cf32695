"""Items drawn at random, and all that the selector is told of them, with no model behind it."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa

from serving.attribute_files import build_attributes
from serving.catalog import Catalog
from serving.choosing import Chooser
from serving.index.exact import ExactIndex
from serving.policy import Dials, Policy, SelectorSettings
from serving.selector import Candidates, Parts, Selection, likelihood, select
from serving.signals import Signals
from serving.traits import BundleTraits
from towers.encoder import UserRow
from towers.schema import Feature, Schema, make_schema

DAY_US = 86_400_000_000
NOW_US = 20_000 * DAY_US
LABELS = ["comedy", "drama", "news", "sport", "war"]

SCHEMA = make_schema(
    [Feature("categories", "multi_categorical", "item"), Feature("provider", "categorical", "item"), Feature("size", "numeric", "item")],
    "time",
    {"interaction": 1.0, "skip": -0.5},
)


@dataclass(frozen=True)
class ItemWorld:
    """A catalogue, an index over it, and a query."""

    table: pa.Table
    counts_I: np.ndarray
    vectors_ID: np.ndarray
    query_HD: np.ndarray
    schema: Schema = SCHEMA

    @cached_property
    def traits(self) -> BundleTraits:
        return BundleTraits(build_attributes(self.table, self.schema), self.vectors_ID)

    @cached_property
    def index(self) -> ExactIndex:
        return ExactIndex(self.vectors_ID)

    @cached_property
    def catalog(self) -> Catalog:
        return Catalog.of_table(self.table, self.counts_I)

    def chooser(self, settings: SelectorSettings | None = None) -> Chooser:
        return Chooser(settings or SelectorSettings(), self.traits, self.catalog, self.schema)

    def search(self, count: int, excluded: np.ndarray) -> Candidates:
        found = self.index.search(self.query_HD, count, None, excluded)
        return Candidates(found.rows, found.scores)

    def parts(self, policy: Policy, history: list[str]) -> Parts:
        found = self.chooser().parts(policy, signals(history), NOW_US)
        assert found is not None
        return found

    def choose(self, policy: Policy, history: list[str] | None = None, count: int | None = None) -> Selection:
        """A list, searching on where masks leave too few; from `count` candidates alone where that is given."""
        nothing = np.empty(0, np.int64)
        found = self.search(policy.candidates if count is None else count, nothing)
        deeper = (lambda more, rows: self.search(more, rows)) if count is None else None
        return select(found, policy, self.parts(policy, history or []), deeper)

    def likelihood(self, policy: Policy, rows: list[int], count: int, history: list[str]) -> np.ndarray:
        found = self.search(count, np.empty(0, np.int64))
        return likelihood(found, policy, self.parts(policy, history), np.array(rows))

    def labels(self, row: int) -> list[str]:
        labels: list[str] | None = self.table["categories"][row].as_py()
        return labels or []


def signals(history: list[str], events: list[str | None] | None = None) -> Signals:
    return Signals(UserRow(), history, events or [None] * len(history), "personalized", "", 0)


def item_world(items: int, seed: int, dim: int = 6) -> ItemWorld:
    """Items of up to three categories, of five providers, of all ages, some with nothing told of them."""
    rng = np.random.default_rng(seed)
    table = pa.table(
        {
            "item_id": [f"i{i:05d}" for i in range(items)],
            "title": [None] * items,
            "categories": pa.array(
                [sorted(rng.choice(LABELS, rng.integers(0, 4), replace=False)) for _ in range(items)], pa.list_(pa.string())
            ),
            "provider": [None if rng.random() < 0.1 else f"p{rng.integers(5)}" for _ in range(items)],
            "size": rng.random(items),
            "created_at": pa.array([NOW_US - int(rng.integers(0, 100)) * DAY_US for _ in range(items)], pa.timestamp("us", "UTC")),
            "is_hidden": [False] * items,
        }
    )
    vectors_ID = rng.standard_normal((items, dim)).astype(np.float32)
    vectors_ID /= np.linalg.norm(vectors_ID, axis=1, keepdims=True)
    return ItemWorld(table, rng.integers(0, 50, items), vectors_ID, rng.standard_normal((1, dim)).astype(np.float32))


def with_clones(world: ItemWorld, clones: int) -> ItemWorld:
    """The world's best item `clones` times more, under ids of their own."""
    best = int(world.search(1, np.empty(0, np.int64)).rows_C[0])
    copies = pa.concat_tables([world.table.slice(best, 1)] * clones)
    copies = copies.set_column(0, "item_id", pa.array([f"j{i:05d}" for i in range(clones)]))
    return replace(
        world,
        table=pa.concat_tables([world.table, copies]),
        counts_I=np.concatenate([world.counts_I, np.zeros(clones, np.int64)]),
        vectors_ID=np.concatenate([world.vectors_ID, np.repeat(world.vectors_ID[best : best + 1], clones, 0)]),
    )


ALL_ON = Dials(popularity=-0.3, calibration=0.4, diversity=0.3, freshness=0.2, temperature=0.2, near_duplicates=0.95, caps={"provider": 2})
