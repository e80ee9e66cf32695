"""Numbers that tell whether embeddings collapse, crowd or leave items out; each is looked at over the epochs.

Legend: N vectors, D dimensions.
"""

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.floating]


def effective_rank(vectors_ND: Vectors) -> float:
    """How many directions the vectors really use: exp of the entropy of the normalised singular values (Roy and Vetterli, 2007).

    1 = all on one line; at most min(N, D). A fall while the loss still falls is a collapse of dimensions.

    >>> effective_rank(np.eye(3)), effective_rank(np.ones((4, 3)))
    (3.0, 1.0)
    """
    values = np.linalg.svd(np.asarray(vectors_ND, np.float64), compute_uv=False)
    total = values.sum()
    if not total:
        return 0.0
    shares = values[values > 1e-12 * total] / total
    return round(float(np.exp(-(shares * np.log(shares)).sum())), 6)


def norm_spread(vectors_ND: Vectors) -> float:
    """Standard deviation of the lengths over their mean: 0 where all are equal, as under cosine similarity.

    >>> norm_spread(np.array([[1.0, 0.0], [0.0, 3.0]]))
    0.5
    """
    norms = np.linalg.norm(vectors_ND, axis=1)
    return float(norms.std() / norms.mean()) if norms.any() else 0.0


def uniformity(vectors_ND: Vectors) -> float:
    """log of the mean over pairs of exp(-2 |x - y|^2), of the vectors' directions (Wang and Isola, 2020).

    0 = all point the same way; the lower, the more evenly they fill the sphere. Two opposite directions: exp(-8).

    >>> uniformity(np.array([[1.0, 0.0], [-2.0, 0.0]]))
    -8.0
    """
    if len(vectors_ND) < 2:
        return 0.0
    cosines = _cosines(vectors_ND)[np.triu_indices(len(vectors_ND), 1)]
    return float(np.log(np.exp(-4 * (1 - cosines)).mean()))


def k_occurrences(vectors_ND: Vectors, k: int) -> NDArray[np.int64]:
    """How many of the other vectors have each one among their k nearest by direction, the lower row first of equals; int64 [N].

    >>> k_occurrences(np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), 1).tolist()
    [1, 2, 0]
    """
    cosines = _cosines(vectors_ND)
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, : min(k, len(cosines) - 1)]
    return np.bincount(nearest.ravel(), minlength=len(cosines))


def skewness(values: NDArray[np.integer]) -> float:
    """Third standardised moment. Of k-occurrences it is the measure of hubness (Radovanovic et al., 2010): above about 1, some items are
    near to everything.

    >>> skewness(np.array([1, 1, 1, 1])), round(skewness(np.array([0, 0, 0, 4])), 4)
    (0.0, 1.1547)
    """
    apart = values - values.mean()
    deviation = np.sqrt((apart**2).mean())
    return float((apart**3).mean() / deviation**3) if deviation else 0.0


def gauges_of(vectors_ND: Vectors, k: int = 10) -> dict[str, float]:
    """All of them by name; `never_near` is the share of vectors that are among nobody's k nearest."""
    occurrences = k_occurrences(vectors_ND, k)
    return {
        "effective_rank": effective_rank(vectors_ND),
        "norm_spread": norm_spread(vectors_ND),
        "uniformity": uniformity(vectors_ND),
        "hubness": skewness(occurrences),
        "never_near": float((occurrences == 0).mean()),
    }


def _cosines(vectors_ND: Vectors) -> NDArray[np.float64]:
    norms = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit_ND = np.asarray(vectors_ND, np.float64) / np.maximum(norms, 1e-12)
    return np.asarray(unit_ND @ unit_ND.T)
