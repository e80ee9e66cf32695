"""Which candidates a sampled softmax sees, and how likely each was to be drawn.

Legend: N training rows, C candidates, I catalogue items.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from towers.errors import ConfigError
from training.config import NegativesConfig


@dataclass(frozen=True)
class Candidates:
    """The columns of a sampled softmax.

    Attributes:
        rows_C: int64 unique catalogue rows, ascending.
        positive_N: int64, each training row's column among them.
        log_q_C: float32, log of the probability that one draw of the proposal is this item.
        multiplicity_C: float32, times drawn; 0 for an item that is there only as a positive.
    """

    rows_C: NDArray[np.int64]
    positive_N: NDArray[np.int64]
    log_q_C: NDArray[np.float32]
    multiplicity_C: NDArray[np.float32]


@dataclass(frozen=True)
class Proposal:
    """Where candidates come from: the batch's own targets, uniform draws, or both."""

    from_batch: bool
    uniform: bool


PROPOSALS: Final[Mapping[str, Proposal]] = {
    "in_batch": Proposal(from_batch=True, uniform=False),
    "uniform": Proposal(from_batch=False, uniform=True),
    "mixed": Proposal(from_batch=True, uniform=True),
}


def draw(
    config: NegativesConfig, targets_N: NDArray[np.integer], train_counts_I: NDArray[np.integer], rng: np.random.Generator
) -> Candidates:
    """Draw the candidates of one step, shared by all its rows.

    B draws come from the batch (each row's target is a draw from p, the items' shares of the training targets), U from the
    uniform distribution with replacement, so a catalogue smaller than U is no obstacle: multiplicities count the repeats.
    One draw of the mixture is item j with probability

        q_j = (B p_j + U / I) / (B + U)        (Yang et al. 2020, "Mixed negative sampling for learning two-tower neural networks")

    With `uniform` B is 0: targets are candidates for their own row, and nobody's negative unless drawn.

    Args:
        config: `name` (in_batch, uniform, mixed) and `count` = U.
        targets_N: catalogue rows of the targets, all valid.
        train_counts_I: how often each item is a training target.

    Raises:
        ConfigError: names `negatives.name` or `negatives.count`.
    """
    proposal = PROPOSALS.get(config.name)
    if proposal is None:
        raise ConfigError(f"negatives.name: got {config.name!r}, expected one of {', '.join(PROPOSALS)}")
    if proposal.uniform and config.count < 1:
        raise ConfigError(f"negatives.count: got {config.count}, expected at least 1 with negatives.name={config.name}")
    from_batch = len(targets_N) if proposal.from_batch else 0
    uniform = config.count if proposal.uniform else 0
    drawn_U = rng.integers(len(train_counts_I), size=uniform)
    rows_C, column = np.unique(np.concatenate([np.asarray(targets_N, np.int64), drawn_U]), return_inverse=True)
    positive_N = column[: len(targets_N)]
    counted = column if proposal.from_batch else column[len(targets_N) :]
    return Candidates(
        rows_C=rows_C,
        positive_N=positive_N,
        log_q_C=log_proposal(rows_C, train_counts_I, from_batch, uniform),
        multiplicity_C=np.bincount(counted, minlength=len(rows_C)).astype(np.float32),
    )


def log_proposal(rows_C: NDArray[np.integer], train_counts_I: NDArray[np.integer], from_batch: int, uniform: int) -> NDArray[np.float32]:
    """log q of items under a mixture of `from_batch` draws by training frequency and `uniform` uniform ones.

    Two items, seen 3 times and once, one draw of each kind: q = (0.75 + 0.5) / 2 and (0.25 + 0.5) / 2.

    >>> import numpy as np
    >>> np.exp(log_proposal(np.arange(2), np.array([3, 1]), 1, 1)).round(3).tolist()
    [0.625, 0.375]
    """
    # An item that is a target now but was counted 0 times (new since counting) would have q = 0 and an infinite loss.
    counts_C = np.maximum(train_counts_I[rows_C], 1)
    p_C = counts_C / max(int(train_counts_I.sum()), 1)
    q_C = (from_batch * p_C + uniform / len(train_counts_I)) / (from_batch + uniform)
    log_q_C: NDArray[np.float32] = np.log(q_C).astype(np.float32)
    return log_q_C
