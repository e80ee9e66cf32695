"""Losses against slow references written as loops, and against each other."""

import doctest
import math

import numpy as np
import pytest
import torch

from training import loss
from training.loss import full_softmax, sampled_softmax


def case(rows=6, items=9, dim=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    user = torch.randn(rows, dim, generator=g, dtype=torch.float64, requires_grad=True)
    item = torch.randn(items, dim, generator=g, dtype=torch.float64, requires_grad=True)
    positive = torch.randint(items, (rows,), generator=g)
    log_q = torch.log_softmax(torch.randn(items, generator=g, dtype=torch.float64), 0)
    multiplicity = torch.randint(0, 4, (items,), generator=g).double()
    weight = torch.rand(rows, generator=g, dtype=torch.float64)
    return user, item, positive, log_q, multiplicity, weight


def slow(user, item, positive, log_q, columns, weight, temperature, remove):
    """Every draw is a column of its own; `columns` lists drawn items, duplicates kept."""
    user, item = user.detach(), item.detach()
    total, mass = 0.0, 0.0
    for n in range(len(user)):
        p = int(positive[n])

        def corrected(c, n=n):
            return float(user[n] @ item[c]) / temperature - float(log_q[c])

        counted = [c for c in columns if c != p] + [p] if remove else list(columns) + ([] if p in columns else [p])
        partition = sum(math.exp(corrected(c)) for c in counted)
        total += float(weight[n]) * (math.log(partition) - corrected(p))
        mass += float(weight[n])
    return total / mass


def test_doctests():
    result = doctest.testmod(loss)
    assert result.attempted >= 4 and result.failed == 0


@pytest.mark.parametrize("remove", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_sampled_softmax_equals_a_loop_over_every_draw(remove, temperature):
    for seed in range(5):
        user, item, positive, log_q, multiplicity, weight = case(seed=seed)
        columns = [c for c, m in enumerate(multiplicity.tolist()) for _ in range(int(m))]
        got = sampled_softmax(user, item, positive, log_q, multiplicity, weight, temperature, remove)
        assert got.item() == pytest.approx(slow(user, item, positive, log_q, columns, weight, temperature, remove), rel=1e-12)


def test_multiplicity_is_the_same_as_duplicate_columns():
    user, item, positive, log_q, multiplicity, weight = case()
    multiplicity = multiplicity.clamp(min=1)
    compact = sampled_softmax(user, item, positive, log_q, multiplicity, weight, 0.5, False)
    index = torch.repeat_interleave(torch.arange(len(item)), multiplicity.long())
    first = torch.searchsorted(index, positive)
    spread = sampled_softmax(user, item[index], first, log_q[index], None, weight, 0.5, False)
    assert torch.allclose(compact, spread, rtol=1e-12)
    grads = [torch.autograd.grad(x, (user, item), retain_graph=True) for x in (compact, spread)]
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("multiplicity", [None, torch.ones(9, dtype=torch.float64)])
@pytest.mark.parametrize("remove", [True, False])
def test_all_items_with_q_one_equal_full_softmax(multiplicity, remove):
    user, item, positive, log_q, _, weight = case()
    sampled = sampled_softmax(user, item, positive, torch.zeros_like(log_q), multiplicity, weight, 0.2, remove)
    full = full_softmax(user, item, positive, weight, 0.2)
    assert torch.allclose(sampled, full, rtol=1e-12)
    for a, b in zip(torch.autograd.grad(sampled, (user, item)), torch.autograd.grad(full, (user, item)), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-14)


def test_full_softmax_equals_torch_cross_entropy():
    user, item, positive, _, _, weight = case()
    each = torch.nn.functional.cross_entropy(user @ item.T / 0.2, positive, reduction="none")
    assert torch.allclose(full_softmax(user, item, positive, weight, 0.2), (each * weight).sum() / weight.sum())


def test_a_constant_factor_of_q_cancels_and_strength_zero_is_no_correction():
    user, item, positive, log_q, multiplicity, weight = case()
    args = (multiplicity, weight, 0.5, True)
    a = sampled_softmax(user, item, positive, log_q, *args)
    b = sampled_softmax(user, item, positive, log_q + 7.0, *args)
    off = sampled_softmax(user, item, positive, 0.0 * log_q, *args)
    assert torch.allclose(a, b, rtol=1e-12)
    assert abs(a.item() - off.item()) > 1e-3


@pytest.mark.parametrize("remove", [True, False])
def test_gradients_match_finite_differences(remove):
    user, item, positive, log_q, multiplicity, weight = case(rows=4, items=5, dim=3)
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda u, v, t: sampled_softmax(u, v, positive, log_q, multiplicity, weight, t, remove), (user, item, temperature)
    )
    assert torch.autograd.gradcheck(lambda u, v, t: full_softmax(u, v, positive, weight, t), (user, item, temperature))


def both(user, item, positive, log_q, multiplicity, weight, temperature=0.5):
    return (
        sampled_softmax(user, item, positive, log_q, multiplicity, weight, temperature, True),
        full_softmax(user, item, positive, weight, temperature),
    )


def test_rows_of_weight_zero_add_nothing():
    user, item, positive, log_q, multiplicity, weight = case()
    weight[2:] = 0
    short = both(user[:2], item, positive[:2], log_q, multiplicity, weight[:2])
    for padded, cut in zip(both(user, item, positive, log_q, multiplicity, weight), short, strict=True):
        assert torch.allclose(padded, cut, rtol=1e-12)
        grad_user, grad_item = torch.autograd.grad(padded, (user, item), retain_graph=True)
        assert not grad_user[2:].any()
        assert torch.allclose(grad_item, torch.autograd.grad(cut, item, retain_graph=True)[0], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("rows", [0, 3])
def test_weights_of_zero_give_zero_loss_and_gradient(rows):
    user, item, positive, log_q, multiplicity, weight = case(rows=rows)
    for value in both(user, item, positive, log_q, multiplicity, weight * 0):
        assert value.item() == 0
        grads = torch.autograd.grad(value, (user, item))
        assert all(torch.isfinite(g).all() and not g.any() for g in grads)


def test_doubling_a_weight_equals_repeating_the_row():
    user, item, positive, log_q, multiplicity, weight = case(rows=3)
    weight = torch.ones_like(weight)
    twice = torch.tensor([0, 1, 1, 2])
    repeated = both(user[twice], item, positive[twice], log_q, multiplicity, weight[[0, 0, 0, 0]])
    weight[1] = 2
    for a, b in zip(both(user, item, positive, log_q, multiplicity, weight), repeated, strict=True):
        assert torch.allclose(a, b, rtol=1e-12)


def test_large_scores_and_rare_draws_stay_finite():
    user = torch.tensor([[300.0], [-300.0]], requires_grad=True)
    item = torch.tensor([[1.0], [-1.0], [0.5]], requires_grad=True)
    for value in both(
        user, item, torch.tensor([1, 1]), torch.tensor([-60.0, -1e-6, -3.0]), torch.tensor([0.0, 0.0, 5.0]), torch.ones(2), 0.01
    ):
        assert torch.isfinite(value)
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value, (user, item)))


def test_an_undrawn_candidate_is_nobodys_negative():
    user, item, _, log_q, multiplicity, weight = case()
    multiplicity[:] = 2
    multiplicity[3] = 0
    positive = torch.tensor([0, 1, 2, 4, 5, 6])
    value = sampled_softmax(user, item, positive, log_q, multiplicity, weight, 0.5, True)
    grad = torch.autograd.grad(value, item)[0]
    assert not grad[3].any() and grad[7].any()


def test_half_precision_scores_are_summed_in_single():
    user, item, positive, log_q, multiplicity, weight = (x.detach() for x in case(items=400))
    halved = both(user.bfloat16(), item.bfloat16(), positive, log_q, multiplicity, weight)
    exact = both(user.bfloat16().double(), item.bfloat16().double(), positive, log_q, multiplicity, weight)
    for a, b in zip(halved, exact, strict=True):
        assert a.dtype == torch.float32
        assert np.isclose(a.item(), b.item(), rtol=2e-2)


@pytest.mark.parametrize("weight", [1e38, 3e38, 1.0, 1e-40])
def test_only_the_ratio_of_weights_matters_however_large_they_are(weight: float) -> None:
    torch.manual_seed(0)
    user_ND, item_ID, target_N = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4), torch.arange(6)
    found = []
    for weight_N in (torch.ones(6), torch.full((6,), weight)):
        loss = full_softmax(user_ND, item_ID, target_N, weight_N, 1.0)
        found.append((loss.detach(), *torch.autograd.grad(loss, user_ND)))
    assert found[0][0] > 0 and all(torch.allclose(one, other, rtol=1e-4) for one, other in zip(*found, strict=True))
