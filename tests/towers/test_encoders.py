"""History encoders: padding is invisible, prefixes agree with all positions, weights add up."""

import dataclasses

import numpy as np
import pytest
import torch

from towers.bags import pool_rows
from towers.encoders import ENCODERS, make_encoder
from towers.errors import ConfigError
from towers.history import AGE_ROWS
from towers.model_config import HistoryConfig, ModelConfig

DIM, LENGTH, EVENTS = 8, 7, 6


def build(name, **settings):
    torch.manual_seed(3)
    config = ModelConfig(dim=DIM, history=HistoryConfig(name=name, length=LENGTH, **settings))
    encoder = make_encoder(config, EVENTS, reads_event=True, reads_time=True).eval()
    for parameter in encoder.parameters():  # what starts at zero must matter too
        parameter.data += 0.3 * torch.randn_like(parameter)
    return encoder


def histories(lengths, width=LENGTH, seed=0):
    """Right-aligned histories, equal in their newest events whatever the width."""
    g = torch.Generator().manual_seed(seed)
    longest = 12
    rows = torch.randn(len(lengths), longest, DIM, generator=g)
    event = torch.randint(3, EVENTS, (len(lengths), longest), generator=g)
    age = torch.randint(1, AGE_ROWS, (len(lengths), longest), generator=g)
    mask = (torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]).float()
    arrays = {
        "history.item.rows": rows * mask.unsqueeze(-1),
        "history.mask": mask,
        "history.event": (event * mask).int(),
        "history.age": (age * mask).int(),
        "history.gap": (age * mask).int(),
    }
    return {k: v[:, longest - width :] for k, v in arrays.items()}


@pytest.mark.parametrize("name", ENCODERS)
def test_a_longer_window_of_the_same_history_gives_the_same_vector(name):
    encoder = build(name)
    short, long = histories([1, 3, 4], width=4), histories([1, 3, 4], width=11)
    assert torch.allclose(encoder(short).vector_BD, encoder(long).vector_BD, atol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_rows_pooled_in_their_table_equal_gathered_rows(sparse):
    """Vectors, weights and gradients: the way of training and torch, against the way of the exported core."""
    encoder, table = build("mean"), torch.nn.Embedding(20, DIM, padding_idx=0, sparse=sparse)
    gathered, into = histories([0, 1, 4, 6]), torch.randn(4, DIM)
    ids = (torch.randint(1, 20, (4, LENGTH)) * gathered["history.mask"]).int()
    found = []
    for pools in (True, False):
        encoder.zero_grad()
        table.zero_grad()
        if pools:
            vector, weights = encoder.pooled(gathered, lambda weights_BL: pool_rows(table, ids, weights_BL))[:2]
        else:
            vector, weights = encoder({**gathered, "history.item.rows": table(ids)})[:2]
        (vector * into).sum().backward()
        gradients = [parameter.grad for parameter in (table.weight, *encoder.parameters())]
        found.append([vector, weights, *(g.to_dense() if g.is_sparse else g for g in gradients)])
    for pooled, row_by_row in zip(*found, strict=True):
        torch.testing.assert_close(pooled, row_by_row, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ENCODERS)
def test_what_stands_in_padding_does_not_matter(name):
    encoder = build(name)
    clean = histories([2, 5])
    dirty = {k: v.clone() for k, v in clean.items()}
    padding = clean["history.mask"] == 0
    dirty["history.item.rows"][padding] = 50.0
    dirty["history.event"][padding] = 4
    if name == "mean":
        dirty["history.age"][padding] = 9
    assert torch.allclose(encoder(clean).vector_BD, encoder(dirty).vector_BD, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_empty_history_is_one_learned_vector_and_never_nan(name):
    encoder = build(name)
    arrays = histories([0, 3, 0])
    arrays["history.item.rows"].requires_grad_()
    out = encoder(arrays).vector_BD
    assert torch.equal(out[0], encoder.no_history_D) and torch.equal(out[2], encoder.no_history_D)
    assert not torch.allclose(out[1], encoder.no_history_D)
    out.square().sum().backward()
    assert encoder.no_history_D.grad.any()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ENCODERS)
def test_rows_do_not_see_each_other(name):
    encoder = build(name)
    together = histories([3, 7, 0])
    for row in range(3):
        alone = {k: v[row : row + 1] for k, v in together.items()}
        assert torch.allclose(encoder(alone).vector_BD[0], encoder(together).vector_BD[row], atol=1e-6)


@pytest.mark.parametrize("name", ENCODERS)
def test_event_types_matter(name):
    encoder = build(name)
    one = histories([4, 5])
    other = {**one, "history.event": torch.where(one["history.mask"] > 0, 3, 0).int()}
    other["history.event"][:, -1] = 5
    assert not torch.allclose(encoder(one).vector_BD, encoder(other).vector_BD, atol=1e-3)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_all_positions_equal_each_prefix_encoded_alone(layers, heads):
    encoder = build("transformer", layers=layers, heads=heads)
    arrays = histories([0, 1, 4, 7])
    everywhere = encoder.positions(arrays)
    for t in range(LENGTH):
        prefix = {k: torch.zeros_like(v) for k, v in arrays.items()}
        for k, v in arrays.items():
            prefix[k][:, LENGTH - 1 - t :] = v[:, : t + 1]
        assert torch.allclose(everywhere[:, t], encoder(prefix).vector_BD, atol=1e-5), t


def test_whole_windows_in_training_are_those_of_a_request():
    """Training leaves the sum with padding out where no row has any; beside a shorter row it is there, and a model in use always has it."""
    encoder = build("transformer", layers=2, dropout=0.0)
    whole, beside = histories([LENGTH, LENGTH, LENGTH]), histories([LENGTH, 2, LENGTH])
    asked = encoder.positions(whole)
    encoder.train()
    assert torch.allclose(encoder.positions(whole), asked, atol=1e-6)
    assert torch.allclose(encoder.positions(beside)[0], asked[0], atol=1e-5)


def test_order_matters_to_the_transformer_only():
    arrays = histories([7, 7])
    backwards = {k: v.flip(1) for k, v in arrays.items()}
    mean, transformer = build("mean"), build("transformer")
    assert torch.allclose(mean(arrays).vector_BD, mean(backwards).vector_BD, atol=1e-6)
    assert not torch.allclose(transformer(arrays).vector_BD, transformer(backwards).vector_BD, atol=1e-2)


def test_distance_bias_moves_attention():
    encoder = build("transformer", layers=1)
    arrays = histories([7])
    before = encoder(arrays).vector_BD
    encoder.blocks[0].bias_LH.data[1] += 20.0  # look at the event before the newest
    after = encoder(arrays).vector_BD
    changed = {**arrays, "history.item.rows": arrays["history.item.rows"].clone()}
    changed["history.item.rows"][:, 2] += 3.0
    assert not torch.allclose(before, after, atol=1e-3)
    assert torch.allclose(after, encoder(changed).vector_BD, atol=1e-5)


def test_mean_weights_are_the_formula_and_sum_to_one():
    encoder = build("mean")
    arrays = histories([0, 1, 5])
    out = encoder(arrays)
    for row, count in enumerate([0, 1, 5]):
        raw = torch.exp(
            encoder.event_log_weight[arrays["history.event"][row].long()] + encoder.age_log_weight[arrays["history.age"][row].long()]
        )
        raw = raw * arrays["history.mask"][row]
        expected = raw / raw.sum() if count else raw
        assert torch.allclose(out.weights_BL[row], expected, atol=1e-6)
        assert out.weights_BL[row].sum().item() == pytest.approx(1.0 if count else 0.0, abs=1e-6)
        rebuilt = out.weights_BL[row] @ arrays["history.item.rows"][row]
        assert torch.allclose(out.vector_BD[row], rebuilt if count else encoder.no_history_D, atol=1e-6)


def test_signed_weights_push_away_and_are_still_the_formula():
    encoder, plain = build("mean", signed_events=True), build("mean")
    encoder.load_state_dict({**plain.state_dict(), "event_push": torch.tensor([0.0, 0.0, 0.0, 0.0, -0.3, -0.05])})
    arrays = histories([0, 1, 5])
    out, unsigned = encoder(arrays), plain(arrays)
    sign = torch.tensor([1.0, 1.0, 1.0, 1.0, -2.0, 0.5])[arrays["history.event"].long()]
    assert (sign < 0).any()
    assert torch.allclose(out.weights_BL, unsigned.weights_BL * sign, atol=1e-6)
    rebuilt = (out.weights_BL.unsqueeze(-1) * arrays["history.item.rows"]).sum(1)
    assert torch.allclose(out.vector_BD[1:], rebuilt[1:], atol=1e-6)
    assert torch.allclose(out.vector_BD[0], encoder.no_history_D)


def test_marked_types_push_away_by_a_fixed_share_whatever_is_learned():
    encoder, plain = build("mean", signed_events=True, negative_push=0.5), build("mean", signed_events=True)
    encoder.load_state_dict({**plain.state_dict(), "negative_events": torch.zeros(EVENTS)})
    arrays = histories([1, 5, 7])
    assert torch.allclose(encoder(arrays).weights_BL, plain(arrays).weights_BL), "nothing is marked yet"
    encoder.mark_negative(np.array([1, 4]))  # 1 = a type that this log does not have
    assert encoder.negative_events.tolist() == [0, 0, 0, 0, 1, 0]
    event = arrays["history.event"].long()
    log_weight = torch.where(event == 4, 0.0, encoder.event_log_weight[event]) + encoder.age_log_weight[arrays["history.age"].long()]
    raw = torch.exp(log_weight) * arrays["history.mask"]
    factor = torch.where(event == 4, -0.5, 1 + 10 * encoder.event_push[event])
    assert (event == 4).any()
    assert torch.allclose(encoder(arrays).weights_BL, raw / raw.sum(1, keepdim=True) * factor, atol=1e-6)


def test_signed_weights_start_as_the_unsigned_ones_and_only_a_mean_has_them():
    config = ModelConfig(dim=DIM, history=HistoryConfig(length=LENGTH, signed_events=True))
    weights = make_encoder(config, EVENTS, True, True)(histories([4])).weights_BL
    assert torch.allclose(weights, torch.tensor([[0.0, 0.0, 0.0, 0.25, 0.25, 0.25, 0.25]]))
    with pytest.raises(ConfigError, match=r"model\.history\.signed_events"):
        ModelConfig(history=HistoryConfig(name="transformer", signed_events=True)).validate()
    with pytest.raises(ConfigError, match=r"model\.history\.negative_push: got -1"):
        ModelConfig(history=HistoryConfig(negative_push=-1)).validate()


def test_mean_weights_start_equal():
    config = ModelConfig(dim=DIM, history=HistoryConfig(length=LENGTH))
    weights = make_encoder(config, EVENTS, True, True)(histories([4])).weights_BL
    assert torch.allclose(weights, torch.tensor([[0.0, 0.0, 0.0, 0.25, 0.25, 0.25, 0.25]]))


def test_mean_cannot_give_all_positions():
    with pytest.raises(ConfigError, match=r"model\.history\.name"):
        build("mean").positions(histories([3]))


def test_an_unknown_encoder_is_named():
    config = dataclasses.replace(ModelConfig(), history=HistoryConfig(name="gru"))
    with pytest.raises(ConfigError, match=r"model\.history\.name: got 'gru', expected one of mean, transformer"):
        make_encoder(config, EVENTS, True, True)


def test_events_weigh_by_repeats_and_by_what_they_share_with_the_request():
    """Against the formula: + 10 r of the repeat row, + 10 s where both values are known, by whether they agree."""
    config = ModelConfig(dim=DIM, history=HistoryConfig(use_event_type=False, use_age=False, use_repeats=True))
    encoder = make_encoder(config, EVENTS, reads_event=False, reads_time=False, matched=("context.day", "context.city"))
    torch.manual_seed(0)
    for parameter in (encoder.repeat_log_weight, encoder.match_log_weight):
        parameter.data = 0.2 * torch.randn_like(parameter)
    gathered = {
        "history.item.rows": torch.randn(2, 4, DIM),
        "history.mask": torch.tensor([[0.0, 1, 1, 1], [1, 1, 1, 1]]),
        "history.repeat": torch.tensor([[0, 1, 2, 2], [3, 3, 3, 3]]).int(),
        "history.context.day": torch.tensor([[0, 3, 4, 0], [3, 4, 5, 3]]).int(),
        "history.context.city": torch.tensor([[0, 3, 3, 4], [0, 0, 3, 4]]).int(),
        "context.day": torch.tensor([4, 3]).int(),
        "context.city": torch.tensor([3, 2]).int(),  # 2: missing
    }
    weights = encoder(gathered).weights_BL
    for row in range(2):
        logits = []
        for place in range(4):
            logit = 10 * encoder.repeat_log_weight[gathered["history.repeat"][row, place]]
            for number, name in enumerate(("day", "city")):
                kept, asked = int(gathered[f"history.context.{name}"][row, place]), int(gathered[f"context.{name}"][row])
                if kept and asked > 2:
                    logit = logit + 10 * encoder.match_log_weight[number, int(kept == asked)]
            logits.append(logit if gathered["history.mask"][row, place] else torch.tensor(-1e9))
        torch.testing.assert_close(weights[row], torch.softmax(torch.stack(logits), 0), rtol=1e-5, atol=1e-6)
