"""`towers index` on a run folder: what it publishes, what it refuses, what it leaves alone."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from serving import index_job
from serving.attribute_files import open_attributes
from serving.attributes import ValueLists
from serving.config import IndexConfig, ServingConfig
from serving.index.exact import ExactIndex
from serving.index.faiss_index import FaissIndex
from serving.index.overfetch import OverfetchIndex
from serving.index.stored import open_index
from towers.bundle import Bundle, current, publish, write_vectors
from towers.errors import BundleError, ConfigError, DataError, GateError
from towers.held_out import write_query_vectors
from towers.model_config import ModelConfig
from towers.pointers import waiting
from towers.schema import make_schema

DIM = 16


def vectors(rows: int, seed: int, norms: bool = False) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((rows, DIM))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return (drawn * rng.uniform(0.1, 3, (rows, 1)) if norms else drawn).astype(np.float32)


def exported(run_dir: Path, rows: int, similarity: str = "cosine", queries: int = 150) -> ServingConfig:
    """A run as `towers export` leaves it, as far as indexing reads it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_vectors(run_dir / "vectors", vectors(rows, 0, similarity == "dot"))
    model_config = json.dumps(asdict(ModelConfig(dim=DIM, similarity=similarity))).encode()
    files: dict[str, Path | bytes] = {"item_vectors.arrow": run_dir / "vectors", "model_config.json": model_config}
    files["schema.json"] = json.dumps(make_schema([], "time", {}).to_json()).encode()
    hidden, categories = [row == 7 for row in range(rows)], [["odd" if row % 2 else "even"] for row in range(rows)]
    ids, titles = [str(row) for row in range(rows)], pa.nulls(rows, pa.string())
    catalog = pa.table({"item_id": ids, "title": titles, "is_hidden": hidden, "categories": categories})
    pq.write_table(catalog, run_dir / "catalog")
    files["catalog.parquet"] = run_dir / "catalog"
    files["weights.safetensors"] = b"of this model"
    publish(run_dir / "bundles", "v1", files, {"name": "towers", "metrics": {"test/recall@20": 0.1}})
    (run_dir / "export").mkdir()
    write_query_vectors(run_dir / "export", vectors(queries, 1), now(run_dir).weights_sha256)
    return ServingConfig(run_dir=str(run_dir), index=IndexConfig(name="ivf", k=20, recall_floor=0.9, parts=[]))


def now(run: ServingConfig | Path) -> Bundle:
    return Bundle.open(current((run if isinstance(run, Path) else Path(run.run_dir)) / "bundles"))


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_an_approximate_index(tmp_path: Path, capsys: pytest.CaptureFixture[str], similarity: str) -> None:
    config = exported(tmp_path / "run", 5000, similarity)
    config.index.parts = ["categories"]
    report = json.loads(Path(index_job.run(config)).read_text())
    bundle = now(config)
    assert (bundle.version, bundle.manifest["parent"], bundle.manifest["model_version"]) == ("v1-i1", "v1", "v1")
    assert bundle.manifest["metrics"] == {"test/recall@20": 0.1}
    assert report["bundle"] == str(bundle.folder)
    assert report["recall"] >= 0.9 and report["queries"] == 150 and report["kind"] == "ivf" and report["exact_us"] > 0
    same = ("factory", "metric", "nprobe", "candidates")
    assert [point["recall"] for point in report["curve"] if all(point[name] == report[name] for name in same)] == [report["recall"]]
    assert {"SQfp16", "PQ16x4fsr", "PQ8x4fsr"} == {point["factory"].partition(",")[2] for point in report["curve"]}
    assert [part["rows"] for part in report["parts"]] == [2500, 2499] and all(part["recall"] >= 0.9 for part in report["parts"])
    assert report["metric"] in ({"cosine": ("inner_product",), "dot": ("inner_product", "l2_augmented")}[similarity])
    index = open_index(bundle)
    assert isinstance(index, FaissIndex)
    assert index.margin == report["margin"] and 0 < report["margin"] < 2
    exact = ExactIndex(bundle.item_vectors())
    found = [np.isin(index.search(q, 20).rows, exact.search(q, 20).rows).mean() for q in vectors(100, 1)]
    assert np.mean(found) >= 0.88
    shown = capsys.readouterr().out
    assert "recall@20" in shown and f"-> {report['factory']}" in shown and "exact" in shown and "2 declared values have an index" in shown


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_a_graph_where_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str], similarity: str) -> None:
    config = exported(tmp_path / "run", 5000, similarity)
    config.index.name, config.index.parts = "hnsw", ["categories"]
    report = json.loads(Path(index_job.run(config)).read_text())
    assert report["kind"] == "hnsw" and report["recall"] >= 0.9 and (report["nlist"], report["nprobe"]) == (0, 0)
    assert {point["factory"] for point in report["curve"]} == {"HNSW16,SQfp16", "HNSW32,SQfp16"}
    assert report["candidates"] in {point["candidates"] for point in report["curve"]}
    assert {point["metric"] for point in report["curve"]} == {"inner_product", *(["l2_augmented"] if similarity == "dot" else [])}
    assert len(report["parts"]) == 2
    bundle = now(config)
    assert bundle.manifest["index"]["kind"] == "hnsw"
    index, exact = open_index(bundle), ExactIndex(bundle.item_vectors())
    assert isinstance(index, OverfetchIndex)
    found = [np.isin(index.search(q, 20).rows, exact.search(q, 20).rows).mean() for q in vectors(100, 1)]
    assert np.mean(found) >= 0.88
    assert f"-> {report['factory']}" in capsys.readouterr().out


def test_a_graph_below_the_floor_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = exported(tmp_path / "run", 5000)
    config.index.name, config.index.recall_floor = "hnsw", 1.0
    monkeypatch.setattr("serving.index.hnsw.GRAPHS", ((2, 2),))
    with pytest.raises(GateError, match="Nothing was published"):
        index_job.run(config)
    assert now(config).version == "v1"


def test_a_library_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = exported(tmp_path / "run", 600)
    config.index.name = "scann"
    monkeypatch.setitem(sys.modules, "scann", None)
    with pytest.raises(ConfigError, match=r"index=scann: ScaNN cannot be loaded .*or take index=ivf"):
        index_job.run(config)
    assert now(config).version == "v1"


def test_an_attribute_without_values_has_no_index(tmp_path: Path) -> None:
    config = exported(tmp_path / "run", 600)
    config.index.parts = ["price"]
    with pytest.raises(ConfigError, match=r"index\.parts: got 'price', expected attributes that have values: categories"):
        index_job.run(config)


def test_attributes_for_filters_are_published_and_mapped(tmp_path: Path) -> None:
    config = exported(tmp_path / "run", 900)
    config.index.name = "exact"
    index_job.run(config)
    bundle = now(config)
    opened = open_attributes(bundle, 900)
    categories = opened["categories"]
    assert isinstance(categories, ValueLists) and isinstance(categories.rows_N.base, np.memmap)
    assert [found.rows().tolist() for found in categories.sets(["odd", "nowhere"])] == [[i for i in range(900) if i % 2 and i != 7]]
    with pytest.raises(BundleError, match="of 900 items, the catalogue has 899"):
        open_attributes(bundle, 899)


def test_a_small_catalogue_needs_no_index_file(tmp_path: Path) -> None:
    config = exported(tmp_path / "run", 900)
    config.index.name = "auto"
    report = json.loads(Path(index_job.run(config)).read_text())
    assert (report["kind"], report["recall"], report["curve"], report["k"]) == ("exact", 1.0, [], 20)
    bundle = now(config)
    assert bundle.has("index.json") and not bundle.has("index.faiss")
    assert isinstance(open_index(bundle), ExactIndex)


def test_indexing_again_starts_from_the_core(tmp_path: Path) -> None:
    config = exported(tmp_path / "run", 3000)
    index_job.run(config)
    config.index.name = "exact"
    index_job.run(config)
    bundle = now(config)
    assert (bundle.version, bundle.manifest["parent"]) == ("v1-i2", "v1")
    assert not bundle.has("index.faiss")
    assert Bundle.open(tmp_path / "run" / "bundles" / "v1-i1").has("index.faiss")


def test_what_is_exported_meanwhile_waits_for_the_next_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = exported(tmp_path / "run", 900)
    config.index.name, bundles = "exact", tmp_path / "run" / "bundles"
    index_job.run(config)
    first = Bundle.open(bundles / "v1")
    core: dict[str, Path | bytes] = {name: first.path(name) for name in first.manifest["files"]}
    publish(bundles, "v2", core, {})
    real = index_job.open_attributes

    def slowly(*given: Any) -> Any:
        if not (bundles / "v3").exists():
            publish(bundles, "v3", core, {})
        return real(*given)

    monkeypatch.setattr(index_job, "open_attributes", slowly)
    for version in ("v2-i1", "v3-i1", "v3-i2"):
        index_job.run(config)
        assert now(config).version == version
    publish(bundles, "v4", core, {})
    config.index.name, config.index.recall_floor = "ivf", 1.01
    with pytest.raises(GateError):
        index_job.run(config)
    assert now(config).version == "v3-i2", "below the floor: what has an index stays in use"
    assert waiting(bundles) == bundles / "v4"


def test_below_the_floor_nothing_is_published(tmp_path: Path) -> None:
    config = exported(tmp_path / "run", 5000)
    config.index.recall_floor, config.index.k = 1.0, 400
    with pytest.raises(GateError, match="Nothing was published"):
        index_job.run(config)
    assert now(config).version == "v1"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["bundles", "catalog", "export", "vectors"]
    assert sorted(path.name for path in (tmp_path / "run" / "bundles").iterdir()) == ["CURRENT", "v1"]


def test_vectors_that_contradict_the_similarity(tmp_path: Path) -> None:
    config = exported(tmp_path / "run", 3000, "dot")
    core = now(config)
    model_config = json.dumps(asdict(ModelConfig(dim=DIM, similarity="cosine"))).encode()
    publish(core.folder.parent, "v2", {"model_config.json": model_config}, {}, parent=core)
    with pytest.raises(DataError, match="similarity is cosine"):
        index_job.run(config)


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="towers export"):
        index_job.run(ServingConfig(run_dir=str(tmp_path)))


def test_a_damaged_bundle(tmp_path: Path) -> None:
    config = exported(tmp_path / "run", 300)
    path = tmp_path / "run" / "bundles" / "v1" / "item_vectors.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="differs from its checksum"):
        index_job.run(config)


def test_its_main_loads_neither_faiss_nor_torch() -> None:
    code = "import sys, serving.index_run; print(sorted({'faiss', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command(tmp_path: Path) -> None:
    exported(tmp_path / "run", 3000)

    def towers_index(*overrides: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "serving.index_run", f"run_dir={tmp_path / 'run'}", *overrides]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    done = towers_index("index=ivf", "index.k=20", "index.parts=[]")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"index: done -> {tmp_path / 'run' / 'index.json'}"
    refused = towers_index("index=ivf", "index.recall_floor=1", "index.k=500")
    assert refused.returncode == 4 and "index.recall_floor" in refused.stderr and "Traceback" not in refused.stderr
    wrong = towers_index("index.recal_floor=1")
    assert wrong.returncode == 2 and "recal_floor" in wrong.stderr
