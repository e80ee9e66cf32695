"""Many searches at once find what as many single ones do, to the last bit, in every index."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serving.index.build import Candidate, build_ivf
from serving.index.exact import ExactIndex
from serving.index.faiss_index import FaissIndex
from serving.index.hnsw import build_hnsw
from serving.index.interface import VectorIndex
from serving.index.live_index import LiveIndex
from serving.index.meta import Setting
from serving.index.rowset import RowSet
from towers.errors import RequestError

ITEMS, DIM = 20_000, 8


def drawn() -> NDArray[np.float32]:
    """Clusters, and in one of them many equal vectors."""
    rng = np.random.default_rng(0)
    item_ID = rng.standard_normal((60, DIM))[rng.integers(60, size=ITEMS)] + 0.5 * rng.standard_normal((ITEMS, DIM))
    item_ID[::40] = item_ID[0]
    return item_ID.astype(np.float32)


ITEM_ID = drawn()


def ivf(codec: str, metric: str = "inner_product", among: RowSet | None = None) -> FaissIndex:
    index = build_ivf(ExactIndex(ITEM_ID), Candidate(100, codec, metric), 0, 20, lambda _: None, among)
    index.setting = Setting(4, 60)
    return index


def hnsw() -> VectorIndex:
    index = build_hnsw(ExactIndex(ITEM_ID), 16, 40, "inner_product", 0, 20, lambda _: None)
    index.setting, index.parts = Setting(0, 60), {PART.key: ivf("PQ8x4fsr", among=PART)}
    return index


def live(gone: int, came: int) -> VectorIndex:
    rng = np.random.default_rng(1)
    came_ND = ITEM_ID[rng.integers(0, ITEMS, came)] * np.float32(1.1)
    return LiveIndex(ivf("SQfp16"), rng.choice(ITEMS, gone, replace=False), came_ND, np.sort(rng.random(came)) * ITEMS)


def with_a_part() -> VectorIndex:
    index = ivf("SQfp16")
    index.parts = {PART.key: ivf("PQ8x4fsr", among=PART)}
    return index


PART = RowSet(ITEMS, ITEMS // 2, np.arange(0, ITEMS, 2), None, "even")

BUILDS: dict[str, Callable[[], VectorIndex]] = {
    "exact": lambda: ExactIndex(ITEM_ID),
    "ivf": lambda: ivf("SQfp16"),
    "ivf, augmented": lambda: ivf("SQfp16", "l2_augmented"),
    "ivf, short codes": lambda: ivf("PQ8x4fsr"),
    "hnsw": hnsw,
    "live, nothing changed": lambda: live(0, 0),
    "live, items gone and come": lambda: live(300, 50),
    "a part": with_a_part,
}


@pytest.fixture(scope="module", params=BUILDS)
def index(request: pytest.FixtureRequest) -> VectorIndex:
    return BUILDS[request.param]()


def equal_to_single(
    index: VectorIndex, query_BHD: NDArray[np.float32], k: int, allowed: RowSet | None, excluded: list[NDArray[np.int64]]
) -> None:
    found = index.search_many(query_BHD, k, allowed, excluded)
    assert len(found) == len(query_BHD)
    for one, query_HD, rows in zip(found, query_BHD, excluded, strict=True):
        expected = index.search(query_HD, k, allowed, rows)
        assert one.rows.dtype == np.int64 and one.scores.dtype == np.float32
        assert one.rows.tolist() == expected.rows.tolist() and one.scores.tolist() == expected.scores.tolist()
        assert (one.rows >= 0).all() and not set(one.rows.tolist()) & set(rows.tolist())


@settings(max_examples=12, deadline=None)
@given(
    queries=st.integers(1, 70),
    heads=st.integers(1, 2),
    k=st.sampled_from([1, 10, 20, 200]),
    share=st.sampled_from([None, 0.02, 0.5, 0.99]),
    most=st.sampled_from([0, 20, 130]),
    seed=st.integers(0, 1000),
)
def test_equal_to_single_searches(index: VectorIndex, queries: int, heads: int, k: int, share: float | None, most: int, seed: int) -> None:
    """Exclusions are items that would be found, and some that would not, in any order and repeated."""
    rng = np.random.default_rng(seed)
    query_BHD = (ITEM_ID[rng.integers(0, ITEMS, (queries, heads))] + 0.2 * rng.standard_normal((queries, heads, DIM))).astype(np.float32)
    near_BI = np.argsort(-(query_BHD[:, 0] @ ITEM_ID.T), axis=1)[:, : 2 * k]
    excluded = [
        np.concatenate((rng.choice(near_I, rng.integers(0, most + 1)), rng.integers(0, ITEMS, int(most > 0)))).astype(np.int64)
        for near_I in near_BI
    ]
    allowed = None if share is None or isinstance(index, LiveIndex) else RowSet.of_rows(ITEMS, np.flatnonzero(rng.random(ITEMS) < share))
    equal_to_single(index, query_BHD, k, allowed, excluded)


def test_equal_vectors_and_queries_that_score_all_alike(index: VectorIndex) -> None:
    query_BHD = np.stack([ITEM_ID[:1], np.zeros((1, DIM), np.float32), ITEM_ID[5:6]])
    equal_to_single(index, query_BHD, 30, None, [np.array([0, 80]), np.array([1]), np.empty(0, np.int64)])


@pytest.mark.parametrize("index", [name for name in BUILDS if not name.startswith("live")], indirect=True)
def test_a_declared_value(index: VectorIndex) -> None:
    """Of a live index, rows that are gone are never allowed: what is allowed is its filter's to say."""
    allowed = RowSet(ITEMS, ITEMS // 2, PART.rows(), None, "even")
    equal_to_single(index, ITEM_ID[:40, None], 15, allowed, [np.arange(place) for place in range(40)])


def test_more_than_there_are(index: VectorIndex) -> None:
    equal_to_single(index, ITEM_ID[:3, None], ITEMS + 100, None, [np.arange(place * 10) for place in range(3)])


def test_no_queries(index: VectorIndex) -> None:
    assert index.search_many(ITEM_ID[:0, None], 5, None, []) == []


def test_a_query_that_cannot_be_scored(index: VectorIndex) -> None:
    query_BHD = ITEM_ID[:4, None].copy()
    query_BHD[2, 0, 1] = np.nan
    with pytest.raises(RequestError, match="query: its vector"):
        index.search_many(query_BHD, 5, None, [np.empty(0, np.int64)] * 4)
