"""Optimisers of large tables: a step costs what its batch looked up, however many rows the table has.

A table's gradient comes as (row, values) pairs, one for each lookup (`nn.Embedding(sparse=True)`), and only the rows among them
are read and moved. Rows that a batch did not look up stay as they are: no momentum moves them and no weight decay shrinks them.

Legend: V rows of the table, n lookups of a step, r different rows among them, D dim.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

EPSILON = 1e-8


class RowGradient(NamedTuple):
    """Gradient of some rows: row_r int64, each once, and grad_rD."""

    row_r: Tensor
    grad_rD: Tensor


class TableOptimizer(Protocol):
    """Moves rows of one table, in place. `FASTER` is its learning rate over that of Adam, where the config leaves it open."""

    FASTER: ClassVar[float]

    def move(self, gradient: RowGradient, lr: float, weight_decay: float) -> None:
        """Take a step on the rows of `gradient`; weight decay is decoupled, as in AdamW."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Its tensors by slot, themselves and not copies: loading writes into them."""
        ...


def row_gradient(sparse_VD: Tensor) -> RowGradient:
    """The sparse gradient of a table with the values of equal rows summed: one sort of n numbers and one pass over n rows.

    >>> import torch
    >>> table = torch.nn.Embedding(5, 1, sparse=True)
    >>> table(torch.tensor([3, 1, 3])).sum().backward()
    >>> row, grad = row_gradient(table.weight.grad)
    >>> row.tolist(), grad.squeeze(1).tolist()
    ([1, 3], [1.0, 2.0])
    """
    lookup_n, value_nD = sparse_VD._indices()[0], sparse_VD._values()
    row_r, place_n = torch.unique(lookup_n, return_inverse=True)
    return RowGradient(row_r, value_nD.new_zeros(len(row_r), *value_nD.shape[1:]).index_add_(0, place_n, value_nD))


class RowwiseAdagrad:
    """Adagrad with one number of state a row (Duchi et al. 2011; by row: Mudigere et al. 2022, "Software-hardware co-design for
    fast and scalable training of deep learning recommendation models").

        h_i += mean_d g_id^2,    w_i -= lr g_i / (sqrt(h_i) + eps)

    A row's own steps shrink as it is met more often, so a rare row still learns when a common one has settled.
    """

    FASTER: ClassVar[float] = 10.0  # its steps only shrink, so they start larger

    def __init__(self, weight_VD: Tensor) -> None:
        self._weight_VD = weight_VD
        self._square_V = torch.zeros(len(weight_VD), dtype=weight_VD.dtype, device=weight_VD.device)

    def move(self, gradient: RowGradient, lr: float, weight_decay: float) -> None:
        row_r, grad_rD = gradient
        square_r = self._square_V.index_select(0, row_r).add_(grad_rD.square().mean(1))
        self._square_V.index_copy_(0, row_r, square_r)
        _decay(self._weight_VD, row_r, lr * weight_decay)
        self._weight_VD.index_add_(0, row_r, grad_rD * (-lr / (square_r.sqrt() + EPSILON)).unsqueeze(1))

    def state(self) -> dict[str, Tensor]:
        return {"square": self._square_V}


class LazyAdam:
    """Adam (Kingma and Ba, 2015) on the rows that were looked up; averages of other rows wait, and so do the rows.

        m_i = b1 m_i + (1 - b1) g_i,   v_i = b2 v_i + (1 - b2) g_i^2,   w_i -= lr (m_i / (1 - b1^t)) / (sqrt(v_i / (1 - b2^t)) + eps)

    t counts the steps of the table, as in torch's SparseAdam, not those of a row.
    """

    BETAS = (0.9, 0.999)
    FASTER: ClassVar[float] = 1.0

    def __init__(self, weight_VD: Tensor) -> None:
        self._weight_VD = weight_VD
        self._mean_VD, self._square_VD = torch.zeros_like(weight_VD), torch.zeros_like(weight_VD)
        self._steps = torch.zeros((), dtype=torch.int64)

    def move(self, gradient: RowGradient, lr: float, weight_decay: float) -> None:
        row_r, grad_rD = gradient
        first, second = self.BETAS
        self._steps += 1
        steps = int(self._steps)
        mean_rD = self._mean_VD.index_select(0, row_r).lerp_(grad_rD, 1 - first)
        square_rD = self._square_VD.index_select(0, row_r).mul_(second).addcmul_(grad_rD, grad_rD, value=1 - second)
        self._mean_VD.index_copy_(0, row_r, mean_rD)
        self._square_VD.index_copy_(0, row_r, square_rD)
        _decay(self._weight_VD, row_r, lr * weight_decay)
        size_rD = square_rD.sqrt_().mul_((1 - second**steps) ** -0.5).add_(EPSILON)
        self._weight_VD.index_add_(0, row_r, mean_rD.div_(size_rD), alpha=-lr / (1 - first**steps))

    def state(self) -> dict[str, Tensor]:
        return {"mean": self._mean_VD, "square": self._square_VD, "steps": self._steps}


TABLE_OPTIMIZERS: Mapping[str, Callable[[Tensor], TableOptimizer]] = {"rowwise_adagrad": RowwiseAdagrad, "lazy_adam": LazyAdam}


def _decay(weight_VD: Tensor, row_r: Tensor, share: float) -> None:
    if share:
        weight_VD.index_copy_(0, row_r, weight_VD.index_select(0, row_r).mul_(1 - share))
