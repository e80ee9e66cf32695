"""A model that starts from another: rows follow their ids, everything else as it was, and what does not fit is refused by name."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from towers.bundle import publish
from towers.columns import FIRST_ROW, ITEM_ID, OOV_ROW
from towers.errors import ConfigError
from towers.fitting import PreprocessorFit
from towers.model import TwoTower
from towers.model_config import HistoryConfig, ModelConfig
from towers.runtime import TorchRuntime, save_model
from towers.schema import Feature, make_schema
from training.config import TrainerConfig, TrainingConfig
from training.fit import run
from training.interactions import write_prepared
from training.warm_start import warm_start

POOLED = ModelConfig(dim=8, history=HistoryConfig(length=6))
SECOND_ROWS = replace(POOLED, history=HistoryConfig(length=6, share_item_table=True, use_repeats=True, associations=True))
SEQUENCE = ModelConfig(dim=8, id_dropout=0.0, history=HistoryConfig("transformer", length=6, share_item_table=True, layers=1))
FEATURES = (Feature("brand", "categorical", "item"), Feature("words", "text", "item", buckets=16), Feature("price", "numeric", "item"))


def fitted(items, brands, events=("view",), features=FEATURES, order="time"):
    fit = PreprocessorFit(make_schema(features, order, {}))
    columns = {"item_id": items, "brand": [brands[i % len(brands)] for i in range(len(items))]}
    columns |= {"words": [f"w{i}" for i in range(len(items))], "price": [float(i) for i in range(len(items))]}
    fit.see("item", {f.name: columns[f.name] for f in fit.schema.features})
    fit.see_events(list(events))
    return fit.finish()


def build(preprocessor, config, seed=0):
    torch.manual_seed(seed)
    return TwoTower(config, preprocessor.inputs, preprocessor.event_rows)


def trained(folder, preprocessor, config):
    """A run as train leaves it."""
    model = build(preprocessor, config)
    save_model(model, folder / "model")
    preprocessor.save(folder / "prepared")
    return model


OLD = fitted(["a", "b", "c", "e"], ["x", "z"], ("click", "view"))
NEW = fitted(["a", "aa", "c", "d", "e"], ["w", "x", "z"], ("click", "finish", "view"))


@pytest.mark.parametrize("config", [POOLED, SECOND_ROWS, SEQUENCE], ids=["pooled", "second rows", "transformer"])
def test_rows_follow_their_ids(tmp_path, config):
    old = trained(tmp_path, OLD, config)
    new = build(NEW, config, seed=1)
    carried = warm_start(new, NEW, str(tmp_path))
    assert carried.rows[ITEM_ID] == (3, 2, 1) and carried.rows["brand"] == (2, 1, 0) and carried.rows["event_type"] == (2, 1, 0)
    assert "item_id 3 rows carried over, 2 new, 1 left behind" in str(carried)
    mine, theirs = new.state_dict(), old.state_dict()
    tables = {ITEM_ID: ITEM_ID, "history_item": ITEM_ID, "association_item": ITEM_ID, "brand": "brand"}
    for name, tensor in mine.items():
        table = name.split(".")[1] if "tables." in name else ""
        if table not in tables:
            if "event" not in name and "price" not in name:
                assert torch.equal(tensor, theirs[name]), name
            continue
        new_words, old_words = NEW.vocabularies[tables[table]], OLD.vocabularies[tables[table]]
        assert torch.equal(tensor[:FIRST_ROW], theirs[name][:FIRST_ROW])
        for word in new_words.values().to_pylist():
            here, there = new_words.rows([word])[0], old_words.rows([word])[0]
            taught = config.id_dropout > 0 and table == ITEM_ID
            start = theirs[name][OOV_ROW] if taught else theirs[name][FIRST_ROW:].mean(0)
            assert torch.allclose(tensor[here], start if there == OOV_ROW else theirs[name][there]), (name, word)


def test_event_types_are_aligned_and_new_ones_start_from_the_mean(tmp_path):
    old = build(OLD, POOLED)
    old.history.event_log_weight.data = torch.arange(5.0)
    save_model(old, tmp_path / "model")
    OLD.save(tmp_path / "prepared")
    new = build(NEW, POOLED)
    warm_start(new, NEW, str(tmp_path / "model"))
    assert new.history.event_log_weight.tolist() == [0, 1, 2, 3, 3.5, 4]  # click, finish, view


def test_signs_follow_their_types_and_negative_ones_are_known_from_the_new_data(tmp_path):
    config = ModelConfig(dim=4, history=HistoryConfig(signed_events=True, negative_push=1.0))
    old = build(OLD, config)
    old.history.event_push.data = torch.arange(5.0)
    save_model(old, tmp_path / "model")
    OLD.save(tmp_path / "prepared")
    new = build(NEW, config)
    new.history.mark_negative(np.array([4]))
    warm_start(new, NEW, str(tmp_path))
    assert new.history.event_push.tolist() == [0, 1, 2, 3, 3.5, 4]  # click, finish, view
    assert new.history.negative_events.tolist() == [0, 0, 0, 0, 1, 0]


def test_a_second_event_type_is_no_obstacle(tmp_path):
    trained(tmp_path, fitted(["a", "b"], ["x"]), POOLED)
    new = build(NEW, POOLED)
    warm_start(new, NEW, str(tmp_path))
    assert torch.equal(new.history.event_log_weight, torch.zeros(6))


def test_on_the_same_data_the_vectors_are_the_same(tmp_path):
    old = trained(tmp_path, OLD, POOLED)
    new = build(OLD, POOLED, seed=3)
    warm_start(new, OLD, str(tmp_path))
    items = OLD.encode("item", {"item_id": ["a", "e"], "brand": ["z", "x"], "words": ["w1", "w2"], "price": [1.0, 2.0]}, 2)
    np.testing.assert_array_equal(TorchRuntime(new).item(items), TorchRuntime(old).item(items))


def test_a_bundle_and_its_folder_will_do(tmp_path):
    trained(tmp_path, OLD, POOLED)
    files = {p.relative_to(tmp_path / "prepared").as_posix(): p for p in (tmp_path / "prepared").rglob("*") if p.is_file()}
    files |= {p.name: p for p in (tmp_path / "model").iterdir()}
    bundle = publish(tmp_path / "bundles", "v1", files, {"name": "toy"}, None)
    for path in (bundle, tmp_path / "bundles"):
        assert warm_start(build(NEW, POOLED), NEW, str(path)).rows[ITEM_ID] == (3, 2, 1)
    (bundle / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="init_from.*weights.safetensors"):
        warm_start(build(NEW, POOLED), NEW, str(bundle))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dim": 16}, "model.dim is 8 there, 16 here"),
        ({"similarity": "dot"}, "model.similarity is 'cosine' there, 'dot' here"),
        ({"history": HistoryConfig(length=6, share_item_table=True)}, "model.history.share_item_table is False there, True here"),
        ({"history": replace(POOLED.history, associations=True)}, "model.history.associations is False there, True here"),
        ({"history": SEQUENCE.history}, "model.history.name is 'mean' there, 'transformer' here"),
    ],
)
def test_another_shape_is_refused(tmp_path, change, says):
    trained(tmp_path, OLD, POOLED)
    with pytest.raises(ConfigError, match=says):
        warm_start(build(NEW, replace(POOLED, **change)), NEW, str(tmp_path))


def test_rows_of_declared_preferences_follow_the_words_that_they_are_of(tmp_path):
    features = (*FEATURES, Feature("likes", "preferences", "user", like="brand"))
    old, new = _with_schema(features, "time", ("x", "z")), _with_schema(features, "time", ("w", "x", "z"))
    config = replace(POOLED, own_preferences=True)
    theirs = trained(tmp_path, old, config).small_tables["user_likes"].weight
    model = build(new, config, seed=1)
    warm_start(model, new, str(tmp_path))
    mine = model.small_tables["user_likes"].weight
    x, z = FIRST_ROW, FIRST_ROW + 1  # of the old words; w comes before them in the new ones
    assert torch.equal(mine[[x + 1, z + 1]], theirs[[x, z]]) and torch.allclose(mine[x], theirs[[x, z]].mean(0))


def test_settings_without_weights_may_differ(tmp_path):
    trained(tmp_path, OLD, POOLED)
    config = replace(POOLED, temperature=0.2, id_dropout=0.0, history=HistoryConfig(length=9, token_dropout=0.1))
    warm_start(build(NEW, config), NEW, str(tmp_path))


@pytest.mark.parametrize(
    ("features", "order", "says"),
    [
        (FEATURES[1:], "time", "feature item.brand is not declared here"),
        ((*FEATURES, Feature("hour", "categorical", "context")), "time", "feature context.hour is not in it"),
        (
            (FEATURES[0], Feature("words", "text", "item", buckets=32), FEATURES[2]),
            "time",
            "feature item.words has buckets 16 there, 32 here",
        ),
        (FEATURES, "position", "data.order is 'time' there, 'position' here"),
    ],
)
def test_another_schema_is_refused(tmp_path, features, order, says):
    trained(tmp_path, OLD, POOLED)
    other = _with_schema(features, order)
    with pytest.raises(ConfigError, match=says):
        warm_start(build(other, POOLED), other, str(tmp_path))


def _with_schema(features, order, brands=("x",)):
    fit = PreprocessorFit(make_schema(features, order, {}))
    for brand in brands:
        item = {"item_id": ["a"], "brand": [brand], "words": ["w"], "price": [1.0]}
        fit.see("item", {f.name: item[f.name] for f in fit.schema.owned_by("item")})
    fit.see("context", {f.name: ["noon"] for f in fit.schema.owned_by("context")})
    fit.see_events(["view"])
    return fit.finish()


@pytest.mark.parametrize("make", [lambda folder: None, lambda folder: (folder / "model").mkdir()])
def test_nothing_to_start_from_is_said(tmp_path, make):
    make(tmp_path)
    with pytest.raises(ConfigError, match=r"trainer\.init_from: .* holds no trained model\. Give a bundle"):
        warm_start(build(NEW, POOLED), NEW, str(tmp_path))


def test_a_run_whose_data_was_prepared_anew_is_refused(tmp_path, make_toy):
    """Its vocabularies number other ids: every row would go to another item."""
    day = {name: replace(make_toy(), facts={"data": {"made": name}}) for name in ("one", "two")}
    config = TrainingConfig(run_dir=str(tmp_path / "old"), model=POOLED, trainer=TrainerConfig(epochs=1, threads=1, device="cpu"))
    write_prepared(tmp_path / "old" / "prepared", day["one"])
    run(config)
    write_prepared(tmp_path / "new" / "prepared", day["two"])
    refreshed = replace(config, run_dir=str(tmp_path / "new"), trainer=replace(config.trainer, init_from=str(tmp_path / "old")))
    run(refreshed)
    write_prepared(tmp_path / "old" / "prepared", day["two"])
    for run_dir in (tmp_path / "new", tmp_path / "old"):
        for start in (tmp_path / "old", tmp_path / "old" / "model"):
            again = replace(config, run_dir=str(run_dir), trainer=replace(config.trainer, init_from=str(start), resume=False))
            with pytest.raises(ConfigError, match=r"trainer\.init_from: .*old/model was trained on other data than .*old/prep"):
                run(again)


def test_a_length_left_open_is_the_old_one_though_histories_have_grown(tmp_path, make_toy, capsys):
    model = replace(SEQUENCE, history=replace(SEQUENCE.history, length=0))
    config = TrainingConfig(run_dir=str(tmp_path / "old"), model=model, trainer=TrainerConfig(epochs=1, threads=1, device="cpu"))
    write_prepared(tmp_path / "old" / "prepared", make_toy(events=(6, 20)))
    run(config)
    assert "as in" not in capsys.readouterr().out
    write_prepared(tmp_path / "new" / "prepared", make_toy(events=(6, 40)))
    new = replace(config, run_dir=str(tmp_path / "new"), trainer=replace(config.trainer, init_from=str(tmp_path / "old")))
    run(new)
    out = capsys.readouterr().out
    assert f"histories of 20 events, as in {tmp_path / 'old'}" in out and "rows carried over" in out
    assert json.loads((tmp_path / "new" / "model" / "model_config.json").read_text())["history"]["length"] == 20
    told = replace(new, model=replace(model, history=replace(model.history, length=30)), trainer=replace(new.trainer, resume=False))
    with pytest.raises(ConfigError, match=r"model\.history\.length is 20 there, 30 here"):
        run(told)


def test_the_job_starts_from_a_run_and_says_so(tmp_path, make_toy, capsys):
    config = TrainingConfig(run_dir=str(tmp_path / "old"), model=POOLED, trainer=TrainerConfig(epochs=2, threads=1, device="cpu"))
    write_prepared(tmp_path / "old" / "prepared", make_toy(items=37))
    run(config)
    write_prepared(tmp_path / "new" / "prepared", make_toy(items=41))
    capsys.readouterr()
    refreshed = replace(
        config, run_dir=str(tmp_path / "new"), trainer=replace(config.trainer, init_from=str(tmp_path / "old"), max_steps=1, epochs=1)
    )
    run(refreshed)
    assert "item_id 36 rows carried over, 4 new, 0 left behind" in capsys.readouterr().out
    run(refreshed)
    assert "carried over" not in capsys.readouterr().out, "what was trained since must not be overwritten on resume"
