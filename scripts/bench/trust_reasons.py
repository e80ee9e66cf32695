"""Reasons: are they true, do they matter, what do they cost?

    TOWERS_DATA_DIR=... python scripts/bench/trust_reasons.py [--quick] [--runs FOLDER]

- completeness: the parts of every score, summed, against the score, for lists of the pooled tower
- deletion: a tenth of the history that the tower reads is deleted, the events that carried the first item of the list most or as many drawn
  at random, and the list is made anew among the same items (what was seen stays out). How many times as often is another item first
  (`deletion_ratio`), is the first item no longer among the first ten (`deletion_of_ten_ratio`), and how many times as far does its score
  fall (`deletion_score_ratio`)? Near-tied items change places at every touch, so the first ratio cannot pass 1 / `displaced_random`;
  `deletion_ratio_clear` is the first ratio among the half of the people whose first item leads the second by most, `_low` and `_high` are
  the ends of its 95 % interval over people
- cost: the same requests with and without `explain`, in turns, from the decoded request to JSON, on a drawn world of 20,000 items
  (histories of 50 events, six context features, k = 10), in processor time of the thread that answers

MovieLens-1M in order, leave one out, with the pooled tower and with the transformer, and as sets with the pooled tower over the whole
history, as sets are served: trained here unless `--runs` holds them already, as `pooled/`, `transformer/` and `pooled_sets/`. `--quick`
takes the small synthetic world instead.
"""

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from report import finish, say
from serving_world import make_run, requests

from serving.attribution import exact, left_out
from serving.decoding import from_python
from serving.item_texts import as_json
from serving.messages import RecommendRequest
from serving.retriever import Retriever
from serving.user_state import UserHistories
from towers.bundle import current
from towers.encoder import UserRow

LEAST_EVENTS, SHARE, DRAWS, SHOWN = 20, 0.1, 3, 10
AFTER_US = 3_600_000_000
FULL = {
    "pooled": ["experiment=ml_1m_pooled", "trainer.sampler=user", "optim.lr=0.006", "trainer.epochs=8", "trainer.evaluate_every=8"],
    "pooled_sets": [
        "data=ml_1m", "data.order=set", "split=random", "split.test_share=0.2", "split.valid_share=0.1", "model=pooled",
        "model.history.length=0", "model.id_dropout=0", "optim.lr=0.01", "trainer.sampler=user", "trainer.history_share=0.5",
        "trainer.epochs=8", "loss=full_softmax",
    ],
    "transformer": ["experiment=ml_1m"],
}  # fmt: skip
QUICK = {name: ["experiment=synthetic_fast", f"model={name.removesuffix('_sets')}"] for name in FULL}
QUICK["pooled_sets"] += ["model.history.length=0"]
PEOPLE = {"pooled": 1000, "pooled_sets": 6000, "transformer": 400}
GOALS = {
    "completeness_error": "<= 1e-5",
    "deletion_ratio_pooled": ">= 5",
    "deletion_ratio_pooled_sets": ">= 5",
    "deletion_ratio_transformer": ">= 5",
    "explain_added_p99_ms": "<= 0.1",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--runs", type=Path, help="where the trained runs are kept for the next time")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = reasons(asked.runs or Path(scratch), asked.quick)
    rows = [("what", "measured", "to reach")]
    rows += [(name, f"{value:.3g}", GOALS.get(name, "")) for name, value in found.items()]
    ratios = {name: value for name, value in found.items() if "_ratio_" in name}
    finish("trust_reasons", rows, ratios, {name: value for name, value in found.items() if name not in ratios})


def reasons(runs: Path, quick: bool) -> dict[str, float]:
    """All figures by name."""
    found = cost(runs / "drawn", 300 if quick else 3000)
    for name, overrides in (QUICK if quick else FULL).items():
        retriever = trained(runs / name, overrides)
        rows = histories(retriever, runs / name, 100 if quick else PEOPLE[name])
        if name == "pooled":
            found["completeness_error"] = completeness(retriever, rows)
        top_P3, random_P3, lead_P = deletions(retriever, rows)
        top, random = top_P3.mean(0), random_P3.mean(0)
        least = 1 / (DRAWS * len(rows))  # where no random tenth did it, as if one had
        clear_P = lead_P >= np.median(lead_P)
        found[f"deletion_ratio_clear_{name}"] = float(top_P3[clear_P, 0].mean() / max(random_P3[clear_P, 0].mean(), 2 * least))
        found[f"displaced_random_clear_{name}"] = float(random_P3[clear_P, 0].mean())
        for measure, place in (("", 0), ("_of_ten", 1), ("_score", 2)):
            found[f"deletion{measure}_ratio_{name}"] = float(top[place] / max(random[place], 1e-6 if measure == "_score" else least))
        low, high = interval(top_P3[:, 0], random_P3[:, 0])
        found |= {f"deletion_ratio_low_{name}": low, f"deletion_ratio_high_{name}": high}
        found |= {f"displaced_top_{name}": float(top[0]), f"displaced_random_{name}": float(random[0])}
    return found


def interval(top_P: NDArray[np.float64], random_P: NDArray[np.float64], draws: int = 1000) -> tuple[float, float]:
    """95 % of the ratios of the means, over people drawn with replacement."""
    rng, ratios = np.random.default_rng(0), []
    for _ in range(draws):
        drawn_P = rng.integers(0, len(top_P), len(top_P))
        ratios.append(top_P[drawn_P].mean() / max(random_P[drawn_P].mean(), 1e-9))
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(low), float(high)


def trained(run_dir: Path, overrides: list[str]) -> Retriever:
    """The run's towers, trained where there is none."""
    for job in () if (run_dir / "bundles" / "CURRENT").exists() else ("prepare", "train", "export"):
        say(f"towers {job} {' '.join(overrides)}")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOWERS_KEY_FILE": str(run_dir.parent / "key")}
        command = [sys.executable, "-m", "towers", job, f"run_dir={run_dir}", "trainer.threads=1", "inspect.every=0", *overrides]
        subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
    return Retriever.open(current(run_dir / "bundles"))


def histories(retriever: Retriever, run_dir: Path, count: int) -> list[tuple[UserRow, list[str]]]:
    """People with enough events: what the tower sees of them an hour after the last one, and all they have seen. The first by key: keys are
    random."""
    stored, length = UserHistories.open(run_dir / "export" / "histories.parquet"), retriever.encoder.length
    rows: list[tuple[UserRow, list[str]]] = []
    for key in stored.keys(0, len(stored)):
        person = stored.get(key)
        if person is not None and len(person.items) >= LEAST_EVENTS and len(rows) < count:
            items, events, times = list(person.items), list(person.events)[-length:], list(person.timestamps)[-length:]
            rows.append((UserRow(items[-length:], events, times, times[-1] + AFTER_US, {}, person.features), items))
    return rows


def completeness(retriever: Retriever, rows: list[tuple[UserRow, list[str]]]) -> float:
    """The largest difference between a score and the sum of its parts, in the words of a reply."""
    worst = 0.0
    for row, _ in rows:
        events = zip(row.history_items, row.history_events, row.history_timestamps, strict=True)
        history = [{"item_id": item, "event_type": kind or None, "timestamp": when / 1e6} for item, kind, when in events]
        for item in retriever.recommend(history=history, now=row.now / 1e6, k=20, explain=True).items:
            assert item.explanation is not None and not item.explanation.approximate
            worst = max(worst, abs(sum(r.part for r in item.explanation.reasons) + item.explanation.rest - item.score))
    return worst


class Deleted(NamedTuple):
    """Of each person P: another item is first, the first is not among the first ten, fall of its score.

    Attributes:
        top_P3: without the tenth of the history that carried it most.
        random_P3: without a tenth at random.
        lead_P: of the first item's score over the second's, in full.
    """

    top_P3: NDArray[np.float64]
    random_P3: NDArray[np.float64]
    lead_P: NDArray[np.float64]


def deletions(retriever: Retriever, rows: list[tuple[UserRow, list[str]]]) -> Deleted:
    """What deleting does to each person's list."""
    encoder, vectors_ID, rng = retriever.encoder, retriever.stock.vectors_ID, np.random.default_rng(0)
    top_P3, random_P3, lead_P = [], [], []
    for number, (row, seen) in enumerate(rows):
        encoding = encoder.runtime.user(encoder.user_batch([row]), parts=True)
        scores_I = (vectors_ID @ encoding.vectors_BHD[0].T).max(1)
        scores_I[retriever.catalog.rows(seen)] = -np.inf  # whatever is deleted: else the deleted item itself would come first
        first = int(scores_I.argmax())
        lead_P.append(float(scores_I[first] - np.partition(scores_I, -2)[-2]))
        item_1D = vectors_ID[first : first + 1]
        carried = left_out(encoder, row, [], item_1D) if encoding.parts is None else exact(encoding.parts, 0, item_1D)
        events, count = len(row.history_items), max(1, round(SHARE * len(row.history_items)))
        part_N = carried.parts_kS[0, max(0, carried.events - events) : carried.events]
        chosen = [events - len(part_N) + np.argsort(-part_N, kind="stable")[:count]]
        chosen += [rng.choice(events, count, replace=False) for _ in range(DRAWS)]
        vectors_VHD = encoder.users([without(row, places) for places in chosen]).vectors_BHD
        scores_VI = np.where(np.isfinite(scores_I), (vectors_VHD @ vectors_ID.T).max(1), -np.inf)
        ahead_V = (scores_VI > scores_VI[:, [first]]).sum(1)
        told_V3 = np.stack([ahead_V > 0, ahead_V >= SHOWN, scores_I[first] - scores_VI[:, first]], axis=1)
        top_P3.append(told_V3[0])
        random_P3.append(told_V3[1:].mean(0))
        if number % 100 == 0:
            say(f"   {number} of {len(rows)} histories")
    return Deleted(np.array(top_P3, float), np.array(random_P3, float), np.array(lead_P))


def without(row: UserRow, places: NDArray[np.int64]) -> UserRow:
    gone = set(places.tolist())
    kept = [place for place in range(len(row.history_items)) if place not in gone]
    items, events, times = (
        [entries[place] for place in kept] for entries in (row.history_items, row.history_events, row.history_timestamps)
    )
    return row._replace(history_items=items, history_events=events, history_timestamps=times)


def cost(folder: Path, count: int) -> dict[str, float]:
    """Milliseconds that `explain` adds to the 50th and the 99th percentile of a request."""
    run_dir = make_run(folder, 20_000, 2000)
    retriever = Retriever.open(current(run_dir / "bundles"), run_dir / "export" / "histories.parquet", run_dir / "key")
    encode = msgspec.json.Encoder(enc_hook=as_json).encode
    asked = [from_python(body, RecommendRequest) for body in requests(7, 2000, count, 10)]
    forms = [(one, msgspec.structs.replace(one, explain=True)) for one in asked]
    seconds = np.zeros((count, 2))
    for pair in forms[:100]:
        for form in pair:
            encode(retriever.answer(form))
    gc.collect()
    gc.freeze()
    for number, pair in enumerate(forms):
        for place in (0, 1) if number % 2 else (1, 0):
            began = time.thread_time()
            encode(retriever.answer(pair[place]))
            seconds[number, place] = time.thread_time() - began
    gc.unfreeze()
    plain, told = 1e3 * np.percentile(seconds, [50, 99], axis=0).T
    found = {
        "plain_p50_ms": plain[0],
        "plain_p99_ms": plain[1],
        "explain_added_p50_ms": told[0] - plain[0],
        "explain_added_p99_ms": told[1] - plain[1],
    }
    return {name: float(value) for name, value in found.items()}


if __name__ == "__main__":
    main()
