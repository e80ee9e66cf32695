"""Hard negatives: the items that the towers, as they stand, rank highest for users who did not choose them.

Legend: K candidate items, S item block, V user vectors looked at, X items known to be a user's, D dim.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from towers.batch import HISTORY_ITEM, TrainBatch
from towers.model import TwoTower
from training.candidates import CandidateItems
from training.config import NegativesConfig
from training.distributed import Processes
from training.negatives import Mined

MOST_VECTORS, DEPTH, BLOCK_ITEMS = 256, 64, 1 << 14
"""User vectors looked at, items taken of each (of small catalogues a twentieth), items scored at a time."""


class Miner:
    """Every `negatives.refresh_every` steps, scores all items for users of the batch and keeps the top ones as a distribution: an item's
    probability is its share of the users' top lists. A user's own items (targets of the batch and history) are no negatives.

    Drawn with its probability in the logQ correction, the pool makes an importance sample of the softmax: no biased loss, but one with
    less noise where it matters (Blanc and Rendle 2018, "Adaptive sampled softmax with kernel based sampling").

    What was mined is state, kept with the checkpoint: the item vectors it came from are gone when a run continues.
    """

    def __init__(self, items: CandidateItems, config: NegativesConfig, processes: Processes) -> None:
        self._items, self._every, self._processes = items, config.refresh_every, processes
        self._steps = 0
        self._mined = Mined(np.empty(0, np.int64), np.empty(0, np.float64))

    def step(self, model: TwoTower, batch: TrainBatch, vector_VD: Tensor) -> Mined:
        """The hard negatives of a step, mined anew where it is due.

        Args:
            vector_VD: the batch's user vectors: one a row, or under the `sequence` sampler one a target.
        """
        if self._steps % self._every == 0:
            self._mined = self._mine(model, batch, vector_VD.detach())
        self._steps += 1
        return self._mined

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, "rows_P": torch.from_numpy(self._mined.rows_P), "share_P": torch.from_numpy(self._mined.share_P)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._steps = state["steps"]
        self._mined = Mined(state["rows_P"].numpy(), state["share_P"].numpy())

    def _mine(self, model: TwoTower, batch: TrainBatch, vector_VD: Tensor) -> Mined:
        chosen_V = np.linspace(0, len(vector_VD) - 1, min(MOST_VECTORS, len(vector_VD))).astype(np.int64)
        own_VX = self._own_items(batch, chosen_V)
        training = model.training
        model.eval()  # the vectors as they will rank: with every id in view
        with torch.no_grad():
            top = self._top(model, vector_VD[torch.from_numpy(chosen_V).to(vector_VD.device)], own_VX)
        model.train(training)
        found, _ = self._processes.join_rows(top)
        rows_P, times_P = np.unique(found.numpy(), return_counts=True)
        return Mined(rows_P, times_P / max(len(found), 1))

    def _own_items(self, batch: TrainBatch, chosen_V: NDArray[np.int64]) -> NDArray[np.int64]:
        """Places among the K of what is each user's own; -1 = none."""
        row_V = np.nonzero(batch.targets_BT >= 0)[0][chosen_V] if batch.sampler == "sequence" else chosen_V
        history_VL = np.asarray(batch.user[HISTORY_ITEM][row_V], np.int64)
        return np.concatenate([self._items.targets(batch.targets_BT[row_V]), self._items.places_of_ids(history_VL)], axis=1)

    def _top(self, model: TwoTower, vector_VD: Tensor, own_VX: NDArray[np.int64]) -> Tensor:
        """Places of the top items of all vectors, int64 on the CPU."""
        depth = min(DEPTH, 1 + len(self._items) // 20)
        best = vector_VD.new_empty(len(vector_VD), 0)
        place = torch.empty(len(vector_VD), 0, dtype=torch.int64, device=vector_VD.device)
        for start in range(0, len(self._items), BLOCK_ITEMS):
            places_S = np.arange(start, min(start + BLOCK_ITEMS, len(self._items)))
            score_VS = vector_VD @ model.item(self._items.take(places_S)).to(vector_VD.dtype).t()
            v, x = np.nonzero((own_VX >= start) & (own_VX < start + len(places_S)))
            score_VS[torch.from_numpy(v), torch.from_numpy(own_VX[v, x] - start)] = -torch.inf
            column_VS = torch.arange(start, start + len(places_S), device=place.device).expand(len(vector_VD), -1)
            best, order = torch.cat([best, score_VS], 1).topk(min(depth, best.shape[1] + len(places_S)), dim=1)
            place = torch.cat([place, column_VS], 1).gather(1, order)
        return place[best > -torch.inf].cpu()
