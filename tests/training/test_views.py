"""The same queries with less: inputs blanked by owner, histories cut, other runs beside; as evaluation reports them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from towers.columns import MISSING_ROW
from towers.errors import ConfigError, DataError
from towers.model import TwoTower
from towers.model_config import HistoryConfig, ModelConfig
from towers.runtime import TorchRuntime, save_model
from training import metrics, ranking
from training.asking import Asking
from training.config import EvaluateConfig, TrainerConfig, TrainingConfig, validate
from training.data_config import DataConfig, SplitConfig
from training.interactions import Interactions, write_prepared
from training.queries import make_queries, recommendable
from training.rank_queries import encode_users
from training.ranking import make_forms
from training.views import make_views


def run(folder: Path, data: Interactions, seed: int = 0, **evaluate: Any) -> dict[str, Any]:
    """Evaluate an untrained model of the data in `folder`."""
    write_prepared(folder / "prepared", data)
    torch.manual_seed(seed)
    model = TwoTower(ModelConfig(dim=8, history=HistoryConfig(length=6)), data.preprocessor.inputs, data.preprocessor.event_rows)
    save_model(model, folder / "model")
    settings = EvaluateConfig(**{"ks": [5], "draws": 50, "baselines": ["most_popular"], **evaluate})
    config = TrainingConfig(
        run_dir=str(folder), data=DataConfig(name="table"), split=SplitConfig(name="leave_one_out"), evaluate=settings,
        trainer=TrainerConfig(device="cpu"),
    )  # fmt: skip
    return json.loads(Path(ranking.run(config)).read_text())


def views(data: Interactions, **settings: Any) -> Any:
    return make_views(EvaluateConfig(**settings), data.schema)


def test_hidden_inputs_are_what_a_request_without_them_gives(make_toy) -> None:
    data = make_toy()
    inputs = make_queries(data, "test", "event", "leave_one_out").inputs(slice(0, 5), 4)
    [context, history, both] = views(data, without=["context", "history", "context.hour+history"])
    assert (context.apply(inputs, data.preprocessor)["context.hour"] == MISSING_ROW).all()
    assert np.array_equal(context.apply(inputs, data.preprocessor)["history.item"], inputs["history.item"])
    assert not history.apply(inputs, data.preprocessor)["history.item"].any()
    assert np.array_equal(history.apply(inputs, data.preprocessor)["context.hour"], inputs["context.hour"])
    seen = both.apply(inputs, data.preprocessor)
    assert not seen["history.event"].any() and not seen["history.age"].any() and (seen["context.hour"] == MISSING_ROW).all()
    assert inputs["history.item"].any() and (inputs["context.hour"] != MISSING_ROW).any()  # the queries' own stay as they are


@pytest.mark.parametrize("shown", [0, 1, 3, 6, 50])
def test_a_cut_history_equals_that_of_a_user_who_had_no_more(make_toy, shown: int) -> None:
    data = make_toy()
    queries = make_queries(data, "test", "event", "leave_one_out")
    [view] = views(data, history_curve=[shown])
    torch.manual_seed(0)
    model = TwoTower(ModelConfig(dim=8, history=HistoryConfig(length=6)), data.preprocessor.inputs, data.preprocessor.event_rows)
    runtime = TorchRuntime(model)
    got = encode_users(runtime, queries, 6, view=view)
    shorter = replace(queries.history, start_Q=np.maximum(queries.history.start_Q, queries.history.end_Q - shown))
    np.testing.assert_allclose(got, encode_users(runtime, replace(queries, history=shorter), 6), atol=1e-6)


def test_all_points_of_the_curve_answer_the_same_queries(make_toy, tmp_path: Path) -> None:
    data = make_toy()
    document = run(tmp_path, data, history_curve=[0, 2, 9], without=["context"])
    found, whole = document["metrics"], document["metrics"]["test/ndcg@5"]
    enough = int((make_queries(data, "test", "event", "leave_one_out").unseen().history_Q >= 9).sum())
    assert 0 < enough < whole["n"]
    assert {found[f"test/shown={n}/ndcg@5"]["n"] for n in (0, 2, 9)} == {enough}
    assert found["test/without=context/ndcg@5"]["n"] == whole["n"]
    # a list that is the same for everybody is the same however much of a history is shown
    popular = document["baselines"]["most_popular"]
    assert popular["test/shown=0/ndcg@5"] == popular["test/shown=9/ndcg@5"]
    difference = document["paired"]["most_popular"]["test/shown=0/ndcg@5"]["difference"]
    assert difference == pytest.approx(found["test/shown=0/ndcg@5"]["value"] - popular["test/shown=0/ndcg@5"]["value"])
    assert any("newest n events" in line for line in document["protocol"])


def test_a_curve_that_no_history_is_long_enough_for_is_told(make_toy, tmp_path: Path) -> None:
    longest = int(make_queries(make_toy(), "test", "event", "leave_one_out").history_Q.max())
    said = run(tmp_path, make_toy(), history_curve=[0, longest])["warnings"]
    assert not any("history_curve" in line for line in said)
    document = run(tmp_path, make_toy(), history_curve=[0, longest + 1])
    assert any(f"no query has {longest + 1} events" in line and f"longest history has {longest}" in line for line in document["warnings"])
    assert "test/shown=0/ndcg@5" not in document["metrics"]


def test_another_run_beside_is_paired_by_query(make_toy, tmp_path: Path) -> None:
    data = make_toy()
    for name, seed in (("one", 0), ("two", 1)):
        (tmp_path / name).mkdir()
        alone = run(tmp_path / name, data, seed, without=["context"])
    both = run(tmp_path / "one", data, 0, without=["context"], against=[str(tmp_path / "two")])
    assert both["baselines"]["run:two"] == alone["metrics"]
    for metric in ("test/ndcg@5", "test/without=context/recall@5", "test/history=6-10/ndcg@5", "test/cold/exposure@5"):
        apart = both["metrics"][metric]["value"] - alone["metrics"][metric]["value"]
        assert both["paired"]["run:two"][metric]["difference"] == pytest.approx(apart)
    itself = run(tmp_path / "two", data, 1, against=[str(tmp_path / "two")])
    assert {d["difference"] for d in itself["paired"]["run:two"].values()} == {0}


def test_a_run_of_other_events_is_refused(make_toy, tmp_path: Path) -> None:
    data = make_toy()
    run(tmp_path / "other", make_toy(seed=1))
    with pytest.raises(DataError, match="prepared from other events"):
        run(tmp_path / "one", data, against=[str(tmp_path / "other")])
    with pytest.raises(DataError, match="holds no trained model"):
        run(tmp_path / "one", data, against=[str(tmp_path)])


def test_what_cannot_be_hidden_is_refused(make_toy) -> None:
    with pytest.raises(ConfigError, match=r"'weather' is nothing that can be hidden; expected history.*context\.hour"):
        views(make_toy(), without=["weather"])
    with pytest.raises(ConfigError, match="evaluate.history_curve"):
        validate(TrainingConfig(run_dir="x", evaluate=EvaluateConfig(history_curve=[-1])))


def test_warm_and_cold_divide_the_queries_and_exposure_counts_slots(make_toy, tmp_path: Path) -> None:
    data = make_toy()
    found = run(tmp_path, data)["metrics"]
    assert found["test/cold/recall@5"]["n"] + found["test/warm/recall@5"]["n"] == found["test/recall@5"]["n"]
    assert found["test/warm_alone/recall@5"]["n"] == found["test/warm/recall@5"]["n"]
    rows_Qk = np.random.default_rng(0).integers(-1, 10, (30, 5))
    group_I = np.arange(10) < 3
    slots = [[row >= 0 and group_I[row] for row in ranks[:4]] for ranks in rows_Qk]
    expected = [sum(ranks) / 4 / (3 / 10) for ranks in slots]
    np.testing.assert_allclose(metrics.exposure(rows_Qk, group_I, 10, 4), expected)


def test_warm_alone_ranks_among_items_of_training(make_toy) -> None:
    data = make_toy()
    cold_I = data.train_counts() == 0
    [form] = make_forms(make_queries(data, "test", "event", "leave_one_out"), "unmasked")
    asking = Asking(form, [1], recommendable(data), [], slices=True)
    wanted_Q = form.queries.relevant[1]

    def new_before_the_right_one(queries: slice, out_BI: torch.Tensor) -> None:
        out_BI[:] = torch.from_numpy(2.0 * cold_I)
        out_BI[torch.arange(len(out_BI)), torch.from_numpy(wanted_Q[queries].astype(np.int64))] = 1

    found = asking.lists(new_before_the_right_one, "", parts=True).columns
    warm_Q = ~cold_I[wanted_Q]
    assert 0 < warm_Q.sum() < len(warm_Q)
    assert not found["test/warm/recall@1"][warm_Q].any() and (found["test/warm_alone/recall@1"][warm_Q] == 1).all()
    assert np.isnan(found["test/warm_alone/recall@1"][~warm_Q]).all()
