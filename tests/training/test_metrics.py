"""Metrics: numbers worked out by hand, a slow reference, and agreement with ir-measures (trec_eval's definitions)."""

import doctest
from types import ModuleType

import ir_measures
import numpy as np
import pytest
from ir_measures import AP, RR, R, Success, nDCG
from numpy.typing import NDArray

from towers import topk
from training import baseline_choice, bootstrap, exposure, groups, metrics, ragged, ranking, slices, validation, waterfall_report


def hits_of(text: str) -> NDArray[np.bool_]:
    return np.array([[mark == "x" for mark in text]])


@pytest.mark.parametrize(
    ("name", "text", "relevant", "k", "expected"),
    [
        ("recall", "x.x..", 4, 5, 2 / 4),
        ("recall", "xx...", 30, 2, 2 / 30),  # all relevant items in the denominator, not min(k, relevant)
        ("hit_rate", "....x", 1, 4, 0.0),
        ("hit_rate", "...xx", 2, 4, 1.0),
        ("mrr", "..x.x", 2, 5, 1 / 3),
        ("mrr", "..x.x", 2, 2, 0.0),
        ("map", "x.x..", 3, 5, (1 + 2 / 3) / 3),
        ("map", "x.x..", 3, 2, 1 / 3),
        ("ndcg", ".x...", 1, 5, 1 / np.log2(3)),
        ("ndcg", "x.x", 3, 3, (1 + 0.5) / (1 + 1 / np.log2(3) + 0.5)),
        ("ndcg", "xx", 9, 2, 1.0),  # the ideal list has min(k, relevant) hits
    ],
)
def test_by_hand(name: str, text: str, relevant: int, k: int, expected: float) -> None:
    got = metrics.PER_QUERY[name](hits_of(text), np.array([relevant]), k)
    assert got.tolist() == pytest.approx([expected], abs=1e-12)


@pytest.mark.parametrize("name", metrics.PER_QUERY)
def test_edges(name: str) -> None:
    metric = metrics.PER_QUERY[name]
    assert np.isnan(metric(hits_of("..."), np.array([0]), 3)).all(), "nothing relevant: no value"
    assert metric(hits_of("..."), np.array([2]), 3).tolist() == [0.0]
    assert metric(hits_of("x.."), np.array([1]), 50).tolist() == [1.0], "k beyond the ranks given"
    assert metric(np.zeros((0, 3), bool), np.zeros(0, np.int64), 3).shape == (0,)


def test_match_tells_which_and_ignores_padding() -> None:
    relevant = (np.array([0, 2, 2, 3]), np.array([5, 0, 7]))
    rows = np.array([[0, 5, -1], [0, 5, 7], [7, -1, -1]])
    assert metrics.match(rows, relevant, 8).tolist() == [[1, 0, -1], [-1, -1, -1], [2, -1, -1]]


def test_coverage_counts_distinct_items_of_the_first_k() -> None:
    rows = np.array([[3, 1], [3, -1], [2, 3]])
    assert metrics.coverage(rows, 10, 1) == 0.2
    assert metrics.coverage(rows, 10, 2) == 0.3


def test_agrees_with_ir_measures() -> None:
    rng = np.random.default_rng(0)
    queries, items, k = 60, 80, 20
    rows = np.stack([rng.permutation(items)[:k] for _ in range(queries)])
    lists = [rng.choice(items, rng.integers(1, 40), replace=False) for _ in range(queries)]
    relevant = ragged.group(np.repeat(np.arange(queries), [len(x) for x in lists]), np.concatenate(lists), queries)
    hits = metrics.hits(rows, relevant, items)
    counts = np.diff(relevant[0])
    qrels = [ir_measures.Qrel(str(q), str(i), 1) for q, found in enumerate(lists) for i in found]
    run = [ir_measures.ScoredDoc(str(q), str(i), float(-r)) for q, line in enumerate(rows) for r, i in enumerate(line)]
    theirs = {"recall": R, "ndcg": nDCG, "hit_rate": Success, "mrr": RR, "map": AP}
    for cut in (1, 5, 20):
        for name, measure in theirs.items():
            expected = {row.query_id: row.value for row in ir_measures.iter_calc([measure @ cut], qrels, run)}
            ours = metrics.PER_QUERY[name](hits, counts, cut)
            np.testing.assert_allclose(ours, [expected[str(q)] for q in range(queries)], atol=1e-9, err_msg=f"{name}@{cut}")


@pytest.mark.parametrize(
    "module", [baseline_choice, bootstrap, exposure, groups, metrics, ragged, ranking, slices, topk, validation, waterfall_report]
)
def test_doctests(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted and not result.failed
