"""What a user vector is the sum of, from what a tower's core gives: the same for torch and ONNX.

A linear user tower sums weighted history rows, the rows of features and, for an empty history, a learned vector; under cosine similarity
the sum is then divided by its length. Given that length, the vector is the sum of its parts, and so is its dot product with any item.

Legend: B rows, L history length, S parts, D and K numbers of the learned and of the spectral part of a vector.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from towers.batch import NO_HISTORY, UserParts
from towers.lookups import ASSOCIATION_ROWS, HISTORY_MASK, HISTORY_ROWS, SPECTRAL_HISTORY_ROWS, TowerPlan
from towers.model_config import ModelConfig

Floats = NDArray[np.float32]

PART_ROWS = (HISTORY_ROWS, ASSOCIATION_ROWS, HISTORY_MASK, SPECTRAL_HISTORY_ROWS)
"""What of a core's arrays the history's parts are made of, as far as a tower reads them."""


def other_parts(plan: TowerPlan) -> tuple[str, ...]:
    """Names of the parts that are no history event's, in the order of `UserOutput.others`."""
    return (NO_HISTORY, *(spec.name for spec in plan.user_specs))


def user_outputs(config: ModelConfig, plan: TowerPlan) -> list[str]:
    """Names of the user graph's outputs. Whoever wants vectors alone asks for the first two; the others are computed anyway."""
    if not config.sums_user:
        return ["vectors", "weights"]
    associations = ["association_weights"] if config.history.associations else []
    return ["vectors", "weights", *associations, *(f"part.{name}" for name in other_parts(plan))]


def user_parts(
    config: ModelConfig, names: tuple[str, ...], weights_BL: Floats, gathered: Mapping[str, NDArray[Any]], others: Sequence[Floats]
) -> UserParts:
    """Parts of user vectors, divided by the vectors' lengths where these are 1.

    Args:
        names: of `other_parts`.
        weights_BL: of the history's rows.
        gathered: what the core read, of it `PART_ROWS`.
        others: float32 [B, D] each, in the order of the names; before them the weights [B, L] of second rows, where there are such.
    """
    history_BLD = np.asarray(gathered[HISTORY_ROWS], np.float32) * weights_BL[:, :, None]
    if config.history.associations:
        history_BLD += np.asarray(gathered[ASSOCIATION_ROWS], np.float32) * others[0][:, :, None]
        others = others[1:]
    parts_BSD = np.concatenate([history_BLD, *(other_BD[:, None] for other_BD in others)], axis=1)
    if config.similarity == "cosine":
        whole_BD = parts_BSD.sum(1)
        parts_BSD /= np.sqrt(np.einsum("bd,bd->b", whole_BD, whole_BD) + 1e-12)[:, None, None]
    if config.spectral.dim:
        learned_BSD, first = parts_BSD, config.width - config.spectral_width  # of the spectral part's columns
        parts_BSD = np.zeros((*learned_BSD.shape[:2], config.width), np.float32)
        parts_BSD[..., : config.dim] = learned_BSD
        length, newest = history_BLD.shape[1], -config.spectral.newest  # -0: all
        share_B11 = np.maximum(gathered[HISTORY_MASK].sum(1), 1)[:, None, None] ** -0.5 if newest else 1.0
        spectral_BLK = np.asarray(gathered[SPECTRAL_HISTORY_ROWS][:, newest:], np.float32)
        parts_BSD[:, :length][:, newest:, first:] += config.spectral.weight * share_B11 * spectral_BLK
    return UserParts(parts_BSD, names)
