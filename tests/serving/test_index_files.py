"""An index in a bundle: written, opened, and refused where it is damaged or belongs to another model."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest

from serving.index.build import Candidate, build_ivf
from serving.index.exact import ExactIndex
from serving.index.faiss_index import FaissIndex
from serving.index.hnsw import build_hnsw
from serving.index.layout import Layout
from serving.index.meta import FAISS_FILE, META_FILE, ROTATION_FILE, CurvePoint, IndexMeta, PartMeta, Setting, vectors_sha256
from serving.index.overfetch import OverfetchIndex
from serving.index.rowset import RowSet
from serving.index.stored import open_index, save_index, save_whole
from towers.bundle import Bundle, publish, write_vectors
from towers.errors import BundleError, DataError

ROWS, DIM = 3000, 13


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("core")
    item_ID = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)
    write_vectors(folder / "vectors", item_ID)
    return Bundle.open(publish(folder / "bundles", "v1", {"item_vectors.arrow": folder / "vectors"}, {}))


@pytest.fixture(scope="module")
def built(core: Bundle) -> FaissIndex:
    index = build_ivf(ExactIndex(core.item_vectors()), Candidate(76, "SQfp16", "l2_augmented"), 0, 10, lambda _: None)
    index.setting = Setting(12, 10)
    return index


def meta_of(core: Bundle, index: FaissIndex | OverfetchIndex) -> IndexMeta:
    stats, curve = index.stats(), (CurvePoint(12, 0.97, 30.0),)
    return IndexMeta(
        stats.kind, stats.factory, stats.metric, stats.rows, stats.dim, stats.nlist, stats.nprobe, vectors_sha256(core),
        ExactIndex(core.item_vectors()).largest_norm, 10, 100, 0.97, 0.95, 30.0, 90.0, curve, stats.candidates,
    )  # fmt: skip


def sealed(core: Bundle, tmp_path: Path, meta: IndexMeta | bytes, index: Path | bytes) -> Bundle:
    raw = meta if isinstance(meta, bytes) else json.dumps(meta.to_json()).encode()
    return Bundle.open(publish(tmp_path / "bundles", "v1-i1", {META_FILE: raw, FAISS_FILE: index}, {}, parent=core))


def test_an_opened_index_answers_as_the_built_one(core: Bundle, built: FaissIndex, tmp_path: Path) -> None:
    save_index(built, tmp_path / "index")
    bundle = sealed(core, tmp_path, meta_of(core, built), tmp_path / "index")
    for path in bundle.folder.iterdir():
        path.chmod(0o444)
    opened = open_index(bundle)
    assert isinstance(opened, FaissIndex)
    assert opened.stats() == built.stats()
    assert opened.stats().nprobe == 12
    for query in np.random.default_rng(1).standard_normal((30, DIM)).astype(np.float32):
        one, other = built.search(query, 10), opened.search(query, 10)
        assert one.rows.tolist() == other.rows.tolist()
        assert one.scores.tolist() == other.scores.tolist()


def test_a_description_without_a_margin(core: Bundle, built: FaissIndex, tmp_path: Path) -> None:
    """As older versions wrote it: what a filter leaves is scanned, and found exactly."""
    save_index(built, tmp_path / "index")
    raw = meta_of(core, built).to_json()
    del raw["margin"]
    opened = open_index(sealed(core, tmp_path, json.dumps(raw).encode(), tmp_path / "index"))
    assert isinstance(opened, FaissIndex) and opened.margin is None
    rng, exact = np.random.default_rng(2), ExactIndex(core.item_vectors())
    for query in rng.standard_normal((10, DIM)).astype(np.float32):
        allowed = RowSet.of_mask(rng.random(ROWS) < 0.5)
        assert opened.search(query, 10, allowed).rows.tolist() == exact.search(query, 10, allowed).rows.tolist()


def test_parts_answer_for_their_value_alone(core: Bundle, tmp_path: Path) -> None:
    """Codes and their rotation are written with the lists; a part holds the rows of one declared value."""
    exact = ExactIndex(core.item_vectors())
    candidate = Candidate(20, "PQ16x4fsr", "inner_product")
    whole = build_ivf(exact, candidate, 0, 10, lambda _: None)
    whole.setting = Setting(20, 30)
    among = RowSet.of_rows(ROWS, np.arange(5, ROWS, 3))
    part = build_ivf(exact, Candidate(8, "PQ16x4fsr", "inner_product"), 0, 10, lambda _: None, among)
    save_index(whole, tmp_path / "index")
    save_index(part, tmp_path / "part")
    meta = replace(meta_of(core, whole), parts=(PartMeta("kind/4", "part-0.faiss", candidate.factory, among.count, 8, 8, 30, 0.97),))
    raw = json.dumps(meta.to_json()).encode()
    np.save(tmp_path / "rotation.npy", whole.layout.rotation_WW)
    files: dict[str, Path | bytes] = {META_FILE: raw, FAISS_FILE: tmp_path / "index", "part-0.faiss": tmp_path / "part"}
    files[ROTATION_FILE] = tmp_path / "rotation.npy"
    opened = open_index(Bundle.open(publish(tmp_path / "bundles", "v1-i1", files, {}, parent=core)))
    assert isinstance(opened, FaissIndex)
    named = RowSet(ROWS, among.count, among.rows(), None, key="kind/4")
    for query in np.random.default_rng(1).standard_normal((20, DIM)).astype(np.float32):
        assert opened.search(query, 10).rows.tolist() == whole.search(query, 10).rows.tolist()
        best = exact.search(query, 40, among).rows
        for banned in (None, best[:30], np.concatenate((best[:5], [0, 1, 3])), among.rows()[:-4], among.rows()):
            expected = exact.search(query, 10, among, banned).rows.tolist()
            found = opened.search(query, 10, named, banned).rows.tolist()
            assert len(found) == len(expected) and set(found) <= set(among.rows().tolist()) - set([] if banned is None else banned.tolist())
            assert len(set(found) & set(expected)) >= 0.8 * len(expected)
        assert opened.search(query, ROWS, named).rows.tolist() == exact.search(query, ROWS, among).rows.tolist()


@pytest.mark.parametrize("metric", ["inner_product", "l2_augmented"])
def test_a_graph_is_mapped_and_answers_as_the_built_one(core: Bundle, tmp_path: Path, metric: str) -> None:
    exact = ExactIndex(core.item_vectors())
    graph = build_hnsw(exact, 8, 40, metric, 0, 10, lambda _: None)
    graph.setting = Setting(0, 30)
    among = RowSet.of_rows(ROWS, np.arange(5, ROWS, 3))
    part = build_ivf(exact, Candidate(8, "PQ16x4fsr", "inner_product"), 0, 10, lambda _: None, among)
    part.setting = Setting(8, 40)
    graph.parts["kind/4"] = part
    described = PartMeta("kind/4", "part-0.faiss", "IVF8,PQ16x4fsr", among.count, 8, 8, 40, 0.97)
    meta = replace(meta_of(core, graph), parts=(described,))
    files: dict[str, Path | bytes] = {META_FILE: json.dumps(meta.to_json()).encode(), **save_whole(graph, meta.parts, tmp_path)}
    opened = open_index(Bundle.open(publish(tmp_path / "bundles", "v1-i1", files, {}, parent=core)))
    assert isinstance(opened, OverfetchIndex) and opened.stats() == graph.stats()
    assert (opened.stats().kind, opened.stats().factory, opened.stats().candidates) == ("hnsw", "HNSW8,SQfp16", 30)
    assert str(tmp_path / "bundles" / "v1-i1" / FAISS_FILE) in Path("/proc/self/maps").read_text()
    named = RowSet(ROWS, among.count, among.rows(), None, key="kind/4")
    for query in np.random.default_rng(1).standard_normal((30, DIM)).astype(np.float32):
        for allowed in (None, among, named):
            one, other = graph.search(query, 10, allowed, np.array([5, 8])), opened.search(query, 10, allowed, np.array([5, 8]))
            assert one.rows.tolist() == other.rows.tolist() and one.scores.tolist() == other.scores.tolist()
            assert allowed is None or allowed.has(other.rows).all()


@pytest.mark.parametrize(
    "change", [{"rows": ROWS + 1}, {"metric": "l2_augmented"}, {"factory": "HNSW16,SQfp16"}, {"kind": "ivf", "nlist": 9}], ids=str
)
def test_a_graph_unlike_its_description_is_refused(core: Bundle, tmp_path: Path, change: dict[str, int | str]) -> None:
    graph = build_hnsw(ExactIndex(core.item_vectors()), 8, 40, "inner_product", 0, 10, lambda _: None)
    graph.finder.save(tmp_path)
    with pytest.raises(BundleError, match="build it again"):
        open_index(sealed(core, tmp_path, replace(meta_of(core, graph), **change), tmp_path / FAISS_FILE))
    faiss.write_index(faiss.IndexFlatIP(16), str(tmp_path / "flat"))
    with pytest.raises(BundleError, match="expected a graph"):
        open_index(sealed(core, tmp_path / "other", meta_of(core, graph), tmp_path / "flat"))


def test_the_same_seed_links_the_same_graph(core: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.index.hnsw.THREADS", 1)
    exact = ExactIndex(core.item_vectors())
    content = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / name).mkdir()
        saved = build_hnsw(exact, 8, 40, "inner_product", seed, 10, lambda _: None).finder.save(tmp_path / name)
        content.append(saved[FAISS_FILE].read_bytes())
    assert content[0] == content[1] != content[2]


def test_a_bundle_without_an_index_is_scanned(core: Bundle) -> None:
    index = open_index(core)
    assert isinstance(index, ExactIndex)
    assert index.stats().rows == ROWS


def test_an_index_of_another_model_is_refused(core: Bundle, built: FaissIndex, tmp_path: Path) -> None:
    save_index(built, tmp_path / "index")
    with pytest.raises(BundleError, match="do not belong together"):
        open_index(sealed(core, tmp_path, replace(meta_of(core, built), item_vectors_sha256="ab" * 32), tmp_path / "index"))


@pytest.mark.parametrize(
    "change", [{"rows": ROWS + 1}, {"dim": DIM + 8}, {"metric": "inner_product"}, {"nlist": 70}], ids=lambda change: next(iter(change))
)
def test_an_index_unlike_its_description_is_refused(core: Bundle, built: FaissIndex, tmp_path: Path, change: dict[str, int | str]) -> None:
    save_index(built, tmp_path / "index")
    with pytest.raises(BundleError, match="build it again"):
        open_index(sealed(core, tmp_path, replace(meta_of(core, built), **change), tmp_path / "index"))


@pytest.mark.parametrize("content", [b"", b"IwSq", b"not an index" * 100])
def test_a_file_that_is_no_index(core: Bundle, built: FaissIndex, tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BundleError, match="not a readable index"):
        open_index(sealed(core, tmp_path, meta_of(core, built), content))


def test_an_index_of_another_kind(core: Bundle, built: FaissIndex, tmp_path: Path) -> None:
    flat = faiss.IndexFlatIP(16)
    flat.add(np.zeros((ROWS, 16), np.float32))
    faiss.write_index(flat, str(tmp_path / "index"))
    with pytest.raises(BundleError, match="expected an inverted file"):
        open_index(sealed(core, tmp_path, meta_of(core, built), tmp_path / "index"))
    with pytest.raises(BundleError, match="'lsh' index"):
        open_index(sealed(core, tmp_path / "other", replace(meta_of(core, built), kind="lsh"), tmp_path / "index"))


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"kind": "ivf"}', b"\xff"])
def test_a_damaged_description(core: Bundle, tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(BundleError, match="not an index description"):
        open_index(sealed(core, tmp_path, raw, b""))


def test_reading_is_bounded_by_the_file(core: Bundle, built: FaissIndex, tmp_path: Path) -> None:
    save_index(built, tmp_path / "index")
    open_index(sealed(core, tmp_path, meta_of(core, built), tmp_path / "index"))
    assert faiss.get_deserialization_vector_byte_limit() == (tmp_path / "index").stat().st_size
    assert faiss.get_deserialization_loop_limit() == built.nlist


def test_saving_where_nothing_can_be_written(built: FaissIndex, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Free some space"):
        save_index(built, tmp_path / "absent" / "index")


@pytest.mark.parametrize("codec", ["SQfp16", "PQ16x4fsr"])
def test_the_same_seed_builds_the_same_file(core: Bundle, tmp_path: Path, codec: str) -> None:
    exact = ExactIndex(core.item_vectors())
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        save_index(build_ivf(exact, Candidate(40, codec, "inner_product"), seed, 10, lambda _: None), tmp_path / name)
    content = {name: (tmp_path / name).read_bytes() for name in "abc"}
    assert content["a"] == content["b"] != content["c"]


@pytest.mark.parametrize(
    ("dim", "metric", "width"), [(64, "inner_product", 64), (64, "l2_augmented", 72), (7, "l2_augmented", 8), (1, "inner_product", 8)]
)
def test_widths_are_multiples_of_eight(dim: int, metric: str, width: int) -> None:
    assert Layout(dim, metric, 1.0).width == width


def test_the_augmented_distance_orders_as_the_dot_product() -> None:
    rng = np.random.default_rng(2)
    item_ID = (rng.standard_normal((300, 9)) * rng.uniform(0.1, 5, (300, 1))).astype(np.float32)
    query_HD = rng.standard_normal((4, 9)).astype(np.float32)
    layout = Layout(9, "l2_augmented", float(np.linalg.norm(item_ID, axis=1).max()))
    item_IW = layout.items(item_ID)
    np.testing.assert_allclose(np.linalg.norm(item_IW, axis=1), 1, rtol=1e-5)
    distance_HI = ((layout.queries(query_HD)[:, None] - item_IW) ** 2).sum(2)
    assert (np.argsort(distance_HI)[:, :20] == np.argsort(-(query_HD @ item_ID.T))[:, :20]).mean() > 0.98


@pytest.mark.parametrize("first", ["torch", "serving.index.faiss_index"])
def test_torch_and_faiss_in_one_process(first: str) -> None:
    """Each brings its OpenMP; whichever is loaded first, both must work after."""
    second = {"torch": "serving.index.faiss_index", "serving.index.faiss_index": "torch"}[first]
    code = (
        f"import {first}, {second}, numpy as np, torch\n"
        "from serving.index.exact import ExactIndex\nfrom serving.index.build import Candidate, build_ivf\n"
        "x = np.random.default_rng(0).standard_normal((4000, 8)).astype(np.float32)\n"
        "index = build_ivf(ExactIndex(x), Candidate(9, 'PQ8x4fsr', 'inner_product'), 0, 10, lambda _: None)\n"
        "assert float((torch.ones(500, 500) @ torch.ones(500, 500))[0, 0]) == 500\n"
        "print(len(index.search(x[0], 10).rows))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "10"), done.stderr
