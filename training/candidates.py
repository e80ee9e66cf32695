"""The items that a training loss ranks.

Legend: I items of the catalogue, K candidate items, N targets, C candidates drawn.
"""

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from towers.columns import FIRST_ROW, ITEM_ID
from towers.runtime import to_tensors
from training.events import TrainingEvents
from training.interactions import Interactions


class CandidateItems:
    """The items that a training loss ranks: those with at least one training event.

    Items that training has never met are left out. A loss that met them as negatives only would teach the towers to rank every
    new item last.

    Attributes:
        rows_K: their catalogue rows, ascending.
        counts_K: how often each is a target.
        once: nobody takes an item twice, so what a user has is no candidate for that user (data without order).
    """

    def __init__(self, data: Interactions, events: TrainingEvents, device: torch.device) -> None:
        self.rows_K = events.items(data)
        self.counts_K = events.target_counts(data)[self.rows_K]
        self.once = data.schema.order == "set"
        self._features = data.item_features
        self._place_I = np.full(data.n_items, -1, np.int64)
        self._place_I[self.rows_K] = np.arange(len(self.rows_K))
        self.device = device

    def __len__(self) -> int:
        return len(self.rows_K)

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """The item tower's inputs of all of them, [K, ...], on the device. Only a loss that scores every item asks for them: the features
        of a large catalogue stay in their memory-mapped files."""
        return self._take(self.rows_K)

    def places(self, rows_N: NDArray[np.int32]) -> NDArray[np.int64]:
        """Catalogue rows -> places among the K."""
        return self._place_I[rows_N]

    def targets(self, rows_BT: NDArray[np.int32]) -> NDArray[np.int64]:
        """Places of a batch's targets; -1 where there is none."""
        return np.where(rows_BT >= 0, self._place_I[rows_BT], -1)

    def places_of_ids(self, id_rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """Rows of the item id vocabulary -> places among the K; -1 where it is none of them."""
        return np.where(id_rows < len(self._place_of_id), self._place_of_id[np.minimum(id_rows, len(self._place_of_id) - 1)], -1)

    @cached_property
    def _place_of_id(self) -> NDArray[np.int64]:
        id_K = self._features[f"item.{ITEM_ID}"][self.rows_K]
        place = np.full(int(id_K.max(initial=FIRST_ROW)) + 1, -1, np.int64)
        place[id_K] = np.arange(len(id_K))
        place[:FIRST_ROW] = -1  # ids without a row of their own share these
        return place

    def take(self, places_C: NDArray[np.int64]) -> dict[str, Tensor]:
        """Item tower inputs of some of them."""
        return self._take(self.rows_K[places_C])

    def _take(self, rows_C: NDArray[np.int64]) -> dict[str, Tensor]:
        return to_tensors({name: array[rows_C] for name, array in self._features.items()}, self.device)
