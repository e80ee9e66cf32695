"""ScaNN behind the gate: refused where it is not installed; with the library where it is, and with a stand-in that keeps to its calls."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.index.exact import ExactIndex
from serving.index.faiss_index import FaissIndex
from serving.index.interface import VectorIndex
from serving.index.kinds import BUILDERS
from serving.index.live_index import LiveIndex, offset_of
from serving.index.meta import FAISS_FILE, META_FILE, CurvePoint, IndexMeta, Setting, vectors_sha256
from serving.index.overfetch import OverfetchIndex
from serving.index.rowset import RowSet
from serving.index.scann_index import FILES, FOLDER, build_scann
from serving.index.stored import open_index, save_whole
from serving.index.tune import Judge, tune
from towers.bundle import Bundle, publish, write_vectors
from towers.errors import BundleError, ConfigError, DataError, GateError

ROWS, DIM = 4000, 16


class StandIn:
    """Lists around some of the items, and vectors rounded to quarters: loses something, as codes do."""

    def __init__(self, folder: str, assets: str) -> None:
        self.item_IW = np.load(Path(folder) / "hashed_dataset.npy").astype(np.float32) / 64
        self.centre_LW = np.load(Path(folder) / "datapoint_to_token.npy")
        self.list_I = (self.item_IW @ self.centre_LW.T).argmax(1)

    def size(self) -> int:
        return len(self.item_IW)

    def search(self, query_W: NDArray[np.float32], k: int, fetched: int, leaves: int) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
        near = np.argsort(-(self.centre_LW @ query_W))[:leaves]
        rows = np.flatnonzero(np.isin(self.list_I, near))
        scores = self.item_IW[rows] @ query_W
        order = np.argsort(-scores, kind="stable")[:k]
        return rows[order].astype(np.uint32), scores[order]

    def serialize(self, folder: str, relative_path: bool) -> None:
        assert relative_path
        for name in FILES:
            (Path(folder) / name).write_bytes(b"x")
        np.save(Path(folder) / "hashed_dataset.npy", np.rint(self.item_IW * 64).astype(np.int8))
        np.save(Path(folder) / "datapoint_to_token.npy", self.centre_LW)


def stand_in(item_IW: NDArray[np.float32], neighbors: int, measure: str) -> Any:
    """What ScaNN's builder is asked for."""
    assert measure == "dot_product" and np.abs(item_IW).max() <= 1
    made = StandIn.__new__(StandIn)

    def tree(lists: int, searched: int, training_sample_size: int) -> Any:
        made.item_IW, made.centre_LW = np.rint(item_IW * 64) / 64, item_IW[:: max(1, len(item_IW) // lists)][:lists]
        made.list_I = (made.item_IW @ made.centre_LW.T).argmax(1)
        return SimpleNamespace(score_ah=lambda size, anisotropic_quantization_threshold: SimpleNamespace(build=lambda: whole))

    whole = SimpleNamespace(searcher=made)
    return SimpleNamespace(tree=tree)


@pytest.fixture(params=["a stand-in", *(["ScaNN"] if importlib.util.find_spec("scann") else [])])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "a stand-in":
        module = ModuleType("scann")
        module.scann_ops_pybind = SimpleNamespace(builder=stand_in, scann_pybind=SimpleNamespace(ScannNumpy=StandIn))  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "scann", module)


def clustered(rows: int, seed: int, norms: bool = False) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((60, DIM))
    drawn = centres[rng.integers(60, size=rows)] + 0.6 * rng.standard_normal((rows, DIM))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return (drawn * rng.uniform(0.5, 3, (rows, 1)) if norms else drawn).astype(np.float32)


def leaves(exact: ExactIndex, metric: str = "inner_product", nprobe: int = 20) -> OverfetchIndex:
    index = build_scann(exact, metric, 10, lambda _: None)
    index.setting = Setting(nprobe, 40)
    return index


def check(index: VectorIndex, exact: ExactIndex, query_HD: NDArray[np.float32], k: int, *chosen: Any) -> float:
    """Well-formed, permitted, exact scores; the share of the true ones."""
    found, true = index.search(query_HD, k, *chosen), exact.search(query_HD, k, *chosen)
    assert len(found.rows) == len(true.rows) == len(set(found.rows.tolist())) and (found.rows >= 0).all()
    pairs = list(zip((-found.scores).tolist(), found.rows.tolist(), strict=True))
    assert pairs == sorted(pairs)
    np.testing.assert_allclose(found.scores, (np.atleast_2d(query_HD) @ exact.item_ID[found.rows].T).max(0), rtol=0, atol=1e-5)
    allowed, excluded = (*chosen, None, None)[:2]
    assert allowed is None or allowed.has(found.rows).all()
    assert excluded is None or not np.isin(found.rows, excluded).any()
    return float((found.scores >= true.scores[-1] - 1e-6).mean()) if len(true.rows) else 1.0


@pytest.mark.parametrize("metric", ["inner_product", "l2_augmented"])
def test_it_keeps_what_every_index_promises(library: None, metric: str) -> None:
    exact = ExactIndex(clustered(ROWS, 0, metric == "l2_augmented"))
    index, rng = leaves(exact, metric), np.random.default_rng(0)
    shares = []
    for query_D in clustered(20, 1):
        best = exact.search(query_D, 300).rows
        for k in (1, 10, ROWS - 1, ROWS + 5):
            shares.append(check(index, exact, query_D, k))
        for share in (0.9, 0.5, 0.1, 0.001, 0.0):
            for allowed in (RowSet.of_mask(rng.random(ROWS) < share), RowSet.of_rows(ROWS, best[round(300 * (1 - share)) :])):
                shares.append(check(index, exact, query_D, 10, allowed))
                shares.append(check(index, exact, query_D, 10, allowed, best[:40]))
        shares.append(check(index, exact, query_D, 10, None, np.concatenate((best[:250], best[:3]))))
        shares.append(check(index, exact, clustered(3, 2), 10))
    assert np.mean(shares) > 0.95
    assert index.search(np.zeros(DIM, np.float32), 4, None, np.array([1])).rows.tolist() == [0, 2, 3, 4]
    assert index.stats().nlist == 102 and index.stats().factory == "ScaNN102,AH2"


def test_equal_vectors_come_in_row_order(library: None) -> None:
    item_ID = clustered(ROWS, 0)
    query_D = item_ID[11].copy()
    twins = np.arange(40, ROWS, 17)
    item_ID[twins] = query_D
    item_ID[11] *= 4
    assert leaves(ExactIndex(item_ID)).search(query_D, 30).rows.tolist() == [11, *twins[:29].tolist()]


def test_lists_that_hold_less_than_is_wanted(library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = ExactIndex(clustered(ROWS, 0))
    index = leaves(exact, nprobe=1)
    monkeypatch.setattr(ExactIndex, "scan", lambda *_: pytest.fail("scanned"))
    index.setting = Setting(1, 150)
    assert len(index.search(exact.item_ID[0], 10).rows) == 10


def test_items_that_come_and_go(library: None) -> None:
    item_ID, came = clustered(ROWS, 0), clustered(5, 7)
    index = LiveIndex(leaves(ExactIndex(item_ID)), np.arange(0, ROWS, 5), came, np.arange(5) - 0.5)
    for row, query_D in enumerate(came):
        found = index.search(query_D, 10).rows
        assert found[0] == offset_of(ROWS) + row and not (found[found < ROWS] % 5 == 0).any()


def meta_of(core: Bundle, index: OverfetchIndex | FaissIndex) -> IndexMeta:
    stats = index.stats()
    return IndexMeta(
        stats.kind, stats.factory, stats.metric, stats.rows, stats.dim, stats.nlist, stats.nprobe, vectors_sha256(core),
        ExactIndex(core.item_vectors()).largest_norm, 10, 100, 0.97, 0.95, 30.0, 90.0, (CurvePoint(20, 0.97, 30.0),), stats.candidates,
    )  # fmt: skip


def test_a_bundle_answers_as_what_was_built_and_only_with_the_library(
    library: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_vectors(tmp_path / "vectors", clustered(ROWS, 0))
    core = Bundle.open(publish(tmp_path / "bundles", "v1", {"item_vectors.arrow": tmp_path / "vectors"}, {}))
    built = leaves(ExactIndex(core.item_vectors()))
    files: dict[str, Path | bytes] = {META_FILE: json.dumps(meta_of(core, built).to_json()).encode(), **save_whole(built, (), tmp_path)}
    assert set(files) == {META_FILE, *(f"{FOLDER}/{name}" for name in FILES)} and FAISS_FILE not in files
    bundle = Bundle.open(publish(tmp_path / "bundles", "v1-i1", files, {}, parent=core))
    opened = open_index(bundle)
    assert isinstance(opened, OverfetchIndex) and opened.stats() == built.stats()
    for query_D in clustered(30, 1):
        one, other = built.search(query_D, 10), opened.search(query_D, 10)
        assert one.rows.tolist() == other.rows.tolist() and one.scores.tolist() == other.scores.tolist()
    for name, change in (("v1-i2", {"rows": ROWS + 1}), ("v1-i3", {"nlist": 9})):
        other = {**files, META_FILE: json.dumps({**meta_of(core, built).to_json(), **change}).encode()}
        with pytest.raises(BundleError, match="build it again"):
            open_index(Bundle.open(publish(tmp_path / "bundles", name, other, {}, parent=core)))
    monkeypatch.setitem(sys.modules, "scann", None)
    with pytest.raises(ConfigError, match=r"ScaNN cannot be loaded .*pip install 'towers\[scann\]'"):
        open_index(bundle)


def test_tuned_behind_the_same_gate(library: None) -> None:
    exact = ExactIndex(clustered(ROWS, 0))
    judge = Judge(exact, clustered(100, 1), 20)
    tuned = tune(judge, BUILDERS["scann"](exact, ("inner_product",), 0, judge.k, lambda _: None), 0.9)
    assert tuned.point.recall >= 0.9 and tuned.index.stats().nprobe == tuned.point.nprobe >= 1
    assert len({point.nprobe for point in tuned.curve}) > 1
    narrow = build_scann(exact, "inner_product", judge.k, lambda _: None)
    narrow.factors, narrow.nlist = (1.0,), 2
    with pytest.raises(GateError, match=r"ScaNN102,AH2 .* Nothing was published"):
        tune(judge, [narrow], 1.0)


def test_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scann", None)
    with pytest.raises(ConfigError, match=r"index=scann: ScaNN cannot be loaded .*pip install 'towers\[scann\]'"):
        BUILDERS["scann"](ExactIndex(clustered(100, 0)), ("inner_product",), 0, 10, lambda _: None)


def test_too_few_items() -> None:
    with pytest.raises(DataError, match="got 15 items, expected at least 16; take index=exact"):
        build_scann(ExactIndex(clustered(15, 0)), "inner_product", 10, lambda _: None)
