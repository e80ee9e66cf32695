"""Candidates by rounded products lose nothing: the same rows and scores as a slow reference and as full precision, bit for bit."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from towers.dot_products import Finder, Shape, dot_products
from towers.errors import DataError
from towers.topk import TopK, exact_topk

Array = NDArray[Any]


def slow(user_QHD: Array, item_ID: Array, k: int, banned: list[set[int]]) -> tuple[Array, Array]:
    scores_QI = np.einsum("qhd,id->qhi", user_QHD.astype(np.float64), item_ID.astype(np.float64)).max(1).astype(np.float32)
    rows, scores = np.full((len(user_QHD), k), -1, np.int32), np.full((len(user_QHD), k), -np.inf, np.float32)
    for q, line in enumerate(scores_QI):
        order = sorted((i for i in range(len(line)) if i not in banned[q]), key=lambda i: (-line[i], i))[:k]
        rows[q, : len(order)], scores[q, : len(order)] = order, line[order]
    return rows, scores


def csr(lists: list[list[int]]) -> tuple[Array, Array]:
    return np.cumsum([0, *map(len, lists)]), np.array([row for rows in lists for row in rows], np.int64)


def near(rng: np.random.Generator, rows: int, dim: int, spread: float) -> Array:
    """Unit vectors around one direction: scores far closer to one another than bf16 can tell apart."""
    vectors = rng.normal(size=dim) + spread * rng.normal(size=(rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@settings(max_examples=120, deadline=None)
@given(
    queries=st.integers(1, 6),
    items=st.integers(1, 700),
    heads=st.integers(1, 2),
    k=st.integers(1, 40),
    spread=st.sampled_from([10.0, 1.0, 0.05, 0.001]),
    scale=st.sampled_from([1.0, 1e-3, 30.0]),
    half=st.booleans(),
    block=st.sampled_from([0, 2]),
    seed=st.integers(0, 10**6),
)
def test_equals_the_slow_reference(
    queries: int, items: int, heads: int, k: int, spread: float, scale: float, half: bool, block: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    item = near(rng, items, 12, spread) * np.float32(scale)
    item[items // 2 :] = item[: items - items // 2]  # each item twice: ties everywhere
    user = near(rng, queries * heads, 12, spread).reshape(queries, heads, 12)
    seen = [rng.integers(0, items, rng.integers(0, items + 1)).tolist() for _ in range(queries)]
    allowed = rng.random(items) < 0.8
    got = exact_topk(user, item, k, csr(seen), allowed, block, half)
    rows, scores = slow(user, item, k, [set(s) | set(np.flatnonzero(~allowed)) for s in seen])
    np.testing.assert_array_equal(got.rows_Qk, rows)
    np.testing.assert_array_equal(got.scores_Qk, scores)


def both(user: Array, item: Array, k: int, **more: Any) -> tuple[TopK, TopK]:
    return exact_topk(user, item, k, half=True, **more), exact_topk(user, item, k, half=False, **more)


@pytest.mark.parametrize("dim", [3, 64, 129])
def test_both_precisions_agree_bit_for_bit_on_a_large_catalogue(dim: int) -> None:
    rng = np.random.default_rng(dim)
    item, user = near(rng, 6000, dim, 1.5), near(rng, 40, dim, 1.5)
    item[3000:3500] = item[:500]
    seen = csr([rng.integers(0, 6000, 200).tolist() for _ in user])
    mine, theirs = both(user, item, 20, excluded=seen)
    np.testing.assert_array_equal(mine.rows_Qk, theirs.rows_Qk)
    np.testing.assert_array_equal(mine.scores_Qk, theirs.scores_Qk)


@pytest.mark.parametrize("fill", [0.0, 1.0, -1.0, 1e-30, 1e18, -1e18])
def test_everything_ties(fill: float) -> None:
    user, item = np.full((3, 8), fill, np.float32), np.ones((3000, 8), np.float32)
    for got in both(user, item, 25):
        np.testing.assert_array_equal(got.rows_Qk, np.tile(np.arange(25), (3, 1)))


def test_the_result_does_not_depend_on_torchs_float32_precision() -> None:
    rng = np.random.default_rng(0)
    user, item = near(rng, 30, 32, 0.1), near(rng, 4000, 32, 0.1)
    before = exact_topk(user, item, 10)
    torch.set_float32_matmul_precision("medium")
    try:
        after = exact_topk(user, item, 10)
    finally:
        torch.set_float32_matmul_precision("highest")
    np.testing.assert_array_equal(after.rows_Qk, before.rows_Qk)
    np.testing.assert_array_equal(after.scores_Qk, before.scores_Qk)


def test_few_candidates_are_rescored() -> None:
    """The bound is of use: of 41k items, bf16 leaves no more than three times k."""
    rng = np.random.default_rng(0)
    products = dot_products(near(rng, 64, 64, 5.0), near(rng, 41_000, 64, 5.0), half=True)
    finder = Finder(products, 20, 64)
    query_P, _ = finder.candidates(slice(0, 64), finder.approximate(slice(0, 64)))
    assert 20 * 64 <= len(query_P) <= 60 * 64


@pytest.mark.parametrize(("items", "k"), [(1, 1), (5, 9), (41_000, 20), (41_000, 3000), (1_000_000, 100)])
def test_groups_hold_all_items(items: int, k: int) -> None:
    shape = Shape.of(items, k)
    assert shape.groups * shape.size >= items and shape.groups % shape.coarse == 0
    assert shape.groups * shape.size <= 1.2 * items + 64


def test_vectors_too_long_to_multiply_are_refused() -> None:
    with pytest.raises(DataError, match="overflow"):
        dot_products(np.full((1, 2), 1e20, np.float32), np.full((1, 2), 1e20, np.float32))
