"""The evaluate job on a toy world: the result file, masks, comparison, warnings, and validation as the trainer calls it."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from towers.columns import TEST, TRAIN
from towers.errors import ConfigError, DataError
from towers.model import TwoTower
from towers.model_config import HistoryConfig, ModelConfig
from towers.runtime import save_model
from training import exporting, ranking, trained_with
from training.config import EvaluateConfig, TrainerConfig, TrainingConfig
from training.data_config import DataConfig, SplitConfig
from training.facts import deciding_settings
from training.interactions import Interactions, write_prepared
from training.metrics import PER_QUERY
from training.protocol import LOUD, below, loud_block
from training.slices import deciles
from training.trained_with import SETTINGS
from training.validation import Validator, monitored

Evaluated = Callable[..., dict[str, Any]]


def small_model(data: Interactions, seed: int = 0) -> TwoTower:
    torch.manual_seed(seed)
    return TwoTower(ModelConfig(dim=8, history=HistoryConfig(length=6)), data.preprocessor.inputs, data.preprocessor.event_rows)


def config_of(run_dir: Path, split_name: str = "leave_one_out", **evaluate: Any) -> TrainingConfig:
    settings = EvaluateConfig(**{"ks": [5, 10], "draws": 50, **evaluate})
    return TrainingConfig(
        run_dir=str(run_dir),
        data=DataConfig(name="table"),
        split=SplitConfig(name=split_name),
        evaluate=settings,
        trainer=TrainerConfig(device="cpu"),
    )


@pytest.fixture
def evaluated(tmp_path: Path) -> Evaluated:
    def run(data: Interactions, **settings: Any) -> dict[str, Any]:
        write_prepared(tmp_path / "prepared", data)
        save_model(small_model(data), tmp_path / "model")
        path = ranking.run(config_of(tmp_path, **settings))
        assert path == str(tmp_path / "metrics.json")
        return json.loads(Path(path).read_text())

    return run


def test_the_result_file(make_toy, evaluated: Evaluated, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_toy()
    document = evaluated(data)
    assert list(document) == ["run", "data", "queries", "metrics", "baselines", "paired", "protocol", "warnings"]
    assert {"experiment", "seed", "config_hash", "git_commit", "wall_s", "cpu_s", "peak_rss_mib"} <= document["run"].keys()
    assert document["data"]["split_rows"]["test"] == data.n_users
    whole = {f"test/{m}@{k}" for m in (*PER_QUERY, "coverage") for k in (5, 10)}
    assert whole <= document["metrics"].keys()
    for figures in (document["metrics"], *document["baselines"].values()):
        for name, figure in figures.items():
            assert set(figure) == {"value", "ci95", "n"}
            if "coverage" in name:
                assert figure["ci95"] is None
            elif "exposure" not in name:  # a ratio of shares may pass 1
                assert 0 <= figure["ci95"][0] <= figure["value"] <= figure["ci95"][1] <= 1
    assert set(document["baselines"]) == set(document["paired"]) == {"most_popular", "recent_popular", "markov", "item_knn", "ease"}
    for name, differences in document["paired"].items():
        for metric, difference in differences.items():
            apart = document["metrics"][metric]["value"] - document["baselines"][name][metric]["value"]
            assert difference["difference"] == pytest.approx(apart)
            assert set(difference) == {"difference", "ci95", "n"}
    text = capsys.readouterr().out
    lead = document["paired"]["markov"]["test/ndcg@10"]["difference"]
    assert f"model - markov           {lead:+.4f}" in text
    assert "ndcg@10" in text and "markov" in text and "no sampled negatives" in text and "leave_one_out" in text


def test_a_model_below_a_baseline_is_said_loudly(make_toy, evaluated, capsys) -> None:
    document = evaluated(make_toy())  # untrained, where the next item follows from the last
    assert any(w.startswith(f"{LOUD} markov") for w in document["warnings"])
    rule, header, *lines, end = capsys.readouterr().err.strip().splitlines()
    names = [name for w in document["warnings"] if w.startswith(LOUD) for name in [w.removeprefix(LOUD).split()[0]]]
    assert rule == end == "!" * 100 and header == f"WARNING: {LOUD} {len(names)} of 5 baselines"
    assert [line.split()[0] for line in lines] == names and len(names) > 1, "a line each"
    markov = lines[names.index("markov")]
    metric, ours, theirs = re.fullmatch(r"  markov +(\S+) (\S+) < (\S+) and \d+ more\. Serving .*", markov).groups()  # type: ignore[union-attr]
    assert ours == f"{document['metrics'][metric]['value']:.4f}" and theirs == f"{document['baselines']['markov'][metric]['value']:.4f}"
    gaps = [d["difference"] for m, d in document["paired"]["markov"].items() if re.match("test/(recall|ndcg)@", m)]
    assert document["paired"]["markov"][metric]["difference"] == min(gaps), "the furthest below"


def test_a_model_that_reaches_every_baseline_is_not_warned_of() -> None:
    lead = {"test/ndcg@5": {"difference": 0.1, "ci95": [0.05, 0.2]}}
    behind = {"test/ndcg@5": {"difference": -0.7, "ci95": [-1, -0.5]}}
    assert loud_block({"paired": {"markov": lead, "oracle": behind}}) == []


def test_below_tells_certain_from_uncertain() -> None:
    def document(difference: float, high: float) -> dict[str, Any]:
        name = "test/ndcg@5"
        return {
            "metrics": {name: {"value": 0.2}},
            "baselines": {"markov": {name: {"value": 0.2 - difference}}, "oracle": {name: {"value": 0.9}}},
            "paired": {
                "markov": {name: {"difference": difference, "ci95": [-1, high]}},
                "oracle": {name: {"difference": -0.7, "ci95": [-1, -0.5]}},
            },
        }

    assert below(document(0.1, 0.2)) == []
    assert "0.2000 < 0.3000" in below(document(-0.1, -0.05))[0]
    assert "include zero" in below(document(-0.1, 0.05))[0]


def test_a_slice_without_an_interval_is_below_all_the_same() -> None:
    """One draw may hold nobody of a slice."""
    names = {"test/ndcg@5": [-1, 0.05], "test/cold/ndcg@5": None}
    document = {
        "metrics": {name: {"value": 0.2} for name in names},
        "baselines": {"markov": {name: {"value": 0.3} for name in names}},
        "paired": {"markov": {name: {"difference": -0.1, "ci95": ci95} for name, ci95 in names.items()}},
    }
    assert "include zero" in below(document)[0] and "test/cold/ndcg@5 0.2000 < 0.3000" in below(document)[0]
    document["paired"]["markov"].pop("test/ndcg@5")
    assert "have no intervals" in below(document)[0] and "raise evaluate.draws" in loud_block(document)[2]


def test_masked_and_unmasked_side_by_side(make_toy, evaluated: Evaluated) -> None:
    data = make_toy(events=(12, 30))  # longer than a group of items: people come back to them
    document = evaluated(data, seen="both", slices=False)
    assert {n.rsplit("/", 1)[0] for n in document["metrics"]} == {"test/masked", "test/unmasked"}
    n_masked, n_unmasked = (document["metrics"][f"test/{form}/recall@5"]["n"] for form in ("masked", "unmasked"))
    assert n_masked < n_unmasked == data.n_users
    assert any(f"{n_unmasked - n_masked} queries are left out" in w for w in document["warnings"])
    alone = evaluated(data, seen="masked", slices=False)
    assert alone["metrics"]["test/recall@5"] == document["metrics"]["test/masked/recall@5"]


def test_slices_divide_the_queries(make_toy, evaluated: Evaluated) -> None:
    document = evaluated(make_toy())
    metrics, whole = document["metrics"], document["metrics"]["test/recall@5"]
    for kind in ("history=", "popularity="):
        parts = [f for n, f in metrics.items() if n.startswith(f"test/{kind}") and n.endswith("recall@5")]
        parts += [metrics["test/cold/recall@5"]] if kind == "popularity=" else []
        assert len(parts) > 1 and sum(p["n"] for p in parts) == whole["n"]
        assert sum(p["n"] * p["value"] for p in parts) == pytest.approx(whole["n"] * whole["value"])
    assert not any("history=" in n for n in evaluated(make_toy(), slices=False)["metrics"])


def test_deciles_are_equally_large() -> None:
    counts = np.concatenate([[0, 0], np.random.default_rng(0).integers(1, 4, 100)])
    found = deciles(counts)
    assert np.bincount(found).tolist() == [2] + [10] * 10
    assert counts[found == 10].min() >= counts[found == 1].max()


def test_all_answers_unseen_in_training(make_toy, evaluated: Evaluated) -> None:
    data = make_toy()
    held = data.split == TEST
    item = np.where(held, data.n_items - 1, data.item).astype(np.int32)
    document = evaluated(replace(data, item=item))
    assert any("NONE of the relevant items occurs in training" in w for w in document["warnings"])
    assert document["metrics"]["test/cold/recall@5"]["value"] == document["metrics"]["test/recall@5"]["value"]


def test_one_user(make_toy, evaluated: Evaluated) -> None:
    document = evaluated(make_toy(users=1), baselines=["most_popular"])
    figure = document["metrics"]["test/recall@10"]
    assert figure["n"] == 1 and figure["ci95"] == [figure["value"]] * 2
    assert any("only 1 user with" in w for w in document["warnings"])


def test_cut_offs_beyond_the_catalogue_are_cut_and_said(make_toy, evaluated: Evaluated) -> None:
    document = evaluated(make_toy(), ks=[5, 1000], baselines=["random"])
    assert "test/recall@40" in document["metrics"] and "test/recall@1000" not in document["metrics"]
    assert any("were cut to 40" in w for w in document["warnings"])


def test_errors_say_what_to_do(make_toy, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="towers prepare"):
        ranking.run(config_of(tmp_path))
    data = make_toy()
    write_prepared(tmp_path / "prepared", data)
    with pytest.raises(DataError, match="towers train"):
        ranking.run(config_of(tmp_path))
    save_model(small_model(data), tmp_path / "model")
    with pytest.raises(ConfigError, match="oracle needs a simulated world"):
        ranking.run(config_of(tmp_path, baselines=["oracle"]))
    write_prepared(tmp_path / "prepared", replace(data, split=np.full(len(data), TRAIN, np.uint8)))
    with pytest.raises(DataError, match="no event that counts as an answer"):
        ranking.run(config_of(tmp_path))


def test_everything_seen_before_is_a_clear_error(make_toy, tmp_path: Path) -> None:
    data = make_toy()
    repeated = replace(data, item=np.zeros_like(data.item))
    write_prepared(tmp_path / "prepared", repeated)
    save_model(small_model(data), tmp_path / "model")
    with pytest.raises(DataError, match=r"evaluate\.seen=unmasked"):
        ranking.run(config_of(tmp_path))
    with pytest.raises(DataError, match=r"split 'valid'.*evaluate\.seen=unmasked"):
        Validator(repeated, config_of(tmp_path))  # before any training, not after the first epoch


@pytest.mark.parametrize("seen", ["masked", "unmasked"])
def test_validation_equals_the_job_on_the_same_split(make_toy, evaluated: Evaluated, tmp_path: Path, seen: str) -> None:
    data = make_toy()
    document = evaluated(data, split="valid", seen=seen, baselines=[], slices=False)
    model = small_model(data).train()
    config = config_of(tmp_path, seen=seen)
    found = Validator(data, config)(model)
    assert model.training, "the model is left as it was"
    assert {f"valid/{m}@{k}" for m in PER_QUERY for k in (5, 10, 20)} == set(found), "the monitor's cut-off is always there"
    for name, figure in document["metrics"].items():
        if "coverage" not in name:
            assert found[name] == pytest.approx(figure["value"])


def test_the_monitor_may_name_the_form(make_toy, tmp_path: Path) -> None:
    data = make_toy(events=(12, 30))
    config = config_of(tmp_path, seen="both")
    config.trainer.monitor = "valid/unmasked/recall@5"
    plain = Validator(data, config_of(tmp_path, seen="unmasked"))(small_model(data))
    found = Validator(data, config)(small_model(data))
    assert found["valid/unmasked/recall@5"] == plain["valid/recall@5"]
    assert plain["valid/recall@5"] != Validator(data, config_of(tmp_path, seen="masked"))(small_model(data))["valid/recall@5"]


def test_the_monitor_must_be_a_metric() -> None:
    assert monitored("valid/recall@50") == ("", 50) and monitored("valid/unmasked/map@5") == ("unmasked", 5)
    for bad in ("valid/seen/ndcg@20", "ndcg@20", "valid/ndgc@20", "valid/ndcg", "test/ndcg@20", "valid/ndcg@0"):
        with pytest.raises(ConfigError, match=r"trainer\.monitor"):
            monitored(bad)


@pytest.mark.parametrize("job", [ranking.run, exporting.run])
@pytest.mark.parametrize(("typed", "told"), [("model.dim=16", "model.dim: got 16, .* with 8"), ("optim.lr=0.5", "optim.lr: got 0.5")])
def test_what_was_trained_is_not_for_later_jobs_to_set(make_toy, tmp_path, monkeypatch, job, typed: str, told: str) -> None:
    write_prepared(tmp_path / "prepared", make_toy())
    save_model(small_model(make_toy()), tmp_path / "model")
    trained = config_of(tmp_path)
    trained.model.dim = 8
    (tmp_path / "train.json").write_text(json.dumps({SETTINGS: deciding_settings(trained)}))
    asked = replace(trained, model=replace(trained.model, dim=16), optim=replace(trained.optim, lr=0.5))
    monkeypatch.setattr(trained_with, "overrides", lambda: [typed, "evaluate.ks=[5]"])
    with pytest.raises(ConfigError, match=told):
        job(asked)


def test_what_is_typed_as_it_was_trained_or_only_composed_is_taken(make_toy, tmp_path, monkeypatch) -> None:
    data = make_toy()
    write_prepared(tmp_path / "prepared", data)
    save_model(small_model(data), tmp_path / "model")
    trained = config_of(tmp_path)
    trained.model.dim = 8
    (tmp_path / "train.json").write_text(json.dumps({SETTINGS: deciding_settings(trained)}))
    monkeypatch.setattr(trained_with, "overrides", lambda: ["model.dim=8", "model=pooled", "trainer.threads=2"])
    assert ranking.run(replace(trained, optim=replace(trained.optim, lr=0.5)))
