"""Discovery: what a drawn list shows of the catalogue, and what it costs, in a closed loop with people whose choices are known.

    python scripts/bench/trust_discovery.py [--quick]

A pooled tower is trained on the log of the synthetic world (600 people, 2,000 items; `--quick`: 150 and 600) and indexed with what items
lack to be seen (`index.reach`, four people an item). Then twelve days go by: each day every person asks the real retriever for a list of
ten, in the context of a drawn hour, device and channel, and takes one of the items or none: item i of list L with probability
exp(u_i) / (exp(u_0) + sum over L of exp(u_j)), u the world's true utilities, u_0 such that the median person takes something of the ten
best of all with probability one half. What is taken joins the history, and is not shown again.

- shown: share of the catalogue that stood in any list of the twelve days
- clicks: probability that something is taken, which is known and not counted from draws; the change against greedy is paired by person,
  with a 95 % bootstrap interval over people
- forms: the best ten (greedy); drawn at a temperature; with the dial `reach`, and both; the best ten, each place given to any item by
  chance with probability 0.1 (epsilon)
- draws: 20,000 lists of three among six candidates, against the probabilities that are logged with them (chi-square, p-value)
"""

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from report import finish, say
from scipy.stats import chisquare

from serving.decoding import from_python
from serving.messages import RecommendRequest
from serving.policy import Dials, Policy
from serving.retriever import Retriever
from serving.selector import Candidates, likelihood, select
from towers.bundle import current
from training.bootstrap import estimate
from training.data_config import SyntheticConfig
from training.sources.synthetic_events import simulate
from training.sources.synthetic_world import CHANNELS, DAY_US, DEVICES, HOURS, START_US, World, build_world

K, ROUNDS, NEWEST, EPSILON = 10, 12, 100, 0.1
STEERED = {
    "draw_0.02": {"temperature": 0.02}, "draw_0.04": {"temperature": 0.04}, "draw_0.08": {"temperature": 0.08},
    "reach_0.5": {"reach": 0.5}, "reach_1": {"reach": 1.0}, "reach_1_draw_0.04": {"reach": 1.0, "temperature": 0.04},
}  # fmt: skip
DRAWS = 20_000
SEED, REACHED = 1, 4
"""The number of people that an item is to reach was chosen in the world of seed 0."""
EVENTS = ("abandon", "view", "finish", "like")

Pick = Callable[["Person", dict[str, str], int, int], list[str]]
"""From a person, a context, a moment (seconds) and a seed to a list."""


@dataclass
class Person:
    """Somebody in the loop: their history as a request tells it."""

    user_id: str
    history: list[dict[str, object]] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small world")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as scratch:
        found = discovery(Path(scratch), quick)
    finish("trust_discovery", [("what", "measured"), *((name, f"{value:.4g}") for name, value in found.items())], {}, found)


def discovery(runs: Path, quick: bool) -> dict[str, float]:
    """All figures by name."""
    config = SyntheticConfig(seed=SEED, users=150 if quick else 600, items=600 if quick else 2000)
    retriever = trained(runs / f"discovery-{config.users}", config)
    world = build_world(config)
    forms: dict[str, Pick] = {"greedy": steered(retriever, {}), "epsilon": epsilon(retriever, world)}
    forms |= {name: steered(retriever, dials) for name, dials in STEERED.items()}
    figures: dict[str, float] = {}
    greedy_U, greedy_shown = np.zeros(0), 0.0
    for name, pick in forms.items():
        clicks_U, shown = loop(world, config, pick)
        if name == "greedy":
            greedy_U, greedy_shown = clicks_U, shown
        lost = estimate((clicks_U - greedy_U)[:, None] / greedy_U.mean(), np.arange(len(clicks_U)), 1000, 0)
        figures |= {f"shown_{name}": shown, f"shown_ratio_{name}": shown / greedy_shown, f"clicks_{name}": float(clicks_U.mean())}
        figures |= {f"clicks_change_{name}{end}": float(bound[0]) for end, bound in
                    (("", lost.value_M), ("_low", lost.low_M), ("_high", lost.high_M))}  # fmt: skip
        say(f"   {name}: {shown:.3f} of the catalogue shown, {clicks_U.mean():.4f} clicks a list, {lost.value_M[0]:+.2%} against greedy")
    return {**figures, "draws_chi_square_p": fit_of_draws(retriever, world, config)}


def trained(run_dir: Path, config: SyntheticConfig) -> Retriever:
    """A retriever of a tower trained on the world's log; kept from call to call."""
    sizes = [f"data.synthetic.{name}={getattr(config, name)}" for name in ("seed", "users", "items")] + [f"identity.key_file={run_dir}.key"]
    learned = ["data=synthetic", "model=pooled", "inspect.every=0", "export.users=false", "export.held_out_queries=20000", *sizes]
    if not (run_dir / "index.json").is_file():
        for job in ("prepare", "train", "export", "index"):
            settings = [f"index.reach={REACHED / config.users}"] if job == "index" else learned
            subprocess.run([sys.executable, "-m", "towers", job, f"run_dir={run_dir}", *settings], check=True, capture_output=True)
    return Retriever.open(current(run_dir / "bundles"))


def loop(world: World, config: SyntheticConfig, pick: Pick) -> tuple[NDArray[np.float64], float]:
    """Twelve days: each person's mean probability of taking something, and the share of the catalogue shown."""
    people, rng = people_of(world, config), np.random.default_rng(1)  # the same contexts and chances for every form
    row = {item: place for place, item in enumerate(world.item_ids)}
    clicks_UR, shown = np.zeros((len(people), ROUNDS)), np.zeros(len(row), bool)
    for day in range(ROUNDS):
        moments = START_US + (config.days + day) * DAY_US + rng.integers(0, DAY_US, len(people))
        context = {
            "hour": [HOURS[moment % DAY_US // 3_600_000_000] for moment in moments.tolist()],
            "device": rng.choice(DEVICES, len(people)).tolist(),
            "channel": rng.choice(CHANNELS, len(people)).tolist(),
        }
        utility_UI = world.utilities([person.user_id for person in people], moments, context).astype(np.float64)
        nothing = float(np.median(np.logaddexp.reduce(np.sort(utility_UI, axis=1)[:, -K:], axis=1)))
        chance_U = rng.random(len(people))
        for u, person in enumerate(people):
            own = {name: values[u] for name, values in context.items()}
            items = pick(person, own, int(moments[u] // 1_000_000), 1000 * day + u)
            rows = np.array([row[item] for item in items])
            shown[rows] = True
            taken_k = np.exp(utility_UI[u, rows] - np.logaddexp(nothing, np.logaddexp.reduce(utility_UI[u, rows])))
            clicks_UR[u, day] = taken_k.sum()
            place = int(np.searchsorted(np.cumsum(taken_k), chance_U[u]))
            if place < len(items):
                person.history.append({"item_id": items[place], "event_type": "finish", "timestamp": int(moments[u] // 1_000_000)})
    return clicks_UR.mean(1), float(shown.mean())


def people_of(world: World, config: SyntheticConfig) -> list[Person]:
    """Everybody with the history that the log tells."""
    events = simulate(world, config)
    people = [Person(user_id) for user_id in world.user_ids]
    for user, item, time_us, kind in zip(*(x.tolist() for x in (events.user, events.item, events.time_us, events.reaction)), strict=True):
        told = {"item_id": world.item_ids[item], "event_type": EVENTS[kind], "timestamp": time_us // 1_000_000}
        people[user].history.append(told)
    return people


def steered(retriever: Retriever, dials: Mapping[str, float]) -> Pick:
    """Lists as the service makes them."""

    def pick(person: Person, context: dict[str, str], now: int, seed: int) -> list[str]:
        policy = {**dials, "seed": seed} if dials else None
        reply = retriever.recommend(history=person.history, context=context, k=K, now=now, policy=policy)
        return [item.item_id for item in reply.items]

    return pick


def epsilon(retriever: Retriever, world: World) -> Pick:
    """The best ten, some places given away by chance."""
    greedy = steered(retriever, {})

    def pick(person: Person, context: dict[str, str], now: int, seed: int) -> list[str]:
        items, rng = greedy(person, context, now, seed), np.random.default_rng(seed)
        seen = {str(event["item_id"]) for event in person.history}
        for place in np.flatnonzero(rng.random(len(items)) < EPSILON).tolist():
            other = world.item_ids[int(rng.integers(len(world.item_ids)))]
            if other not in seen and other not in items:
                items[place] = other
        return items

    return pick


def fit_of_draws(retriever: Retriever, world: World, config: SyntheticConfig) -> float:
    """p-value of the drawn lists' frequencies against their probabilities."""
    request = from_python({"history": people_of(world, config)[0].history, "k": 3}, RecommendRequest)
    asked = retriever.ask(request)
    found: Candidates = retriever.candidates(asked, 6, None)
    dials = Dials(temperature=0.3, calibration=0.2, diversity=0.2, popularity=-0.2)

    def parts(seed: int) -> tuple[Policy, object]:
        policy = Policy(3, dials, seed)
        return policy, retriever.chooser.parts(policy, asked.signals, asked.known.now)

    lists: Sequence[tuple[int, ...]] = list(permutations(found.rows_C.tolist(), 3))
    expected = [float(np.prod(likelihood(found, *parts(1), np.array(rows)))) for rows in lists]  # type: ignore[arg-type]
    got = Counter(tuple(select(found, *parts(seed)).rows_k.tolist()) for seed in range(DRAWS))  # type: ignore[arg-type]
    return float(chisquare([got[rows] for rows in lists], DRAWS * np.array(expected) / np.sum(expected)).pvalue)


if __name__ == "__main__":
    main()
