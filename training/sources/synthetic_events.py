"""What the users of the synthetic world do: each event is a choice by utility, then a reaction to how well the choice matched.

A choice is a draw from the softmax of utility over the items that exist and the user has not had, sharper when they search and
blunter when an email pushes something. Whatever was chosen is finished, liked, viewed or abandoned by its match alone (taste and
context, not fame), so fame leads to disappointments. With `data.synthetic.pushed` a share of the items is not chosen but comes as a
service that knows the past would send it; those who are tired of a category (`data.synthetic.tired`) abandon what is sent of it.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.data_config import SyntheticConfig
from training.sources.synthetic_world import CHANNELS, DAY_US, DEVICES, START_US, World

EVENT_TYPES: Final = ("abandon", "view", "finish", "like")
_SHARPNESS: Final = np.array([1.0, 1.15, 0.75], np.float32)  # by channel: home, search, email
_CHANNEL_SHARE: Final = (0.6, 0.25, 0.15)
_REPEAT_SHARE: Final = 0.01
_ABANDON_BELOW, _FINISH_ABOVE, _LIKE_ABOVE = 3.0, 5.5, 8.0  # match in logits where each reaction has even odds


@dataclass(frozen=True)
class Events:
    """One array each of [N], in log order (by time)."""

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    time_us: NDArray[np.int64]
    hour: NDArray[np.int64]
    device: NDArray[np.int64]
    channel: NDArray[np.int64]
    reaction: NDArray[np.int64]
    dwell_s: NDArray[np.float64]


def simulate(world: World, config: SyntheticConfig) -> Events:
    """Run the world: about users x events_per_user events; the same config gives the same events."""
    rng = np.random.default_rng([config.seed, 2])
    user, time_us, hour, device = _visits(world, config, rng)
    channel = rng.choice(len(CHANNELS), len(user), p=_CHANNEL_SHARE)
    context = {
        "hour": [str(h) for h in hour],
        "device": [DEVICES[d] for d in device],
        "channel": [CHANNELS[k] for k in channel],
    }
    mood_NR = world.mood_of(context, len(user))
    pushed = np.random.default_rng([config.seed, 4]).random(len(user)) < config.pushed
    item, match = _choices(world, rng, user, ((time_us - START_US) / DAY_US).astype(np.float32), mood_NR, channel, pushed)
    kept = item >= 0  # a user may have had every item there is
    reaction = _reactions(rng, match)
    length_s = 600 * np.exp(0.7 * world.trait_IR[item, 0])
    share = np.choose(reaction, [rng.uniform(0.01, 0.25, len(item)), rng.uniform(0.3, 0.9, len(item)), 1.0, 1.0])
    events = Events(user, item, time_us, hour, device, channel, reaction, np.round(length_s * share, 1))
    order = np.argsort(time_us, kind="stable")
    order = order[kept[order]]
    return Events(*(getattr(events, f)[order] for f in Events.__dataclass_fields__))


def _visits(world: World, config: SyntheticConfig, rng: np.random.Generator) -> tuple[NDArray[np.int64], ...]:
    """Who comes when, on what: user, time, hour and device of every event, sorted by (user, time)."""
    stay_U = np.maximum(config.days - world.arrival_U, 1.0)
    mean_U = config.events_per_user * (0.35 + 0.65 * stay_U / stay_U.mean())  # later arrivals leave fewer events
    count_U = np.round(mean_U * rng.lognormal(-0.18, 0.6, config.users)).astype(np.int64)
    count_U = np.clip(count_U, 3, max(3, config.items // 3))
    user = np.repeat(np.arange(config.users), count_U)
    habit_UH = np.exp(1.6 * np.cos((np.arange(24) - rng.choice([8, 13, 19, 22], config.users)[:, None]) * np.pi / 12))
    hour = _draw(rng, habit_UH[user])
    own_UD = rng.gamma(0.9, size=(config.users, len(DEVICES)))
    suits_HD = np.ones((24, len(DEVICES)))
    suits_HD[6:10, 0], suits_HD[9:18, 2], suits_HD[18:24, 3] = 3.0, 3.0, 3.0  # phone at breakfast, desktop at work, tv at night
    device = _draw(rng, own_UD[user] * suits_HD[hour])
    day = np.floor(world.arrival_U[user] + rng.random(len(user)) * stay_U[user])
    time_us = START_US + day.astype(np.int64) * DAY_US + (hour * 3600 * 10**6) + rng.integers(3600 * 10**6, size=len(user))
    order = np.lexsort((time_us, user))
    return user[order], time_us[order], hour[order], device[order]


def _choices(
    world: World,
    rng: np.random.Generator,
    user: NDArray[np.int64],
    day: NDArray[np.float32],
    mood_NR: NDArray[np.float32],
    channel: NDArray[np.int64],
    pushed: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Item (-1: none left) and match of every event; users step together, each user's events in order."""
    item, match = np.full(len(user), -1, np.int64), np.zeros(len(user), np.float32)
    first_U = np.searchsorted(user, np.arange(len(world.user_ids) + 1))
    had_UI = np.zeros((len(world.user_ids), len(world.item_ids)), bool)
    repeats = rng.random(len(user)) < _REPEAT_SHARE
    for step in range(int(np.diff(first_U).max(initial=0))):
        rows = first_U[:-1][np.diff(first_U) > step] + step
        match_QI = world.match(world.taste_at(user[rows], day[rows]), mood_NR[rows])
        wanted_QI = match_QI
        if pushed[rows].any():
            sent_QI = world.match(world.taste_at(user[rows], day[rows], turned=False), mood_NR[rows])
            wanted_QI = np.where(pushed[rows, None], sent_QI, match_QI)
        score_QI = (wanted_QI + world.standing(day[rows])) * _SHARPNESS[channel[rows], None]
        score_QI[had_UI[user[rows]] & ~repeats[rows, None]] = -np.inf
        race_QI = np.maximum(rng.standard_exponential(score_QI.shape, np.float32), 1e-30)
        score_QI -= np.log(race_QI)  # Gumbel noise: argmax draws from the softmax
        pick = score_QI.argmax(1)
        possible = np.isfinite(score_QI[np.arange(len(rows)), pick])
        item[rows] = np.where(possible, pick, -1)
        match[rows] = match_QI[np.arange(len(rows)), pick]
        had_UI[user[rows], pick] = True
    return item, match


def _reactions(rng: np.random.Generator, match: NDArray[np.float32]) -> NDArray[np.int64]:
    """Index into EVENT_TYPES: a logistic draw against each threshold, hardest first."""
    noisy = match + 0.7 * rng.logistic(size=len(match))
    return np.searchsorted([_ABANDON_BELOW, _FINISH_ABOVE, _LIKE_ABOVE], noisy).astype(np.int64)


def _draw(rng: np.random.Generator, odds_NM: NDArray[np.float64]) -> NDArray[np.int64]:
    """One index a row, with probability proportional to the odds."""
    return np.asarray((odds_NM / rng.standard_exponential(odds_NM.shape)).argmax(1))
