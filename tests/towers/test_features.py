"""Feature vectors against loops; bags the same with and without the export path; initial scale."""

import numpy as np
import pytest
import torch

from towers.bags import bag_mean, rows_mean
from towers.features import FEATURE_SCALE, FeatureSum, embedding, small_tables
from towers.model_config import InputSpec

DIM = 6
SPECS = (
    InputSpec("user.country", "categorical", 7, 0, "country"),
    InputSpec("user.likes", "preferences", 9, 3, "genre"),
    InputSpec("user.age", "numeric", 0, 2, "user.age"),
    InputSpec("user.taste", "dense", 0, 4, "user.taste"),
    InputSpec("context.at", "time", 34, 2, "context.at"),
    InputSpec("user.club", "id", 11, 0, "club"),
    InputSpec("user.friends", "preferences", 11, 2, "club"),
)


def build(specs=SPECS, large=("club",), seed=0):
    torch.manual_seed(seed)
    return FeatureSum(specs, large, DIM), small_tables(specs, large, DIM)


def batch():
    club = torch.randn(11, DIM)
    friends = torch.tensor([[4, 0], [5, 6]])
    return {
        "user.country": torch.tensor([3, 2], dtype=torch.int32),
        "user.likes": torch.tensor([[3, 4, 0], [2, 0, 0]], dtype=torch.int32),
        "user.age": torch.tensor([[0.5, 0.0], [0.0, 1.0]]),
        "user.taste": torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]]),
        "context.at": torch.tensor([[3, 27], [2, 2]], dtype=torch.int32),
        "user.club.rows": club[[3, 4]],
        "user.friends.rows": club[friends],
        "user.friends.mask": (friends > 0).float(),
    }


def test_the_sum_equals_a_loop_over_features():
    features, tables = build()
    values = batch()
    got = features(values, tables)
    weights = {name.replace(":", "."): table.weight for name, table in tables.items()}
    maps = {name.replace(":", "."): layer for name, layer in features.projections.items()}
    for row in range(2):
        expected = weights["country"][values["user.country"][row]]
        likes = [int(v) for v in values["user.likes"][row] if v > 0]
        expected = expected + sum(weights["genre"][v] for v in likes) / len(likes)
        age, taste = maps["user.age"], maps["user.taste"]
        expected = expected + age.weight @ values["user.age"][row] + age.bias + taste.weight @ values["user.taste"][row]
        expected = expected + weights["context.at"][values["context.at"][row].long()].mean(0) + values["user.club.rows"][row]
        friends = values["user.friends.rows"][row][values["user.friends.mask"][row] > 0]
        expected = expected + friends.mean(0)
        assert torch.allclose(got[row], expected, atol=1e-6)


def test_dense_has_no_bias_and_large_tables_stay_outside():
    features, tables = build()
    assert features.projections["user:taste"].bias is None
    assert set(tables) == {"country", "genre", "context:at"}


def test_positions_broadcast_user_features_over_context_positions():
    features, tables = build()
    one = batch()
    sequence = {k: (v.unsqueeze(1).repeat(1, 5, 1) if k == "context.at" else v) for k, v in one.items()}
    sequence["context.at"][:, 2] = torch.tensor([4, 28])
    got = features(sequence, tables, positions=True)
    assert got.shape == (2, 5, DIM)
    for t in range(5):
        alone = features({**one, "context.at": sequence["context.at"][:, t]}, tables)
        assert torch.allclose(got[:, t], alone, atol=1e-6)


def test_no_features_give_none():
    features, tables = build(specs=(), large=())
    assert features({}, tables) is None


@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 3)])
def test_bags_equal_gathered_means_and_padding_does_not_count(shape):
    torch.manual_seed(0)
    table = embedding(8, DIM)
    rows = torch.randint(0, 8, shape, dtype=torch.int32)
    rows[0] = 0
    mask = (rows > 0).float()
    got = bag_mean(table, rows)
    assert torch.allclose(got, rows_mean(table(rows), mask), atol=1e-6)
    assert not got[0].any()
    # the last value, repeated once more, changes nothing but weight; one more padding changes nothing at all
    padded = torch.cat([rows, torch.zeros_like(rows[..., :1])], -1)
    assert torch.equal(bag_mean(table, padded), got)


def test_padding_is_never_trained():
    torch.manual_seed(0)
    table = embedding(5, DIM)
    assert not table.weight[0].any()
    (bag_mean(table, torch.tensor([[0, 3], [0, 0]])).sum() + table(torch.tensor([0, 2])).sum()).backward()
    assert not table.weight.grad[0].any() and table.weight.grad[2].any() and table.weight.grad[3].any()


def test_initial_rows_have_the_length_asked_for():
    torch.manual_seed(0)
    lengths = embedding(4000, 64).weight[1:].norm(dim=1)
    assert lengths.mean().item() == pytest.approx(1.0, abs=0.02)
    _, tables = build()
    assert tables["context:at"].weight[1:].norm(dim=1).mean().item() == pytest.approx(FEATURE_SCALE, rel=0.2)
    features, _ = build()
    unit = torch.from_numpy(np.random.default_rng(0).normal(size=(2000, 4)).astype(np.float32))
    assert features.projections["user:taste"](unit).norm(dim=1).mean().item() == pytest.approx(FEATURE_SCALE, rel=0.6)


def test_inputs_that_share_a_table_must_agree_on_its_rows():
    with pytest.raises(ValueError, match=r"table genre: user\.likes has 9 rows, another input 8"):
        small_tables((InputSpec("item.genre", "categorical", 8, 0, "genre"), SPECS[1]), (), DIM)


def test_a_bag_of_no_rows_keeps_its_width():
    assert bag_mean(embedding(5, 4), torch.zeros(0, 3, dtype=torch.int32)).shape == (0, 4)
