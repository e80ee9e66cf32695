"""Numbers after a change of their standardisation: a numeric feature's map is told anew, so that it says of a value what it said before.

A map reads (z, missing) with z = (x - m) / s, or 0 where x is missing; see towers.preprocess and towers.features.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from towers.preprocess import Preprocessor


@dataclass(frozen=True)
class Rescaled:
    """A numeric feature whose mean and standard deviation are others now.

    Attributes:
        old, new: (mean, standard deviation).
    """

    name: str
    old: tuple[float, float]
    new: tuple[float, float]

    def __str__(self) -> str:
        (m, s), (mean, deviation) = self.old, self.new
        return f"{self.name} now around {mean:g} by {deviation:g} (was {m:g} by {s:g}), its weights told so"


def rescaled(weights: Mapping[str, Tensor], old: Preprocessor, new: Preprocessor) -> tuple[dict[str, Tensor], list[Rescaled]]:
    """The old maps of numeric features, for the new data's standardisation; and which they are.

        w' = w s'/s,   b' = b + w (m' - m)/s,   missing' = missing - w (m' - m)/s

    This is exact for missing values and for all that neither standardisation cuts (preprocess.NUMERIC_BOUND). A deviation of exactly 1
    stands for a constant, whose weight was never trained: the new deviation does for it as well, and no number drawn by chance grows with
    the spread of values that the old model has never seen.

    Args:
        weights: of the old model, by name.
    """
    changed: dict[str, Tensor] = {}
    found = []
    for name, (mean, deviation) in new.numbers.items():
        m, s = old.numbers[name]
        weight_name = next((key for key in weights if key.endswith(f"projections.{name.replace('.', ':')}.weight")), "")
        if not weight_name or (m, s) == (mean, deviation):
            continue
        bias_name = weight_name.removesuffix("weight") + "bias"
        spread = deviation if s == 1.0 else s
        weight_D2 = weights[weight_name].double()
        shift_D = weight_D2[:, 0] * ((mean - m) / spread)
        told_D2 = torch.stack([weight_D2[:, 0] * (deviation / spread), weight_D2[:, 1] - shift_D], dim=1)
        changed[weight_name] = told_D2.to(weights[weight_name].dtype)
        changed[bias_name] = (weights[bias_name].double() + shift_D).to(weights[bias_name].dtype)
        found.append(Rescaled(name, (m, s), (mean, deviation)))
    return changed, found
