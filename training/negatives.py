"""Which candidates a sampled softmax sees, and how likely each was to be drawn.

Legend: N training rows, C candidates, I items that may be drawn, P mined items.
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
class Mined:
    """Hard negatives as a distribution over items: drawing from it has a known probability, which picking the hardest has not.

    Attributes:
        rows_P: int64, ascending.
        share_P: float64, their probabilities.
    """

    rows_P: NDArray[np.int64]
    share_P: NDArray[np.float64]

    def share(self, rows_C: NDArray[np.integer]) -> NDArray[np.float64]:
        """Probability of any items, 0 for those not mined.

        >>> Mined(np.array([2, 5]), np.array([0.25, 0.75])).share(np.array([0, 2, 3, 5, 9])).tolist()
        [0.0, 0.25, 0.0, 0.75, 0.0]
        """
        place_C = np.minimum(np.searchsorted(self.rows_P, rows_C), len(self.rows_P) - 1)
        return np.where(self.rows_P[place_C] == rows_C, self.share_P[place_C], 0.0)


@dataclass(frozen=True)
class Proposal:
    """Where candidates come from: the batch's own targets, and `negatives.count` drawn ones: by frequency, mined, the rest uniformly."""

    from_batch: bool = False
    drawn: bool = True
    popular: bool = False
    mined: bool = False


PROPOSALS: Final[Mapping[str, Proposal]] = {
    "in_batch": Proposal(from_batch=True, drawn=False),
    "uniform": Proposal(),
    "popularity": Proposal(popular=True),
    "mixed": Proposal(from_batch=True),
    "hard": Proposal(from_batch=True, mined=True),
}


def doubts(config: NegativesConfig, loss: str, sampler: str, batch_size: int, items: int) -> str:
    """A warning where a step draws more negatives than there are items, or has none at all; else nothing.

    More draws than items are neither refused nor clipped: repeats count as often as they are drawn, cost nothing, and bring the loss nearer
    to the exact one, which is better still.

    Args:
        loss: its name; full_softmax draws none.
        sampler, batch_size: examples of a step.
        items: that may be drawn.
    """
    if loss == "sampled_softmax" and config.name == "in_batch" and sampler == "event" and batch_size == 1:
        return "warning: trainer.batch_size=1 with negatives=in_batch: no step has a negative, so NOTHING IS LEARNED. Change either"
    if loss != "sampled_softmax" or not PROPOSALS[config.name].drawn or config.count <= items:
        return ""
    return (
        f"warning: negatives.count: {config.count:,} are drawn a step and only {items:,} items can be, so each is drawn about"
        f" {config.count / items:.1f} times, and counts as often. Lower it, or take loss=full_softmax: exact, no dearer for so few items"
    )


class Negatives:
    """Draws the candidates of a step, shared by all its rows.

    N draws come from the batch (each row's target is a draw from p, the items' shares of the targets that the sampler draws), U from the
    uniform distribution, P from popularity r_j ~ count_j^alpha (Mikolov et al. 2013, at 0.75), H from the mined distribution h; all with
    replacement, so a catalogue smaller than their number is no obstacle: multiplicities count the repeats. One draw of the mixture
    is item j with probability

        q_j = (N p_j + U / I + P r_j + H h_j) / (N + U + P + H)

    (Yang et al. 2020, "Mixed negative sampling for learning two-tower neural networks", for the mixture). Where the batch is no
    part of it (`uniform`, `popularity`) targets are candidates for their own row, and nobody's negative unless drawn.

    Args:
        config: `name` (in_batch, uniform, popularity, mixed, hard) and `count` = U + P + H; with `hard` a share `hard_share` of it is H.
        counts_I: how often each item is a training target.
        drawn_I: how often the sampler draws each as a target, on average; None = as often as it is one.

    Raises:
        ConfigError: names the knob.
    """

    def __init__(self, config: NegativesConfig, counts_I: NDArray[np.integer], drawn_I: NDArray[np.float64] | None = None) -> None:
        found = PROPOSALS.get(config.name)
        if found is None:
            raise ConfigError(f"negatives.name: got {config.name!r}, expected one of {', '.join(PROPOSALS)}")
        if found.drawn and config.count < 1:
            raise ConfigError(f"negatives.count: got {config.count}, expected at least 1 with negatives.name={config.name}")
        self._config, self._proposal, self._counts_I = config, found, counts_I
        self._drawn_I: NDArray[np.integer | np.floating] = counts_I if drawn_I is None else drawn_I
        self._total = float(self._drawn_I.sum()) or 1.0
        self._popular_I = np.empty(0)
        if found.popular:
            self._popular_I = np.maximum(counts_I, 1) ** config.alpha
            self._popular_I /= self._popular_I.sum()
            self._cumulated_I = np.cumsum(self._popular_I)

    def draw(self, targets_N: NDArray[np.integer], rng: np.random.Generator, mined: Mined | None = None) -> Candidates:
        """The candidates of one step.

        Args:
            targets_N: catalogue rows of the targets, all valid.
            mined: the hard negatives; None or empty = not yet any, and uniform draws take their place.
        """
        proposal, targets = self._proposal, len(targets_N)
        mined = mined if mined is not None and proposal.mined and len(mined.rows_P) else None
        from_batch = targets if proposal.from_batch else 0
        count = self._config.count if proposal.drawn else 0
        hard = round(count * self._config.hard_share) if mined is not None else 0
        popular = count if proposal.popular else 0
        drawn = [np.asarray(targets_N, np.int64), rng.integers(len(self._counts_I), size=count - hard - popular)]
        if popular:
            drawn.append(_by(self._cumulated_I, popular, rng))
        if mined is not None:
            drawn.append(mined.rows_P[_by(np.cumsum(mined.share_P), hard, rng)])
        rows_C, column = np.unique(np.concatenate(drawn), return_inverse=True)
        log_q_C = self._log_q(rows_C, from_batch, count - hard - popular, popular, hard, mined)
        counted = column if proposal.from_batch else column[targets:]
        multiplicity_C = np.bincount(counted, minlength=len(rows_C)).astype(np.float32)
        return Candidates(rows_C, column[:targets], log_q_C, multiplicity_C)

    def _log_q(
        self, rows_C: NDArray[np.int64], from_batch: int, uniform: int, popular: int, hard: int, mined: Mined | None
    ) -> NDArray[np.float32]:
        # An item that is a target now but was counted 0 times (new since counting) would have q = 0 and an infinite loss.
        drawn_C = self._drawn_I[rows_C]
        weight_C = from_batch * np.where(drawn_C > 0, drawn_C, 1) / self._total + uniform / len(self._counts_I)
        if popular:
            weight_C += popular * self._popular_I[rows_C]
        if mined is not None:
            weight_C += hard * mined.share(rows_C)
        log_q_C: NDArray[np.float32] = np.log(weight_C / max(from_batch + uniform + popular + hard, 1)).astype(np.float32)
        return log_q_C


def draw(config: NegativesConfig, targets_N: NDArray[np.integer], counts_I: NDArray[np.integer], rng: np.random.Generator) -> Candidates:
    """One draw, for a single step (see `Negatives`).

    Two items, seen 3 times and once; two targets and two uniform draws: q = (2 x 0.75 + 2 / 2) / 4 and (2 x 0.25 + 2 / 2) / 4.

    >>> import numpy as np
    >>> got = draw(NegativesConfig("mixed", 2), np.array([0, 1]), np.array([3, 1]), np.random.default_rng(0))
    >>> np.exp(got.log_q_C).round(3).tolist()
    [0.625, 0.375]
    """
    return Negatives(config, counts_I).draw(targets_N, rng)


def _by(cumulated_I: NDArray[np.float64], size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draws with replacement from a distribution, given as its cumulated sum."""
    drawn = np.searchsorted(cumulated_I, rng.random(size) * cumulated_I[-1], side="right")
    capped: NDArray[np.int64] = np.minimum(drawn, len(cumulated_I) - 1)
    return capped
