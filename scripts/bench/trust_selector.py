"""The selector: what steering adds to a request, and whether its probabilities are probabilities.

    python scripts/bench/trust_selector.py [--quick]

- cost: the same requests (20,000 drawn items with a category each, stored histories of 50 events, six context features, k = 20, 200
  candidates) plain, and with a cap, calibration, a temperature, reasons and a row for the log, in turns, from the decoded request to JSON.
  `added` is the difference of the two forms' percentiles, in processor time of the thread that answers; `added_selection` is that of cap,
  calibration and draw together. Writing rows to disk is another thread's work; its cost is told beside.
- propensities: all lists of three among six candidates, everything turned on: by how much their probabilities miss a sum of 1, at most
"""

import argparse
import gc
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
from report import finish
from serving_world import NOW_US, make_run, requests

from serving.asked import Asked
from serving.decoding import from_python
from serving.impressions import Outbox
from serving.item_texts import as_json
from serving.messages import RecommendRequest
from serving.policy import Dials, Policy
from serving.retriever import Retriever
from serving.selector import Candidates, likelihood
from towers.bundle import current

K, ITEMS, USERS = 20, 20_000, 2000
STEERED = {"calibration": 0.2, "temperature": 0.02, "caps": {"categories": 4}}
ALL_ON = Dials(popularity=-0.3, calibration=0.4, diversity=0.3, freshness=0.2, temperature=0.1, near_duplicates=0.9, caps={"categories": 2})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer requests")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as scratch:
        found = selector(Path(scratch), quick)
    finish("trust_selector", [("what", "measured"), *((name, f"{value:.3g}") for name, value in found.items())], {}, found)


def selector(runs: Path, quick: bool) -> dict[str, float]:
    """All figures by name."""
    run_dir = make_run(runs / "drawn", ITEMS, USERS)
    retriever = Retriever.open(current(run_dir / "bundles"), run_dir / "export" / "histories.parquet", run_dir / "key")
    return {**cost(retriever, runs, 300 if quick else 3000), "propensity_sum_error": sum_error(retriever)}


def cost(retriever: Retriever, scratch: Path, count: int) -> dict[str, float]:
    """Percentiles of what is added, and what each part of it adds to the median."""
    bodies = requests(7, USERS, count, K)
    outbox = Outbox(scratch / "impressions.db", "bench", candidate_share=0.0)
    forms: dict[str, tuple[dict[str, object], Outbox | None]] = {
        "plain": ({}, None),
        "all": ({"policy": STEERED, "explain": True}, outbox),
        "selection": ({"policy": STEERED}, None),
        "cap": ({"policy": {"caps": STEERED["caps"]}}, None),
        "calibration": ({"policy": {"calibration": STEERED["calibration"]}}, None),
        "draw": ({"policy": {"temperature": STEERED["temperature"]}}, None),
        "reasons": ({"explain": True}, None),
        "log": ({}, outbox),
    }
    asks = {name: [from_python({**body, **more}, RecommendRequest) for body in bodies] for name, (more, _) in forms.items()}
    taken: dict[str, list[float]] = {name: [] for name in forms}
    encoder = msgspec.json.Encoder(enc_hook=as_json)
    gc.collect()
    gc.freeze()
    written_s = 0.0
    for number in range(-50, count):  # the first ones warm up
        for name, (_, keeps) in forms.items():
            retriever.outbox = keeps
            began = time.thread_time()
            encoder.encode(retriever.answer(asks[name][number]))
            if number >= 0:
                taken[name].append(time.thread_time() - began)
        if number % 50 == 0:
            began = time.thread_time()
            outbox.flush()
            written_s += time.thread_time() - began
    retriever.outbox = None
    outbox.close()
    ms = {name: np.percentile(1e3 * np.array(seconds), (50, 99)) for name, seconds in taken.items()}
    added = {f"added_{name}_p50_ms": float(ms[name][0] - ms["plain"][0]) for name in forms if name not in ("plain", "all")}
    return {
        "added_p50_ms": float(ms["all"][0] - ms["plain"][0]),
        "added_p99_ms": float(ms["all"][1] - ms["plain"][1]),
        "plain_p50_ms": float(ms["plain"][0]),
        "plain_p99_ms": float(ms["plain"][1]),
        **added,
        "log_written_us": 1e6 * written_s / (2 * (count + 50)),
    }


def sum_error(retriever: Retriever) -> float:
    """By how much the probabilities of all lists miss 1: the greatest over ten people."""
    policy = Policy(3, ALL_ON)

    def whole(asked: Asked, found: Candidates, rows: tuple[int, ...]) -> float:
        """Of all lists that begin so, given that they do; where nothing may follow, the list ends."""
        following = 0.0
        for row in found.rows_C.tolist() if len(rows) < policy.k else ():
            parts = retriever.chooser.parts(policy, asked.signals, NOW_US)
            assert parts is not None
            probability = float(likelihood(found, policy, parts, np.array([*rows, row]))[-1])
            following += probability * whole(asked, found, (*rows, row)) if probability else 0.0
        return following or 1.0

    asked = [retriever.ask(from_python(body, RecommendRequest)) for body in requests(8, USERS, 10, K)]
    return max(abs(whole(one, retriever.candidates(one, 6, None), ()) - 1) for one in asked)


if __name__ == "__main__":
    main()
