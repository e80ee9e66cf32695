"""ItemKNN and EASE against slow dense references, their sums over histories, and the choice of their settings on validation."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from towers.columns import TRAIN, VALID
from towers.errors import DataError
from training import item_similarity
from training.baseline_choice import MOST_EASE_ITEMS, MOST_PAIRS, baseline_fills, choose_baselines, fit_similarities, most_pairs
from training.baseline_settings import NEIGHBOURS, NEWEST, PENALTIES, SHRINKAGES, BaselineSettings, choose_settings, similarity
from training.config import EvaluateConfig, TrainingConfig
from training.data_config import SplitConfig
from training.interactions import Interactions
from training.item_similarity import choices_UI, ease, item_knn, positive_history, sums_over_history
from training.queries import Queries, make_queries


def some_choices(users: int = 40, items: int = 25, seed: int = 0) -> NDArray[np.float32]:
    chosen = (np.random.default_rng(seed).random((users, items)) < 0.2).astype(np.float32)
    chosen[:, -1] = 0  # an item that nobody chose
    return chosen


def slow_knn(chosen: NDArray[np.float32], neighbours: int, shrinkage: float) -> NDArray[np.float64]:
    """Item by item, pair by pair."""
    items, of_user = chosen.shape[1], chosen.sum(1)
    weight = of_user.mean() / np.maximum(of_user, 1)
    found = np.zeros((items, items))
    for j in range(items):
        similar = []
        for i in range(items):
            both = float((weight * chosen[:, i] * chosen[:, j]).sum())
            norm = np.sqrt((weight * chosen[:, i]).sum() * (weight * chosen[:, j]).sum()) + shrinkage
            similar.append((-(both / norm) if i != j and both else 0.0, i))
        for value, i in sorted(similar)[:neighbours]:
            found[i, j] = -value
    return found


@pytest.mark.parametrize(("neighbours", "shrinkage"), [(3, 0.0), (5, 10.0), (100, 2.5)])
def test_item_knn_equals_the_slow_one(monkeypatch: pytest.MonkeyPatch, neighbours: int, shrinkage: float) -> None:
    chosen = some_choices()
    monkeypatch.setattr(item_similarity, "_BLOCK_COUNTS", 60)  # some items a block
    got = item_knn(sp.csr_matrix(chosen), neighbours, shrinkage)
    assert got.dtype == np.float32 and (np.diff(got.tocsc().indptr) <= neighbours).all()
    np.testing.assert_allclose(got.toarray(), slow_knn(chosen, neighbours, shrinkage), rtol=1e-5)


def test_equal_similarities_go_to_the_lower_item() -> None:
    twins = sp.csr_matrix(np.ones((2, 4), np.float32))
    assert item_knn(twins, 2, 0.0).toarray().astype(bool).T.tolist() == [
        [False, True, True, False],
        [True, False, True, False],
        [True, True, False, False],
        [True, True, False, False],
    ]


def test_ease_is_the_best_linear_autoencoder_without_a_diagonal() -> None:
    """Steck's B minimises |X - XB|^2 + penalty |B|^2 with diag B = 0: column by column that is a ridge regression on the other items."""
    chosen, penalty = some_choices().astype(np.float64), 3.0
    got = ease(sp.csr_matrix(chosen.astype(np.float32)), penalty).numpy()
    for j in range(chosen.shape[1]):
        others = np.delete(np.arange(chosen.shape[1]), j)
        X = chosen[:, others]
        ridge = np.linalg.solve(X.T @ X + penalty * np.eye(len(others)), X.T @ chosen[:, j])
        np.testing.assert_allclose(got[others, j], ridge, atol=1e-5)
        assert got[j, j] == 0


def test_ease_says_when_the_penalty_is_too_small() -> None:
    with pytest.raises(DataError, match="greater penalty"):
        ease(sp.csr_matrix(np.ones((2, 3), np.float32)), -2.0)


def test_choices_are_training_targets_once(make_toy) -> None:
    data = make_toy()
    chosen = choices_UI(data).toarray()
    expected = np.zeros_like(chosen)
    for row in np.flatnonzero((data.split == TRAIN) & (data.weight > 0)):
        expected[data.users_of(np.array([row]))[0], data.item[row]] = 1
    np.testing.assert_array_equal(chosen, expected)


def slow_history(queries: Queries, query: int, newest: int) -> list[int]:
    data = queries.data
    rows = [r for r in range(queries.history.start_Q[query], queries.history.end_Q[query]) if data.weight[r] > 0]
    return sorted({int(data.item[r]) for r in (rows[-newest:] if newest else rows)})


@pytest.mark.parametrize("newest", [0, 3])
@pytest.mark.parametrize("dense_worth", [0, 10**6])
def test_scores_are_sums_over_the_positive_history(make_toy, monkeypatch: pytest.MonkeyPatch, newest: int, dense_worth: int) -> None:
    monkeypatch.setattr(item_similarity, "_DENSE_WORTH", dense_worth)
    data = make_toy()
    queries = make_queries(data, "test", "event", "leave_one_out")
    part = slice(5, 30)
    offsets, items = positive_history(queries, part, newest)
    histories = [slow_history(queries, query, newest) for query in range(part.start, part.stop)]
    assert [items[a:b].tolist() for a, b in pairwise(offsets)] == histories
    for similar in (item_knn(choices_UI(data), 5, 1.0), ease(choices_UI(data), 10.0)):
        table = similar.numpy() if isinstance(similar, torch.Tensor) else similar.toarray()
        got = torch.full((len(histories), data.n_items), 99.0)
        sums_over_history(similar, queries, newest)(part, got)
        for row, history in enumerate(histories):
            expected = table[history].sum(0)
            known = np.flatnonzero(expected > 0) if sp.issparse(similar) else np.arange(data.n_items)
            np.testing.assert_allclose(got[row, known], expected[known], rtol=1e-4, atol=1e-6)
            rest = np.setdiff1d(np.arange(data.n_items), known)
            assert (np.argsort(-got[row, rest].numpy(), kind="stable") == np.argsort(-data.train_counts()[rest], kind="stable")).all()
            assert not len(rest) or got[row, rest].max() < got[row, known].min()


def test_an_empty_history_gets_popularity(make_toy) -> None:
    data = make_toy()
    queries = make_queries(data, "test", "event", "leave_one_out")
    empty = replace(queries, history=replace(queries.history, end_Q=queries.history.start_Q))
    for similar in (item_knn(choices_UI(data), 5, 1.0), ease(choices_UI(data), 10.0)):
        got = torch.zeros(len(queries), data.n_items)
        sums_over_history(similar, empty)(slice(0, len(queries)), got)
        order = np.argsort(-got.numpy(), axis=1, kind="stable")
        assert (order == np.argsort(-data.train_counts(), kind="stable")).all()


def config_of() -> TrainingConfig:
    return TrainingConfig(split=SplitConfig(name="leave_one_out"), evaluate=EvaluateConfig(ks=[2, 5, 10]))


def by_hand(data: Interactions, similar: sp.csr_matrix | torch.Tensor, newest: int, k: int) -> float:
    """Mean NDCG@k of the unseen validation items, one relevant item a query: 1 / log2(1 + its rank)."""
    queries = make_queries(data, "valid", "event", "leave_one_out").unseen()
    out = torch.zeros(len(queries), data.n_items)
    sums_over_history(similar, queries, newest)(slice(0, len(queries)), out)
    seen = queries.seen_items(slice(0, len(queries)))
    gains = []
    for query in range(len(queries)):
        scores = out[query].numpy().copy()
        scores[seen[1][seen[0][query] : seen[0][query + 1]]] = -np.inf
        rank = 1 + np.argsort(-scores, kind="stable").tolist().index(queries.relevant[1][query])
        gains.append(1 / np.log2(1 + rank) if rank <= k else 0.0)
    return float(np.mean(gains))


@pytest.mark.parametrize("seed", [0, 1])
def test_settings_are_chosen_on_validation(make_toy, seed: int) -> None:
    data = make_toy(users=100, seed=seed)
    allowed = np.ones(data.n_items, bool)
    names = ["recent_popular", "item_knn", "ease"]
    chosen = choose_settings(names, data, config_of(), allowed, True)
    knn, solved = ({v: similarity(n, choices_UI(data), v) for v in values} for n, values in (("item_knn", SHRINKAGES), ("ease", PENALTIES)))
    assert chosen.knn_newest == max(NEWEST, key=lambda n: by_hand(data, knn[SHRINKAGES[0]], n, 5))
    assert chosen.knn_shrinkage == max(SHRINKAGES, key=lambda v: by_hand(data, knn[v], chosen.knn_newest, 5))
    assert chosen.ease_newest == max(NEWEST, key=lambda n: by_hand(data, solved[PENALTIES[0]], n, 5))
    assert chosen.ease_penalty == max(PENALTIES, key=lambda v: by_hand(data, solved[v], chosen.ease_newest, 5))
    unlearnt = replace(data, split=np.where(data.split == VALID, np.uint8(TRAIN), data.split))
    assert choose_settings(names, unlearnt, config_of(), allowed, True) == BaselineSettings(), "nothing to choose on"
    said = [chosen.said(name) for name in ("most_popular", *names)]
    assert said[0] == "most_popular" and all("chosen on validation" in words for words in said[1:])


def test_the_job_ranks_with_what_was_chosen(make_toy) -> None:
    data = make_toy()
    queries = make_queries(data, "test", "event", "leave_one_out")
    chosen = BaselineSettings(knn_shrinkage=SHRINKAGES[1], knn_newest=3)
    similar = fit_similarities(["most_popular", "item_knn"], data, chosen)
    assert list(similar) == ["item_knn"]
    fills = baseline_fills(["item_knn"], data, queries, config_of(), chosen, similar)
    got, expected = torch.zeros(9, data.n_items), torch.zeros(9, data.n_items)
    fills["item_knn"](slice(0, 9), got)
    sums_over_history(item_knn(choices_UI(data), NEIGHBOURS, SHRINKAGES[1]), queries, 3)(slice(0, 9), expected)
    assert torch.equal(got, expected)


def test_auto_leaves_out_what_is_dear(make_toy) -> None:
    data = make_toy()
    assert most_pairs(data) == sum(n * n for n in np.diff(data.offsets).tolist())
    assert choose_baselines(["auto"], "set", "table", "masked", MOST_PAIRS, MOST_EASE_ITEMS) == ["most_popular", "item_knn", "ease"]
    assert choose_baselines(["auto"], "set", "table", "masked", MOST_PAIRS + 1, MOST_EASE_ITEMS + 1) == ["most_popular"]
    assert choose_baselines(["ease"], "set", "table", "masked", 0, MOST_EASE_ITEMS + 1) == ["ease"], "by name, it is had at any size"
