"""What every index promises, on answers that can be proved and against brute force."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serving.index.build import Candidate, build_ivf, lists_for
from serving.index.exact import ExactIndex
from serving.index.faiss_index import FaissIndex
from serving.index.hnsw import build_hnsw
from serving.index.interface import SearchResult, VectorIndex
from serving.index.margin import list_margin
from serving.index.meta import Setting
from serving.index.overfetch import OverfetchIndex
from serving.index.rowset import RowSet
from towers.errors import RequestError

Build = Callable[[NDArray[np.float32]], VectorIndex]


def ivf(
    item_ID: NDArray[np.float32], nprobe: int = 1, metric: str = "inner_product", tuned_k: int = 10, codec: str = "SQfp16"
) -> FaissIndex:
    exact, candidate = ExactIndex(item_ID), Candidate(lists_for(len(item_ID)), codec, metric)
    index = build_ivf(exact, candidate, 0, tuned_k, lambda _: None)
    index.setting = Setting(min(nprobe, index.nlist), 2 * tuned_k)
    index.margin = list_margin(index, exact, clustered(40, item_ID.shape[1], 99), tuned_k, 0.95)
    return index


def codes(item_ID: NDArray[np.float32], nprobe: int = 1, tuned_k: int = 10) -> FaissIndex:
    width = -(-item_ID.shape[1] // 8) * 8
    return ivf(item_ID, nprobe, tuned_k=tuned_k, codec=f"PQ{width}x4fsr")


def hnsw(item_ID: NDArray[np.float32], metric: str = "inner_product", tuned_k: int = 10, candidates: int = 20) -> OverfetchIndex:
    index = build_hnsw(ExactIndex(item_ID), 16, 60, metric, seed=0, tuned_k=tuned_k, progress=lambda _: None)
    index.setting = Setting(0, candidates)
    return index


BUILDS: dict[str, Build] = {
    "exact": ExactIndex,
    "ivf, one list": ivf,
    "ivf, augmented": lambda item_ID: ivf(item_ID, metric="l2_augmented"),
    "ivf, short codes": codes,
    "hnsw": hnsw,
    "hnsw, augmented": lambda item_ID: hnsw(item_ID, "l2_augmented"),
}


@pytest.fixture(params=BUILDS)
def build(request: pytest.FixtureRequest) -> Build:
    return BUILDS[request.param]


def clustered(rows: int, dim: int, seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(2, rows // 60), dim))
    vectors = centres[rng.integers(len(centres), size=rows)] + 0.7 * rng.standard_normal((rows, dim))
    return (vectors * rng.uniform(0.3, 2.0, (rows, 1))).astype(np.float32)


def brute_force(
    item_ID: NDArray[np.float32], query_HD: NDArray[np.float32], k: int, keep: NDArray[np.bool_] | None = None
) -> tuple[list[int], NDArray[np.float64]]:
    score_I = (np.atleast_2d(query_HD).astype(np.float64) @ item_ID.astype(np.float64).T).max(0)
    rows = [int(row) for row in np.lexsort((np.arange(len(item_ID)), -score_I)) if keep is None or keep[row]][:k]
    return rows, score_I[rows]


def check_well_formed(found: SearchResult, item_ID: NDArray[np.float32], query_HD: NDArray[np.float32], expected: int) -> None:
    """Right length, no duplicates, sorted by (score descending, row ascending), and each score is its item's."""
    assert found.rows.dtype == np.int64 and found.scores.dtype == np.float32
    assert len(found.rows) == len(found.scores) == expected == len(set(found.rows.tolist()))
    assert all(0 <= row < len(item_ID) for row in found.rows)
    pairs = list(zip((-found.scores).tolist(), found.rows.tolist(), strict=True))
    assert pairs == sorted(pairs)
    own = (np.atleast_2d(query_HD).astype(np.float64) @ item_ID[found.rows].astype(np.float64).T).max(0)
    longest = (
        np.linalg.norm(np.atleast_2d(query_HD).astype(np.float64), axis=1).max() * np.linalg.norm(item_ID.astype(np.float64), axis=1).max()
    )
    np.testing.assert_allclose(found.scores, own, rtol=0, atol=max(1e-6, item_ID.shape[1] * 2.0**-23 * longest))


def test_points_on_a_line_come_in_order(build: Build) -> None:
    item_ID = np.zeros((400, 5), np.float32)
    item_ID[:, 2] = np.arange(400) - 100
    found = build(item_ID).search(np.array([0, 0, 0.5, 0, 0], np.float32), 4)
    assert found.rows.tolist() == [399, 398, 397, 396]
    assert found.scores.tolist() == [149.5, 149.0, 148.5, 148.0]
    assert build(item_ID).search(np.array([0, 0, -1, 0, 0], np.float32), 2).rows.tolist() == [0, 1]


def test_equal_vectors_come_in_row_order(build: Build) -> None:
    item_ID = np.tile(np.random.default_rng(1).standard_normal(7).astype(np.float32), (333, 1))
    item_ID[17] *= 2
    query = item_ID[17].copy()
    assert build(item_ID).search(query, 333).rows.tolist() == [17, *range(17), *range(18, 333)]
    found = build(item_ID).search(query, 50)
    assert found.rows.tolist() == [17, *range(17), *range(18, 50)]
    assert len(set(found.scores[1:].tolist())) == 1


def test_many_items_tie_for_the_last_places(build: Build) -> None:
    """New items without content all have one vector: which of them are returned must not be left to chance."""
    item_ID = clustered(3000, 8, 2)
    query = item_ID[11].copy()
    item_ID[11] *= 4
    twins = np.arange(40, 3000, 17)
    item_ID[twins] = 3 * query
    found = build(item_ID).search(query, 30)
    assert found.rows.tolist() == [11, *twins[:29].tolist()]


def test_a_zero_query_scores_all_alike(build: Build) -> None:
    found = build(clustered(500, 8, 0)).search(np.zeros(8, np.float32), 5, excluded=np.array([1, 3]))
    assert found.rows.tolist() == [0, 2, 4, 5, 6]
    assert not np.signbit(found.scores).any()


def test_the_best_head_counts(build: Build) -> None:
    item_ID = np.zeros((300, 4), np.float32)
    item_ID[:100, 0], item_ID[100:200, 1] = np.arange(100), np.arange(100)
    found = build(item_ID).search(np.array([[1, 0, 0, 0], [0, 2, 0, 0]], np.float32), 3)
    assert found.rows.tolist() == [199, 198, 197]
    assert found.scores.tolist() == [198.0, 196.0, 194.0]


@pytest.mark.parametrize("k", [1, 10, 1999, 2000, 2001, 10**9])
def test_k_up_to_and_past_the_catalogue(build: Build, k: int) -> None:
    item_ID = clustered(2000, 12, 3)
    query, found = item_ID[5], build(item_ID).search(item_ID[5], k)
    check_well_formed(found, item_ID, query, min(k, 2000))
    if k >= 1999:
        assert found.rows.tolist() == brute_force(item_ID, query, k)[0]


@pytest.mark.parametrize("share", [1.0, 0.9, 0.5, 0.2, 0.1, 0.03, 0.01, 0.001, 0.0])
@pytest.mark.parametrize("near", ["anywhere", "far from the query"])
def test_filters_always_return_k(build: Build, share: float, near: str) -> None:
    item_ID = clustered(4000, 16, 4)
    rng = np.random.default_rng(5)
    query_HD = rng.standard_normal((2, 16)).astype(np.float32)
    index = build(item_ID)
    order = rng.permutation(4000) if near == "anywhere" else np.argsort(item_ID @ query_HD[0])
    allowed = np.zeros(4000, bool)
    allowed[order[: int(share * 4000)]] = True
    for excluded in (None, np.flatnonzero(allowed)[::3], rng.integers(0, 4000, 30), rng.integers(0, 4000, 900)):
        keep = allowed.copy()
        keep[excluded if excluded is not None else []] = False
        found = index.search(query_HD, 10, RowSet.of_mask(allowed), excluded)
        check_well_formed(found, item_ID, query_HD, min(10, int(keep.sum())))
        assert keep[found.rows].all()


@pytest.mark.parametrize("count", [1, 99, 100, 101, 1500, 1999, 2000])
def test_the_best_items_excluded(build: Build, count: int) -> None:
    item_ID = clustered(2000, 10, 6)
    query = item_ID[0]
    worst_case = np.array(brute_force(item_ID, query, count)[0])
    found = build(item_ID).search(query, 20, excluded=np.concatenate((worst_case, worst_case[:5])))
    check_well_formed(found, item_ID, query, min(20, 2000 - count))
    assert not set(found.rows.tolist()) & set(worst_case.tolist())


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 400),
    dim=st.integers(1, 20),
    heads=st.integers(1, 3),
    k=st.integers(1, 60),
    levels=st.sampled_from([1, 2, 100_000]),
    share=st.sampled_from([0.0, 0.02, 0.15, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_exact_equals_brute_force(rows: int, dim: int, heads: int, k: int, levels: int, share: float, seed: int) -> None:
    """With few integer levels sums are exact, and most scores tie."""
    rng = np.random.default_rng(seed)
    item_ID = rng.integers(-levels, levels + 1, (rows, dim)).astype(np.float32) / (1 if levels < 9 else levels)
    query_HD = rng.integers(-levels, levels + 1, (heads, dim)).astype(np.float32)
    allowed = rng.random(rows) < share
    excluded = rng.integers(0, rows, rng.integers(0, 9))
    keep = allowed.copy()
    keep[excluded] = False
    found = ExactIndex(item_ID).search(query_HD, k, RowSet.of_mask(allowed), excluded)
    expected, score = brute_force(item_ID, query_HD, k, keep)
    check_well_formed(found, item_ID, query_HD, len(expected))
    np.testing.assert_allclose(found.scores, score, rtol=1e-4, atol=0.5)
    if levels < 9:
        assert found.rows.tolist() == expected


def test_visiting_most_lists_finds_the_true_items() -> None:
    item_ID = clustered(3000, 24, 7)
    for metric in ("inner_product", "l2_augmented"):
        index = ivf(item_ID, nprobe=70, metric=metric)
        assert index.stats().nlist == 76
        for query in clustered(20, 24, 8):
            assert index.search(query, 10).rows.tolist() == brute_force(item_ID, query, 10)[0]


@pytest.mark.parametrize("make", [lambda item: ivf(item, nprobe=60), lambda item: hnsw(item, candidates=60)], ids=["ivf", "hnsw"])
def test_recall_holds_when_a_filter_leaves_little(make: Build) -> None:
    item_ID = clustered(20_000, 16, 9)
    queries = clustered(40, 16, 10)
    index, exact = make(item_ID), ExactIndex(item_ID)
    rng = np.random.default_rng(0)

    def recall(allowed: RowSet | None, k: int) -> float:
        return float(np.mean([(index.search(q, k, allowed).scores >= exact.search(q, k, allowed).scores[-1]).mean() for q in queries]))

    plain = recall(None, 10)
    assert plain > 0.9
    for share in (0.5, 0.2, 0.05, 0.01):
        assert recall(RowSet.of_mask(rng.random(20_000) < share), 10) > plain - 0.03
    assert recall(None, 100) > plain - 0.03


WIDE: dict[str, Build] = {
    "SQfp16": lambda item_ID: ivf(item_ID, nprobe=24),
    "PQ16x4fsr": lambda item_ID: ivf(item_ID, nprobe=24, codec="PQ16x4fsr"),
    "hnsw": lambda item_ID: hnsw(item_ID, candidates=40),
}


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("near", ["anywhere", "far from the query", "half near, half far"])
def test_recall_under_any_filter(name: str, near: str) -> None:
    """Also where it leaves out all that is near the query, so that the best of the rest lie in lists that are no use without it."""
    item_ID, queries = clustered(12_000, 16, 13), clustered(10, 16, 14)
    index, exact = WIDE[name](item_ID), ExactIndex(item_ID)
    for share in (0.97, 0.8, 0.5, 0.25, 0.15, 0.05, 0.002):
        hits = 0
        for seed, query in enumerate(queries):
            ascending, count = np.argsort(item_ID @ query), int(share * 12_000)
            chosen = {
                "anywhere": np.random.default_rng(seed).permutation(12_000)[:count],
                "far from the query": ascending[:count],
                "half near, half far": np.concatenate((ascending[: count - 5], ascending[-5:])),
            }[near]
            allowed = RowSet.of_rows(12_000, chosen)
            found, true = index.search(query, 10, allowed), exact.search(query, 10, allowed)
            check_well_formed(found, item_ID, query, 10)
            assert allowed.has(found.rows).all()
            hits += int((found.scores >= true.scores[-1]).sum())
        assert hits >= 0.9 * 10 * len(queries), share


def test_any_scale_of_vectors(build: Build) -> None:
    """Half precision ends at 65,504, and distances between vectors of very different length cancel."""
    item_ID = clustered(2000, 8, 11)
    query = clustered(1, 8, 12)[0]
    expected = build(item_ID).search(query, 10)
    for scale in (1e-12, 1e12):
        found = build(item_ID * np.float32(scale)).search(query / np.float32(scale), 10)
        assert len(set(found.rows.tolist()) & set(expected.rows.tolist())) >= 9
        np.testing.assert_allclose(found.scores[:5], expected.scores[:5], rtol=1e-4)


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_the_callers_error(build: Build, k: int) -> None:
    with pytest.raises(RequestError, match="k: got"):
        build(clustered(100, 4, 0)).search(np.ones(4, np.float32), k)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_queries_that_cannot_be_scored(build: Build, bad: float) -> None:
    query = np.ones((2, 4), np.float32)
    query[1, 2] = bad
    with pytest.raises(RequestError, match="query: its vector"):
        build(clustered(100, 4, 0) * 3).search(query, 5)


def test_arrays_of_another_catalogue(build: Build) -> None:
    index = build(clustered(100, 4, 0))
    query = np.ones(4, np.float32)
    for wrong in (np.ones(5, np.float32), np.ones((0, 4), np.float32), np.ones((1, 1, 4), np.float32)):
        with pytest.raises(ValueError, match=r"expected \[heads, 4\]"):
            index.search(wrong, 3)
    with pytest.raises(ValueError, match="among 99 rows, expected 100"):
        index.search(query, 3, allowed=RowSet.of_mask(np.ones(99, bool)))
    for row in (-1, 100):
        with pytest.raises(ValueError, match="expected 0 to 99"):
            index.search(query, 3, excluded=np.array([5, row]))


def test_callers_arrays_are_not_written_to(build: Build) -> None:
    item_ID = clustered(1000, 4, 0)
    item_ID.setflags(write=False)
    rows, excluded, query = np.arange(1000), np.array([9, 3, 3]), np.ones(4, np.float32)
    bits = RowSet.of_rows(1000, rows).bits()
    for array in (rows, bits, excluded, query):
        array.setflags(write=False)
    for allowed in (RowSet(1000, 1000, rows, None), RowSet(1000, 1000, None, bits)):
        assert len(build(item_ID).search(query, 5, allowed, excluded).rows) == 5
