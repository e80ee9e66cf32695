"""The torch runtime and a model's files: round trip, and a clear refusal of whatever does not belong together."""

import dataclasses
import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from towers.encoder import Encoder, UserRow
from towers.errors import BundleError
from towers.fitting import PreprocessorFit
from towers.model import TwoTower
from towers.model_config import HeadConfig, HistoryConfig, InputSpec, ModelConfig, SpectralConfig
from towers.runtime import TorchRuntime, load_model, save_model, to_tensors
from towers.schema import Feature, make_schema


@dataclass
class Fake:
    inputs: tuple[InputSpec, ...] = (
        InputSpec("item.item_id", "id", 20, 0, "item_id"),
        InputSpec("item.tags", "multi_categorical", 6, 2, "tags"),
    )
    event_rows: int = 5


def build(name="mean", head="linear"):
    torch.manual_seed(0)
    config = ModelConfig(dim=8, history=HistoryConfig(name=name, length=4), user_head=HeadConfig(head))
    return TwoTower(config, Fake().inputs, Fake().event_rows)


def history(rows=3):
    rng = np.random.default_rng(0)
    return {
        "history.item": rng.integers(1, 20, (rows, 4)).astype(np.int32),
        "history.event": rng.integers(3, 5, (rows, 4)).astype(np.int32),
        "history.age": rng.integers(1, 32, (rows, 4)).astype(np.int32),
        "history.gap": rng.integers(1, 32, (rows, 4)).astype(np.int32),
    }


def catalogue():
    return {"item.item_id": np.arange(3, 20, dtype=np.int32), "item.tags": np.tile(np.array([3, 0], np.int32), (17, 1))}


@pytest.mark.parametrize("name", ["mean", "transformer"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_saved_and_loaded_towers_give_the_same_vectors_to_the_bit(tmp_path, name, head):
    model = build(name, head)
    save_model(model, tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["model_config.json", "weights.safetensors"]
    loaded = load_model(tmp_path / "model", Fake())
    assert not loaded.training and loaded.config == model.config
    before, after = TorchRuntime(model), TorchRuntime(loaded)
    assert np.array_equal(before.user(history()).vectors_BHD, after.user(history()).vectors_BHD)
    assert np.array_equal(before.item(catalogue()), after.item(catalogue()))


def test_results_are_plain_float32_arrays_and_repeat_exactly_in_training_mode():
    model = build("transformer").train()
    runtime = TorchRuntime(model)
    one, two = runtime.user(history()), runtime.user(history())
    assert one.vectors_BHD.dtype == np.float32 and one.vectors_BHD.shape == (3, 1, 8)
    assert np.array_equal(one.vectors_BHD, two.vectors_BHD), "dropout must be off"
    assert model.training, "the trainer's mode must come back"
    assert runtime.item(catalogue()).shape == (17, 8)


def test_history_weights_are_given_only_where_they_are_exact_shares():
    assert TorchRuntime(build("mean")).user(history()).history_weights_BL.sum(1) == pytest.approx(np.ones(3))
    assert TorchRuntime(build("mean", "mlp")).user(history()).history_weights_BL is None
    assert TorchRuntime(build("transformer")).user(history()).history_weights_BL is None


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("spectral", [0, 5])
def test_a_linear_towers_vectors_are_the_sums_of_their_parts(similarity, spectral):
    torch.manual_seed(0)
    config = ModelConfig(dim=8, similarity=similarity, history=HistoryConfig(length=4), spectral=SpectralConfig(spectral, 0.3))
    model = TwoTower(config, Fake().inputs, Fake().event_rows)
    for name in model.spectral_tables:
        model.tables[name].weight.data[1:].normal_()
    batch = history()
    batch["history.item"][0], batch["history.item"][1, :2] = 0, 0
    found = TorchRuntime(model).user(batch, parts=True)
    assert found.vectors_BHD.shape[2] == 8 + spectral and found.parts.names == ("no_history",)
    np.testing.assert_allclose(found.parts.parts_BSD.sum(1), found.vectors_BHD[:, 0], atol=1e-6)
    assert not found.parts.parts_BSD[0, :-1].any() and found.parts.parts_BSD[0, -1, :8].all() and not found.parts.parts_BSD[1:, -1].any()
    assert TorchRuntime(build("mean", "mlp")).user(history(), parts=True).parts is None


def test_read_only_arrays_are_taken(tmp_path):
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    np.save(tmp_path / "a.npy", array)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    got = to_tensors({"mapped": mapped, "strided": array[:, ::2]})
    assert got["mapped"].tolist() == array.tolist() and got["strided"].tolist() == array[:, ::2].tolist()


def damage(folder, how):
    config, weights = folder / "model_config.json", folder / "weights.safetensors"
    raw, state = json.loads(config.read_text()), load_file(weights)
    if how == "no weights":
        weights.unlink()
    elif how == "no config":
        config.unlink()
    elif how == "half the weights":
        weights.write_bytes(weights.read_bytes()[:200])
    elif how == "a pickle":
        torch.save({k: v.clone() for k, v in state.items()}, weights)
    elif how == "broken json":
        config.write_text(config.read_text()[:20])
    elif how == "a list":
        config.write_text("[]")
    elif how == "unknown key":
        config.write_text(json.dumps({**raw, "depth": 3}))
    elif how == "lost key":
        config.write_text(json.dumps({k: v for k, v in raw.items() if k != "history"}))
    elif how == "unknown encoder":
        config.write_text(json.dumps({**raw, "history": {**raw["history"], "name": "os.system"}}))
    elif how == "a text for a number":
        config.write_text(json.dumps({**raw, "dim": "wide"}))
    elif how == "another shape":
        config.write_text(json.dumps({**raw, "dim": 16}))
    elif how == "lost weight":
        save_file({k: v for k, v in state.items() if k != "history.no_history_D"}, weights)
    elif how == "extra weight":
        save_file({**state, "extra": torch.zeros(1)}, weights)
    else:
        raise AssertionError(how)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no weights", r"weights\.safetensors cannot be read"),
        ("no config", r"model_config\.json cannot be read"),
        ("half the weights", r"weights\.safetensors cannot be read"),
        ("a pickle", r"weights\.safetensors cannot be read"),
        ("broken json", r"model_config\.json cannot be read"),
        ("a list", r"model_config\.json: got list, expected an object"),
        ("unknown key", r"does not fit this version.*depth"),
        ("lost key", r"does not fit this version.*history"),
        ("unknown encoder", r"model\.history\.name: got 'os\.system', expected one of mean, transformer"),
        ("a text for a number", r"model_config\.json does not fit"),
        ("another shape", r"has shape \(\d+(, \d+)?\) instead of"),
        ("lost weight", r"history\.no_history_D is missing"),
        ("extra weight", r"extra is unknown"),
    ],
)
def test_damage_is_refused_and_named(tmp_path, how, message):
    save_model(build(), tmp_path)
    damage(tmp_path, how)
    with pytest.raises(BundleError, match=message):
        load_model(tmp_path, Fake())


def test_another_datasets_preprocessing_is_refused(tmp_path):
    save_model(build(), tmp_path)
    fewer = dataclasses.replace(Fake(), inputs=(InputSpec("item.item_id", "id", 19, 0, "item_id"), Fake().inputs[1]))
    with pytest.raises(BundleError, match=r"tables\.(item_id|history_item)\.weight has shape \(20, 8\) instead of \(19, 8\)"):
        load_model(tmp_path, fewer)
    with pytest.raises(BundleError, match=r"no input item\.item_id"):
        load_model(tmp_path, dataclasses.replace(Fake(), inputs=Fake().inputs[1:]))


def test_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    save_model(build(), tmp_path)
    before = (tmp_path / "weights.safetensors").read_bytes()

    def full(*_):
        (tmp_path / "weights.safetensors.tmp").write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("towers.runtime.save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_model(build("transformer"), tmp_path)
    assert (tmp_path / "weights.safetensors").read_bytes() == before


def test_raw_rows_go_through_real_preprocessing():
    """Every kind of feature, missing and unknown values among them, gives finite unit vectors."""
    schema = make_schema(
        [
            Feature("categories", "multi_categorical", "item"),
            Feature("description", "text", "item", buckets=64),
            Feature("price", "numeric", "item"),
            Feature("image", "dense", "item", width=3),
            Feature("likes", "preferences", "user", like="categories"),
            Feature("favourites", "preferences", "user", like="item_id"),
            Feature("city", "id", "user"),
            Feature("hour", "time", "context", column="timestamp"),
            Feature("device", "categorical", "context"),
        ],
        "time",
        {},
    )
    fit = PreprocessorFit(schema)
    fit.see("item", {"item_id": ["a", "b", "c"], "categories": [["x"], ["y", "z"], []], "price": [1.0, 2.0, None]})
    fit.see("user", {"city": ["Bern", "Rome"]})
    fit.see("context", {"device": ["phone", "tv"]})
    fit.see_events(["click", "abandon"])
    preprocessor = fit.finish()
    torch.manual_seed(0)
    for name in ("mean", "transformer"):
        model = TwoTower(ModelConfig(dim=8, history=HistoryConfig(name=name, length=4)), preprocessor.inputs, preprocessor.event_rows)
        encoder = Encoder(preprocessor, TorchRuntime(model), 4)
        rows = [
            UserRow(),
            UserRow(history_items=["a", "new"], history_events=["click", "odd"], history_timestamps=[1, 2], now=3),
            UserRow(history_items=["b"] * 9, context={"device": "tv"}, features={"likes": ["x"], "favourites": ["c"], "city": "Bern"}),
        ]
        vectors = encoder.users(rows).vectors_BHD[:, 0]
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        one_by_one = np.concatenate([encoder.users([row]).vectors_BHD[:, 0] for row in rows])
        assert np.allclose(vectors, one_by_one, atol=1e-6)
        columns = {"item_id": ["a", "new"], "categories": [["x", "y"], None], "description": ["two words", ""], "price": [None, 3.0]}
        item = encoder.items(columns, 2)
        assert np.allclose(np.linalg.norm(item, axis=1), 1, atol=1e-5)
