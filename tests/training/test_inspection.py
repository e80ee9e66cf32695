"""What TensorBoard shows of a model, read back from the files of a real run; gauges' and walks' own rules."""

import csv
import doctest
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from towers.batch import take
from towers.columns import TRAIN
from towers.model import TwoTower
from towers.model_config import HistoryConfig, ModelConfig
from towers.runtime import TorchRuntime, load_model
from training import drawing, gauges, inspection
from training.config import InspectConfig, OptimConfig, TrainerConfig, TrainingConfig
from training.data_config import SplitConfig
from training.fit import run
from training.inspection import HEADER, Inspector
from training.interactions import write_prepared
from training.pseudo_users import pseudo_histories

GAUGES = ("effective_rank", "norm_spread", "uniformity", "hubness", "never_near")


def config_of(run_dir: Path, **inspect: int) -> TrainingConfig:
    return TrainingConfig(
        run_dir=str(run_dir),
        split=SplitConfig(name="leave_one_out"),
        model=ModelConfig(dim=8, history=HistoryConfig(length=6)),
        trainer=TrainerConfig(epochs=12, patience=0, batch_size=64, device="cpu", log_every=2),
        optim=OptimConfig(lr=0.03),
        inspect=InspectConfig(**inspect),
    )


@pytest.fixture(scope="module")
def trained(make_toy, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EventAccumulator]:
    run_dir = tmp_path_factory.mktemp("run")
    write_prepared(run_dir / "prepared", make_toy())
    run(config_of(run_dir, users=30))
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return run_dir, events


def test_examples_of_the_gauges() -> None:
    assert doctest.testmod(gauges).failed == doctest.testmod(drawing).failed == 0


def test_a_collapsed_and_an_even_cloud_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    even, line = rng.normal(size=(300, 16)), rng.normal(size=(300, 1)) * np.ones((1, 16)) + 0.01 * rng.normal(size=(300, 16))
    good, bad = gauges.gauges_of(even), gauges.gauges_of(line)
    assert good["effective_rank"] > 14 and bad["effective_rank"] < 2
    assert good["uniformity"] < -3 < bad["uniformity"]
    hub = np.concatenate([even, 0.01 * even[:1]]) + 4.0  # all directions near one: what lies in the middle is near to everything
    assert gauges.gauges_of(hub)["hubness"] > good["hubness"]


def test_gauges_are_those_of_the_items_after_each_epoch(trained, make_toy) -> None:
    run_dir, events = trained
    steps = [event.step for event in events.Scalars("valid/ndcg@20")]
    assert len(steps) == 12
    for name in GAUGES:
        assert [event.step for event in events.Scalars(f"items/{name}")] == steps
    data = make_toy()
    model = load_model(run_dir / "model", data.preprocessor, torch.device("cpu"))
    trained_items = np.flatnonzero(data.train_counts())
    vectors = TorchRuntime(model, torch.device("cpu")).item(take(data.item_features, trained_items))
    expected = gauges.gauges_of(vectors)
    best = json.loads((run_dir / "train.json").read_text())["best_epoch"]
    for name in GAUGES:
        assert events.Scalars(f"items/{name}")[best - 1].value == pytest.approx(expected[name], rel=1e-4, abs=1e-4)


def test_the_projector_has_a_line_and_a_vector_for_each_item_and_user(trained, make_toy) -> None:
    run_dir, _ = trained
    data = make_toy()
    folder = next((run_dir / "tensorboard").glob("*/vectors"))
    with (folder / "metadata.tsv").open(newline="") as file:
        head, *labels = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    vectors = np.loadtxt(folder / "tensors.tsv", delimiter="\t")
    assert tuple(head) == HEADER and len(labels) == len(vectors) == data.n_items + 30
    assert all(len(label) == len(HEADER) for label in labels)
    runtime = TorchRuntime(load_model(run_dir / "model", data.preprocessor, torch.device("cpu")), torch.device("cpu"))
    np.testing.assert_allclose(vectors[: data.n_items], runtime.item(data.item_features), atol=1e-4)
    counts = data.train_counts()
    for row, (kind, title, category, count) in enumerate(labels[: data.n_items]):
        assert (kind, title, category) == ("item", data.catalog["title"][row].as_py(), data.catalog["categories"][row].as_py()[0])
        assert int(count) == counts[row]
    assert {label[0] for label in labels[data.n_items :]} == {"invented user"}
    config = next((run_dir / "tensorboard").glob("projector_config.pbtxt")).read_text()
    assert str(folder.relative_to(run_dir / "tensorboard")) in config


def test_users_stand_near_what_they_chose(trained, make_toy) -> None:
    """Groups of items follow one another in the toy world, so an invented user's group is that of the items nearest to them."""
    run_dir, _ = trained
    data = make_toy()
    model = load_model(run_dir / "model", data.preprocessor, torch.device("cpu"))
    inspector = Inspector(model, data, config_of(run_dir))
    users = inspector._users([[0, 1, 2], [20, 21, 22]])[:, 0]
    items = TorchRuntime(model, torch.device("cpu")).item(data.item_features)
    near = np.argsort(-(users @ items.T), axis=1)[:, :5]
    assert (near[0] < 9).mean() >= 0.6 and ((near[1] >= 18) & (near[1] < 27)).mean() >= 0.6


def test_lists_pictures_and_settings(trained) -> None:
    run_dir, events = trained
    lists = events.Tensors("recommendations/text_summary")[0].tensor_proto.string_val[0].decode()
    rows = [line.split("|")[1:3] for line in lists.splitlines() if line.startswith("| item-")]
    assert len(rows) == inspection.LIST_USERS
    for history, recommended in rows:
        assert not set(history.strip().split("; ")) & set(recommended.strip().split("; ")), "nothing that was seen"
    for tag in ("model/recall_by_popularity", "model/score_by_popularity"):
        image = events.Images(tag)[0]
        assert (image.width, image.height) == (720, 400) and image.encoded_image_string.startswith(b"\x89PNG")
    best = json.loads((run_dir / "train.json").read_text())["valid"]
    assert events.Scalars("result/ndcg@20")[0].value == pytest.approx(best["valid/ndcg@20"])
    plugins = events.summary_metadata
    assert "_hparams_/session_start_info" in plugins and b"optim.lr" in plugins["_hparams_/session_start_info"].plugin_data.content


def test_it_can_be_turned_off_and_changes_nothing(trained, make_toy, tmp_path: Path) -> None:
    run_dir, _ = trained
    write_prepared(tmp_path / "prepared", make_toy())
    run(config_of(tmp_path, every=0))
    assert not list((tmp_path / "tensorboard").glob("*/vectors"))
    weights = [(folder / "model/weights.safetensors").read_bytes() for folder in (run_dir, tmp_path)]
    assert weights[0] == weights[1]


def test_real_users_only_where_asked(make_toy, tmp_path: Path) -> None:
    data = make_toy()
    torch.manual_seed(0)
    model = TwoTower(ModelConfig(dim=8, history=HistoryConfig(length=6)), data.preprocessor.inputs, data.preprocessor.event_rows)
    labels = Inspector(model, data, config_of(tmp_path, users=5, real_users=3)).look().labels
    assert [label[0] for label in labels].count("real user") == 3
    assert [label[0] for label in labels].count("invented user") == 5


def test_the_projector_is_bounded(make_toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "PROJECTOR_NUMBERS", 8 * 24)
    data = make_toy()
    model = TwoTower(ModelConfig(dim=8, history=HistoryConfig(length=6)), data.preprocessor.inputs, data.preprocessor.event_rows)
    look = Inspector(model, data, config_of(tmp_path)).look()
    assert len(look.vectors) == len(look.labels) == 24
    items = [label[1] for label in look.labels if label[0] == "item"]
    best_known = np.argsort(-data.train_counts(), kind="stable")[:9]
    assert len(items) == 18 and {data.catalog["title"][int(i)].as_py() for i in best_known} <= set(items)


def test_walks_follow_what_goes_together_and_are_no_ones(make_toy) -> None:
    data = make_toy(users=120)
    histories = pseudo_histories(data, 200, 8, seed=3)
    assert histories == pseudo_histories(data, 200, 8, seed=3) != pseudo_histories(data, 200, 8, seed=4)
    assert {len(history) for history in histories} == set(range(1, 9))
    target = (data.split == TRAIN) & (data.weight > 0)
    chosen = [set(data.item[a:b][target[a:b]].tolist()) for a, b in pairwise(data.offsets)]
    for history in histories:
        assert len(set(history)) == len(history)
        assert all(sum(item in items for items in chosen) > 1 for item in history), "no item of one user alone"
        for before, after in pairwise(history):
            if len(history) == 2:
                assert any({before, after} <= items for items in chosen)
    long = [set(history) for history in histories if len(history) == 8]
    assert np.mean([any(history <= items for items in chosen) for history in long]) < 0.2
    alone = replace(data, split=np.full(len(data), 2, np.uint8))
    assert pseudo_histories(alone, 5, 8, seed=0) == [], "nothing was trained on"
