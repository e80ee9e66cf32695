"""A scan of near lists alone: the true items where it reaches far enough, and no others than it may return."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serving.index.build import Candidate, build_ivf
from serving.index.exact import ExactIndex
from serving.index.faiss_index import FaissIndex
from serving.index.half import HalfIndex
from serving.index.margin import list_margin
from serving.index.meta import Setting
from serving.index.narrowed import FIRST, narrowed
from serving.index.rowset import RowSet

ITEMS, DIM, K, FLOOR = 40_000, 16, 10, 0.95


@settings(max_examples=80, deadline=None)
@given(k=st.integers(1, 12), heads=st.integers(1, 3), levels=st.sampled_from([1, 3, 1000]), seed=st.integers(0, 1000))
def test_reaching_everywhere_it_finds_the_true_ones(k: int, heads: int, levels: int, seed: int) -> None:
    """Few levels: most scores tie. Rows may come in any order."""
    rng = np.random.default_rng(seed)
    exact = ExactIndex(rng.integers(-levels, levels + 1, (200, 6)).astype(np.float32))
    query_HD = rng.integers(-levels, levels + 1, (heads, 6)).astype(np.float32)
    rows_C = rng.permutation(200)[: FIRST * k + 1 + int(rng.integers(100))]
    found = narrowed(exact, query_HD, k, rows_C, rng.standard_normal(len(rows_C)).astype(np.float32), np.inf)
    true = exact.ranked(query_HD, np.sort(rows_C), k)
    if found is None:
        assert levels < 1000, "only ties are left to a scan of all"
    else:
        assert found.rows.tolist() == true.rows.tolist() and found.scores.tolist() == true.scores.tolist()


def test_lists_too_far_are_not_scored() -> None:
    item_ID = np.eye(100, dtype=np.float32) * np.arange(100, dtype=np.float32)[:, None]
    centre_C = np.linspace(0, 1, 100, dtype=np.float32)
    centre_C[95] = -7
    query_HD = np.ones((1, 100), np.float32)
    found = [narrowed(ExactIndex(item_ID), query_HD, 3, np.arange(100), centre_C, reach) for reach in (98.0, 105.0)]
    assert [one.rows.tolist() for one in found if one is not None] == [[99, 98, 97]] * 2
    centre_C[[97, 98]] = -7
    found = [narrowed(ExactIndex(item_ID), query_HD, 3, np.arange(100), centre_C, reach) for reach in (98.0, 105.0)]
    assert [one.rows.tolist() for one in found if one is not None] == [[99, 96, 94], [99, 98, 97]]


def drawn() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(3)
    topics = rng.standard_normal((200, DIM))
    items = topics[rng.integers(200, size=ITEMS)] + 0.6 * rng.standard_normal((ITEMS, DIM))
    users = topics[rng.integers(200, size=(240, 2))].mean(1) + 0.2 * rng.standard_normal((240, DIM))
    return items.astype(np.float32), users.astype(np.float32)


ITEM_ID, QUERY_QD = drawn()


@pytest.fixture(scope="module")
def half() -> FaissIndex:
    """As a large catalogue is served, where scoring a row is dear."""
    served, exact = HalfIndex(ITEM_ID.astype(np.float16)), ExactIndex(ITEM_ID)
    index = build_ivf(served, Candidate(300, "PQ16x4fsr", "inner_product"), 0, K, lambda _: None)
    index.setting = Setting(8, 5 * K)
    index.margin = list_margin(index, exact, QUERY_QD[:200], K, FLOOR)
    return index


@pytest.mark.parametrize("excluding", [0, 300])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("count", [1600, 1900])
def test_narrow_filters_of_large_catalogues(
    half: FaissIndex, count: int, heads: int, excluding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are answered without scanning all that is left, within the recall asked for, and nothing is returned that may not be."""
    scanned: list[int] = []
    scan = half._exact.scan
    monkeypatch.setattr(half._exact, "scan", lambda *given: (scanned.append(1), scan(*given))[1])
    hits, searches = 0, 0
    for q in range(200, 240, heads):
        rng = np.random.default_rng(q)
        allowed = RowSet.of_rows(ITEMS, rng.choice(ITEMS, count, replace=False))
        excluded = rng.choice(allowed.rows(), excluding, replace=False) if excluding else None
        query_HD = QUERY_QD[q : q + heads]
        found = half.search(query_HD, K, allowed, excluded)
        left = np.setdiff1d(allowed.rows(), [] if excluded is None else excluded)
        true = half._exact.ranked(query_HD, left, K)
        assert len(found.rows) == K and np.isin(found.rows, left).all() and (np.diff(found.scores) <= 0).all()
        hits, searches = hits + int((found.scores >= true.scores[-1]).sum()), searches + 1
    assert hits >= FLOOR * K * searches
    assert not scanned


def test_what_ties_is_left_to_a_scan_of_all(half: FaissIndex) -> None:
    allowed = RowSet.of_rows(ITEMS, np.arange(0, ITEMS, 23))
    found = half.search(np.zeros(DIM, np.float32), K, allowed)
    assert found.rows.tolist() == (np.arange(K) * 23).tolist() and not found.scores.any()
