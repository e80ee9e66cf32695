"""Optimisers of tables: equal to the dense update written out, on the rows looked up and no others."""

import pytest
import torch
from torch import Tensor, nn

from training.table_optim import TABLE_OPTIMIZERS, LazyAdam, RowGradient, RowwiseAdagrad, row_gradient

LOOKUPS = ([1, 4, 4, 7], [4, 2], [7, 7, 7], [1, 2, 4])
"""Rows of four steps; 0 and the other rows of a table of 9 are never met."""


def table(dtype: torch.dtype = torch.float64) -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(9, 5, padding_idx=0, sparse=True, dtype=dtype)


def gradient(embedding: nn.Embedding, rows: list[int]) -> Tensor:
    """Of a loss that is not linear in the rows, so that lookups of one row differ from its double."""
    embedding.weight.grad = None
    (embedding(torch.tensor(rows)).sin() * torch.arange(1, len(rows) + 1).unsqueeze(1)).sum().backward()
    grad = embedding.weight.grad
    assert grad is not None
    return grad


def test_equal_rows_are_summed_as_the_dense_gradient_sums_them() -> None:
    sparse = gradient(table(), [3, 1, 3, 0, 8, 3])
    row, grad = row_gradient(sparse)
    assert row.tolist() == [1, 3, 8]  # the padding row has no gradient at all
    assert torch.allclose(torch.zeros(9, 5, dtype=grad.dtype).index_copy(0, row, grad), sparse.to_dense())


def adagrad(weight: Tensor, grads: list[Tensor], lr: float, decay: float) -> Tensor:
    square = torch.zeros(len(weight), dtype=weight.dtype)
    for grad in grads:
        met = grad.abs().sum(1) > 0
        square = square + grad.square().mean(1)
        step = decay * weight + grad / (square.sqrt() + 1e-8).unsqueeze(1)
        weight = torch.where(met.unsqueeze(1), weight - lr * step, weight)
    return weight


def adam(weight: Tensor, grads: list[Tensor], lr: float, decay: float) -> Tensor:
    m = v = torch.zeros_like(weight)
    for t, grad in enumerate(grads, start=1):
        met = (grad.abs().sum(1) > 0).unsqueeze(1)
        m, v = torch.where(met, 0.9 * m + 0.1 * grad, m), torch.where(met, 0.999 * v + 0.001 * grad**2, v)
        step = decay * weight + (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        weight = torch.where(met, weight - lr * step, weight)
    return weight


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(("kind", "textbook"), [("rowwise_adagrad", adagrad), ("lazy_adam", adam)])
def test_moves_as_the_textbook_says(kind: str, textbook, decay: float) -> None:
    embedding = table()
    start, optimizer, grads = embedding.weight.detach().clone(), TABLE_OPTIMIZERS[kind](embedding.weight.detach()), []
    for rows in LOOKUPS:
        grad = gradient(embedding, rows)
        grads.append(grad.to_dense())
        optimizer.move(row_gradient(grad), 0.1, decay)
    want = textbook(start, grads, 0.1, decay)
    assert torch.allclose(embedding.weight.detach(), want, rtol=1e-7)
    assert torch.equal(embedding.weight[[0, 3, 5, 6, 8]], start[[0, 3, 5, 6, 8]])


def test_every_row_each_step_makes_lazy_adam_plain_adam() -> None:
    embedding = table()
    weight = nn.Parameter(embedding.weight.detach().clone())
    plain, lazy = torch.optim.Adam([weight], lr=0.1), LazyAdam(embedding.weight.detach())
    for step in range(4):
        grad = gradient(embedding, list(range(1, 9)))
        weight.grad = grad.to_dense() * (step + 1)
        plain.step()
        lazy.move(RowGradient(grad._indices()[0], grad._values() * (step + 1)), 0.1, 0.0)
    assert torch.allclose(weight.detach(), embedding.weight.detach())


def test_adagrad_keeps_one_number_a_row() -> None:
    state = RowwiseAdagrad(torch.zeros(7, 64)).state()
    assert {name: tensor.shape for name, tensor in state.items()} == {"square": (7,)}


@pytest.mark.parametrize("kind", TABLE_OPTIMIZERS)
def test_no_lookup_moves_nothing(kind: str) -> None:
    embedding = table(torch.float32)
    before = embedding.weight.detach().clone()
    TABLE_OPTIMIZERS[kind](embedding.weight.detach()).move(row_gradient(gradient(embedding, [0, 0])), 0.1, 0.1)
    assert torch.equal(embedding.weight, before)
