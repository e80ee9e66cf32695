"""The training objectives: pure functions of vectors, differentiable, checked against slow references.

Legend: N training rows, C candidates (unique catalogue rows), I all items, D dim.

Scores are dot products divided by the temperature; s_nc is the score of row n and candidate c, p(n) the row's positive.
Weights are per row; a row of weight 0 adds nothing to loss or gradient, and where all weights are 0 the loss is 0.
"""

import torch
from torch import Tensor

from training.fused import Targets, fused_softmax


def sampled_softmax(
    user_ND: Tensor,
    item_CD: Tensor,
    positive_N: Tensor,
    log_q_C: Tensor,
    multiplicity_C: Tensor | None,
    weight_N: Tensor,
    temperature: Tensor | float,
    remove_accidental_hits: bool,
    half: bool = False,
) -> Tensor:
    """Softmax over sampled candidates, corrected for how often each is sampled.

        loss = sum_n w_n l_n / sum_n w_n
        l_n  = log( sum_c k_nc exp(s_nc - log q_c) ) - (s_np - log q_p)

    q_c is the probability that one draw of the proposal is c (Bengio & Senecal 2008, "Adaptive importance sampling to
    accelerate training of a neural probabilistic language model"; Yi et al. 2019, "Sampling-bias-corrected neural modeling for
    large corpus item recommendations"). It corrects the positive as well as the others; a constant factor of q cancels.
    For a weaker correction pass `strength * log_q_C`; zeros turn it off.

    k_nc, how often candidate c counts for row n, is its multiplicity m_c (times drawn; 1 without `multiplicity_C`), which is
    the same as keeping duplicate draws in the sum. A candidate with m_c = 0 is there only as some row's positive and is nobody's
    negative. The row's own positive counts once with `remove_accidental_hits`, else max(m_p, 1) times.
    Of n draws one stands for 1 / (n q_p) of an item's true term, so counting the positive once makes its own term too small where
    it is popular (n q_p > 1) and too large where it is rare; keeping duplicates mends the first, nothing here the second.

    Args:
        positive_N: int64, each row's column among the candidates.
        log_q_C, multiplicity_C: no gradient flows into them.
        temperature: above 0.
        half: bf16 matrix products (see training.fused).

    Returns:
        A scalar, float32 (float64 for float64 vectors).

    Scores (1, 0), the second candidate drawn twice, q uniform: log(e + 2) - 1 = 0.5514.

    >>> import torch
    >>> user, items = torch.tensor([[1.0]]), torch.tensor([[1.0], [0.0]])
    >>> loss = sampled_softmax(user, items, torch.tensor([0]), torch.zeros(2), torch.tensor([1.0, 2.0]), torch.ones(1), 1.0, True)
    >>> round(loss.item(), 4)
    0.5514
    """
    log_q_C = log_q_C.detach()
    log_k_C, log_own_N = -log_q_C, -log_q_C[positive_N]
    if multiplicity_C is not None:
        multiplicity_C = multiplicity_C.detach()
        log_k_C = torch.log(multiplicity_C) - log_q_C
        if not remove_accidental_hits:
            log_own_N = log_own_N + torch.log(multiplicity_C.clamp(min=1.0))[positive_N]
    share_N = shares(weight_N)
    loss = fused_softmax(user_ND, item_CD, temperature, Targets(None, positive_N, share_N, log_own_N), log_k_C, half)
    # the correction of the positive's own score moves the value, not the gradient
    return loss + (share_N * log_q_C[positive_N]).sum().to(loss.dtype)


def full_softmax(
    user_BD: Tensor,
    item_ID: Tensor,
    target_N: Tensor,
    weight_N: Tensor,
    temperature: Tensor | float,
    row_N: Tensor | None = None,
    half: bool = False,
    absent: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Cross entropy over the whole catalogue: the exact objective that `sampled_softmax` estimates.

        l_n = log( sum_i exp(s_ni) ) - s_nt,    loss = sum_n w_n l_n / sum_n w_n

    Args:
        target_N: int64, each target's item.
        row_N: int64, each target's user row; None = one target a row. With several targets a row (grouped by user) every item is
            scored once a user instead of once a target.
        half: bf16 matrix products (see training.fused).
        absent: int64 (row, item) pairs, ascending, no target among them: items left out of that row's sum, as those are that a user
            cannot be recommended.

    Returns:
        A scalar, float32 (float64 for float64 vectors).

    Scores (1, 0): log(e + 1) - 1 = 0.3133.

    >>> import torch
    >>> user, items = torch.tensor([[1.0]]), torch.tensor([[1.0], [0.0]])
    >>> round(full_softmax(user, items, torch.tensor([0]), torch.ones(1), 1.0).item(), 4)
    0.3133
    """
    return fused_softmax(user_BD, item_ID, temperature, Targets(row_N, target_N, shares(weight_N), absent=absent), half=half)


def shares(weight_N: Tensor) -> Tensor:
    """Weights as shares of their sum; all 0 where they sum to 0. Weights that are finite in float32 may sum to more than it holds."""
    total = weight_N.sum(dtype=torch.float64)
    return (weight_N / torch.where(total > 0, total, torch.ones_like(total)).expand_as(weight_N)).to(weight_N.dtype)
