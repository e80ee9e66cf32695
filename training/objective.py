"""From a batch to its loss: which items are candidates, and which loss is taken.

Legend: B rows, N targets of a batch, I items of the catalogue, K candidate items, C candidates drawn, D dim.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from towers.batch import FeatureBatch, TrainBatch
from towers.model import TwoTower
from towers.runtime import to_tensors
from training.config import LossConfig, NegativesConfig
from training.device import choose_half
from training.examples import TrainingEvents
from training.interactions import Interactions
from training.loss import full_softmax, sampled_softmax
from training.negatives import draw


class CandidateItems:
    """The items that a training loss ranks: those with at least one training event.

    Items that training has never met are left out. A loss that met them as negatives only would teach the towers to rank every
    new item last.

    Attributes:
        rows_K: their catalogue rows, ascending.
        counts_K: how often each is a target.
        inputs: the item tower's inputs, [K, ...].
    """

    def __init__(self, data: Interactions, events: TrainingEvents, device: torch.device) -> None:
        self.rows_K = events.items(data)
        self.counts_K = events.target_counts(data)[self.rows_K]
        self.inputs = to_tensors({name: array[self.rows_K] for name, array in data.item_features.items()}, device)
        self._place_I = np.full(data.n_items, -1, np.int64)
        self._place_I[self.rows_K] = np.arange(len(self.rows_K))
        self.device = device

    def __len__(self) -> int:
        return len(self.rows_K)

    def places(self, rows_N: NDArray[np.int32]) -> NDArray[np.int64]:
        """Catalogue rows -> places among the K."""
        return self._place_I[rows_N]

    def take(self, places_C: NDArray[np.int64]) -> dict[str, Tensor]:
        """Item tower inputs of some of them."""
        index_C = torch.from_numpy(places_C).to(self.device)
        return {name: tensor.index_select(0, index_C) for name, tensor in self.inputs.items()}


class Objective(Protocol):
    """A training loss. `name` is the loss's name in the config; `items` are its candidates."""

    name: str
    items: CandidateItems

    def __call__(self, model: TwoTower, batch: TrainBatch, rng: np.random.Generator) -> Tensor:
        """The loss of a batch, a scalar with gradient; all randomness of negatives comes from `rng`."""
        ...


class FullSoftmax:
    """Every candidate item is scored for every target."""

    name = "full_softmax"

    def __init__(self, items: CandidateItems, half: bool) -> None:
        self.items = items
        self._half = half

    def __call__(self, model: TwoTower, batch: TrainBatch, rng: np.random.Generator) -> Tensor:
        targets = targets_of(model, batch, self.items)
        place_N = torch.from_numpy(targets.place_N).to(self.items.device)
        item_KD = model.item(self.items.inputs)
        return full_softmax(targets.user_ND, item_KD, place_N, targets.weight_N, model.temperature(), half=self._half)


class SampledSoftmax:
    """Targets against the batch's other targets and drawn negatives, with the logQ correction."""

    name = "sampled_softmax"

    def __init__(self, items: CandidateItems, config: LossConfig, negatives: NegativesConfig, half: bool) -> None:
        self.items = items
        self._half = half
        self._config = config
        self._negatives = negatives

    def __call__(self, model: TwoTower, batch: TrainBatch, rng: np.random.Generator) -> Tensor:
        targets = targets_of(model, batch, self.items)
        drawn = draw(self._negatives, targets.place_N, self.items.counts_K, rng)
        device = self.items.device
        return sampled_softmax(
            targets.user_ND,
            model.item(self.items.take(drawn.rows_C)),
            torch.from_numpy(drawn.positive_N).to(device),
            torch.from_numpy(drawn.log_q_C).to(device) * self._config.logq_correction,
            torch.from_numpy(drawn.multiplicity_C).to(device),
            targets.weight_N,
            model.temperature(),
            self._config.remove_accidental_hits,
            self._half,
        )


def choose_objective(config: LossConfig, negatives: NegativesConfig, items: CandidateItems, catalogue_size: int) -> tuple[Objective, str]:
    """The loss that the config asks for, and a line that says which and why."""
    if config.name == "auto":
        full = catalogue_size <= config.full_up_to
        why = f"{catalogue_size} items, {'at most' if full else 'more than'} loss.full_up_to={config.full_up_to}"
    else:
        full = config.name == "full_softmax"
        why = f"loss.name={config.name}"
    half, products = choose_half(config.precision, items.device)
    why = f"{why}; {products}"
    if full:
        return FullSoftmax(items, half), f"loss: full_softmax over {len(items)} items with training events ({why})"
    drawn = f"{negatives.name} negatives" + (f", {negatives.count} drawn" if negatives.name != "in_batch" else "")
    return SampledSoftmax(items, config, negatives, half), f"loss: sampled_softmax, {drawn} ({why})"


class Targets(NamedTuple):
    """What a batch asks the towers to predict: user vectors, places among the candidate items, weights."""

    user_ND: Tensor
    place_N: NDArray[np.int64]
    weight_N: Tensor


def targets_of(model: TwoTower, batch: TrainBatch, items: CandidateItems) -> Targets:
    """Encode the users of a batch, one vector a target."""
    inputs = to_tensors(batch.user, items.device)
    target_BT = batch.targets_BT >= 0
    if batch.sampler == "sequence":
        user_ND = model.user_sequence(inputs)[torch.from_numpy(target_BT).to(items.device)]
    else:
        user_ND = model.user(inputs).vectors_BHD[:, 0]
    weight_N = torch.from_numpy(batch.weights_BT[target_BT]).to(items.device)
    return Targets(user_ND, items.places(batch.targets_BT[target_BT]), weight_N)


def not_finite(inputs: Mapping[str, Tensor] | FeatureBatch) -> list[str]:
    """Names of the inputs that hold NaN or infinity."""
    return [name for name, array in inputs.items() if not np.isfinite(np.asarray(array)).all()]
