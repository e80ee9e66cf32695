"""An index that changes answers as one made anew: random comings and goings, against all items scored by hand."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.index.build import Candidate, build_ivf
from serving.index.exact import ExactIndex
from serving.index.hnsw import build_hnsw
from serving.index.interface import VectorIndex
from serving.index.live_index import LiveIndex, LiveRows, offset_of
from serving.index.margin import list_margin
from serving.index.rowset import RowSet

DIM, BASE = 16, 3000


def unit(rng: np.random.Generator, rows: int) -> NDArray[np.float32]:
    drawn = rng.standard_normal((rows, DIM)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def exact(vectors_ID: NDArray[np.float32]) -> VectorIndex:
    return ExactIndex(vectors_ID)


def ivf(vectors_ID: NDArray[np.float32]) -> VectorIndex:
    candidate = Candidate(max(1, len(vectors_ID) // 40), "SQfp16", "inner_product")
    scan = ExactIndex(vectors_ID)
    index = build_ivf(scan, candidate, 0, 20, lambda message: None)
    index.setting = replace(index.setting, nprobe=max(1, index.nlist // 2))
    index.margin = list_margin(index, scan, unit(np.random.default_rng(9), 40), 20, 0.95)
    return index


def hnsw(vectors_ID: NDArray[np.float32]) -> VectorIndex:
    index = build_hnsw(ExactIndex(vectors_ID), 16, 60, "inner_product", 0, 20, lambda message: None)
    index.setting = replace(index.setting, candidates=60)
    return index


def by_hand(
    base: NDArray[np.float32], gone: set[int], came: NDArray[np.float32], place: NDArray[np.float64], query: NDArray[np.float32]
) -> list[int]:
    """Rows of everything that is there, best first, ties by place."""
    offset = offset_of(len(base))
    rows = [(-score, float(row), row) for row, score in enumerate(base @ query) if row not in gone]
    rows += [(-score, place[n], offset + n) for n, score in enumerate(came @ query)]
    return [row for _, _, row in sorted(rows)]


@pytest.mark.parametrize(("make", "least"), [(exact, 1.0), (ivf, 0.95), (hnsw, 0.95)])
@pytest.mark.parametrize("turned_over", [0, 1, 600], ids=["nothing", "one item", "20 %"])
def test_search_equals_scoring_everything(make: Callable[[NDArray[np.float32]], VectorIndex], least: float, turned_over: int) -> None:
    rng = np.random.default_rng(0)
    base = unit(rng, BASE)
    gone = rng.choice(BASE, turned_over, replace=False)
    came = unit(rng, turned_over)
    place = rng.permutation(BASE)[:turned_over] - 0.5
    place.sort()
    index = LiveIndex(make(base), gone, came, place)
    assert index.stats().rows == BASE
    allowed = LiveRows(
        RowSet.of_rows(BASE, np.setdiff1d(np.arange(0, BASE, 3), gone)), RowSet.of_rows(len(came), np.arange(0, len(came), 2))
    )
    offset, shares = offset_of(BASE), []
    for query in unit(rng, 40):
        everything = by_hand(base, set(gone.tolist()), came, place, query)
        excluded = np.array(everything[:30:3])
        for given, wanted in (
            ({}, everything),
            ({"excluded": excluded}, [row for row in everything if row not in excluded]),
            ({"allowed": allowed}, [row for row in everything if (row % 3 == 0 if row < offset else (row - offset) % 2 == 0)]),
        ):
            found = index.search(query, 20, **given)
            assert len(found.rows) == 20 == len(set(found.rows.tolist())) and not set(found.rows.tolist()) & set(gone.tolist())
            assert set(found.rows.tolist()) <= set(wanted) and (np.diff(found.scores) <= 0).all()
            shares.append(len(set(wanted[:20]) & set(found.rows.tolist())) / 20)
            if make is exact:
                assert found.rows.tolist() == wanted[:20]
    assert np.mean(shares) >= least


@pytest.mark.parametrize("make", [exact, ivf, hnsw])
def test_all_that_is_there_and_no_more(make: Callable[[NDArray[np.float32]], VectorIndex]) -> None:
    rng = np.random.default_rng(1)
    base, came, gone = unit(rng, 300), unit(rng, 5), np.arange(0, 300, 2)
    index = LiveIndex(make(base), gone, came, np.arange(5) - 0.5)
    for k in (1, 10, 154, 155, 1000):
        found = index.search(came[0], k)
        assert len(found.rows) == min(k, 155) and not np.isin(found.rows, gone).any()
    nothing = LiveIndex(make(base), np.arange(300), came[:0], np.empty(0))
    assert len(nothing.search(came[0], 10).rows) == 0


def test_equal_scores_go_by_id() -> None:
    """Base ids b, d, f; then a, c, e and g came, all with one vector."""
    vector = np.ones((1, 8), np.float32)
    index = LiveIndex(ExactIndex(vector.repeat(3, 0)), np.empty(0, np.int64), vector.repeat(4, 0), np.array([-0.5, 0.5, 1.5, 2.5]))
    found = index.search(vector[0], 7).rows.tolist()
    assert ["bdf"[row] if row < 3 else "aceg"[row - offset_of(3)] for row in found] == list("abcdefg")
    assert [row for row in index.search(vector[0], 2).rows.tolist()] == found[:2]


def test_a_set_of_both_has_the_forms_of_a_set() -> None:
    both = LiveRows(RowSet.of_rows(100, np.array([1, 99])), RowSet.of_rows(10, np.array([0, 9])))
    assert (both.size, both.count, both.rows().tolist()) == (138, 4, [1, 99, 128, 137])
    assert np.flatnonzero(np.unpackbits(both.bits(), bitorder="little")).tolist() == [1, 99, 128, 137]
    assert both.has(np.array([99, 100, 128, 129])).tolist() == [True, False, True, False]
    index = LiveIndex(ExactIndex(np.eye(100, 8, dtype=np.float32) + 1), np.array([0]), np.ones((10, 8), np.float32), np.arange(10) + 0.5)
    plain = RowSet.of_rows(138, both.rows())
    for k in (1, 3, 9):
        one, other = (index.search(np.ones(8, np.float32), k, allowed) for allowed in (both, plain))
        assert one.rows.tolist() == other.rows.tolist() and len(one.rows) == min(k, 4)
