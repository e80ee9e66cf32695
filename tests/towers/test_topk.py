"""Exact top-k against a slow reference: order, ties at every boundary, masks, padding, blocks, heads, bad input."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from towers.errors import DataError
from towers.topk import TopK, exact_topk, rank


def slow(scores_QI: NDArray[np.float32], k: int, banned: list[set[int]]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    rows = np.full((len(scores_QI), k), -1, np.int32)
    scores = np.full((len(scores_QI), k), -np.inf, np.float32)
    for q, line in enumerate(scores_QI):
        order = sorted((i for i in range(len(line)) if i not in banned[q]), key=lambda i: (-line[i], i))[:k]
        rows[q, : len(order)], scores[q, : len(order)] = order, line[order]
    return rows, scores


def csr(lists: list[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.cumsum([0, *map(len, lists)]), np.array([row for rows in lists for row in rows], np.int64)


def rank_scores(scores_QI: NDArray[np.float32], k: int, **more: Any) -> TopK:
    table = torch.from_numpy(scores_QI)
    return rank(lambda q, out: out.copy_(table[q]), *scores_QI.shape, k, **more)


@settings(max_examples=150, deadline=None)
@given(
    queries=st.integers(1, 7),
    items=st.integers(1, 400),
    k=st.integers(1, 60),
    values=st.integers(1, 6),
    block=st.integers(0, 3),
    seed=st.integers(0, 10**6),
)
def test_equals_the_slow_order_with_many_ties(queries: int, items: int, k: int, values: int, block: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # few distinct values, zeros of both signs among them: ties everywhere, at the k-th place too
    scores = (rng.integers(-values, values, (queries, items)) * rng.choice([0.25, -0.0, 0.5], (queries, items))).astype(np.float32)
    seen = [rng.integers(0, items, rng.integers(0, items + 1)).tolist() for _ in range(queries)]
    allowed = rng.random(items) < 0.8
    got = rank_scores(scores, k, excluded=csr(seen), allowed_I=allowed, block=block)
    rows, best = slow(scores, k, [set(s) | set(np.flatnonzero(~allowed)) for s in seen])
    np.testing.assert_array_equal(got.rows_Qk, rows)
    np.testing.assert_array_equal(got.scores_Qk, best)


@pytest.mark.parametrize("k", [1, 10, 33])
def test_all_scores_equal_gives_the_first_rows(k: int) -> None:
    got = exact_topk(np.zeros((3, 4), np.float32), np.ones((5000, 4), np.float32), k)
    np.testing.assert_array_equal(got.rows_Qk, np.tile(np.arange(k), (3, 1)))


def test_extreme_scores_keep_their_order() -> None:
    scores = np.array([[-3e38, 3e38, -1e-40, 1e-40, 0.0, -1.0]], np.float32)
    assert rank_scores(scores, 6).rows_Qk.tolist() == [[1, 3, 4, 2, 5, 0]]


def test_dot_products_on_real_vectors() -> None:
    rng = np.random.default_rng(0)
    user, item = rng.normal(size=(50, 8)).astype(np.float32), rng.normal(size=(3000, 8)).astype(np.float32)
    item[2000:2500] = item[:500]
    got = exact_topk(user, item, 40)
    scores = user.astype(np.float64) @ item.T.astype(np.float64)
    np.testing.assert_allclose(got.scores_Qk, -np.sort(-scores, axis=1)[:, :40], rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(scores, got.rows_Qk.astype(np.int64), 1), got.scores_Qk, rtol=1e-5)


def test_blocks_do_not_change_the_result() -> None:
    rng = np.random.default_rng(1)
    user, item = rng.integers(-2, 3, (37, 4)).astype(np.float32), rng.integers(-2, 3, (600, 4)).astype(np.float32)
    seen = csr([rng.integers(0, 600, 30).tolist() for _ in range(37)])
    whole = exact_topk(user, item, 20, seen)
    for block in (1, 5, 36, 37, 1000):
        np.testing.assert_array_equal(exact_topk(user, item, 20, seen, block=block).rows_Qk, whole.rows_Qk)


def test_heads_take_the_greatest() -> None:
    user = np.array([[[1.0, 0.0], [0.0, 1.0]]], np.float32)
    item = np.array([[3.0, 0.0], [0.0, 4.0], [2.0, 2.0]], np.float32)
    got = exact_topk(user, item, 3)
    assert got.rows_Qk.tolist() == [[1, 0, 2]]
    assert got.scores_Qk.tolist() == [[4.0, 3.0, 2.0]]


def test_fewer_than_k_are_padded() -> None:
    item = np.arange(5, dtype=np.float32)[:, None]
    got = exact_topk(np.ones((2, 1), np.float32), item, 4, csr([[4, 3, 2, 1, 0], [1]]), allowed_I=np.array([1, 1, 1, 0, 0], bool))
    assert got.rows_Qk.tolist() == [[-1] * 4, [2, 0, -1, -1]]
    assert np.isneginf(got.scores_Qk[0]).all()
    assert exact_topk(np.ones((1, 1), np.float32), item, 9).rows_Qk.tolist() == [[4, 3, 2, 1, 0, -1, -1, -1, -1]]


def test_no_queries() -> None:
    assert exact_topk(np.empty((0, 3), np.float32), np.ones((4, 3), np.float32), 2).rows_Qk.shape == (0, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite_are_refused(bad: float) -> None:
    user, item = np.ones((3, 2), np.float32), np.ones((4, 2), np.float32)
    item[1, 0] = bad
    with pytest.raises(DataError, match="1 of 4 item vectors"):
        exact_topk(user, item, 2)
    with pytest.raises(DataError, match="1 of 4 user vectors"):
        exact_topk(item, user, 2)


def test_overflowing_products_are_refused() -> None:
    user = np.full((1, 2), 3e38, np.float32)
    item = np.array([[3e38, -3e38], [1, 1]], np.float32)
    with pytest.raises(DataError, match="overflow"):
        exact_topk(user, item, 1)


def test_bad_arguments_name_what_is_wrong() -> None:
    user, item = np.ones((2, 2), np.float32), np.ones((4, 2), np.float32)
    with pytest.raises(DataError, match="k: got 0"):
        exact_topk(user, item, 0)
    with pytest.raises(DataError, match=r"user vectors \(2, 3\)"):
        exact_topk(np.ones((2, 3), np.float32), item, 1)
    with pytest.raises(DataError, match="expected 0 to 3"):
        exact_topk(user, item, 1, csr([[4], []]))
    with pytest.raises(DataError, match="expected 2"):
        exact_topk(user, item, 1, csr([[1]]))


def test_inputs_are_not_written_to() -> None:
    user, item = np.ones((2, 2), np.float32), np.ones((4, 2), np.float32)
    seen = csr([[0], [1]])
    exact_topk(user, item, 3, seen)
    assert (user == 1).all() and (item == 1).all() and seen[1].tolist() == [0, 1]


@pytest.mark.gpu
def test_the_gpu_keeps_the_same_order() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    rng = np.random.default_rng(2)
    user, item = rng.integers(-2, 3, (70, 4)).astype(np.float32), rng.integers(-2, 3, (5000, 4)).astype(np.float32)
    seen = csr([rng.integers(0, 5000, 30).tolist() for _ in range(70)])
    allowed = rng.random(5000) < 0.9
    here = exact_topk(user, item, 20, seen, allowed)
    there = exact_topk(user, torch.from_numpy(item).cuda(), 20, seen, allowed, block=16)
    np.testing.assert_array_equal(there.rows_Qk, here.rows_Qk)
    np.testing.assert_array_equal(there.scores_Qk, here.scores_Qk)
