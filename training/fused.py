"""Softmax cross entropy over many candidates as one operation: loss and gradient in one pass over blocks of rows.

Legend: N rows, B rows of a block, C candidates, P targets (a row may have several), D dim.

    Z_n  = sum_c k_c exp(s_nc),   s_nc = <u_n, v_c> / temperature
    loss = sum_p w_p (log Z_n(p) - s_p)
    dloss/du_n = (1/t) (W_n sum_c p_nc v_c - sum_p w_p v_p),   p_nc = k_c exp(s_nc) / Z_n,   W_n = sum of the row's w_p
    dloss/dv_c = (1/t) (sum_n W_n p_nc u_n - sum_p w_p u_n(p))

so the backward pass is a multiplication by a scalar, and no more than a block of scores ever exists. Three ideas make it fast: log k_c
(counts over proposal probabilities) is one more column of the item vectors, beside a 1 among the user's, so the product that makes the
scores adds it; scores come in units of log 2, since 2^x costs less than e^x; and scores of bounded vectors need no pass for their maximum:
as they are, or less a guess of their row's that is a column too, they stay far within what fp32 and bf16 can raise 2 to.

bf16 products round each score to 8 bits, so to 0.2 % of itself, and log k_c not at all (it takes two columns); the guess keeps what counts
most in a sharp softmax near 0. Sums of rows are rounded alike; targets and what leaves here stay fp32. A row's targets are left out of its
products, and their shares come back in fp32: of a row that is predicted well, the gradient is what the targets' shares lack, which the
rounding of a share of nearly 1 would drown. Not where rows have many targets, which share it: there it would cost 5 % and gain 1 %.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from functools import reduce
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from training.score_blocks import WIDEST_GUESSED, WIDEST_RANGE, Bounded, GuessTooHigh, Shifted

FEW_TARGETS = 4
"""Of a row, on average: with more, they stay in its products."""
LEAST_Z = 1e-37
"""Sum of a row that its share is taken of."""


class Targets(NamedTuple):
    """What the rows are to predict.

    Attributes:
        row_P: int64, the row of each target; None = one target a row, in order.
        column_P: int64, its candidate.
        weight_P: float weights; the loss is their weighted sum.
        log_own_P: log factor of each target in its own row's Z; None = its column's log k. Only where every row has one target
            (`row_P` None).
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

    Scores of (1, 0) with the two items are 1 / 0.5 and 0 / 0.5, so the loss is log(e^2 + e^0) - 2 = log(1 + e^-2) = 0.1269. Of the
    softmax the first item has 0.8808, so the gradient of the user is ((0.8808 - 1, 0) + (0, 0.1192)) / 0.5.

    >>> user_ND = torch.tensor([[1.0, 0.0]], requires_grad=True)
    >>> item_CD = torch.eye(2)
    >>> loss = fused_softmax(user_ND, item_CD, 0.5, Targets(None, torch.tensor([0]), torch.ones(1)))
    >>> loss.backward()
    >>> round(loss.item(), 4), [round(x, 4) for x in user_ND.grad[0].tolist()]
    (0.1269, [-0.2384, 0.2384])
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
        if grad.device.type == "cpu" and float(grad) == 1.0:  # the loss of a process alone
            return grad_ND, grad_CD, grad_scale, None, None, None
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
    log_k_C = None if log_k_C is None else log_k_C.to(wide)
    factor_P = targets.log_own_P if log_k_C is None or targets.log_own_P is not None else log_k_C.index_select(0, column_P)
    term_P = score_P if factor_P is None else score_P + (factor_P := factor_P.to(wide))
    own = _own(row_P, column_P, term_P, len(user_ND), len(item_CD))
    shares = _shares(user_ND, item_CD, log_k_C, weight_N, half, own, targets.absent)
    above_P, pull_P = _pulls(own, shares.log_rest_N, row_P, term_P, weight_P, weight_N)
    loss = (weight_P * (above_P if factor_P is None else above_P + factor_P)).sum()
    if row_P is None:
        shares.grad_ND.addcmul_(item_PD, pull_P.unsqueeze(1))
    else:
        shares.grad_ND.index_add_(0, row_P, item_PD.mul_(pull_P.unsqueeze(1)))
    shares.grad_CD.index_add_(0, column_P, user_PD * pull_P.unsqueeze(1))
    return loss, shares.grad_ND.div_(temperature), shares.grad_CD


class _Own(NamedTuple):
    """The terms of Z that are left out of the products: targets.

    Attributes:
        row_Q: int64, their rows, ascending; None = one a row, in order.
        column_Q: int64, their candidates.
        log_sum_N: log of each row's sum of them.
        once_P: 1 for each target, but 0 for one that its row has already.
    """

    row_Q: Tensor | None
    column_Q: Tensor
    log_sum_N: Tensor
    once_P: Tensor

    def pairs(self, block: slice) -> tuple[Tensor, Tensor]:
        """The (row, candidate) pairs of a block, rows counted from its first."""
        if self.row_Q is None:
            return torch.arange(block.stop - block.start, device=self.column_Q.device), self.column_Q[block]
        return _between((self.row_Q, self.column_Q), block)


def _own(row_P: Tensor | None, column_P: Tensor, term_P: Tensor, rows: int, columns: int) -> _Own | None:
    """All targets, or None: where rows have more than a few."""
    if row_P is None:
        return _Own(None, column_P, term_P, torch.ones_like(term_P))
    if len(row_P) > FEW_TARGETS * rows:
        return None
    pair_P, order_P = torch.sort(row_P * columns + column_P)
    once_P = torch.ones_like(term_P)
    once_P[order_P[1:]] = (pair_P[1:] != pair_P[:-1]).to(term_P.dtype)
    top_N = term_P.new_full((rows,), -math.inf).scatter_reduce_(0, row_P, term_P, "amax")
    sum_N = term_P.new_zeros(rows).index_add_(0, row_P, torch.exp(term_P - top_N.index_select(0, row_P)) * once_P)
    row_Q = pair_P // columns
    return _Own(row_Q, pair_P - row_Q * columns, top_N + torch.log(sum_N), once_P)


def _pulls(
    own: _Own | None, log_rest_N: Tensor, row_P: Tensor | None, term_P: Tensor, weight_P: Tensor, weight_N: Tensor
) -> tuple[Tensor, Tensor]:
    """log Z above each target's term, and what the target pulls by beside the products: W p - w, or -w where the products have it in."""
    if own is None:
        return (log_rest_N if row_P is None else log_rest_N.index_select(0, row_P)) - term_P, -weight_P
    # all from the ratio of the rest to the targets, which keeps its digits where the rest is next to nothing
    gap_N = log_rest_N - own.log_sum_N
    rest_N, over_N = torch.sigmoid(gap_N), torch.logaddexp(gap_N, gap_N.new_zeros(()))
    if row_P is None:
        return over_N, -weight_P * rest_N
    among_P = term_P - own.log_sum_N.index_select(0, row_P)
    # W p - w = w (p - 1) + (W - w) p, and W counts once for a candidate that is two of the row's targets
    minus_one_P = torch.expm1(among_P) - torch.exp(among_P) * rest_N.index_select(0, row_P)
    others_P = weight_N.index_select(0, row_P) * own.once_P - weight_P
    return over_N.index_select(0, row_P) - among_P, torch.addcmul(others_P, weight_P + others_P, minus_one_P)


class _Shares(NamedTuple):
    """log of each row's sum without what is left out, and the parts of the gradients that the others have in."""

    log_rest_N: Tensor
    grad_ND: Tensor
    grad_CD: Tensor


def _shares(
    user_ND: Tensor,
    item_CD: Tensor,
    log_k_C: Tensor | None,
    weight_N: Tensor,
    half: bool,
    own: _Own | None,
    absent: tuple[Tensor, Tensor] | None,
) -> _Shares:
    bound = float(user_ND.norm(dim=1).max() * item_CD.norm(dim=1).max()) if len(user_ND) else 0.0
    top, reach = _top(log_k_C)
    if bound <= WIDEST_GUESSED and reach <= WIDEST_RANGE:
        log_k_below_C = None if log_k_C is None else log_k_C - top
        with suppress(GuessTooHigh):
            return _blocks(Bounded(user_ND, item_CD, log_k_below_C, bound, half), user_ND, item_CD, weight_N, top, own, absent)
    return _blocks(Shifted(user_ND, item_CD, log_k_C), user_ND, item_CD, weight_N, 0.0, own, absent)


def _top(log_k_C: Tensor | None) -> tuple[float, float]:
    """The greatest factor, and how far the least that counts lies below it."""
    finite_C = None if log_k_C is None else log_k_C[log_k_C > -math.inf]
    if finite_C is None or not len(finite_C):
        return 0.0, 0.0
    least, top = (float(value) for value in finite_C.aminmax())
    return top, top - least


def _blocks(
    kernel: Bounded | Shifted,
    user_ND: Tensor,
    item_CD: Tensor,
    weight_N: Tensor,
    top: float,
    own: _Own | None,
    absent: tuple[Tensor, Tensor] | None,
) -> _Shares:
    """All blocks of rows through a kernel."""
    rows = len(user_ND)
    log_rest_N, grad_ND = torch.empty_like(weight_N), torch.empty_like(user_ND)
    for start in range(0, rows, kernel.rows):
        block = slice(start, min(start + kernel.rows, rows))
        here = [] if absent is None else [_between(absent, block)]
        if own is not None:
            here.append(own.pairs(block))
        blanks = [_addresses(pairs, kernel.tiles) for pairs in here]
        shift_B: Tensor | float = 0.0
        sums: list[tuple[Tensor, Tensor]] = []
        for number, tile in enumerate(kernel.tiles):
            score_BT = kernel.scores(block, tile)
            for blank in blanks:
                score_BT.view(-1).index_fill_(0, blank[number], -math.inf)
            exp_BT, shift_B = kernel.raised(block, score_BT)
            sums.append(kernel.sums(exp_BT, tile))
        sum_BD, z_B = (reduce(torch.add, parts) for parts in zip(*sums, strict=True))
        kernel.check(z_B)
        extra = top + shift_B
        log_rest_B = torch.log(z_B, out=log_rest_N[block]).add_(extra)
        log_z_B = log_rest_B if own is None else torch.logaddexp(log_rest_B, own.log_sum_N[block])
        # a row of which nothing is left has sums of 0, and must not have an infinite share of them
        share_B = weight_N[block] * torch.exp((extra - log_z_B).clamp_(max=-math.log(LEAST_Z)))
        torch.mul(sum_BD, share_B.unsqueeze(1), out=grad_ND[block])
        pull_BD = user_ND[block] * share_B.unsqueeze(1)
        for tile in kernel.tiles:
            kernel.push(block, tile, pull_BD)
    return _Shares(log_rest_N, grad_ND, kernel.pushed())


def _between(pairs: tuple[Tensor, Tensor], block: slice) -> tuple[Tensor, Tensor]:
    """The (row, candidate) pairs of a block, rows counted from its first."""
    row_P, column_P = pairs
    first, last = torch.searchsorted(row_P, torch.tensor([block.start, block.stop], device=row_P.device)).tolist()
    return row_P[first:last] - block.start, column_P[first:last]


def _addresses(pairs: tuple[Tensor, Tensor], tiles: Sequence[slice]) -> list[Tensor]:
    """Where in each tile's scores the (row, candidate) pairs of a block stand; tiles are alike but for the last."""
    row_P, column_P = pairs
    wide, columns = tiles[0].stop, tiles[-1].stop
    if len(tiles) == 1:
        return [row_P * columns + column_P]
    column_P, order_P = torch.sort(column_P)
    start_P = column_P - column_P % wide
    address_P = row_P.index_select(0, order_P) * (columns - start_P).clamp_(max=wide) + column_P - start_P
    bounds = torch.searchsorted(column_P, torch.tensor([*(tile.start for tile in tiles), columns], device=column_P.device)).tolist()
    return [address_P[first:last] for first, last in pairwise(bounds)]
