import pytest
import torch

from towers.blocks import Block, Dropout


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_dropout_keeps_the_mean_and_drops_the_share(share, kind):
    torch.manual_seed(0)
    drop = Dropout(share)
    x = torch.ones(301, 333, dtype=kind, requires_grad=True)
    y = drop(x)
    kept = 1 - round(share * 256) / 256
    assert y.dtype == kind
    assert (y == 0).float().mean() == pytest.approx(1 - kept, abs=0.005)
    assert torch.allclose(y[y != 0], torch.tensor(1 / kept, dtype=kind))
    y.sum().backward()
    assert torch.equal(x.grad, y.detach()), "the gradient passes where the value did"


def test_dropout_draws_by_seed_and_is_nothing_outside_training():
    drop, x = Dropout(0.3), torch.randn(5, 7)
    torch.manual_seed(4)
    one = drop(x)
    torch.manual_seed(4)
    assert torch.equal(one, drop(x))
    assert not torch.equal(one, drop(x))
    assert torch.equal(Dropout(0.0)(x), x) and torch.equal(drop.eval()(x), x)


def test_dropout_neighbours_are_independent():
    torch.manual_seed(1)
    kept = (Dropout(0.5)(torch.ones(80_000)) > 0).float()
    for apart in (1, 7, 8):
        both = (kept[apart:] * kept[:-apart]).mean()
        assert both == pytest.approx(0.25, abs=0.01), apart


def test_half_of_the_heads_start_with_what_came_last():
    block = Block(8, 2, 6, 0.0)
    near, even = torch.softmax(block.bias_LH.detach(), dim=0).T
    assert torch.allclose(even, torch.full((6,), 1 / 6))
    assert torch.allclose(near, (1 / torch.arange(1, 7)) / (1 / torch.arange(1, 7)).sum())
