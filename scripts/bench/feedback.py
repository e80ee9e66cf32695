"""Feedback joined to what was shown, through a service's own stores: lists asked for and answered, late, out of order and twice.

    python scripts/bench/feedback.py [--quick]

Every list draws a number of clicks (two on average). Clicks arrive up to a thousand lists later, shuffled, in calls of up to fifty, one in
twenty of them sent again. The engine writes what it shows and moves it to Parquet as in `towers serve`; then `towers feedback` joins.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from report import finish, say
from serving_world import make_run

from serving.config import ServingConfig, state_dir
from serving.feedback_job import run
from serving.profiles import Profiles
from serving.retriever import Retriever
from serving.run import events, live, users
from towers.bundle import Bundle, current

ITEMS, USERS, K = 2000, 2000, 20
LATEST, CALL = 1000, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5,000 events in place of 100,000")
    wanted = 5000 if parser.parse_args().quick else 100_000
    with tempfile.TemporaryDirectory() as folder:
        config = ServingConfig(run_dir=str(make_run(Path(folder), ITEMS, USERS)))
        config.serving.key_file = str(Path(folder) / "key")
        stream_s = stream(config, wanted)
        say(f"streamed in {stream_s:.0f} s; joining")
        told = json.loads(Path(run(config)).read_text())
    figures = {name: float(told[name]) for name in ("lists", "slots", "events", "with_id", "joined", "clicked", "joined_share")}
    figures |= {"stream_s": stream_s, "feedback_s": told["wall_s"], "skipped_files": float(len(told["skipped_files"]))}
    rows = [("what", "figure"), *((name, f"{value:,.4f}".rstrip("0").rstrip(".")) for name, value in figures.items())]
    finish("feedback", rows, {}, figures)


def stream(config: ServingConfig, wanted: int) -> float:
    """Lists and clicks until `wanted` clicks were told; seconds."""
    rng, settings = np.random.default_rng(0), config.serving
    keys, known = users(settings, Path(config.run_dir))
    retriever = Retriever.load(Bundle.open(current(Path(config.run_dir) / "bundles")))
    retriever.profiles = Profiles(keys, known, events(settings, state_dir(config), keys))
    began, told, number = time.perf_counter(), 0, 0
    late: list[tuple[int, dict[str, Any]]] = []
    with live(config, retriever) as engine:
        while told < wanted:
            user = f"u{rng.integers(USERS)}"
            reply = engine.retriever.recommend(user_id=user, k=K)
            number += 1
            for place in rng.choice(K, min(K, rng.poisson(2)), replace=False).tolist():
                event = {"user_id": user, "item_id": reply.items[place].item_id, "event_type": "play", "event_id": f"{number}-{place}"}
                late.append((number + int(rng.integers(LATEST)), {**event, "recommendation_id": reply.recommendation_id}))
            if number % 20 == 0:
                due = [event for at, event in late if at <= number]
                late = [waiting for waiting in late if waiting[0] > number]
                told += tell(retriever, due[: wanted - told], rng)
    retriever.profiles.events.close()
    return time.perf_counter() - began


def tell(retriever: Retriever, due: list[dict[str, Any]], rng: np.random.Generator) -> int:
    """Send clicks, some of them twice; how many were new."""
    again = [event for event in due if rng.random() < 0.05]
    calls = [due[at : at + CALL] for at in range(0, len(due), CALL)]
    return sum(retriever.add_events(call).added for call in [*calls, again] if call)


if __name__ == "__main__":
    main()
