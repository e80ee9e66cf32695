"""What each dial of the selector gives and costs: held-out queries from export, lists from recommend, the table from report."""

import json
import shutil
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving import recommend_job, sweep_job
from serving.config import ServingConfig, SweepDials
from serving.cutting import all_of, cut_table, tables_of_users
from serving.rights import Rights
from towers.bundle import Bundle, current
from towers.errors import ConfigError, DataError
from towers.held_out import HeldOut, write_held_out
from towers.identity import UserKeys
from training import reporting
from training.config import TrainingConfig
from training.interactions import Interactions
from training.queries import make_queries


@pytest.fixture(scope="module")
def swept(spine: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ServingConfig]:
    """A run whose export held queries out, and the settings of its sweep."""
    other = spine.copy(tmp_path_factory.mktemp("sweep"))
    done = other.again("export", "export.onnx=false", "export.held_out_queries=200")
    assert done.returncode == 0, done.stderr
    config = ServingConfig(run_dir=str(other.run_dir), sweep=True)
    config.serving.runtime, config.serving.key_file = "torch", str(other.key_file)
    config.sweeping.k, config.sweeping.dials = 30, SweepDials([-0.5], [], [0.2], [], [], [0.5])
    config.sweeping.together = [{"popularity": -0.5, "calibration": 0.2}]
    return other, config


def lists(run_dir: Path, policy: int) -> list[list[str]]:
    table = pq.read_table(run_dir / "sweep" / "lists.parquet").to_pylist()
    return [row["item_ids"] for row in table if row["policy"] == policy]


def test_the_held_out_queries_are_those_of_evaluate(swept: Any) -> None:
    run, _ = swept
    config, data = run.config("export"), Interactions.open(run.run_dir / "prepared")
    asked = make_queries(data, "test", config.evaluate.unit, config.split.name, 200, config.seed).masked()
    weights = Bundle.open(current(run.run_dir / "bundles")).manifest["files"]["weights.safetensors"]["sha256"]
    held = HeldOut.read(run.run_dir / "export" / "held_out.parquet", "test", weights)
    ids = np.array(data.catalog.column("item_id").to_pylist())
    assert [key.as_py() for key in held.user_keys] == [data.user_keys[user].tobytes() for user in asked.user_Q]
    assert held.relevant.flatten().to_pylist() == ids[asked.relevant[1]].tolist()
    assert held.now_Q.tolist() == asked.now_Q.tolist()
    for place in (0, len(held) // 2, len(held) - 1):
        seen = asked.seen_items(slice(place, place + 1))[1]
        assert held.seen[place].as_py() == ids[seen].tolist() and set(held.liked[place].as_py()) <= set(ids[seen])


def test_a_sweep_and_its_report(swept: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run, config = swept
    told = json.loads(Path(recommend_job.run(config)).read_text())
    assert [policy["policy"].get("dials", {}) for policy in told["policies"]] == [
        {}, {"popularity": -0.5}, {"calibration": 0.2}, {"temperature": 0.5}, {"popularity": -0.5, "calibration": 0.2},
    ]  # fmt: skip
    held = HeldOut.read(run.run_dir / "export" / "held_out.parquet", "valid", weights_of(run))
    plain = lists(run.run_dir, 0)
    assert len(plain) == told["queries"] == len(held)
    vectors_ID, ids = Bundle.open(told["bundle"]).item_vectors(), Bundle.open(told["bundle"]).catalog()["item_id"].to_pylist()
    scores_QI = held.vectors_QHD[:, 0] @ vectors_ID.T
    for place in (0, len(held) - 1):
        seen = set(held.seen[place].as_py())
        ranked = [ids[row] for row in np.argsort(-scores_QI[place], kind="stable") if ids[row] not in seen]
        assert plain[place] == ranked[:30]
    settings = TrainingConfig(run_dir=str(run.run_dir), sweep=True)
    document = json.loads(Path(reporting.run(settings)).read_text())
    assert capsys.readouterr().out.strip() == (run.run_dir / "sweep.md").read_text().strip()
    first, popularity, calibration, *_ = document["policies"]
    hits = [len(set(items[:20]) & set(answers)) / len(answers) for items, answers in zip(plain, held.relevant.to_pylist(), strict=True)]
    assert first["means"]["recall@20"]["value"] == pytest.approx(np.mean(hits))
    for one, name in product((first, popularity), ("coverage@20", "gini@20")):
        figure = one["whole"][name]
        assert 0 < figure["value"] <= 1 and figure["ci95"][0] <= figure["value"] <= figure["ci95"][1]
        assert figure["change"] == pytest.approx(figure["value"] / first["whole"][name]["value"] - 1)
    assert first["whole"]["gini@20"]["change_ci95"] == [0, 0]
    low, high = popularity["whole"]["gini@20"]["change_ci95"]
    assert low < high
    change = calibration["means"]["c_kl@20"]
    assert change["change_ci95"][0] <= change["change"] <= change["change_ci95"][1] < 0
    assert set(first["means"]) == {"recall@20", "recall@30", "ndcg@20", "c_kl@20", "ild@20", "ild_vectors@20"}


def test_the_waterfall_says_which_stage_loses_what(swept: Any) -> None:
    """Exact scores are an index here, nothing is hidden but what the catalogue hides, and no dial of the deployment is turned."""
    run, config = swept
    config.serving.selector.diversity = 0.5
    told = json.loads(Path(recommend_job.run(config)).read_text())
    config.serving.selector.diversity = 0.0
    document = json.loads(Path(reporting.run(TrainingConfig(run_dir=str(run.run_dir), sweep=True))).read_text())
    stages = {stage["stage"]: stage for stage in document["waterfall"]}
    assert list(stages) == told["stages"] == ["model", "index", "filters", "seen", "selector"]
    assert stages["index"]["change"] == {"value": 0.0, "ci95": [0.0, 0.0]}
    assert stages["seen"]["recall"]["value"] == pytest.approx(document["policies"][0]["means"]["recall@30"]["value"])
    low, _ = stages["seen"]["change"]["ci95"]
    assert low >= 0 and stages["seen"]["change"]["value"] > 0, "seen items took places that answers now have, and never the reverse"
    low, high = stages["selector"]["change"]["ci95"]
    assert low < high, "other lists than those in score order"
    held = HeldOut.read(run.run_dir / "export" / "held_out.parquet", "valid", weights_of(run))
    bundle = Bundle.open(told["bundle"])
    ids, scores_QI = bundle.catalog()["item_id"].to_pylist(), held.vectors_QHD[:, 0] @ bundle.item_vectors().T
    answers = held.relevant.to_pylist()
    best = [{ids[row] for row in np.argsort(-scores, kind="stable")[:30]} for scores in scores_QI]
    hits = [len(found & set(wanted)) / len(wanted) for found, wanted in zip(best, answers, strict=True)]
    assert stages["model"]["recall"]["value"] == pytest.approx(np.mean(hits))
    for query, (seen, wanted) in enumerate(zip(held.seen.to_pylist(), answers, strict=True)):
        unseen = [ids[row] for row in np.argsort(-scores_QI[query], kind="stable") if ids[row] not in set(seen)]
        hits[query] = len(set(unseen[:30]) & set(wanted)) / len(wanted)
    assert stages["seen"]["recall"]["value"] == pytest.approx(np.mean(hits))
    for before, after in zip(document["waterfall"], document["waterfall"][1:], strict=False):
        assert after["change"]["value"] == pytest.approx(after["recall"]["value"] - before["recall"]["value"])


def weights_of(run: Any) -> str:
    sha: str = Bundle.open(current(run.run_dir / "bundles")).manifest["files"]["weights.safetensors"]["sha256"]
    return sha


def test_a_refitted_model_is_not_swept_by_what_it_has_learned(swept: Any, tmp_path: Path) -> None:
    run, _ = swept
    run = run.copy(tmp_path)
    (run.run_dir / "train.json").write_text(json.dumps({"refit": {"epochs": 1, "targets": 1}}))
    done = run.again("export", "export.onnx=false", "export.held_out_queries=200")
    assert done.returncode == 0 and "learned from the validation rows" in done.stdout and "sweeping.split=test" in done.stdout
    config = ServingConfig(run_dir=str(run.run_dir), sweep=True)
    config.serving.runtime, config.serving.key_file = "torch", str(run.key_file)
    config.sweeping.dials = SweepDials([], [], [], [], [], [])
    with pytest.raises(ConfigError, match=r"sweeping\.split: .*'valid' \(trainer\.refit, .*sweeping\.split=test.*trainer\.refit=false"):
        recommend_job.run(config)
    config.sweeping.split = "test"
    swept_by_test = json.loads(Path(recommend_job.run(config)).read_text())
    assert swept_by_test["split"] == "test"
    settings = TrainingConfig(run_dir=str(run.run_dir), sweep=True)
    assert reporting.run(settings)
    (run.run_dir / "sweep.json").write_text(json.dumps({**swept_by_test, "split": "valid"}))
    with pytest.raises(ConfigError, match=r"sweeping\.split"):
        reporting.run(settings)


def test_who_is_forgotten_goes_out_of_the_sweep_too(swept: Any) -> None:
    run, config = swept
    told = json.loads(Path(recommend_job.run(config)).read_text())
    settings, folder = TrainingConfig(run_dir=str(run.run_dir), sweep=True), run.run_dir / "sweep"
    path = run.run_dir / "export" / "held_out.parquet"
    held, before = HeldOut.read(path, "valid", weights_of(run)), path.read_bytes()
    gone, keys = held.user_keys[0].as_py(), UserKeys(b"s" * 32)
    assert {folder / "lists.parquet", folder / "stages.parquet"} <= set(tables_of_users(run.run_dir))
    of_person = sum(key == gone for key in held.user_keys.to_pylist())
    assert cut_table(folder / "lists.parquet", all_of([gone]), keys) == of_person * len(told["policies"])
    with pytest.raises(DataError, match="of other queries"):
        reporting.run(settings)
    cut_table(folder / "stages.parquet", all_of([gone]), keys)
    cut_table(path, all_of([gone]), keys)
    document = json.loads(Path(reporting.run(settings)).read_text())
    assert document["queries"] == told["queries"] - of_person
    cut_table(path, all_of([held.user_keys[-1].as_py()]), keys)
    with pytest.raises(DataError, match="recommend sweep=true"):
        reporting.run(settings)
    path.write_bytes(before)


def test_nobody_is_swept_who_may_not_be_asked_about(swept: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither who is forgotten meanwhile, nor who came back with a backup, nor who withdrew since the export."""
    run_dir, key_file = shutil.copytree(swept[0].run_dir, tmp_path / "run"), str(swept[0].key_file)
    config = ServingConfig(run_dir=str(run_dir), sweep=True)
    config.serving.runtime, config.serving.key_file, config.serving.receipts = "torch", key_file, str(tmp_path / "receipts")
    config.sweeping.dials = SweepDials([], [], [0.2], [], [], [])
    path, keys = run_dir / "export" / "held_out.parquet", UserKeys.open(key_file)
    gone, withdrew = pq.read_table(path)["user_key"].unique().to_pylist()[:2]
    before, table, wishes = path.read_bytes(), sweep_job._table, []

    def slowly(*told: Any) -> pa.Table:
        if not wishes:
            with closing(Rights.open(config, keys)) as rights:
                wishes.append(rights.subjects.forget([gone]))
        return table(*told)

    monkeypatch.setattr(sweep_job, "_table", slowly)
    recommend_job.run(config)
    for name in ("lists", "stages"):
        found = set(pq.read_table(run_dir / "sweep" / f"{name}.parquet")["user_key"].to_pylist())
        assert gone not in found and withdrew in found
    left = path.read_bytes()
    path.write_bytes(before)
    with pytest.raises(DataError, match="queries of 1 people who were forgotten, .*towers export"):
        recommend_job.run(config)
    path.write_bytes(left)
    recommend_job.run(config)
    with closing(Rights.open(config, keys)) as rights:
        rights.standing.decide(withdrew, {"measure": False})
    with pytest.raises(DataError, match="do not allow personalize and measure any more"):
        recommend_job.run(config)


def test_what_cannot_be_swept_is_told(swept: Any, tmp_path: Path) -> None:
    run, config = swept
    for point, message in (
        ({"novelty": 1.0}, "novelty"),
        ({"calibration": 7.0}, "calibration: got 7, expected 0 to 1"),
        ({"reach": 1.0}, r"index\.reach"),
    ):
        wrong = ServingConfig(run_dir=config.run_dir, sweep=True)
        wrong.serving.runtime, wrong.serving.key_file, wrong.sweeping.together = "torch", config.serving.key_file, [point]
        with pytest.raises(ConfigError, match=message):
            recommend_job.run(wrong)
    held = HeldOut.read(run.run_dir / "export" / "held_out.parquet", "valid", weights_of(run))
    with pytest.raises(DataError, match=r"export\.held_out_queries"):
        HeldOut.read(tmp_path / "none", "valid", "sha")
    write_held_out(tmp_path / "held", {"valid": held}, "sha")
    assert HeldOut.read(tmp_path / "held", "valid", "sha").vectors_QHD.tolist() == held.vectors_QHD.tolist()
    for split, sha, told in (("test", "sha", "no queries of split 'test'"), ("valid", "other", "another model")):
        with pytest.raises(DataError, match=told):
            HeldOut.read(tmp_path / "held", split, sha)
    pq.write_table(pa.table({"split": ["valid"]}), tmp_path / "held")
    with pytest.raises(DataError, match="not a file of held-out queries"):
        HeldOut.read(tmp_path / "held", "valid", "sha")
    with pytest.raises(DataError, match="towers recommend sweep=true"):
        reporting.run(TrainingConfig(run_dir=str(tmp_path), sweep=True))
