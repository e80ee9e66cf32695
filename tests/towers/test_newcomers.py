"""Declared preferences with rows of their own: they speak while a history is empty, by the order in which they were told."""

import numpy as np
import pytest
import torch

from towers.columns import OOV_ROW
from towers.lookups import gather
from towers.model import ExportCore, TwoTower
from towers.model_config import HistoryConfig, InputSpec, ModelConfig
from towers.runtime import TorchRuntime
from training.onnx_export import TOLERANCE, export_towers

ITEMS, DIM, LENGTH = 12, 6, 4
INPUTS = (
    InputSpec("item.item_id", "id", ITEMS, 0, "item_id"),
    InputSpec("item.genres", "multi_categorical", 9, 3, "genres"),
    InputSpec("user.likes", "preferences", 9, 3, "genres"),
    InputSpec("user.liked_items", "preferences", ITEMS, 2, "item_id"),
)


def build(name="mean", **settings):
    torch.manual_seed(0)
    config = ModelConfig(dim=DIM, history=HistoryConfig(name=name, length=LENGTH, dropout=0.0), own_preferences=True, **settings)
    model = TwoTower(config, INPUTS, 3).eval()
    for log_weights in model.user_features.place_log_weights.values():
        log_weights.data.normal_()
    return model


def users(lengths=(0, 1, 4), **likes):
    mask = np.arange(LENGTH) >= LENGTH - np.array(lengths)[:, None]
    item = np.random.default_rng(1).integers(3, ITEMS, mask.shape) * mask
    told = {"user.likes": [[3, 5, 0]] * len(lengths), "user.liked_items": [[7, 4]] * len(lengths), **likes}
    history = {"history.item": item, "history.event": 3 * mask, "history.age": mask, "history.gap": mask}
    return {key: np.array(value, np.int32) for key, value in (history | told).items()}


def tensors(batch):
    return {key: torch.from_numpy(value) for key, value in batch.items()}


def test_a_newcomer_is_the_weighted_mean_of_what_was_told():
    model = build(similarity="dot")
    vector = model.user(tensors(users())).vectors_BHD[0, 0]
    expected = model.history.no_history_D
    rows = {"user.likes": (model.small_tables["user_likes"], [3, 5]), "user.liked_items": (model.tables["user_liked_items"], [7, 4])}
    for name, (table, told) in rows.items():
        weights = model.user_features.place_log_weights[name.replace(".", ":")][: len(told)].exp()
        expected = expected + (weights / weights.sum()) @ table.weight[told]
    assert torch.allclose(vector, expected, atol=1e-6)


def test_untrained_places_count_alike():
    model = build()
    model.user_features.place_log_weights["user:likes"].data.zero_()
    one, other = (model.user(tensors(users((0,), **{"user.likes": [told]}))).vectors_BHD for told in ([3, 5, 0], [5, 3, 0]))
    assert torch.allclose(one, other, atol=1e-6)


def test_with_a_history_they_say_nothing():
    model, told = build(), users()
    other = model.user(tensors(users(**{"user.likes": [[6, 0, 0]] * 3}))).vectors_BHD
    same = (model.user(tensors(told)).vectors_BHD == other).all(-1)[:, 0]
    assert same.tolist() == [False, True, True]


def test_nothing_told_adds_nothing():
    model = build(similarity="dot")
    empty = {"user.likes": [[0, 0, 0]], "user.liked_items": [[0, 0]]}
    assert torch.equal(model.user(tensors(users((0,), **empty))).vectors_BHD[0, 0], model.history.no_history_D)


def test_items_keep_rows_that_newcomers_do_not_train():
    model = build()
    model.user(tensors(users())).vectors_BHD.sum().backward()
    assert model.small_tables["genres"].weight.grad is None and model.tables["item_id"].weight.grad is None
    assert model.small_tables["user_likes"].weight.grad[[3, 5]].any(1).all()


def test_all_positions_equal_each_prefix_alone():
    model, batch = build("transformer"), users()
    everywhere = model.user_sequence(tensors(batch))
    for t in range(LENGTH):
        prefix = {k: np.pad(v[:, : t + 1], ((0, 0), (LENGTH - 1 - t, 0))) if k.startswith("history.") else v for k, v in batch.items()}
        assert torch.allclose(everywhere[:, t], model.user(tensors(prefix)).vectors_BHD[:, 0], atol=1e-5), t


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_vectors_are_the_sums_of_their_parts(similarity):
    found = TorchRuntime(build(similarity=similarity)).user(users(), parts=True)
    assert found.parts.names == ("no_history", "user.likes", "user.liked_items")
    np.testing.assert_allclose(found.parts.parts_BSD.sum(1), found.vectors_BHD[:, 0], atol=1e-6)
    assert found.parts.parts_BSD[0, -3:].all() and not found.parts.parts_BSD[1:, -3:].any()


def test_a_large_table_is_gathered_outside_the_core():
    model, batch = build(), users()
    assert {name: table.num_embeddings for name, table in model.tables.items()}["user_liked_items"] == ITEMS
    arrays = gather(batch, model.plan.user, model.table_arrays())
    core = ExportCore(model, "user")
    vectors_BHD = core(*(torch.from_numpy(arrays[entry.name]) for entry in core.inputs))[0]
    assert torch.allclose(vectors_BHD, model.user(tensors(batch)).vectors_BHD, atol=1e-6)


def test_the_graph_says_what_torch_says(tmp_path):
    items = {"item.item_id": np.arange(3, ITEMS, dtype=np.int32), "item.genres": np.full((ITEMS - 3, 3), 4, np.int32)}
    told = users()
    told["history.item"][1] *= 0
    told["history.item"][1, -1] = OOV_ROW  # its row is zero, and so is then the vector: it has no length to be divided by
    assert export_towers(build(), told, items, tmp_path) <= TOLERANCE


def test_training_meets_some_who_told_nothing():
    model = build(context_dropout=0.5).train()
    likes = model.lookup_user(tensors(users((0,) * 400)))["user.likes"]
    hidden = (likes == torch.tensor([2, 0, 0])).all(1)
    assert 120 < hidden.sum() < 280 and (likes[~hidden] == torch.tensor([3, 5, 0])).all()
    assert (model.eval().lookup_user(tensors(users()))["user.likes"] == torch.tensor([3, 5, 0])).all()
