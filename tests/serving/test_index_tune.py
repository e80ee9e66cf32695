"""The choice of an index, its judge and its gate."""

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.index.build import Candidate, build_ivf, candidates_for, choose_kind, lists_for, metrics_for
from serving.index.exact import ExactIndex
from serving.index.faiss_index import FaissIndex
from serving.index.hnsw import build_graphs, build_hnsw
from serving.index.interface import IndexStats, SearchResult
from serving.index.rowset import RowSet
from serving.index.tune import Judge, tune
from towers.errors import DataError, GateError


def unit(rows: int, dim: int, seed: int) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def exact() -> ExactIndex:
    return ExactIndex(unit(12_000, 16, 0))


@pytest.fixture(scope="module")
def judge(exact: ExactIndex) -> Judge:
    return Judge(exact, unit(120, 16, 1), 50)


def ivf(exact: ExactIndex, metric: str = "inner_product", tuned_k: int = 50, codec: str = "SQfp16") -> FaissIndex:
    candidate = Candidate(lists_for(len(exact.item_ID)), codec, metric)
    return build_ivf(exact, candidate, seed=0, tuned_k=tuned_k, progress=lambda _: None)


class Fixed:
    """An index that drops the best `lost` of each list and goes on behind it."""

    def __init__(self, exact: ExactIndex, lost: int) -> None:
        self._exact, self._lost = exact, lost

    def search(
        self,
        query_HD: NDArray[np.float32],
        k: int,
        allowed: RowSet | None = None,
        excluded: NDArray[np.integer] | None = None,
    ) -> SearchResult:
        found = self._exact.search(query_HD, k + self._lost)
        return SearchResult(found.rows[self._lost :], found.scores[self._lost :])

    def stats(self) -> IndexStats:
        return IndexStats("fixed", 0, 0)


@pytest.mark.parametrize(("lost", "recall"), [(0, 1.0), (5, 0.9), (50, 0.0)])
def test_recall_counts_what_was_found(exact: ExactIndex, judge: Judge, lost: int, recall: float) -> None:
    assert judge.recall(Fixed(exact, lost))[0] == pytest.approx(recall)


def test_items_that_tie_with_the_last_one_count() -> None:
    exact = ExactIndex(np.tile(unit(1, 8, 0), (500, 1)))
    assert Judge(exact, unit(10, 8, 1), 20).recall(Fixed(exact, 30))[0] == 1.0


def test_the_fewest_lists_above_the_floor(exact: ExactIndex, judge: Judge) -> None:
    tuned = tune(judge, [ivf(exact)], 0.9)
    # with more candidates fewer lists may do, and which of both is faster is the machine's business
    below = [point for point in tuned.curve if point.nprobe < tuned.point.nprobe and point.candidates <= tuned.point.candidates]
    assert tuned.point.recall >= 0.9
    assert below and all(point.recall < 0.9 for point in below)
    assert tuned.index.setting.nprobe == tuned.index.stats().nprobe == tuned.point.nprobe
    assert tuned.curve[-1].nprobe > tuned.point.nprobe
    again = Judge(exact, unit(300, 16, 2), 50).recall(tuned.index)
    assert again[0] > 0.87, "recall on other users of the same kind"


def test_a_higher_floor_visits_more(exact: ExactIndex, judge: Judge) -> None:
    assert tune(judge, [ivf(exact)], 0.7).point.nprobe < tune(judge, [ivf(exact)], 0.97).point.nprobe


def test_the_faster_candidate_is_taken(exact: ExactIndex, judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, augmented = ivf(exact), ivf(exact, "l2_augmented")
    real = Judge.recall

    def timed(self: Judge, index: FaissIndex, most: int | None = None) -> tuple[float, float]:
        return real(self, index, most)[0], 5.0 if index is augmented else 9.0

    monkeypatch.setattr(Judge, "recall", timed)
    assert tune(judge, [plain, augmented], 0.9).index is augmented
    assert tune(judge, [augmented, plain], 0.9).index is augmented


def test_codes_that_lose_much_rescore_more(exact: ExactIndex, judge: Judge) -> None:
    """Eight 4-bit codes for 16 columns: no number of lists reaches the floor with few candidates."""
    tuned = tune(judge, [ivf(exact, codec="PQ8x4fsr")], 0.95)
    assert tuned.point.recall >= 0.95 and tuned.point.candidates == tuned.index.setting.candidates > 1.5 * judge.k
    narrow = [point.recall for point in tuned.curve if point.candidates < 1.5 * judge.k]
    assert narrow and max(narrow) < 0.95


def test_a_graph_is_searched_no_wider_than_the_floor_asks(exact: ExactIndex, judge: Judge) -> None:
    tuned = tune(judge, [build_hnsw(exact, 4, 20, "inner_product", 0, judge.k, lambda _: None)], 0.95)
    assert tuned.point.recall >= 0.95 and tuned.index.setting.candidates == tuned.point.candidates > judge.k
    assert tuned.index.stats().nprobe == tuned.point.nprobe == 0
    below = [point.recall for point in tuned.curve if point.candidates < tuned.point.candidates]
    assert below and max(below) < 0.95
    assert Judge(exact, unit(300, 16, 2), 50).recall(tuned.index)[0] > 0.93, "recall on other users of the same kind"
    with pytest.raises(GateError, match=r"HNSW2,SQfp16 at nprobe=0 and \d+ candidates.* Nothing was published"):
        tune(judge, [build_hnsw(exact, 2, 2, "inner_product", 0, judge.k, lambda _: None)], 1.0)


def test_graphs_that_are_tried(exact: ExactIndex) -> None:
    small = ExactIndex(exact.item_ID[:500])
    found = [index.stats() for index in build_graphs(small, ("inner_product", "l2_augmented"), 0, 10, lambda _: None)]
    assert [(stats.factory, stats.metric, stats.dim) for stats in found] == [
        (f"HNSW{m},SQfp16", metric, 16) for metric in ("inner_product", "l2_augmented") for m in (16, 32)
    ]


def test_what_is_tried() -> None:
    found = candidates_for(100_000, 60, ("inner_product", "l2_augmented"))
    assert [(c.factory, c.metric) for c in found] == [
        ("IVF1265,SQfp16", "inner_product"),
        ("IVF1265,SQfp16", "l2_augmented"),
        ("IVF421,PQ64x4fsr", "inner_product"),
        ("IVF421,PQ32x4fsr", "inner_product"),
    ]


def test_below_the_floor_is_refused() -> None:
    """Directions without structure in many dimensions: half of the lists do not hold all of the nearest."""
    exact = ExactIndex(unit(5000, 48, 0))
    refusal = r"index\.recall_floor: .* recall@100 0\.\d+ .* expected at least 1\.0\. Nothing was published"
    with pytest.raises(GateError, match=refusal) as caught:
        tune(Judge(exact, unit(60, 48, 1), 100), [ivf(exact, tuned_k=100)], 1.0)
    assert caught.value.exit_code == 4


def test_kind_by_catalogue_size() -> None:
    assert [choose_kind("auto", rows, 20_000) for rows in (1, 20_000, 20_001)] == ["exact", "exact", "ivf"]
    assert choose_kind("ivf", 5, 20_000) == "ivf"
    assert choose_kind("exact", 10**6, 20_000) == "exact"
    assert choose_kind("hnsw", 5, 20_000) == "hnsw"


@pytest.mark.parametrize(("rows", "lists"), [(1, 1), (38, 1), (78, 2), (20_001, 512), (59_000, 972), (1_000_000, 4000)])
def test_lists_have_enough_items(rows: int, lists: int) -> None:
    assert lists_for(rows) == lists


def test_metric_follows_the_similarity(exact: ExactIndex) -> None:
    assert metrics_for("cosine", exact) == ("inner_product",)
    assert metrics_for("dot", exact) == ("inner_product", "l2_augmented")
    for scaled in (1.01, 0.99):
        item_ID = exact.item_ID.copy()
        item_ID[77] *= np.float32(scaled)
        with pytest.raises(DataError, match="similarity is cosine: expected 1"):
            metrics_for("cosine", ExactIndex(item_ID))


@pytest.mark.parametrize("rows", [1, 2, 39, 80, 200])
def test_a_tiny_catalogue_can_be_an_ivf(rows: int) -> None:
    exact = ExactIndex(unit(rows, 8, 0))
    tuned = tune(Judge(exact, unit(20, 8, 1), 100), [ivf(exact)], 0.5)
    assert len(tuned.index.search(unit(1, 8, 2)[0], 100).rows) == min(100, rows)


@pytest.mark.parametrize("rows", [1, 15, 16])
def test_a_catalogue_too_small_for_codes_is_indexed_without(rows: int) -> None:
    small = ExactIndex(unit(rows, 8, 3))
    candidates = candidates_for(rows, 8, ("inner_product",))
    assert any(candidate.codec.startswith("PQ") for candidate in candidates) == (rows >= 16)
    for candidate in candidates:
        found = build_ivf(small, candidate, 0, 5, lambda _: None).search(unit(1, 8, 4), rows)
        assert sorted(found.rows.tolist()) == list(range(rows))
    if rows < 16:
        with pytest.raises(DataError, match="codes are learned from at least 16 items"):
            build_ivf(small, Candidate(1, "PQ8x4fsr", "inner_product"), 0, 5, lambda _: None)
