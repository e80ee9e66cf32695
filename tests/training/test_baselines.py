"""Baselines: worked examples, the published anchors on real data, and which of them apply."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from towers.columns import NO_TIME, TEST, TRAIN, VALID
from towers.errors import ConfigError, DataError
from towers.topk import Fill
from training import baselines, metrics
from training.baseline_choice import choose_baselines
from training.interactions import Interactions
from training.item_similarity import choices_UI, item_knn, sums_over_history
from training.queries import Queries, make_queries
from training.rank_queries import rank_queries


def scores(fill: Fill, queries: int, items: int) -> NDArray[np.float32]:
    out = torch.full((queries, items), 99.0)
    fill(slice(0, queries), out)
    return out.numpy()


def test_most_popular_counts_training_targets(make_toy) -> None:
    data = make_toy()
    expected = np.zeros(data.n_items)
    for row in range(len(data)):
        expected[data.item[row]] += data.split[row] == TRAIN and data.weight[row] > 0
    np.testing.assert_array_equal(scores(baselines.most_popular(data), 2, data.n_items), [expected, expected])


def test_recent_popular_counts_the_window_first(make_toy) -> None:
    data = make_toy(events=(30, 60))
    day = 86_400_000_000
    got = scores(baselines.recent_popular(data, 1), 1, data.n_items)[0]
    train = (data.split == TRAIN) & (data.weight > 0)
    newest = data.timestamp[train].max()
    inside = np.bincount(data.item[train & (data.timestamp > newest - day)], minlength=data.n_items)
    np.testing.assert_array_equal(np.floor(got), inside)
    outside = np.flatnonzero(inside == 0)
    assert len(outside) > 1
    counts = data.train_counts()
    assert (np.argsort(-got[outside], kind="stable") == np.argsort(-counts[outside], kind="stable")).all()


def test_markov_counts_steps_and_backs_off_to_popularity(make_toy) -> None:
    data = make_toy()
    queries = make_queries(data, "test", "event", "leave_one_out")
    counts = np.zeros((data.n_items, data.n_items))
    popularity = data.train_counts()
    for user in range(data.n_users):
        rows = [r for r in range(data.offsets[user], data.offsets[user + 1]) if data.split[r] == TRAIN]
        for before, after in pairwise(rows):
            counts[data.item[before], data.item[after]] += data.weight[after] > 0
    expected = counts[queries.last_Q] + popularity / (popularity.max() + 1)
    np.testing.assert_allclose(scores(baselines.markov(data, queries), len(queries), data.n_items), expected, rtol=1e-6)


def test_markov_of_an_empty_history_is_popularity(make_toy) -> None:
    data = make_toy()
    first = np.isin(np.arange(len(data)), data.offsets[:-1])
    data = replace(data, split=np.where(first, TEST, TRAIN).astype(np.uint8), weight=np.ones_like(data.weight))
    queries = make_queries(data, "test", "event", "leave_one_out")
    assert (queries.last_Q == -1).all()
    got = scores(baselines.markov(data, queries), 1, data.n_items)[0]
    np.testing.assert_array_equal(np.argsort(-got, kind="stable"), np.argsort(-data.train_counts(), kind="stable"))


def test_own_history_counts_the_history_and_breaks_ties_by_popularity(make_toy) -> None:
    data = make_toy(events=(12, 30))
    queries = make_queries(data, "test", "event", "leave_one_out")
    popularity = data.train_counts()
    got = scores(baselines.own_history(data, queries), len(queries), data.n_items)
    for q in range(len(queries)):
        had = np.bincount(data.item[data.offsets[queries.user_Q[q]] : queries.event_Q[q]], minlength=data.n_items)
        np.testing.assert_allclose(got[q], had + popularity / (popularity.max() + 1), rtol=1e-6)


def test_random_differs_by_query_and_not_by_block(make_toy) -> None:
    fill = baselines.random_order(5)
    whole = scores(fill, 4, 30)
    part = torch.empty(2, 30)
    fill(slice(2, 4), part)
    np.testing.assert_array_equal(part.numpy(), whole[2:])
    assert (whole[0] != whole[1]).any()
    assert (scores(baselines.random_order(6), 4, 30) != whole).any()


class World:
    """An oracle whose item columns stand in another order than the catalogue's rows could suggest."""

    def utilities(self, user_ids, timestamps_us, context):
        hours = {"morning": 0.1, "noon": 0.2, "night": 0.3}
        rows = [[int(u) + 10 * i + hours[h] for i in range(41)] for u, h in zip(user_ids, context["hour"], strict=True)]
        return np.array(rows, np.float32)


def test_oracle_maps_users_items_and_context(make_toy) -> None:
    data = make_toy()
    data = replace(data, user_keys=np.random.default_rng(0).integers(0, 256, (data.n_users, 16)).astype(np.uint8))
    queries = make_queries(data, "test", "event", "leave_one_out")
    users = [str(u) for u in reversed(range(data.n_users))]
    items = ["aaa", *data.catalog["item_id"].to_pylist()]  # one item that the catalogue lacks, before all others
    fill = baselines.oracle(World(), items, users, data.user_keys[::-1], queries)
    got = scores(fill, len(queries), data.n_items)
    hour = (queries.event_Q - data.offsets[queries.user_Q]) % 3
    expected = queries.user_Q[:, None] + 10 * (np.arange(data.n_items) + 1) + 0.1 * (1 + hour[:, None])
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    with pytest.raises(DataError, match="changed since"):
        baselines.oracle(World(), items[:-1], users, data.user_keys[::-1], queries)


def test_which_baselines_apply() -> None:
    assert choose_baselines(["auto"], "time", "ml_1m") == ["most_popular", "recent_popular", "markov", "item_knn", "ease"]
    assert choose_baselines(["auto"], "set", "lightgcn") == ["most_popular", "item_knn", "ease"]
    assert choose_baselines(["auto"], "time", "synthetic")[-1] == "oracle"
    assert choose_baselines(["random", "auto"], "set", "table") == ["random", "most_popular", "item_knn", "ease"]
    assert choose_baselines([], "time", "table") == []
    assert choose_baselines(["auto"], "set", "frappe", "both") == ["most_popular", "own_history", "item_knn", "ease"]
    with pytest.raises(ConfigError, match="own_history needs lists that may hold seen items"):
        choose_baselines(["own_history"], "time", "table")
    for name, order in (("markov", "set"), ("recent_popular", "position"), ("oracle", "time")):
        with pytest.raises(ConfigError, match=f"evaluate.baselines: {name} needs"):
            choose_baselines([name], order, "table")


# Anchors on real files, read here by hand: independent of prepare.


def columns_only(
    user: NDArray[np.int64], item: NDArray[np.int64], split: NDArray[np.uint8], order: str, like: Interactions
) -> Interactions:
    """Prepared columns of user-sorted arrays; whatever ranking does not read is borrowed from `like`."""
    n = len(user)
    return replace(
        like,
        schema=replace(like.schema, order=order),
        offsets=np.concatenate([[0], np.cumsum(np.bincount(user))]),
        item=item.astype(np.int32),
        timestamp=np.full(n, NO_TIME),
        weight=np.ones(n, np.float32),
        split=split,
        catalog=pa.table({"item_id": [str(i) for i in range(int(item.max()) + 1)]}),
    )


def score(data: Interactions, queries: Queries, fill: Fill, k: int) -> dict[str, float]:
    allowed = np.ones(data.n_items, bool)
    top = rank_queries(fill, queries, k, masked=True, allowed_I=allowed)
    hits = metrics.hits(top.rows_Qk, queries.relevant, data.n_items)
    return {name: float(metrics.PER_QUERY[name](hits, queries.relevant_Q, k).mean()) for name in ("recall", "ndcg", "hit_rate")}


@pytest.mark.realdata
def test_ml_1m_popularity_and_markov(ml_1m: Path, make_toy) -> None:
    with (ml_1m / "ratings.dat").open(encoding="latin-1") as file:
        raw = np.array([line.split("::") for line in file], dtype=np.int64)
    raw = raw[np.bincount(raw[:, 1])[raw[:, 1]] >= 5]
    raw = raw[np.lexsort((raw[:, 3], raw[:, 0]))]
    user, item = (np.unique(raw[:, c], return_inverse=True)[1] for c in (0, 1))
    assert item.max() + 1 == 3416
    stops = np.cumsum(np.bincount(user))
    split = np.full(len(user), TRAIN, np.uint8)
    split[stops - 2], split[stops - 1] = VALID, TEST
    data = columns_only(user, item, split, "position", make_toy())
    queries = make_queries(data, "test", "event", "leave_one_out").unseen()
    popular = score(data, queries, baselines.most_popular(data), 10)
    chain = score(data, queries, baselines.markov(data, queries), 10)
    assert (round(popular["hit_rate"], 4), round(popular["ndcg"], 4)) == (0.0369, 0.0180)
    assert (round(chain["hit_rate"], 4), round(chain["ndcg"], 4)) == (0.2144, 0.1259)


def read_gowalla(folder: Path, like: Interactions) -> Interactions:
    parts = []
    for code, name in ((TRAIN, "train.txt"), (TEST, "test.txt")):
        for line in (folder / name).read_text().splitlines():
            user, *items = map(int, line.split())
            parts.append(np.stack([np.full(len(items), user), items, np.full(len(items), code)], axis=1))
    raw = np.concatenate(parts)
    raw = raw[np.argsort(raw[:, 0], kind="stable")]
    user, item = (np.unique(raw[:, c], return_inverse=True)[1] for c in (0, 1))
    return columns_only(user, item, raw[:, 2].astype(np.uint8), "set", like)


@pytest.mark.realdata
def test_gowalla_popularity_and_item_knn(gowalla: Path, make_toy) -> None:
    """BARS has .1570 / .1214 for ItemCF, which ours must not be a weaker form of."""
    data = read_gowalla(gowalla, make_toy())
    assert (data.n_users, data.n_items) == (29_858, 40_981)
    queries = make_queries(data, "test", "auto", "given").unseen()
    popular = score(data, queries, baselines.most_popular(data), 20)
    assert (round(popular["recall"], 4), round(popular["ndcg"], 4)) == (0.0416, 0.0317)
    near = score(data, queries, sums_over_history(item_knn(choices_UI(data), 500, 30.0), queries), 20)
    assert near["recall"] > 0.1570 and near["ndcg"] > 0.1214
