"""From a log to recommendations over HTTP, through the public commands: what each job leaves in the run."""

import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.retriever import Retriever
from towers.bundle import Bundle, current
from towers.columns import CATALOG, MADE
from towers.identity import UserKeys
from towers.vocab import digest_of
from training.interactions import Interactions

RESULTS = {
    "prepare": "run/prepared",
    "train": "run/train.json",
    "evaluate": "run/metrics.json",
    "export": "run/export.json",
    "index": "run/index.json",
    "serve": "run/serve.json",
}
RUN_FACTS = {"experiment", "seed", "config_hash", "git_commit", "wall_s", "cpu_s", "peak_rss_mib"}
METRIC = re.compile(r"test(/[a-z_]+(=[^/]+)?)?/(recall|ndcg|hit_rate|mrr|map|coverage)@\d+")
NO_ONNX = "export.onnx=false"


@pytest.mark.parametrize("job", RESULTS)
def test_each_job_ends_well_and_its_last_line_names_its_result(spine: Any, job: str) -> None:
    done = spine.jobs[job]
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == f"{job}: done -> {RESULTS[job]}"
    assert (spine.cwd / RESULTS[job]).exists()
    assert "Traceback" not in done.stderr


def test_result_files_hold_what_machines_read(spine: Any) -> None:
    for name in ("prepare.json", "train.json", "metrics.json", "export.json"):
        run = spine.result(name)["run"]
        assert set(run) >= RUN_FACTS, name
        assert (run["experiment"], run["seed"]) == ("synthetic_fast", 0)
        assert run["wall_s"] > 0 and run["cpu_s"] > 0 and run["peak_rss_mib"] > 1
    assert len({spine.result(name)["run"]["config_hash"] for name in ("train.json", "metrics.json", "export.json")}) == 1
    train, index = spine.result("train.json"), spine.result("index.json")
    assert train["epochs"] == 1 and train["run"]["steps"] > 1
    assert index["recall"] >= index["recall_floor"] and Path(index["bundle"]).name.startswith(index["parent"])
    assert spine.result("serve.json")["state"] == "stopped"


def test_metrics_are_named_and_shaped_as_promised(spine: Any) -> None:
    document = spine.result("metrics.json")
    assert set(document["data"]) >= {"name", "users", "items", "rows", "split"}
    assert (document["data"]["users"], document["data"]["items"]) == (120, 100)
    beside = {"most_popular", "recent_popular", "markov", "item_knn", "ease", "oracle"}
    assert set(document["baselines"]) == beside == set(document["paired"])
    for figures in (document["metrics"], *document["baselines"].values()):
        assert {"test/recall@20", "test/ndcg@20", "test/coverage@10"} <= set(figures)
        for name, figure in figures.items():
            assert METRIC.fullmatch(name), name
            assert set(figure) == {"value", "ci95", "n"} and 0 <= figure["value"] <= 1 and figure["n"] > 0
            if "coverage" not in name:
                assert figure["ci95"][0] <= figure["value"] <= figure["ci95"][1]
    oracle, popular = (document["baselines"][name]["test/ndcg@20"]["value"] for name in ("oracle", "most_popular"))
    assert oracle > popular
    assert document["protocol"]


def test_the_settings_of_each_job_are_kept_resolved(spine: Any) -> None:
    kept = {path.stem: path.read_text() for path in (spine.run_dir / "config").iterdir()}
    assert set(kept) == set(RESULTS)
    assert not any("${" in text or "hydra:" in text for text in kept.values())
    config = spine.config("export")
    assert (config.data.synthetic.users, config.export.rows_per_shard, config.run_dir) == (120, 40, "run")


def test_exports_are_whole_sorted_and_of_fixed_size(spine: Any, data: Interactions, retriever: Retriever) -> None:
    items, users = spine.exported("items"), spine.exported("users")
    assert pq.read_table(spine.run_dir / "export" / "items").equals(items), "a folder of shards is one table for any reader"
    assert [len(spine.shards(what)) for what in ("items", "users")] == [3, 3]
    assert (len(items), len(users)) == (100, 120)
    assert items.column("item_id").to_pylist() == sorted(data.catalog.column("item_id").to_pylist(), key=str.encode)
    keys = users.column("user_key").to_pylist()
    assert keys == sorted(keys) == [key.tobytes() for key in data.user_keys]
    assert users.column_names == ["user_key", "embedding"]
    for table in (items, users):
        assert table.schema.field("embedding").type == pa.list_(pa.float32(), spine.result("export.json")["dim"])
        assert np.isfinite(table.column("embedding").combine_chunks().flatten()).all()
    np.testing.assert_array_equal(items.column("embedding").to_pylist(), retriever.bundle.item_vectors())


def test_an_export_is_deterministic(spine: Any, tmp_path: Path) -> None:
    other = spine.copy(tmp_path)
    shutil.rmtree(other.run_dir / "export")
    assert other.again("export", NO_ONNX).returncode == 0
    first, second = (
        {path.relative_to(run.run_dir): path.read_bytes() for path in (run.run_dir / "export").rglob("*") if path.is_file()}
        for run in (spine, other)
    )
    assert len(first) == 3 + 3 + 2 + 2, "shards, their markers, histories and queries"
    ours, theirs = (pq.read_table(pa.BufferReader(found.pop(Path("export/histories.parquet")))) for found in (first, second))
    made = [int(table.schema.metadata[MADE]) for table in (ours, theirs)]
    assert ours == theirs and made[0] < made[1], "the same but for the time at which it was made"
    assert first == second


def test_histories_name_items_by_their_rows_in_the_bundles_catalogue_too(spine: Any) -> None:
    histories = pq.read_table(spine.run_dir / "export" / "histories.parquet")
    ids = pq.read_table(current(spine.run_dir / "bundles") / "catalog.parquet", columns=["item_id"]).column(0).combine_chunks()
    assert histories.schema.metadata[CATALOG] == digest_of(ids)
    known = ids.to_pylist()
    named = [[known[row] for row in rows] for rows in histories.column("item_rows").to_pylist()]
    assert named == histories.column("item_ids").to_pylist() and any(named)


def test_an_export_continues_where_it_stopped(spine: Any, tmp_path: Path) -> None:
    other = spine.copy(tmp_path)
    shutil.copytree(spine.run_dir / "bundles", other.run_dir / "bundles")
    everything = other.shards("items") + other.shards("users")
    lost = other.shards("users")[1]
    content, before = lost.read_bytes(), {path: path.stat().st_mtime_ns for path in everything}
    lost.unlink()
    done = other.again("export", NO_ONNX)
    assert done.returncode == 0
    assert {path for path in everything if path.stat().st_mtime_ns != before[path]} == {lost}
    assert lost.read_bytes() == content
    in_use = current(spine.run_dir / "bundles").name
    assert current(other.run_dir / "bundles").name == in_use and other.result("export.json")["waits_for_index"] is True
    assert f"it waits for `towers index`, {in_use} stays in use until then" in done.stdout


@pytest.mark.long
def test_raw_ids_are_exported_where_both_jobs_are_told_to(spine: Any, tmp_path: Path) -> None:
    other = spine.copy(tmp_path)
    refused = other.again("export", NO_ONNX, "export.raw_user_ids=true")
    assert refused.returncode == 2 and "identity.keep_raw_ids=true" in refused.stderr
    assert found_raw_ids(other.run_dir, spine.user_ids()) == {}
    assert other.again("prepare", "identity.keep_raw_ids=true").returncode == 0
    assert other.again("export", NO_ONNX, "export.raw_user_ids=true").returncode == 0
    raw, keys = other.exported("users"), UserKeys.open(str(spine.key_file))
    assert [keys.key(user) for user in raw.column("user_id").to_pylist()] == raw.column("user_key").to_pylist()
    assert raw.column("embedding").equals(spine.exported("users").column("embedding"))
    told = {"prepared/raw_user_ids.parquet", *(f"export/users/part-{n:05d}.parquet" for n in range(3))}
    assert set(found_raw_ids(other.run_dir, spine.user_ids())) == told


def test_no_raw_user_id_is_left_anywhere(spine: Any) -> None:
    ids = spine.user_ids()
    assert len(ids) == 120 and all(re.fullmatch(r"u\d{4}", user) for user in ids)
    assert found_raw_ids(spine.run_dir, ids) == {}
    said = "".join(done.stdout + done.stderr for done in spine.jobs.values())
    assert not any(user in said for user in ids)


def test_the_scan_finds_an_id_in_a_compressed_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [f"u{n:04d} " * 50 for n in range(200)]}), tmp_path / "x.parquet", compression="zstd")
    assert found_raw_ids(tmp_path, ["u0150"]) == {"x.parquet": b"u0150"}


def found_raw_ids(folder: Path, ids: list[str]) -> dict[str, bytes]:
    """Files that hold a raw user id, with the first one; Parquet files are read uncompressed too."""
    wanted = re.compile(b"|".join(user.encode() for user in ids))
    found = {}
    for path in (path for path in folder.rglob("*") if path.is_file()):
        match = wanted.search(path.read_bytes()) or (path.suffix == ".parquet" and wanted.search(uncompressed(path)))
        if match:
            found[path.relative_to(folder).as_posix()] = match[0]
    return found


def uncompressed(path: Path) -> bytes:
    sink, table = io.BytesIO(), pq.read_table(path)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def test_both_bundles_open_and_hold_nobody(spine: Any, retriever: Retriever) -> None:
    parent = Bundle.open(spine.cwd / spine.result("export.json")["bundle"])
    manifest = retriever.bundle.manifest
    assert manifest["parent"] == parent.version
    assert manifest["metrics"]["test/ndcg@20"] == spine.result("metrics.json")["metrics"]["test/ndcg@20"]["value"]
    assert manifest["phrases"]["view"] == "you watched {}", "what export declared is there after the index was built"
    assert retriever.bundle.has("index.json") and not parent.has("index.json")
    for path in (path for path in (spine.run_dir / "bundles").rglob("*") if path.is_file()):
        content = uncompressed(path) if path.suffix == ".parquet" else path.read_bytes()
        assert not any(key.tobytes() in content for key in user_keys(spine)), f"{path} holds a user key"


def user_keys(spine: Any) -> np.ndarray:
    return np.load(spine.run_dir / "prepared" / "user_keys.npy")
