"""Generated prepared data of any size: random ids with skewed popularity. Its numbers measure speed and nothing else."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from towers.columns import NO_TIME, TRAIN
from towers.fitting import PreprocessorFit
from towers.schema import make_schema
from training.interactions import Interactions, write_prepared


def id_world(folder: Path, users: int, items: int, events: int, seed: int = 0) -> Path:
    """A prepared folder with item ids alone: `events` of them, each user with about as many, every item met.

    Popularity falls as (rank + 30)^-0.6, about as in the Gowalla split: 4,096 of its events are 3,600 different items, and so are these.
    """
    rng = np.random.default_rng(seed)
    item_N = np.concatenate([np.arange(items), _skewed(rng, items, events - items)]).astype(np.int32)
    rng.shuffle(item_N)
    offsets = np.linspace(0, events, users + 1).astype(np.int64)
    item_ids = pa.array([f"i{i:07d}" for i in range(items)])
    schema = make_schema([], "position", {})
    fit = PreprocessorFit(schema)
    fit.see("item", {"item_id": item_ids})
    fit.see_events(["interaction"])
    preprocessor = fit.finish()
    data = Interactions(
        schema=schema,
        preprocessor=preprocessor,
        offsets=offsets,
        user_keys=np.arange(users * 2, dtype=np.uint64).view(np.uint8).reshape(users, 16),
        item=item_N,
        timestamp=np.full(events, NO_TIME),
        event=np.full(events, preprocessor.vocabularies["event_type"].rows(["interaction"])[0], np.int32),
        weight=np.ones(events, np.float32),
        split=np.full(events, TRAIN, np.uint8),
        context={},
        user_features={},
        item_features=preprocessor.encode("item", {"item_id": item_ids.to_pylist()}, items),
        catalog=pa.table({"item_id": item_ids, "title": item_ids, "train_count": np.bincount(item_N, minlength=items)}),
    )
    return write_prepared(folder, data)


def _skewed(rng: np.random.Generator, items: int, count: int) -> np.ndarray:
    shares = np.cumsum((np.arange(items) + 30.0) ** -0.6)
    return np.searchsorted(shares, rng.random(count) * shares[-1])
