"""Large catalogues are served in half precision: searches, similar items and reasons all take the same rounded vectors."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.index.build import Candidate, build_ivf
from serving.index.exact import ExactIndex
from serving.index.half import HALF_FILE, HalfIndex, fits, scan_of, served_vectors, whole
from serving.index.interface import VectorIndex
from serving.index.meta import Setting
from serving.index.rowset import RowSet
from serving.index.stored import open_index
from serving.index_job import run
from serving.retriever import Retriever
from tests.serving.test_index_job import exported, now, vectors
from towers.bundle import publish
from towers.errors import BundleError, RequestError

ROWS = 9000


def drawn(dim: int, seed: int = 0) -> NDArray[np.float16]:
    """Clusters; every 40th vector is the same."""
    rng = np.random.default_rng(seed)
    item_ID = rng.standard_normal((40, dim))[rng.integers(40, size=ROWS)] + 0.5 * rng.standard_normal((ROWS, dim))
    item_ID[::40] = item_ID[0]
    return item_ID.astype(np.float16)


def ivf(half_ID: NDArray[np.float16], codec: str, metric: str = "inner_product") -> VectorIndex:
    index = build_ivf(HalfIndex(half_ID), Candidate(60, codec, metric), 0, 20, lambda _: None)
    index.setting = Setting(60, 2000)
    return index


BUILDS: dict[str, Callable[[NDArray[np.float16]], VectorIndex]] = {
    "exact": HalfIndex,
    "lists of vectors": lambda half_ID: ivf(half_ID, "SQfp16"),
    "augmented": lambda half_ID: ivf(half_ID, "SQfp16", "l2_augmented"),
    "short codes": lambda half_ID: ivf(half_ID, f"PQ{-(-half_ID.shape[1] // 8) * 8}x4fsr"),
}


@pytest.mark.parametrize("dim", [16, 13, 64])
@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_it_finds_what_a_scan_of_the_rounded_vectors_finds(build: Callable[[NDArray[np.float16]], VectorIndex], dim: int) -> None:
    half_ID = drawn(dim)
    index, exact = build(half_ID), ExactIndex(half_ID.astype(np.float32))
    rng = np.random.default_rng(1)
    allowed = RowSet.of_rows(ROWS, rng.choice(ROWS, ROWS // 2, replace=False))
    few = RowSet.of_rows(ROWS, rng.choice(ROWS, 700, replace=False))
    for asked_HD in (rng.standard_normal((1, dim)), rng.standard_normal((2, dim)), 3.0 * half_ID[:1]):
        query_HD = asked_HD.astype(np.float32)
        for among in (None, allowed, few):
            for excluded in (None, rng.choice(ROWS, 60, replace=False)):
                found, true = index.search(query_HD, 30, among, excluded), exact.search(query_HD, 30, among, excluded)
                np.testing.assert_allclose(found.scores, true.scores, rtol=2e-6, atol=2e-6)
                own = (query_HD @ half_ID[found.rows].astype(np.float32).T).max(0)
                np.testing.assert_allclose(found.scores, own, rtol=2e-6, atol=2e-6)
                assert len(set(found.rows.tolist())) == 30 and (excluded is None or not np.isin(found.rows, excluded).any())
    (many,) = index.search_many(query_HD[None], 30, None, [np.empty(0, np.int64)])
    assert many.rows.tolist() == index.search(query_HD, 30).rows.tolist()


def test_every_finite_number_keeps_its_value() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)]
    np.testing.assert_array_equal(whole(every).view(np.uint32), every.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("most", [1, 2000, 2990, 3000, 4000])
def test_as_many_as_there_are_or_nearly(most: int) -> None:
    half_ID = drawn(16)
    index, exact = HalfIndex(half_ID), ExactIndex(half_ID.astype(np.float32))
    query, rng = np.random.default_rng(2).standard_normal((1, 16)).astype(np.float32), np.random.default_rng(3)
    allowed = RowSet.of_rows(ROWS, rng.choice(ROWS, 3000, replace=False))
    for among, excluded in ((allowed, None), (allowed, rng.choice(ROWS, 500)), (None, rng.choice(ROWS, ROWS - 3000, replace=False))):
        found, true = index.search(query, most, among, excluded), exact.search(query, most, among, excluded)
        assert len(found.rows) == len(true.rows) == len(set(found.rows.tolist())) and found.rows.min() >= 0
        np.testing.assert_allclose(found.scores, true.scores, rtol=2e-6, atol=2e-6)


def test_equal_vectors_tie_and_come_in_row_order() -> None:
    half_ID = drawn(64)
    query = half_ID[0].astype(np.float32)
    for build in BUILDS.values():
        found = build(half_ID).search(query, 50)
        assert found.rows[np.isin(found.rows, np.arange(0, ROWS, 40))].tolist() == list(range(0, 40 * 50, 40))
        assert len(set(found.scores.tolist())) == 1


def test_what_cannot_be_scored_is_refused_as_ever() -> None:
    with pytest.raises(RequestError, match="finite"):
        HalfIndex(drawn(16)).search(np.full(16, np.nan, np.float32), 5)


def test_vectors_too_long_or_too_short_are_not_rounded() -> None:
    item_ID = drawn(16).astype(np.float32)
    assert (
        fits(ExactIndex(item_ID)) and not fits(ExactIndex(item_ID * np.float32(1e4))) and not fits(ExactIndex(item_ID * np.float32(1e-4)))
    )


@pytest.mark.parametrize("name", ["ivf", "exact", "hnsw"])
def test_a_large_catalogue_is_published_and_opened_in_half_precision(tmp_path: Path, name: str) -> None:
    config = exported(tmp_path / "run", 3000)
    config.index.name, config.index.parts, config.index.half_from = name, ["categories"], 3001
    run(config)
    assert not now(config).has(HALF_FILE) and served_vectors(now(config)).dtype == np.float32
    config.index.half_from = 3000
    recall = json.loads(Path(run(config)).read_text())["recall"]
    bundle = now(config)
    half_ID = served_vectors(bundle)
    np.testing.assert_array_equal(half_ID, bundle.item_vectors().astype(np.float16))
    index, exact = open_index(bundle), ExactIndex(bundle.item_vectors())
    found = [index.search(q, 20) for q in vectors(100, 3)]
    overlap = np.mean([np.isin(one.rows, exact.search(q, 20).rows).mean() for one, q in zip(found, vectors(100, 3), strict=True)])
    assert recall >= 0.9 and overlap > 0.88, "the recall told is of the rounded vectors against exact ones"
    own = [half_ID[one.rows].astype(np.float32) @ q for one, q in zip(found, vectors(100, 3), strict=True)]
    np.testing.assert_allclose([one.scores for one in found], own, atol=1e-6)


def test_half_vectors_of_another_catalogue_are_refused(tmp_path: Path) -> None:
    config = exported(tmp_path / "run", 3000)
    config.index.half_from = 0
    run(config)
    np.save(tmp_path / "wrong.npy", served_vectors(now(config))[1:])
    publish(tmp_path / "run" / "bundles", "wrong", {HALF_FILE: tmp_path / "wrong.npy"}, {}, now(config))
    with pytest.raises(BundleError, match="expected float16"):
        open_index(now(config))


def test_lists_reasons_and_similar_items_tell_one_score(world: object, tmp_path: Path) -> None:
    """Of the rounded vectors, to rounding of float32."""
    bundle = world.bundle  # type: ignore[attr-defined]
    exact = Retriever.open(bundle, world.histories, world.key_file)  # type: ignore[attr-defined]
    half_ID = exact.bundle.item_vectors().astype(np.float16)
    np.save(tmp_path / "half.npy", half_ID)
    folder = publish(tmp_path / "bundles", "half", {HALF_FILE: tmp_path / "half.npy"}, {"phrases": {}}, exact.bundle)
    served = Retriever.open(folder, world.histories, world.key_file)  # type: ignore[attr-defined]
    assert served.stock.vectors_ID.dtype == np.float16 and isinstance(served.index, HalfIndex)
    for asked in ({"user_id": "user-9"}, {"user_id": "user-3", "less_like": ["item-02"]}):
        reply = served.recommend(**asked, k=30, explain=True, now=20_000 * 86_400)  # type: ignore[arg-type]
        plain = exact.recommend(**asked, k=30, now=20_000 * 86_400)  # type: ignore[arg-type]
        for item in reply.items:
            assert item.explanation is not None
            parts = sum(reason.part for reason in item.explanation.reasons) + item.explanation.rest
            assert abs(parts - item.score) <= 1e-5
        shared = {item.item_id: item.score for item in plain.items}
        assert all(abs(shared[item.item_id] - item.score) < 2e-3 for item in reply.items if item.item_id in shared)
    one = served.catalog.row("item-07")
    nearest = served.similar_items("item-07", 5).items
    own = half_ID[served.catalog.rows([item.item_id for item in nearest])].astype(np.float32) @ half_ID[one].astype(np.float32)
    np.testing.assert_allclose([item.score for item in nearest], sorted(own, reverse=True), atol=1e-6)
    assert scan_of(half_ID).search(half_ID[one].astype(np.float32), 5).scores.dtype == np.float32
