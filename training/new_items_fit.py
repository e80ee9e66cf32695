"""Fits towers.new_items on a trained model: content against the vectors of trained items.

    W = argmin_W  sum_i w_i |x_i W - v_i|^2 + penalty |W|^2,   w_i ~ count_i^0.2, 1 on average

solved by conjugate gradients (Hestenes and Stiefel, 1952), scaled by the diagonal, on all columns of W at once. The penalty is about how
many items have to show a value until it is believed by half. Weights that grow with popularity make new items popular, and give them more
places in lists: scripts/bench/results/LOG.md has what powers from 0 to 0.5 find, and what they cost the others.

Legend: N trained items, F columns of x, D dim.
"""

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from towers.batch import take
from towers.model import TwoTower
from towers.new_items import ID_INPUT, NewItems, entries, lay_out
from towers.runtime import TorchRuntime
from training.interactions import Interactions
from training.rank_queries import encode_items

PENALTY, COUNT_POWER = 8.0, 0.2
_MOST_ITEMS, _MOST_STEPS, _TOLERANCE = 100_000, 100, 1e-4


def fit_new_items(model: TwoTower, data: Interactions, seed: int = 0) -> NewItems | None:
    """The regression of a settled model's item vectors on what is declared of items; None where nothing is, or nothing has trained."""
    counts_I = data.train_counts()
    trained_N = np.flatnonzero(counts_I > 0)
    specs = [spec for spec in model.plan.item_specs if spec.name != ID_INPUT]
    if not specs or not len(trained_N):
        return None
    if len(trained_N) > _MOST_ITEMS:
        trained_N = np.sort(np.random.default_rng(seed).choice(trained_N, _MOST_ITEMS, replace=False))
    vectors_ND = encode_items(TorchRuntime(model, next(model.parameters()).device), data, trained_N)
    inputs = take(data.item_features, trained_N)
    blocks = lay_out(specs, inputs)
    columns_NJ, values_NJ = entries(blocks, inputs)
    row_NJ = np.broadcast_to(np.arange(len(trained_N))[:, None], columns_NJ.shape)
    shape = len(trained_N), sum(block.size for block in blocks)
    x_NF = scipy.sparse.csr_array((values_NJ.ravel(), (row_NJ.ravel(), columns_NJ.ravel())), shape=shape, dtype=np.float64)
    weight_N = counts_I[trained_N] ** COUNT_POWER
    weights_FD = ridge(x_NF, vectors_ND.astype(np.float64), weight_N / weight_N.mean(), PENALTY)
    return NewItems(blocks, weights_FD.astype(np.float32), float(np.linalg.norm(vectors_ND, axis=1).mean()))


def ridge(x_NF: scipy.sparse.csr_array, y_ND: NDArray[np.float64], weight_N: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
    """W [F, D] with (X^T diag(w) X + penalty I) W = X^T diag(w) Y, to a relative residual of 1e-4 of each column.

    >>> x = scipy.sparse.csr_array(np.array([[1.0], [1.0]]))
    >>> ridge(x, np.array([[3.0], [3.0]]), np.ones(2), 1.0).round(6).tolist()
    [[2.0]]
    """
    transposed_FN = (x_NF.T * weight_N).tocsr()
    # values differ in how many items have them by orders of magnitude: scaled by that, far fewer steps are enough
    scale_F1 = 1.0 / (((x_NF**2).T @ weight_N) + penalty)[:, None]
    residual_FD = transposed_FN @ y_ND
    found_FD, direction_FD = np.zeros_like(residual_FD), scale_F1 * residual_FD
    enough_D = _TOLERANCE**2 * (residual_FD**2).sum(0)
    inner_D = (residual_FD * direction_FD).sum(0)
    for _ in range(_MOST_STEPS):
        if ((residual_FD**2).sum(0) <= enough_D).all():
            break
        moved_FD = transposed_FN @ (x_NF @ direction_FD) + penalty * direction_FD
        step_D = inner_D / np.maximum((direction_FD * moved_FD).sum(0), 1e-300)
        found_FD += step_D * direction_FD
        residual_FD -= step_D * moved_FD
        scaled_FD = scale_F1 * residual_FD
        before_D, inner_D = inner_D, (residual_FD * scaled_FD).sum(0)
        direction_FD = scaled_FD + inner_D / np.maximum(before_D, 1e-300) * direction_FD
    solved: NDArray[np.float64] = found_FD
    return solved
