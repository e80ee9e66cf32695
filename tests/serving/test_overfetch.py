"""An index over a library that knows no filters: how much it asks for, and when it trusts what it gets."""

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.index.exact import ExactIndex
from serving.index.hnsw import build_hnsw
from serving.index.interface import SearchResult
from serving.index.meta import Setting
from serving.index.overfetch import OverfetchIndex
from serving.index.rowset import RowSet
from serving.index.tune import Judge, tune


def clustered(rows: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(13)
    centres = rng.standard_normal((rows // 60, 16))
    return (centres[rng.integers(len(centres), size=rows)] + 0.7 * rng.standard_normal((rows, 16))).astype(np.float32)


def hnsw(item_ID: NDArray[np.float32], candidates: int = 20) -> OverfetchIndex:
    index = build_hnsw(ExactIndex(item_ID), 16, 60, "inner_product", seed=0, tuned_k=10, progress=lambda _: None)
    index.setting = Setting(0, candidates)
    return index


@pytest.mark.parametrize("share", [None, 0.9, 0.4])
def test_a_library_without_filters_is_asked_once(share: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a filter for more, of which most of the permitted k are left; what is excluded near the query is fetched besides."""
    item_ID = clustered(12_000)
    index = hnsw(item_ID, candidates=20)
    asked: list[int] = []
    near = index.finder.near
    monkeypatch.setattr(index.finder, "near", lambda query_HW, fetch, nprobe: asked.append(fetch) or near(query_HW, fetch, nprobe))
    monkeypatch.setattr(ExactIndex, "scan", lambda *_: pytest.fail("scanned"))
    chosen = np.random.default_rng(0).permutation(12_000)[: round(12_000 * (share or 1))]
    allowed = None if share is None else RowSet.of_rows(12_000, chosen)
    for query in item_ID[:12_000:1500]:
        assert len(index.search(query, 10, allowed).rows) == 10
    assert asked == 8 * [{None: 20, 0.9: 23, 0.4: 50}[share]]
    if share is None:
        seen = np.argsort(-(item_ID @ item_ID[0]))[:30]
        assert len(index.search(item_ID[0], 10, None, seen).rows) == 10 and asked[-1] == 50


def test_few_equal_items_need_no_scan_and_many_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two equal ones find each other in a graph; of many it may miss some, and the lowest rows are to be returned."""
    item_ID = clustered(6000)
    item_ID[4000] *= 3
    item_ID[5] = item_ID[4000]
    index = hnsw(item_ID)
    monkeypatch.setattr(ExactIndex, "scan", lambda *_: SearchResult(np.array([-7]), np.zeros(1, np.float32)))
    assert index.search(item_ID[5], 1).rows.tolist() == [5]
    item_ID[100:200] = item_ID[5]
    assert hnsw(item_ID).search(item_ID[5], 1).rows.tolist() == [-7]


@pytest.mark.parametrize("clusters", [True, False])
def test_fewer_items_are_found_as_well_as_those_it_was_tuned_for(clusters: bool) -> None:
    """Directions without clusters are what a graph is taken for, and there a narrow search misses most."""
    rng, rows, floor = np.random.default_rng(1), 6000, 0.95
    drawn = clustered(rows + 200) if clusters else rng.standard_normal((rows + 200, 32)).astype(np.float32)
    exact, query_QD = ExactIndex(drawn[:rows]), drawn[rows:]
    built = build_hnsw(exact, 8, 40, "inner_product", seed=0, tuned_k=100, progress=lambda _: None)
    index = tune(Judge(exact, query_QD[:100], 100), [built], floor).index
    for share in (None, 0.9, 0.5, 0.1):
        allowed = None if share is None else RowSet.of_rows(rows, np.sort(rng.permutation(rows)[: round(rows * share)]))
        for k in (1, 3, 10):
            found = [np.isin(index.search(q, k, allowed).rows, exact.search(q, k, allowed).rows).mean() for q in query_QD[100:]]
            assert np.mean(found) >= floor, f"recall@{k} {np.mean(found)} of {share}"
