"""Splits as prepare writes them: counts, what is held out, and that the secret behind the keys decides nothing."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from towers.columns import SPLIT_NAMES
from towers.identity import UserKeys
from training.config import TrainingConfig


@pytest.mark.parametrize("name", ["global_temporal", "leave_one_out", "item_cold", "given", "random", "user_cold"])
def test_each_split_counts_what_it_writes(config: TrainingConfig, prepare: Any, name: str, events: Any) -> None:
    config.split.name = name
    log = events(900, 30, 60)
    if name == "given":
        log["split"] = ["test" if i % 5 == 0 else "train" for i in range(900)]
    data = prepare(log)
    split, target = np.asarray(data.split), np.asarray(data.weight) > 0
    for code, side in enumerate(SPLIT_NAMES):
        assert data.facts["data"]["split"][side] == (split == code).sum() > 0
        assert data.facts["data"]["targets"][side] == (target & (split == code)).sum()
        users = {int(u) for u in data.users_of(np.flatnonzero(target & (split == code)))}
        assert data.facts["data"]["users_with_targets"][side] == len(users)
    if name == "item_cold":
        assert not set(data.item[split == 0]) & set(data.item[split == 2])
        assert not set(data.item[split == 1]) & set(data.item[split == 2])
    if name == "given":
        assert (split == 2).sum() == pytest.approx(180, abs=5)
    if name == "user_cold":
        held = [set(data.users_of(np.flatnonzero(split == code)).tolist()) for code in range(3)]
        assert not held[0] & held[1] and not held[0] & held[2] and not held[1] & held[2]


def test_item_cold_holds_out_items_that_were_seen(config: TrainingConfig, prepare: Any, events: Any) -> None:
    config.split.name = "item_cold"
    log = events(900, 30, 60)
    ids = [*(f"cold{i}" for i in range(60)), *sorted(set(log["item_id"]))]
    items = pa.table({"item_id": ids, "categories": pa.array([["a"]] * 120), "price": [1.0] * 120})
    data = prepare(log, items=items)
    assert [len(set(data.item[data.split == code])) for code in range(3)] == [48, 6, 6]


@pytest.mark.parametrize("name", ["random", "user_cold"])
def test_drawn_splits_do_not_depend_on_the_secret(config: TrainingConfig, prepare: Any, events: Any, name: str) -> None:
    """The keys' order does, so rows are compared by what the log says of them."""
    config.split.name = name
    log = events(600, 40, 30)

    def sides() -> dict[float, int]:
        data = prepare(log)
        mean, deviation = data.preprocessor.numbers["context.marker"]
        marker_N = np.round(data.context["context.marker"][:, 0] * deviation + mean).astype(int)
        return dict(zip(marker_N.tolist(), data.split.tolist(), strict=True))

    first = sides()
    config.identity.key_file = config.identity.key_file + ".other"
    UserKeys.open(config.identity.key_file, create=True)
    assert sides() == first and len(first) > 500
    config.split.seed = 1
    assert sides() != first


def test_item_cold_with_warm_events_too(config: TrainingConfig, prepare: Any, events: Any) -> None:
    """Cold items' events are held out as before; of the others each user's last tests and the one before validates."""
    config.split.name = "item_cold"
    log = events(900, 30, 60)
    alone = prepare(log)
    config.split.warm_too = True
    data = prepare(log)
    cold_N = np.asarray(alone.split) > 0
    assert np.array_equal(data.split[cold_N], alone.split[cold_N])
    for user in range(data.n_users):
        rows = np.arange(data.offsets[user], data.offsets[user + 1])
        positive = rows[~cold_N[rows] & (data.weight[rows] > 0)]
        assert data.split[positive].tolist() == [0] * (len(positive) - 2) + [1, 2]
        newest = positive[-2]
        assert not (data.split[rows[rows > newest]] == 0).any()  # nothing later trains
