"""Train apart, join afterwards: a model's spectral part is computed from the training rows once the learned towers stand, and weighed
against them on validation.

Trained together, the towers would learn nothing: the spectral part has seen the items that training hides from the history.

Legend: Q validation queries.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from towers.errors import ConfigError
from towers.model import TwoTower
from towers.model_config import SpectralConfig
from training.config import TrainingConfig
from training.interactions import Interactions
from training.narrow import WideVectors, narrowed
from training.spectral import spectral_tables
from training.tracking import say
from training.validation import Validator

WEIGHTS = (0.15, 0.3, 0.6, 1.2, 2.4, 4.8)
"""Both parts' scores lie about between 0 and 1 (a cosine; a smoothed row of zeros and ones), so one grid does for any data."""
NEXT_WEIGHTS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
"""Of vectors of what comes next, whose products have a root mean square of spectral.SPREAD: 0.03 to 0.08 were best on MovieLens-1M."""
MOST_QUERIES = 5_000
"""Weights are compared on the same queries, so fewer do than to tell how good one is."""


PerWeight = dict[float, dict[str, NDArray[np.float64]]]
"""What each metric is the mean of, by weight."""


class Weighed(NamedTuple):
    """The weight that validation chose, the metric it looked at by weight tried, and all metrics at the chosen one.

    With narrow vectors `fitted` says whether their maps are trained further, as validation chose, and `tried` is of maps so made.
    """

    weight: float
    tried: dict[str, float]
    metrics: dict[str, float]
    fitted: bool = False


def learned_alone(config: TrainingConfig) -> TrainingConfig:
    """The same settings without the spectral part: what training is told."""
    return replace(config, model=replace(config.model, spectral=SpectralConfig()))


def check_events(data: Interactions, spectral: SpectralConfig) -> None:
    """That a spectral part can be made of the data: asked before anything is trained.

    Raises:
        ConfigError: some events speak against their items, and the sum over a history cannot tell them from the others.
    """
    if spectral.dim and not spectral.newest and not (data.weight > 0).all():
        raise ConfigError(
            f"model.spectral.dim: {int((data.weight <= 0).sum())} events have no weight (skips or the like), and a spectral part counts"
            " every event of a history alike. Set it to 0, or prepare without those events"
        )


def join_spectral(learned: TwoTower, data: Interactions, spectral: SpectralConfig, seed: int, fitted: bool = False) -> TwoTower:
    """A model of the learned towers and the spectral part of the training rows, narrowed where that is asked for.

    Args:
        spectral: with the weight to be used.
        fitted: train narrow maps further (training/narrow_fit.py).
    """
    wide = _side_by_side(learned, data, spectral, seed)
    if not spectral.narrow_to:
        return wide
    [(_, model)] = _models(wide, [spectral.weight], data, seed, spectral.narrow_to, WideVectors.of(wide, data, seed), fitted)
    return model


def _side_by_side(learned: TwoTower, data: Interactions, spectral: SpectralConfig, seed: int) -> TwoTower:
    device = next(learned.parameters()).device
    model = TwoTower(
        replace(learned.config, spectral=replace(spectral, narrow_to=0)), data.preprocessor.inputs, data.preprocessor.event_rows
    )
    tables = {f"tables.{name}.weight": torch.from_numpy(rows_VD) for name, rows_VD in spectral_tables(data, spectral.dim, seed).items()}
    model.load_state_dict({**learned.state_dict(), **tables})
    return model.to(device).eval()


def choose_weight(learned: TwoTower, data: Interactions, config: TrainingConfig) -> Weighed:
    """Weigh the spectral part of the training rows against the learned towers by trainer.monitor (`greatest_as_good`), and say what came
    out.

    Args:
        config: its model.spectral.weight is taken as it is where one is given; without validations it is not measured, either.
    """
    monitor, spectral, settings = config.trainer.monitor, config.model.spectral, config.evaluate
    if not config.trainer.evaluate_every:
        return Weighed(spectral.weight, {}, {})
    most = min(settings.max_queries or MOST_QUERIES, MOST_QUERIES)
    validate = Validator(data, replace(config, evaluate=replace(settings, max_queries=most)))
    weights = (spectral.weight,) if spectral.weight else NEXT_WEIGHTS if spectral.newest else WEIGHTS
    wide = _side_by_side(learned, data, replace(spectral, weight=weights[0]), config.seed)
    tried = {0.0: validate(learned)[monitor]}
    vectors = WideVectors.of(wide, data, config.seed) if spectral.narrow_to else None
    forms: dict[bool, PerWeight] = {}
    for fitted in (False, True) if vectors else (False,):
        models = _models(wide, weights, data, config.seed, spectral.narrow_to, vectors, fitted)
        forms[fitted] = {weight: validate.per_query(model) for weight, model in models}
    chosen = {fitted: greatest_as_good({weight: values[monitor] for weight, values in form.items()}) for fitted, form in forms.items()}
    means = {
        fitted: {weight: {name: float(np.mean(values_Q)) for name, values_Q in values.items()} for weight, values in form.items()}
        for fitted, form in forms.items()
    }
    for fitted, form in means.items():
        shown = ", ".join(f"{weight:g}: {metrics[monitor]:.4f}" for weight, metrics in form.items())
        kind = ", maps trained further" if fitted else ""
        say(f"spectral part{kind}: weight {chosen[fitted]:g}; {monitor} of {most} queries at most, by weight: 0: {tried[0.0]:.4f}, {shown}")
    best = max(means, key=lambda fitted: (means[fitted][chosen[fitted]][monitor], not fitted))
    tried |= {weight: metrics[monitor] for weight, metrics in means[best].items()}
    return Weighed(chosen[best], {f"{weight:g}": value for weight, value in tried.items()}, means[best][chosen[best]], best)


def _models(
    wide: TwoTower,
    weights: Sequence[float],
    data: Interactions,
    seed: int,
    narrow_to: int,
    vectors: WideVectors | None,
    fitted: bool = False,
) -> Iterator[tuple[float, TwoTower]]:
    """Each weight and the towers with it, narrowed where there are `vectors`. A wide model is the same object each time."""
    for weight in weights:
        wide.config.spectral.weight = weight
        yield weight, narrowed(wide, vectors.maps(weight, narrow_to, seed, fitted), data) if vectors else wide


def greatest_as_good(values: Mapping[float, NDArray[np.float64]]) -> float:
    """The greatest weight that falls behind the best by at most one standard error of the difference, query by query (the rule of one
    standard error of Breiman et al. 1984, paired).

    Held-out pairs drawn from training rows flatter what memorises training rows; the more a weight leaves to the part that is computed,
    the less there is to flatter.

    Args:
        values: the metric of each query, by weight.

    >>> near, far = np.array([0.5, 0.4, 0.5, 0.4]), np.array([0.1, 0.1, 0.2, 0.1])
    >>> greatest_as_good({1.0: near + [0.02, -0.01, 0, 0], 2.0: near, 4.0: far})
    2.0
    """
    best_Q = max(values.values(), key=np.mean)
    behind = {weight: best_Q - values_Q for weight, values_Q in values.items()}
    return max(weight for weight, lost_Q in behind.items() if np.mean(lost_Q) <= np.std(lost_Q) / np.sqrt(len(lost_Q)))
