"""A toy world as prepared data: groups of items that follow one another, so that both taste and order can be learned."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from towers.columns import NO_TIME, TEST, TRAIN, VALID
from towers.fitting import PreprocessorFit
from towers.schema import Feature, make_schema
from training.interactions import Interactions

GROUPS, HOURS = 4, ("morning", "noon", "night")
MakeToy = Callable[..., Interactions]


def build_toy(
    users: int = 60, items: int = 40, order: str = "time", seed: int = 0, events: tuple[int, int] = (6, 20), keeps: bool = False
) -> Interactions:
    """Each user walks through one group of items, one after the other, with some noise, skipping one in ten (weight 0). The last
    event of a user is the test, the one before it validates; the last item is met in tests alone (cold). With `keeps`, events of a history
    keep their hour."""
    rng = np.random.default_rng(seed)
    size = (items - 1) // GROUPS
    lengths = rng.integers(*events, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    n = int(offsets[-1])
    user_N = np.repeat(np.arange(users), lengths)
    position_N = np.arange(n) - offsets[user_N]
    group_N = user_N % GROUPS
    item_N = group_N * size + (user_N + position_N) % size
    item_N = np.where(rng.random(n) < 0.1, rng.integers(0, items - 1, n), item_N)
    split_N = np.full(n, TRAIN)
    split_N[offsets[1:] - 2], split_N[offsets[1:] - 1] = VALID, TEST
    item_N[offsets[1] - 1] = items - 1
    skip_N = (rng.random(n) < 0.1) & (split_N == TRAIN)
    minute = 60_000_000
    timestamp_N = position_N * 60 * minute + rng.integers(0, minute, n) if order == "time" else np.full(n, NO_TIME)
    schema = make_schema(
        [Feature("categories", "multi_categorical", "item", max_values=2), Feature("hour", "categorical", "context", in_history=keeps)],
        order,
        {},
    )
    ids = [f"item-{i:03d}" for i in range(items)]
    columns = {"item_id": ids, "categories": [[f"group-{i // size}"] for i in range(items)]}
    seen = sorted(set(item_N[split_N == TRAIN]))
    fit = PreprocessorFit(schema)
    fit.see("item", {name: [values[i] for i in seen] for name, values in columns.items()})
    fit.see("context", {"hour": HOURS})
    fit.see_events(["interaction", "skip"])
    preprocessor = fit.finish()
    kinds = preprocessor.vocabularies["event_type"].rows(["interaction", "skip"])
    counts = np.bincount(item_N[(split_N == TRAIN) & ~skip_N], minlength=items)
    return Interactions(
        schema=schema,
        preprocessor=preprocessor,
        offsets=offsets.astype(np.int64),
        user_keys=np.arange(users * 16, dtype=np.uint32).reshape(users, 16).astype(np.uint8),
        item=item_N.astype(np.int32),
        timestamp=timestamp_N.astype(np.int64),
        event=kinds[skip_N.astype(int)],
        weight=np.where(skip_N, 0, 1).astype(np.float32),
        split=split_N.astype(np.uint8),
        context=preprocessor.encode("context", {"hour": [HOURS[p % 3] for p in position_N]}, n),
        user_features={},
        item_features=preprocessor.encode("item", columns, items),
        catalog=pa.table({"item_id": ids, "title": ids, "categories": columns["categories"], "train_count": counts}),
    )


@pytest.fixture(scope="session")
def make_toy() -> MakeToy:
    return build_toy


@pytest.fixture(scope="session")
def toy_set() -> Interactions:
    """The toy world without order, where every event is a choice."""
    data = build_toy(order="set", events=(6, 15))
    return replace(data, weight=np.ones_like(data.weight))
