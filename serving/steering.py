"""`less_like`: what is near to the items that a person names gives way to others.

From the user vector, what it shares with the named items' vectors is taken out (its projection on those of them that it scores above 0), so
that the named items would score 0, and others lose in proportion to their nearness; whoever has no taste for them keeps his list. The named
items themselves are left out. Popular items, which no vector orders, come last where they are among the nearest to a named one.

Legend: B contexts, H heads, N items named, M directions taken out, D dimensions.
"""

import numpy as np
from numpy.typing import NDArray

from serving.asked import Asked
from serving.index.interface import VectorIndex

NEAREST = 20
"""Neighbours of each named item that come last where no vector orders the list."""
_NEGLIGIBLE = 1e-5


def steer(asked: Asked, named_ND: NDArray[np.float32], index: VectorIndex) -> Asked:
    """The same asker with less taste for the named items."""
    if not len(named_ND):
        return asked
    if asked.vectors_BHD is None:
        return asked._replace(last=nearest(index, named_ND))
    away = [directions(user_HD, named_ND) for user_HD in asked.vectors_BHD]
    vectors = [without(user_HD, taken_MD) for user_HD, taken_MD in zip(asked.vectors_BHD, away, strict=True)]
    return asked._replace(vectors_BHD=np.stack(vectors), away=away)


def directions(user_HD: NDArray[np.float32], named_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """Orthonormal directions of the named items that the user vector (any of its heads) leans to: float32 [M, D]."""
    liked_ND = named_ND[(named_ND @ user_HD.T).max(1) > 0]
    _, strength, found_MD = np.linalg.svd(liked_ND, full_matrices=False)
    return np.asarray(found_MD[strength > _NEGLIGIBLE * strength.max(initial=0)], np.float32)


def without(vectors_D: NDArray[np.float32], direction_MD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors without their share of some directions: [..., D] -> [..., D].

    >>> without(np.float32([[3, 4]]), np.float32([[0, 1]])).tolist()
    [[3.0, 0.0]]
    """
    return np.asarray(vectors_D - (vectors_D @ direction_MD.T) @ direction_MD, np.float32)


def nearest(index: VectorIndex, named_ND: NDArray[np.float32]) -> NDArray[np.int64]:
    """Rows of the named items' neighbours, repeated or not."""
    return np.concatenate([index.search(named_D, NEAREST + 1).rows for named_D in named_ND])
