"""Softmax cross entropy over many candidates as one operation: loss and gradient in one pass over blocks of rows.

Legend: N rows, B rows of a block, C candidates, P targets (a row may have several), D dim, E = D + 1 padded to a multiple of 8.

    Z_n  = sum_c k_c exp(s_nc),   s_nc = <u_n, v_c> / temperature
    loss = sum_p w_p (log Z_n(p) - s_p)
    dloss/du_n = (1/t) (W_n sum_c p_nc v_c - sum_p w_p v_p),   p_nc = k_c exp(s_nc) / Z_n,   W_n = sum of the row's w_p
    dloss/dv_c = (1/t) (sum_n W_n p_nc u_n - sum_p w_p u_n(p))

so the backward pass is a multiplication by a scalar, and no more than a block of scores ever exists. Three ideas make it fast:
a factor k_c (counts over proposal probabilities) scales the right-hand sides of the second and third matrix product instead of touching
the B x C scores; in bf16 a column of k beside the item vectors makes the second product yield Z too; and scores of bounded vectors need
no pass for their maximum, since their exp stays far within what fp32 and bf16 can hold.

bf16 products round each score to 8 bits, so to 0.2 % of itself; sums, targets and what leaves here stay fp32.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

BLOCK_BYTES = 1 << 22
"""Of scores computed at a time: they stay in the cache between the products that use them."""
FEWEST_ROWS = 64
WIDEST_RANGE = 40.0
"""Scores lie within [-x, x], and factors within [exp(-x), 1]: 1e20 such terms have a finite sum in fp32 and bf16, the least is normal."""


class Targets(NamedTuple):
    """What the rows are to predict.

    Attributes:
        row_P: int64, the row of each target; None = one target a row, in order.
        column_P: int64, its candidate.
        weight_P: float weights; the loss is their weighted sum.
        log_own_P: log factor of each target in its own row's Z, in place of its column's log k; None = no difference. Only where
            every row has one target (`row_P` None).
        absent: int64 (row, candidate) pairs, rows ascending, no target among them: candidates that are not there for that row.
    """

    row_P: Tensor | None
    column_P: Tensor
    weight_P: Tensor
    log_own_P: Tensor | None = None
    absent: tuple[Tensor, Tensor] | None = None


def fused_softmax(
    user_ND: Tensor, item_CD: Tensor, temperature: Tensor | float, targets: Targets, log_k_C: Tensor | None = None, half: bool = False
) -> Tensor:
    """The loss above, differentiable in user and item vectors and in the temperature.

    Args:
        user_ND, item_CD: any lengths; unit vectors take the fast path.
        log_k_C: log factor of each candidate, -inf for one that counts for nobody; None = 0.
        half: bf16 products.

    Returns:
        scalar, float32 (float64 for float64 vectors).
    """
    scale = temperature if isinstance(temperature, Tensor) else torch.tensor(temperature, dtype=torch.float64)
    loss: Tensor = _Fused.apply(user_ND, item_CD, scale, targets, log_k_C, half)  # type: ignore[no-untyped-call]
    return loss


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, user_ND: Tensor, item_CD: Tensor, scale: Tensor, targets: Targets, log_k_C: Tensor | None, half: bool) -> Tensor:
        with torch.autocast(user_ND.device.type, enabled=False):
            loss, grad_ND, grad_CD = _forward(user_ND, item_CD, float(scale), targets, log_k_C, half)
        # s = <u, v> / t, so dloss/dt = -(1/t) sum_n <u_n, dloss/du_n>
        grad_scale = -(grad_ND * user_ND).sum().to(scale.dtype) / scale if scale.requires_grad else None
        ctx.save_for_backward(grad_ND, grad_CD, grad_scale)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_ND, grad_CD, grad_scale = ctx.saved_tensors
        (grad,) = grads
        return grad * grad_ND, grad * grad_CD, None if grad_scale is None else grad * grad_scale, None, None, None


def _forward(
    user_ND: Tensor, item_CD: Tensor, temperature: float, targets: Targets, log_k_C: Tensor | None, half: bool
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.float64 if user_ND.dtype == torch.float64 else torch.float32
    user_ND, item_CD = user_ND.detach().to(wide) / temperature, item_CD.detach().to(wide)
    row_P, column_P, weight_P = targets.row_P, targets.column_P, targets.weight_P.to(wide)
    weight_N = weight_P if row_P is None else weight_P.new_zeros(len(user_ND)).index_add_(0, row_P, weight_P)
    item_PD = item_CD.index_select(0, column_P)
    user_PD = user_ND if row_P is None else user_ND.index_select(0, row_P)
    score_P = (user_PD * item_PD).sum(1)
    log_k_C = torch.zeros(len(item_CD), dtype=wide, device=user_ND.device) if log_k_C is None else log_k_C.to(wide)
    own = None if targets.log_own_P is None else (column_P, score_P + targets.log_own_P.to(wide))
    shares = _shares(user_ND, item_CD, log_k_C, weight_N, half, own, targets.absent)
    log_z_P = shares.log_z_N if row_P is None else shares.log_z_N.index_select(0, row_P)
    loss = (weight_P * (log_z_P - score_P)).sum()
    # a target's own share, where it was left out of the products, comes back here in full precision
    pull_P1 = (-weight_P if own is None else weight_P * torch.expm1(own[1] - log_z_P)).unsqueeze(1)
    if row_P is None:
        shares.grad_ND.addcmul_(item_PD, pull_P1)
    else:
        shares.grad_ND.index_add_(0, row_P, item_PD.mul_(pull_P1))
    shares.grad_CD.index_add_(0, column_P, user_PD * pull_P1)
    return loss, shares.grad_ND.div_(temperature), shares.grad_CD


class _Shares(NamedTuple):
    """log Z of each row, and the parts of the gradients that all candidates have in."""

    log_z_N: Tensor
    grad_ND: Tensor
    grad_CD: Tensor


def _shares(
    user_ND: Tensor,
    item_CD: Tensor,
    log_k_C: Tensor,
    weight_N: Tensor,
    half: bool,
    own: tuple[Tensor, Tensor] | None,
    absent: tuple[Tensor, Tensor] | None,
) -> _Shares:
    rows = len(user_ND)
    log_z_N, grad_ND = torch.empty_like(weight_N), torch.empty_like(user_ND)
    bound = float(user_ND.norm(dim=1).max() * item_CD.norm(dim=1).max()) if rows else 0.0
    finite_C = log_k_C[log_k_C > -math.inf]
    top = float(finite_C.max()) if len(finite_C) else 0.0
    bounded = bound <= WIDEST_RANGE and float(top - finite_C.min() if len(finite_C) else 0.0) <= WIDEST_RANGE
    kernel = _Bounded(user_ND, item_CD, log_k_C - top, half) if bounded else _Shifted(user_ND, item_CD, log_k_C)
    step = _block_rows(rows, len(item_CD), kernel.kind)
    absent_place = None if absent is None else absent[0] * len(item_CD) + absent[1]
    own_place_N = None if own is None else torch.arange(rows, device=user_ND.device) * len(item_CD) + own[0]
    for start in range(0, rows, step):
        block = slice(start, min(start + step, rows))
        exp_BC, shift_B = kernel.exponentials(block)
        if own_place_N is not None:
            exp_BC.view(-1).index_fill_(0, own_place_N[block] - start * len(item_CD), 0.0)
        if absent_place is not None:
            places = torch.tensor([block.start, block.stop], device=absent_place.device) * len(item_CD)
            first, last = torch.searchsorted(absent_place, places).tolist()
            exp_BC.view(-1).index_fill_(0, absent_place[first:last] - block.start * len(item_CD), 0.0)
        sum_BD, z_B = kernel.sums(exp_BC)
        extra = top if bounded else shift_B
        log_z_N[block] = torch.log(z_B) + extra
        if own is not None:
            log_z_N[block] = torch.logaddexp(log_z_N[block], own[1][block])
        share_B = weight_N[block] * torch.exp(extra - log_z_N[block])
        torch.mul(sum_BD, share_B.unsqueeze(1), out=grad_ND[block])
        kernel.push(exp_BC, user_ND[block] * share_B.unsqueeze(1))
    return _Shares(log_z_N, grad_ND, kernel.pushed())


def _block_rows(rows: int, columns: int, kind: torch.dtype) -> int:
    """Rows of a block: all blocks about alike, since a short last one would cost the third product nearly as much as a full one."""
    most = max(FEWEST_ROWS, BLOCK_BYTES // (kind.itemsize * max(1, columns)))
    blocks = max(1, -(-rows // most))
    return max(1, -(-rows // blocks))


class _Bounded:
    """Scores of bounded vectors: they need no shift, and the factors ride in the other two products."""

    def __init__(self, user_ND: Tensor, item_CD: Tensor, log_k_C: Tensor, half: bool) -> None:
        kind = torch.bfloat16 if half and user_ND.dtype == torch.float32 else user_ND.dtype
        self.kind, self._dim = kind, user_ND.shape[1]
        self._k_C1 = torch.exp(log_k_C).unsqueeze(1)
        self._user_ND, self._item_DC = user_ND.to(kind), item_CD.to(kind).t()
        scaled_CD = item_CD * self._k_C1
        self._scaled_CE = _padded(scaled_CD, self._k_C1, kind) if kind == torch.bfloat16 else scaled_CD
        self._exp_BC = torch.empty(_block_rows(len(user_ND), len(item_CD), kind), len(item_CD), dtype=kind, device=user_ND.device)
        # the way round that each product is faster; bf16 ones are added up in fp32
        self._grad_CD = (
            torch.zeros_like(item_CD)
            if kind == torch.bfloat16
            else torch.zeros_like(item_CD.t(), memory_format=torch.contiguous_format).t()
        )

    def exponentials(self, block: slice) -> tuple[Tensor, Tensor | float]:
        exp_BC = self._exp_BC[: block.stop - block.start]
        return torch.mm(self._user_ND[block], self._item_DC, out=exp_BC).exp_(), 0.0

    def sums(self, exp_BC: Tensor) -> tuple[Tensor, Tensor]:
        sum_BE = torch.mm(exp_BC, self._scaled_CE)
        if sum_BE.dtype != torch.bfloat16:  # there a product with k costs less than the wider matrix
            return sum_BE, torch.mv(exp_BC, self._k_C1.squeeze(1))
        sum_BE = sum_BE.float()
        return sum_BE[:, : self._dim], sum_BE[:, self._dim]

    def push(self, exp_BC: Tensor, user_BD: Tensor) -> None:
        if self.kind == torch.bfloat16:
            self._grad_CD += torch.mm(exp_BC.t(), user_BD.to(self.kind))
        else:
            self._grad_CD.t().addmm_(user_BD.t(), exp_BC)

    def pushed(self) -> Tensor:
        return self._grad_CD.mul_(self._k_C1).contiguous()


class _Shifted:
    """Scores of any size: each row is shifted by its own maximum, factors included, in full precision."""

    def __init__(self, user_ND: Tensor, item_CD: Tensor, log_k_C: Tensor) -> None:
        self.kind = user_ND.dtype
        self._user_ND, self._item_CD, self._log_k_C = user_ND, item_CD, log_k_C
        self._grad_CD = torch.zeros_like(item_CD)

    def exponentials(self, block: slice) -> tuple[Tensor, Tensor | float]:
        score_BC = torch.addmm(self._log_k_C, self._user_ND[block], self._item_CD.t())
        highest_B = score_BC.amax(1).nan_to_num(neginf=0.0)
        return score_BC.sub_(highest_B.unsqueeze(1)).exp_(), highest_B

    def sums(self, exp_BC: Tensor) -> tuple[Tensor, Tensor]:
        return exp_BC @ self._item_CD, exp_BC.sum(1)

    def push(self, exp_BC: Tensor, user_BD: Tensor) -> None:
        self._grad_CD.addmm_(exp_BC.t(), user_BD)

    def pushed(self) -> Tensor:
        return self._grad_CD


def _padded(vectors: Tensor, column: Tensor, kind: torch.dtype) -> Tensor:
    """Vectors, one more column, and zeros up to a multiple of 8, which the matrix units like."""
    rows, dim = vectors.shape
    padded = torch.zeros(rows, -(-(dim + 1) // 8) * 8, dtype=kind, device=vectors.device)
    padded[:, :dim] = vectors
    padded[:, dim : dim + 1] = column
    return padded
