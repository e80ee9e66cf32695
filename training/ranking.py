"""The work of `towers evaluate`: model and baselines rank the same queries under the same masks; metrics.json tells how they compare."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from towers.bundle import sha256
from towers.columns import SPLIT_NAMES
from towers.errors import DataError
from towers.job import write_json
from towers.runtime import WEIGHTS_FILE
from training.asking import Asking, Form, Ranked
from training.baseline_choice import baseline_fills, choose_baselines, fit_similarities, most_pairs
from training.baseline_settings import choose_settings
from training.config import TrainingConfig
from training.device import choose_device
from training.facts import Stopwatch, run_facts
from training.groups import make_groupings
from training.interactions import Interactions
from training.measure import compare
from training.metrics_table import print_result
from training.opening import check_trained_on, open_permitted
from training.people import AUDIT
from training.protocol import below, doubts, protocol
from training.queries import Queries, make_queries, recommendable
from training.query_digest import query_digest
from training.refit import evaluated, refit_said
from training.rivals import rivals
from training.showing import Showing
from training.trained_with import refuse_other_training
from training.views import described, make_views, unanswered


def run(config: TrainingConfig) -> str:
    """Evaluate the model of config.run_dir; returns the path of metrics.json.

    Raises:
        DataError: no prepared data, people in it who withdrew, no model, or nothing held out.
        ConfigError: a baseline is asked for that the data cannot have, or a model was trained on the rows that are to be ranked.
    """
    watch = Stopwatch()
    settings, run_dir = config.evaluate, Path(config.run_dir)
    data, permission = open_permitted(config)
    if not (run_dir / "model" / WEIGHTS_FILE).is_file():
        raise DataError(f"{run_dir / 'model'}: no trained model. Run `towers train` with the same run_dir first")
    check_trained_on(run_dir, data)
    refuse_other_training(config)
    prepared, data = data, evaluated(data, settings, run_dir)
    if config.trainer.threads > 0:
        torch.set_num_threads(config.trainer.threads)
    names = choose_baselines(settings.baselines, data.schema.order, config.data.name, settings.seen, most_pairs(data), data.n_items)
    views = make_views(settings, data.schema)
    others = rivals(settings.against, prepared, settings.split)
    asked = make_queries(data, settings.split, settings.unit, config.split.name, settings.max_queries, config.seed, settings.max_history)
    allowed_I, measurable_U = recommendable(data), permission.measurable(data.user_keys)
    ks, warnings = cut_ks(settings.ks, int(allowed_I.sum()))
    warnings += unanswered(views, asked)
    forms = make_forms(asked, settings.seen)
    chosen = choose_settings(names, prepared, config, allowed_I, forms[0].masked)
    similar, said = fit_similarities(names, data, chosen), [chosen.said(name) for name in names]
    device = choose_device(config.trainer.device)
    model = Ranked.open(run_dir, data, device)
    runs = {name: Ranked.open(folder, theirs, device) for name, (folder, theirs) in others.items()}
    document: dict[str, Any] = {
        "run": {},
        "data": data_facts(prepared, config),
        "queries": {
            "unit": asked.unit,
            "count": len(asked),
            "drawn_by": config.seed if settings.max_queries else None,
            "sha256": query_digest(asked, allowed_I),
        },
        "metrics": {},
        "baselines": {name: {} for name in (*names, *runs)},
        "paired": {name: {} for name in (*names, *runs)},
        "protocol": [
            *protocol(asked, config, ks, int(allowed_I.sum()), said, model.length),
            *described(views),
            *refit_said(run_dir),
            *(line for name, (folder, _) in others.items() for line in refit_said(folder, name)),
        ],
        "warnings": warnings,
    }
    for form in forms:
        showing = Showing.of(form.queries, allowed_I, settings.provider) if settings.exposure else None
        groupings = make_groupings(settings.groups, run_dir / AUDIT, data, form.queries.user_Q, measurable_U)
        asking = Asking(form, ks, allowed_I, views, settings.slices, showing, groupings)
        measured = model.measure(asking, "model")
        fills = baseline_fills(names, data, form.queries, config, chosen, similar)
        baselines = {name: asking.measure(fill, name) for name, fill in fills.items()}
        baselines |= {name: run.measure(asking, name) for name, run in runs.items()}
        results, theirs, paired = compare(measured, baselines, form.queries.user_Q, settings.draws, config.seed)
        document["metrics"] |= results
        for name in baselines:
            document["baselines"][name] |= theirs[name]
            document["paired"][name] |= paired[name]
        if groupings:
            k, rankings = ks[len(ks) // 2], {"model": measured, **baselines}
            by_column = {g.column: g.facts(rankings, form.prefix, k, form.queries.user_Q, settings.draws, config.seed) for g in groupings}
            document.setdefault("groups", {})[form.prefix] = by_column
        warnings += doubts(asked, form.queries, form.prefix)
    warnings += below(document)
    # says which model was measured: a later training in the same run must not inherit these figures
    document["run"] = {**run_facts(config, watch), "weights_sha256": sha256(Path(config.run_dir) / "model" / WEIGHTS_FILE)}
    path = write_json(run_dir / "metrics.json", document)
    print_result(document, [form.prefix for form in forms], ks)
    return str(path)


def make_forms(asked: Queries, seen: str) -> list[Form]:
    """The forms that evaluate.seen asks for.

    Raises:
        DataError: masking leaves nothing to find.
    """
    both = seen == "both"
    forms = []
    for masked in (True, False):
        if not both and masked != (seen == "masked"):
            continue
        word = "masked" if masked else "unmasked"
        forms.append(Form(f"{asked.split}/{word}" if both else asked.split, masked, asked.masked() if masked else asked))
    return forms


def cut_ks(ks: Sequence[int], n_recommendable: int) -> tuple[list[int], list[str]]:
    """Cut-offs within the catalogue, and a warning where one was not.

    Raises:
        DataError: there is no item to recommend.

    >>> cut_ks([10, 500], 100)[0]
    [10, 100]
    """
    if n_recommendable < 1:
        raise DataError("no item may be recommended: the catalogue is empty, or is_hidden is true for every item")
    cut = sorted({min(k, n_recommendable) for k in ks})
    over = [k for k in ks if k > n_recommendable]
    said = [f"evaluate.ks: {over} exceed the {n_recommendable} items that may be recommended, and were cut to {n_recommendable}"]
    return cut, said if over else []


def data_facts(data: Interactions, config: TrainingConfig) -> dict[str, Any]:
    """The `data` section of metrics.json."""
    rows = np.bincount(data.split, minlength=len(SPLIT_NAMES))
    return {
        "name": config.data.name,
        "users": data.n_users,
        "items": data.n_items,
        "rows": len(data),
        "split": config.split.name,
        "split_rows": {name: int(count) for name, count in zip(SPLIT_NAMES, rows, strict=True)},
    }
