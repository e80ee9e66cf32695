"""From a batch to its loss: which items are candidates, and which loss is taken.

Legend: B rows, N targets of a batch, I items of the catalogue, K candidate items, C candidates drawn, D dim.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from towers.batch import HISTORY_ITEM, FeatureBatch, TrainBatch
from towers.fixed_sum import FixedSum
from towers.model import TwoTower
from towers.runtime import on_device, to_tensors
from training.candidates import CandidateItems
from training.config import LossConfig, NegativesConfig
from training.device import choose_half
from training.distributed import ALONE, Part, Processes
from training.hard_negatives import Miner
from training.loss import full_softmax, sampled_softmax
from training.negatives import PROPOSALS, Negatives


class Objective(Protocol):
    """A training loss. `name` is the loss's name in the config; `items` are its candidates.

    With several processes it is the weighted mean over this process's rows, against the candidates of all.
    """

    name: str
    items: CandidateItems

    def parts(self) -> Mapping[str, Part]:
        """What has state, by name."""
        ...

    def __call__(self, model: TwoTower, batch: TrainBatch, rng: np.random.Generator) -> Tensor:
        """The loss of a batch, a scalar with gradient; all randomness of negatives comes from `rng`."""
        ...


class FullSoftmax:
    """Every candidate item is scored for every target. Each of several processes encodes all items: that costs less than to exchange the
    vectors and their gradients, and to wait for one another twice more a step."""

    name = "full_softmax"

    def __init__(self, items: CandidateItems, half: bool) -> None:
        self.items = items
        self._half = half
        self._fixed: FixedSum | None = None
        self._laid_out = False

    def parts(self) -> Mapping[str, Part]:
        return {}

    def __call__(self, model: TwoTower, batch: TrainBatch, rng: np.random.Generator) -> Tensor:
        targets = targets_of(model, batch, self.items)
        place_N = on_device(targets.place_N, self.items.device)
        if not self._laid_out:
            self._fixed, self._laid_out = model.fixed_items(self.items.inputs), True
        item_KD = model.item(self.items.inputs, self._fixed)
        return full_softmax(
            targets.user_BD, item_KD, place_N, targets.weight_N, model.temperature(), targets.row_N, self._half, kept(batch, self.items)
        )


class SampledSoftmax:
    """Targets against the batch's other targets and drawn negatives, with the logQ correction."""

    name = "sampled_softmax"

    def __init__(
        self,
        items: CandidateItems,
        config: LossConfig,
        negatives: NegativesConfig,
        half: bool,
        processes: Processes = ALONE,
        drawn_I: NDArray[np.float64] | None = None,
    ) -> None:
        self.items = items
        self._half = half
        self._processes = processes
        self._config = config
        self._negatives = Negatives(negatives, items.counts_K, None if drawn_I is None else drawn_I[items.rows_K])
        self._miner = Miner(items, negatives, processes) if PROPOSALS[negatives.name].mined else None

    def parts(self) -> Mapping[str, Part]:
        return {"hard_negatives": self._miner} if self._miner else {}

    def __call__(self, model: TwoTower, batch: TrainBatch, rng: np.random.Generator) -> Tensor:
        targets = targets_of(model, batch, self.items)
        device, processes = self.items.device, self._processes
        # every process draws the same candidates from the targets of all, and scores its own rows against them
        all_places, own = processes.join_rows(torch.from_numpy(targets.place_N))
        mined = self._miner.step(model, batch, targets.user_BD) if self._miner else None
        drawn = self._negatives.draw(all_places.numpy(), rng, mined)
        item_PD = model.item(self.items.take(drawn.rows_C[processes.part(len(drawn.rows_C))]))
        user_BD, row_N = targets.user_BD, targets.row_N
        return sampled_softmax(
            user_BD if row_N is None else user_BD.index_select(0, row_N),
            processes.join_part(item_PD, len(drawn.rows_C)),
            on_device(drawn.positive_N[own], device),
            on_device(drawn.log_q_C, device) * self._config.logq_correction,
            on_device(drawn.multiplicity_C, device),
            targets.weight_N,
            model.temperature(),
            self._config.remove_accidental_hits,
            self._half,
        )


def choose_objective(
    config: LossConfig,
    negatives: NegativesConfig,
    items: CandidateItems,
    why: str,
    processes: Processes = ALONE,
    draws: Callable[[], NDArray[np.float64] | None] = lambda: None,
) -> tuple[Objective, str]:
    """The loss that config.name names (see training.choice for `auto`), and a line that says which and why.

    Args:
        draws: how often each catalogue row is drawn as a target (`Loader.draws`); asked only where the loss corrects for it.
    """
    half, products = choose_half(config.precision, items.device)
    why = f"{why}; {products}"
    if config.name == "full_softmax":
        return FullSoftmax(items, half), f"loss: full_softmax over {len(items)} items with training events ({why})"
    drawn = f"{negatives.name} negatives" + (f", {negatives.count} drawn" if negatives.name != "in_batch" else "")
    return SampledSoftmax(items, config, negatives, half, processes, draws()), f"loss: sampled_softmax, {drawn} ({why})"


class Targets(NamedTuple):
    """What a batch asks the towers to predict: user vectors, the vector of each target (None = one target a vector, in order), places
    among the candidate items, weights."""

    user_BD: Tensor
    row_N: Tensor | None
    place_N: NDArray[np.int64]
    weight_N: Tensor


def targets_of(model: TwoTower, batch: TrainBatch, items: CandidateItems) -> Targets:
    """Encode the users of a batch: one vector a target, or one vector for all targets of a user."""
    inputs = to_tensors(batch.user, items.device)
    target_BT = batch.targets_BT >= 0
    row_N: Tensor | None = None
    if batch.sampler == "sequence":
        user_BLD = model.user_sequence(inputs)
        user_BD = user_BLD.flatten(0, 1) if target_BT.all() else user_BLD[on_device(target_BT, items.device)]
    else:
        user_BD = model.user(inputs).vectors_BHD[:, 0]
    if batch.sampler == "user":
        row_N = on_device(np.nonzero(target_BT)[0], items.device)
    weight_N = on_device(batch.weights_BT[target_BT], items.device)
    return Targets(user_BD, row_N, items.places(batch.targets_BT[target_BT]), weight_N)


def kept(batch: TrainBatch, items: CandidateItems) -> tuple[Tensor, Tensor] | None:
    """(row, place) of the items that a user of a `user` batch keeps as history, where they cannot be chosen again: they are as little
    candidates in training as in a ranking with seen items masked. On Gowalla that is worth 1 to 2 % of ndcg@20."""
    if batch.sampler != "user" or not items.once:
        return None
    history = _pairs(items.places_of_ids(np.asarray(batch.user[HISTORY_ITEM], np.int64)), len(items))
    row, place = np.divmod(np.setdiff1d(history, _pairs(items.targets(batch.targets_BT), len(items))), len(items))
    return on_device(row, items.device), on_device(place, items.device)


def _pairs(place_BX: NDArray[np.int64], items: int) -> NDArray[np.int64]:
    """(row, place) of all valid places, as one number each."""
    row, column = np.nonzero(place_BX >= 0)
    return row * items + place_BX[row, column]


def not_finite(inputs: Mapping[str, Tensor] | FeatureBatch) -> list[str]:
    """Names of the inputs that hold NaN or infinity."""
    return [name for name, array in inputs.items() if not np.isfinite(np.asarray(array)).all()]
