"""Implicit's ALS as a baseline of a run: tuned on the run's validation queries, fitted anew as the run's model is, tested once.

    pip install -e ".[bench]"          # implicit among others
    python scripts/bench/als.py runs/gowalla [--quick] [--factors 64,128,256]

The run needs `towers prepare` alone. Its settings (config/prepare.yaml) say what is asked: the same queries, masks and cut-offs as in
`towers evaluate`, from the same code. A query's user vector is folded in from its history, as the tower's is, so people who are new get
one, too. Tried are sizes, penalties, confidences and how much popular items count, one after the other (`search`); with trainer.refit the
best is fitted on training and validation rows together. What comes out lies in <run>/baselines/als.json, where `towers report` finds it.

Legend: Q queries, I items, U users, D factors.
"""

import argparse
import os
import resource
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # implicit has threads of its own, and warns of others

import numpy as np
import scipy.sparse as sp
import torch
import yaml
from numpy.typing import NDArray
from omegaconf import OmegaConf
from report import finish, say

from towers.dot_products import DotProducts, dot_products
from towers.job import write_json
from training import metrics
from training.asking import Asking
from training.baseline_settings import Judge
from training.config import TrainingConfig
from training.interactions import Interactions
from training.item_similarity import choices_UI
from training.measure import compare
from training.opening import open_prepared
from training.queries import Queries, make_queries, recommendable
from training.rank_queries import rank_queries
from training.ranking import cut_ks, make_forms
from training.refit import with_validation

FACTORS = (64, 128, 256)
PENALTIES, CONFIDENCES = (1.0, 10.0, 100.0), (5.0, 20.0, 80.0, 320.0)
POWERS, ITERATIONS = (0.0, 0.25, 0.5), (15, 30)


@dataclass(frozen=True)
class Settings:
    """Of one fit. `power`: an event of an item with d events counts (mean d / d)^power times the confidence."""

    factors: int = 64
    penalty: float = 1.0
    confidence: float = 5.0
    power: float = 0.0
    iterations: int = 15


class Als:
    """Factors fitted on training rows, and user vectors of any history."""

    def __init__(self, data: Interactions, settings: Settings, seed: int) -> None:
        from implicit.als import AlternatingLeastSquares

        chosen_UI = choices_UI(data)
        count_I = np.asarray(chosen_UI.sum(axis=0)).ravel()
        self._counts_as_I = (count_I[count_I > 0].mean() / np.maximum(count_I, 1)) ** settings.power
        self._model = AlternatingLeastSquares(
            factors=settings.factors,
            regularization=settings.penalty,
            alpha=settings.confidence,
            iterations=settings.iterations,
            random_state=seed,
            num_threads=torch.get_num_threads(),
        )
        self._model.fit(self._weighed(chosen_UI), show_progress=False)

    def products(self, queries: Queries) -> DotProducts:
        """Scores of all items: each query's vector solves the same least squares as a user's in training."""
        offsets, rows = queries.history.rows()
        data = queries.data
        query_H = np.repeat(np.arange(len(queries)), np.diff(offsets))
        liked_H = np.asarray(data.weight[rows]) > 0
        pairs = (query_H[liked_H], data.item[rows][liked_H])
        history_QI = sp.csr_matrix((np.ones(len(pairs[0]), np.float32), pairs), shape=(len(queries), data.n_items))
        history_QI.sum_duplicates()
        history_QI.data.fill(1)
        user_QD = self._model.recalculate_user(np.arange(len(queries)), self._weighed(history_QI))
        return dot_products(np.asarray(user_QD, np.float32)[:, None], torch.as_tensor(np.asarray(self._model.item_factors)), False)

    def _weighed(self, ones_XI: sp.csr_matrix) -> sp.csr_matrix:
        return sp.csr_matrix(ones_XI @ sp.diags(self._counts_as_I), dtype=np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run_dir of a prepared run")
    parser.add_argument("--quick", action="store_true", help="few settings and iterations: does it run?")
    parser.add_argument("--factors", default=",".join(map(str, FACTORS)), help="sizes to try and to report, each")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    sizes = [int(size) for size in asked.factors.split(",")][: 1 if asked.quick else None]
    config = settings_of(asked.run)
    data = open_prepared(config)
    allowed_I = recommendable(data)
    judge = Judge.open(data, config, allowed_I, config.evaluate.seen != "unmasked")
    start = cpu_s()
    tried = search(lambda settings: quality(data, settings, config.seed, judge), sizes, asked.quick)
    chosen = max(tried, key=lambda settings: tried[settings])
    search_s = cpu_s() - start
    known = with_validation(data) if config.trainer.refit else data
    best_of = {size: max((s for s in tried if s.factors == size), key=lambda s: tried[s]) for size in sizes}
    rows, figures = [("factors", "settings", "validation", "test")], {"search_cpu_s": search_s}
    for size, settings in best_of.items():
        start = cpu_s()
        found = tested(known, settings, config, allowed_I)
        figures[f"fit_cpu_s_d{size}"] = cpu_s() - start
        middle = sorted(config.evaluate.ks)[len(config.evaluate.ks) // 2]
        shown = {name: f["value"] for name, f in found.items() if name.endswith((f"/recall@{middle}", f"/ndcg@{middle}"))}
        figures |= {f"d{size}/{name}": value for name, value in shown.items()}
        rows.append((str(size), said(settings), f"{tried[settings]:.4f}", ", ".join(f"{n} {v:.4f}" for n, v in shown.items())))
        if settings == chosen:
            write(asked.run, settings, tried, found, config)
    finish("als", rows, {}, figures, ("implicit",))


def search(try_: Callable[[Settings], float], sizes: Sequence[int], quick: bool) -> dict[Settings, float]:
    """Validation quality of each setting tried: penalty and confidence together at the least size, then what popular items count, then
    for each size the penalty anew (larger models want another one) and more iterations."""
    tried: dict[Settings, float] = {}

    def best_of(settings: Sequence[Settings]) -> Settings:
        for one in settings:
            if one not in tried:
                tried[one] = try_(one)
                say(f"{said(one)}: {tried[one]:.4f}")
        return max(settings, key=lambda one: tried[one])

    first = Settings(min(sizes), iterations=3 if quick else ITERATIONS[0])
    penalties, confidences = (PENALTIES[:1], CONFIDENCES[:2]) if quick else (PENALTIES, CONFIDENCES)
    best = best_of([replace(first, penalty=p, confidence=c) for p in penalties for c in confidences])
    if quick:
        return tried
    best = best_of([replace(best, power=power) for power in POWERS])
    for size in sizes:
        near = best_of([replace(best, factors=size, penalty=best.penalty * times) for times in (0.3, 1.0, 3.0)])
        near = best_of([near, *(replace(near, confidence=near.confidence * times) for times in (0.25, 0.5, 2.0))])
        best_of([replace(near, iterations=n) for n in ITERATIONS])
    return tried


def quality(data: Interactions, settings: Settings, seed: int, judge: Judge) -> float:
    """NDCG of the validation queries at the middle cut-off, as other baselines are chosen by."""
    queries = judge.queries
    if queries is None:
        raise SystemExit("the run has no validation rows: nothing to choose on")
    top = rank_queries(Als(data, settings, seed).products(queries), queries, judge.k, masked=judge.masked, allowed_I=judge.allowed_I)
    hits_Qk = metrics.hits(top.rows_Qk, queries.relevant, data.n_items)
    return float(metrics.ndcg(hits_Qk, queries.relevant_Q, judge.k).mean())


def tested(data: Interactions, settings: Settings, config: TrainingConfig, allowed_I: NDArray[np.bool_]) -> dict[str, Any]:
    """All metrics of the test queries, with intervals, by the names that metrics.json gives them."""
    asks = config.evaluate
    model = Als(data, settings, config.seed)
    queries = make_queries(data, "test", asks.unit, config.split.name, asks.max_queries, config.seed, asks.max_history)
    ks, _ = cut_ks(asks.ks, int(allowed_I.sum()))
    found: dict[str, Any] = {}
    for form in make_forms(queries, asks.seen):
        measured = Asking(form, ks, allowed_I, (), False).lists(model.products(form.queries), "")
        found |= compare(measured, {}, form.queries.user_Q, asks.draws, config.seed)[0]
    return found


def write(run: Path, settings: Settings, tried: dict[Settings, float], found: dict[str, Any], config: TrainingConfig) -> None:
    """What `towers report` reads, and how it came to be."""
    fitted = "anew on train and valid" if config.trainer.refit else "on train"
    document = {
        "metrics": found,
        "settings": asdict(settings),
        "protocol": f"chosen on validation among {len(tried)} settings, then fitted {fitted}",
        "tried": {said(one): value for one, value in tried.items()},
    }
    say(f"wrote {write_json(run / 'baselines' / 'als.json', document)}")


def settings_of(run: Path) -> TrainingConfig:
    """The settings that the run was prepared with."""
    told = yaml.safe_load((run / "config" / "prepare.yaml").read_text())
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainingConfig), told, {"run_dir": str(run)}))
    assert isinstance(config, TrainingConfig)
    return config


def said(settings: Settings) -> str:
    """In few words."""
    return (
        f"d{settings.factors}, penalty {settings.penalty:g}, confidence {settings.confidence:g}, power {settings.power:g},"
        f" {settings.iterations} iterations"
    )


def cpu_s() -> float:
    return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])


if __name__ == "__main__":
    main()
