"""Which examples and which loss a run takes where the config leaves them open: by cost, estimated from sizes.

The estimate is a function of config and data alone, so that a run that is resumed, here or elsewhere, chooses as it did.

Legend: K candidate items, C candidates of a sampled step, D dim, L history length.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training.config import TrainingConfig

BATCH_SIZES = {"event": 1024, "user": 512}
"""Examples a step where the config leaves it open."""
WINDOW_TARGETS, WINDOW_STEPS = 5000, 200
"""Most targets of a step of windows, and fewest steps of an epoch, where the config leaves it open. On MovieLens-1M larger steps cost less
CPU a target, and up to here they learn as much of it, at a higher rate; small logs need the steps more than they need the targets
(scripts/bench/results/LOG.md, "Recipes for ordered sets")."""
FEWEST_WINDOWS, MOST_WINDOWS = 16, 512
LENGTH_SHARE = 0.95
SHORTEST_WINDOW, LONGEST_WINDOW, LONGEST_HISTORY = 20, 100, 1000
"""Of histories whose length is left to the data (see `fitting_length`)."""

STEPS_A_PASS, FEWEST_USERS = 58, 64
"""Of the user sampler: what Gowalla's 29,858 users come to in batches of 512."""

# Measured on one core with AVX512-BF16 (scripts/bench/results/loss_choice_epyc_202611.md); fp32 costs two to three times as much on both
# sides of the comparison, so the choice does not ask which it is.
SCORE_NS, SCORE_NS_PER_DIM = 1.0, 0.034
"""A score of the fused softmax, with its gradients."""
ITEM_NS_PER_DIM = 8.5
"""An item vector of a step, with its gradient."""
HISTORY_NS_PER_DIM = 1.5
"""A history event of a mean, with its gradient."""


@dataclass(frozen=True)
class Sizes:
    """What the estimate needs to know of the data.

    Attributes:
        targets: of an epoch.
        users: with a target.
        items: K, that a loss may rank.
        shuffled: the data have no order.
    """

    targets: int
    users: int
    items: int
    shuffled: bool


def fitting_length(config: TrainingConfig, events_U: NDArray[np.integer], started: int = 0) -> TrainingConfig:
    """The settings with model.history.length filled in where it is left to the data.

    A weighted mean costs what there is to read: as many events as any user has. A transformer's columns are for all: enough for
    LENGTH_SHARE of the users, in tens. Longer histories are read from their newest events.

    Args:
        events_U: events of each user.
        started: length of the transformer whose weights are taken over, which has no others; 0 = of none.
    """
    history = config.model.history
    if history.length:
        return config
    if history.name == "transformer":
        wanted = -(-int(np.quantile(events_U, LENGTH_SHARE)) // 10) * 10
        length = started or min(max(wanted, SHORTEST_WINDOW), LONGEST_WINDOW)
    else:
        length = min(int(events_U.max(initial=1)), LONGEST_HISTORY)
    return replace(config, model=replace(config.model, history=replace(history, length=length)))


@dataclass(frozen=True)
class Choice:
    """Names of a sampler and of a loss, examples a step, and why."""

    sampler: str
    loss: str
    batch_size: int
    why: str


@dataclass(frozen=True)
class _Step:
    """A step's user vectors, targets and history events."""

    vectors: float
    targets: float
    history: float


def choose(config: TrainingConfig, sizes: Sizes) -> Choice:
    """What config.trainer.sampler and config.loss.name name; `auto` is decided here.

    Data without order take the user sampler with the exact softmax (all of a user's targets share one row of scores), and ordered data
    the events or, for a transformer, windows of them. The exact softmax is taken while a target costs at most `loss.exact_worth` times
    what it costs against sampled negatives; where data without order cannot have it, they train by events.
    """
    samplers = {"auto": _auto_samplers(config, sizes)}.get(config.trainer.sampler, (config.trainer.sampler, config.trainer.sampler))
    exact = _ns_a_target(config, sizes, samplers[0], exact=True) / 1e3
    sampled = _ns_a_target(config, sizes, samplers[1], exact=False) / 1e3
    if config.loss.name != "auto":
        full = config.loss.name == "full_softmax"
        why = f"loss.name={config.loss.name}"
    else:
        full = exact <= config.loss.exact_worth * sampled
        why = f"a target costs about {exact:.1f} us against all items and {sampled:.1f} us against sampled ones, " + (
            f"and exactness is worth {config.loss.exact_worth:g} times as much"
            if full
            else f"more than loss.exact_worth={config.loss.exact_worth:g} times as much"
        )
    sampler = samplers[0 if full else 1]
    return Choice(sampler, "full_softmax" if full else "sampled_softmax", batch_size(config, sizes, sampler), why)


def batch_size(config: TrainingConfig, sizes: Sizes, sampler: str) -> int:
    """Examples a step. An epoch of few users still is `STEPS_A_PASS` steps, as long as a step holds `FEWEST_USERS`; a step's windows hold
    at most `WINDOW_TARGETS` together, fewer where an epoch would have fewer than `WINDOW_STEPS` steps."""
    if config.trainer.batch_size or sampler == "event":
        return config.trainer.batch_size or BATCH_SIZES[sampler]
    if sampler == "sequence":
        targets = min(WINDOW_TARGETS, sizes.targets / WINDOW_STEPS)
        return min(max(round(targets / _window(config, sizes)), FEWEST_WINDOWS), MOST_WINDOWS)
    return min(BATCH_SIZES[sampler], max(FEWEST_USERS, sizes.users // STEPS_A_PASS))


def _window(config: TrainingConfig, sizes: Sizes) -> float:
    """Targets of a window, about."""
    return max(min(sizes.targets / max(sizes.users, 1), float(config.model.history.length)), 1.0)


def _auto_samplers(config: TrainingConfig, sizes: Sizes) -> tuple[str, str]:
    """The sampler beside an exact loss, and beside a sampled one."""
    if config.model.history.name == "transformer":
        return "sequence", "sequence"
    return ("user" if sizes.shuffled else "event"), "event"


def _ns_a_target(config: TrainingConfig, sizes: Sizes, sampler: str, exact: bool) -> float:
    """Estimated nanoseconds of one core for a target: the loss, the item vectors and the user's history.

    What both sides of a comparison have alike (the layers of a transformer, the optimiser) is left out.
    """
    step, dim = _step(config, sizes, sampler), config.model.dim
    candidates = float(sizes.items) if exact else _distinct(step.targets + config.negatives.count, sizes.items)
    rows = step.vectors if exact else step.targets
    loss = rows * candidates * (SCORE_NS + SCORE_NS_PER_DIM * dim)
    return (loss + (candidates * ITEM_NS_PER_DIM + step.history * HISTORY_NS_PER_DIM) * dim) / step.targets


def _step(config: TrainingConfig, sizes: Sizes, sampler: str) -> _Step:
    size, length, mean = batch_size(config, sizes, sampler), config.model.history.length, sizes.targets / max(sizes.users, 1)
    # a weighted sum reads the events that there are, a transformer computes its padding, too
    held = length if config.model.history.name == "transformer" else min(length, mean)
    if sampler == "sequence":
        targets = size * _window(config, sizes)
        return _Step(targets, targets, targets)  # windows of a step are about as long
    if sampler == "user":
        size = min(size, max(sizes.users, 1))
        return _Step(size, size * max(mean / 2, 1.0), size * held)
    size = min(size, max(sizes.targets, 1))
    return _Step(size, size, size * held)


def _distinct(draws: float, items: int) -> float:
    """Different items among uniform draws: I (1 - (1 - 1/I)^n)."""
    return float(items * (1 - (1 - 1 / max(items, 1)) ** draws))
