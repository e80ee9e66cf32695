"""How item vectors lie inside a FAISS index, so that its order is the order of dot products.

Legend: D dimensions of the model, W width inside the index, H heads, C items of a block.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

METRICS = ("inner_product", "l2_augmented")


@dataclass(frozen=True, eq=False)
class Layout:
    """Vectors of the model <-> vectors of the index.

    Items are divided by the largest norm and queries by their largest number: neither changes an order, and half precision and distances
    stay within range whatever the model's scale. `l2_augmented` appends sqrt(1 - |x|^2) to items and 0 to queries: all items then have
    norm 1 and the nearest is the one of greatest dot product (Bachrach et al., Speeding Up the Xbox Recommender System, 2014). Zeros fill
    the width up to a multiple of 8: 65 columns cost FAISS several times what 64 or 72 do.

    Attributes:
        dim: D.
        metric: one of METRICS.
        largest_norm: of the item vectors.
        rotation_WW: orthogonal; both sides are turned by it, which changes no product and spreads what a model puts into few columns
            over all of them: codes of a few bits a column then lose less. None = as they are.
    """

    dim: int
    metric: str
    largest_norm: float
    rotation_WW: NDArray[np.float32] | None = None

    @property
    def augmented(self) -> bool:
        return self.metric == "l2_augmented"

    @property
    def width(self) -> int:
        """W."""
        return -(-(self.dim + self.augmented) // 8) * 8

    def items(self, item_CD: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [C, W]."""
        item_CW = np.zeros((len(item_CD), self.width), np.float32)
        np.divide(item_CD, np.float32(self.largest_norm or 1.0), out=item_CW[:, : self.dim])
        if self.augmented:
            square_C = np.einsum("cw,cw->c", item_CW, item_CW)
            item_CW[:, self.dim] = np.sqrt(np.maximum(0.0, 1.0 - square_C))
        return item_CW if self.rotation_WW is None else item_CW @ self.rotation_WW

    def queries(self, query_HD: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """float32 [H, W]; None where a head is zero and scores all items alike. Of [B, H, D] each query is turned by itself, which rounds
        as it does alone: [B, H, W]."""
        peak_H1 = np.abs(query_HD).max(-1, keepdims=True)
        if 0 in peak_H1:
            return None
        query_HD = query_HD / peak_H1
        if self.rotation_WW is not None:
            return np.asarray(query_HD @ self.rotation_WW[: self.dim])
        return query_HD if self.width == self.dim else np.pad(query_HD, (*[(0, 0)] * (query_HD.ndim - 1), (0, self.width - self.dim)))

    def centres(self, centre_LW: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors of the index as the model's: float32 [L, D]."""
        turned = centre_LW if self.rotation_WW is None else centre_LW @ self.rotation_WW.T
        return np.ascontiguousarray(turned[:, : self.dim] * np.float32(self.largest_norm))
