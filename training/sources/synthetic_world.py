"""The hidden truth of the synthetic world: items, users, and the utility of one to the other at a time and in a context.

    utility(u, i, t, x) = T <taste_u(t), topic_i> + X <mood(x), trait_i> + quality_i + F exp(-age_i(t) / 10 days)

Somebody who is tired of a category has taste - 2 <taste, c> c from that day on, c the category's direction: what pulled now pushes.

Legend: U users, I items, Q queries, K taste dimensions, R traits (length, energy, seriousness), H hours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from training.data_config import SyntheticConfig
from training.sources import synthetic_words as words

START_US: Final = 1_704_067_200_000_000  # 2024-01-01T00:00:00Z, a Monday
DAY_US: Final = 86_400_000_000
TASTE_DIM, TRAITS = 16, 3
TASTE, CONTEXT, QUALITY, FRESH = 7.5, 0.8, 1.0, 0.3
"""Strengths of the four terms, in logits: chosen so that taste leads, context matters, and fame alone is a weak guide."""

HOURS: Final = tuple(str(h) for h in range(24))
DEVICES: Final = ("phone", "tablet", "desktop", "tv")
CHANNELS: Final = ("home", "search", "email")
GROUPS: Final = {"inland": 0.7, "coast": 0.2, "island": 0.1}
"""Shares of the audit groups; each leans to its own third of the categories."""

# Leaning of each context value to the traits (length, energy, seriousness).
_DEVICE_MOOD: Final = {"phone": (-1.5, 0.4, 0.0), "tablet": (0.0, -0.8, -0.4), "desktop": (0.2, 0.2, 1.4), "tv": (1.5, 0.0, -0.8)}
_CHANNEL_MOOD: Final = {"home": (0.0, 0.0, -0.3), "search": (0.4, 0.0, 0.8), "email": (-0.4, 0.9, 0.0)}

Floats = NDArray[np.float32]
Reals = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """Everything true. Items are in ascending item_id order.

    Attributes:
        taste_UK, later_UK: a user's orthogonal first and later taste; `turn_U` radians a day lead from one to the other.
        arrival_U: day a user arrives; `group_U` an index into GROUPS.
        tired_U: day a user turns away from the category that he liked most (infinity: never); `favourite_UK` its direction.
        topic_IK, trait_IR, quality_I: what an item is; `created_I` the day it arrives (negative: before the log starts).
        main_I, second_I: categories (second may equal main); subject_I: topic number within the main category.
        mood: context column -> value -> leaning [R].
    """

    user_ids: list[str]
    taste_UK: Floats
    later_UK: Floats
    turn_U: Floats
    arrival_U: Floats
    group_U: NDArray[np.int64]
    tired_U: Floats
    favourite_UK: Floats
    preferences: list[list[str]]
    item_ids: list[str]
    topic_IK: Floats
    trait_IR: Floats
    quality_I: Floats
    created_I: Floats
    main_I: NDArray[np.int64]
    second_I: NDArray[np.int64]
    subject_I: NDArray[np.int64]
    provider_I: NDArray[np.int64]
    mood: Mapping[str, Mapping[str, Floats]]

    def taste_at(self, user_Q: NDArray[np.int64], day_Q: Floats, turned: bool = True) -> Floats:
        """Unit taste vectors [Q, K] of user rows at days; not `turned`: as if nobody were ever tired of anything."""
        angle_Q1 = (self.turn_U[user_Q] * np.maximum(day_Q - self.arrival_U[user_Q], 0))[:, None]
        taste_QK = np.asarray(np.cos(angle_Q1) * self.taste_UK[user_Q] + np.sin(angle_Q1) * self.later_UK[user_Q], np.float32)
        tired_Q = turned & (day_Q >= self.tired_U[user_Q])
        if not tired_Q.any():
            return taste_QK
        away_QK = self.favourite_UK[user_Q]
        return np.asarray(taste_QK - 2 * (tired_Q * (taste_QK * away_QK).sum(1))[:, None] * away_QK, np.float32)

    def mood_of(self, context: Mapping[str, Sequence[str | None]], queries: int) -> Floats:
        """Leaning [Q, R] of contexts; unknown or missing values lean nowhere."""
        mood_QR = np.zeros((queries, TRAITS), np.float32)
        nowhere = np.zeros(TRAITS, np.float32)
        for column in self.mood.keys() & context.keys():
            mood_QR += np.stack([self.mood[column].get(v, nowhere) if v is not None else nowhere for v in context[column]])
        return mood_QR

    def standing(self, day_Q: Floats) -> Floats:
        """Utility [Q, I] that needs no user: quality and freshness; -inf before an item exists."""
        age_QI = day_Q[:, None] - self.created_I[None, :]
        fresh_QI = self.quality_I + FRESH * np.exp(-np.maximum(age_QI, 0) / 10)
        return np.asarray(np.where(age_QI >= 0, fresh_QI, -np.inf), np.float32)

    def match(self, taste_QK: Floats, mood_QR: Floats) -> Floats:
        """Utility [Q, I] that needs the user and the context."""
        match_QI = (TASTE * taste_QK) @ self.topic_IK.T + (CONTEXT * mood_QR) @ self.trait_IR.T
        return np.asarray(match_QI, np.float32)

    def utilities(
        self, user_ids: Sequence[str], timestamps_us: Sequence[int] | NDArray[np.int64], context: Mapping[str, Sequence[str | None]]
    ) -> Floats:
        """See `base.Oracle.utilities`."""
        rows = {u: r for r, u in enumerate(self.user_ids)}
        user_Q = np.array([rows.get(u, -1) for u in user_ids], np.int64)
        day_Q = ((np.asarray(timestamps_us, np.int64) - START_US) / DAY_US).astype(np.float32)
        taste_QK = self.taste_at(user_Q, day_Q) * (user_Q >= 0)[:, None]
        utility_QI = self.match(taste_QK.astype(np.float32), self.mood_of(context, len(user_Q))) + self.standing(day_Q)
        return utility_QI.astype(np.float32)


def build_world(config: SyntheticConfig) -> World:
    """Draw a world; the same config gives the same world."""
    rng = np.random.default_rng([config.seed, 1])
    n_categories, n_topics = len(words.CATEGORIES), 6
    category_CK = np.linalg.qr(rng.normal(size=(TASTE_DIM, TASTE_DIM)))[0][:n_categories]
    topic_CTK = _unit(rng.normal(size=(n_categories, n_topics, TASTE_DIM)))
    mood = {
        "hour": {h: _hour_mood(int(h)) for h in HOURS},
        "device": {k: np.array(v, np.float32) for k, v in _DEVICE_MOOD.items()},
        "channel": {k: np.array(v, np.float32) for k, v in _CHANNEL_MOOD.items()},
    }
    return World(**_items(config, rng, category_CK, topic_CTK), **_users(config, rng, category_CK, topic_CTK), mood=mood)


def _items(config: SyntheticConfig, rng: np.random.Generator, category_CK: Reals, topic_CTK: Reals) -> dict[str, Any]:
    n, (n_categories, n_topics, _) = config.items, topic_CTK.shape
    share_C = rng.dirichlet(np.full(n_categories, 6.0))
    main_I = rng.choice(n_categories, n, p=share_C)
    second_I = np.where(rng.random(n) < 0.6, rng.integers(n_categories, size=n), main_I)
    subject_I = rng.integers(n_topics, size=n)
    topic_IK = category_CK[main_I] + 0.45 * category_CK[second_I] + 0.7 * topic_CTK[main_I, subject_I]
    topic_IK = _unit(topic_IK + 0.2 * _unit(rng.normal(size=topic_IK.shape)))
    trait_CR = rng.normal(size=(n_categories, TRAITS))
    provider_share = rng.dirichlet(np.full(len(words.PROVIDERS), 1.5))
    home_CP = provider_share * rng.gamma(0.4, size=(n_categories, len(words.PROVIDERS)))  # providers specialise in categories
    provider_I = (rng.random((n, 1)) > np.cumsum(home_CP / home_CP.sum(1, keepdims=True), 1)[main_I]).sum(1)
    provider_I = np.minimum(provider_I, len(words.PROVIDERS) - 1)
    maker_P = 0.4 * rng.normal(size=len(words.PROVIDERS))
    created_I = np.where(rng.random(n) < 0.7, -rng.exponential(60, n) - 1, rng.random(n) * config.days)
    return {
        "item_ids": [f"i{i:0{max(4, len(str(n)))}d}" for i in range(n)],
        "topic_IK": topic_IK.astype(np.float32),
        "trait_IR": (0.6 * trait_CR[main_I] + 0.9 * rng.normal(size=(n, TRAITS))).astype(np.float32),
        "quality_I": (QUALITY * rng.normal(size=n) + maker_P[provider_I]).astype(np.float32),
        "created_I": created_I.astype(np.float32),
        "main_I": main_I,
        "second_I": second_I,
        "subject_I": subject_I,
        "provider_I": provider_I,
    }


def _users(config: SyntheticConfig, rng: np.random.Generator, category_CK: Reals, topic_CTK: Reals) -> dict[str, Any]:
    n, (n_categories, n_topics, _) = config.users, topic_CTK.shape
    group_U = rng.choice(len(GROUPS), n, p=list(GROUPS.values()))
    leaning_GC = 0.15 + 0.85 * (np.arange(n_categories) % len(GROUPS) == np.arange(len(GROUPS))[:, None])

    def taste() -> tuple[Reals, Reals]:
        like_UC = rng.gamma(0.35 * leaning_GC[group_U]) + 1e-4
        like_UC /= np.linalg.norm(like_UC, axis=1, keepdims=True)
        liked_UCT = rng.gamma(0.3, size=(n, n_categories, n_topics)) * like_UC[:, :, None]
        taste_UK = like_UC @ category_CK + 0.7 * np.einsum("uct,ctk->uk", liked_UCT, topic_CTK)
        return like_UC, _unit(taste_UK + 0.15 * _unit(rng.normal(size=taste_UK.shape)))

    like_UC, taste_UK = taste()
    later_UK = taste()[1]
    later_UK = _unit(later_UK - (later_UK * taste_UK).sum(1, keepdims=True) * taste_UK)  # orthogonal: the turn keeps length 1
    arrival_U = np.where(rng.random(n) < 0.5, 0.0, rng.random(n) * config.days * 0.9)
    told_U, count_U = rng.random(n) < 0.7, rng.integers(1, 4, n)
    own = np.random.default_rng([config.seed, 5])  # a stream of its own: without tired users the world is what it was
    tired_U = np.where(own.random(n) < config.tired, arrival_U + own.uniform(0.1, 0.9, n) * (config.days - arrival_U), np.inf)
    top_UC = np.argsort(-(like_UC + 0.1 * rng.random(like_UC.shape)), 1)
    return {
        "user_ids": [f"u{u:0{max(4, len(str(n)))}d}" for u in range(n)],
        "taste_UK": taste_UK.astype(np.float32),
        "later_UK": later_UK.astype(np.float32),
        "turn_U": (rng.random(n) * np.radians(40) / max(config.days, 1)).astype(np.float32),
        "arrival_U": arrival_U.astype(np.float32),
        "group_U": group_U,
        "tired_U": tired_U.astype(np.float32),
        "favourite_UK": category_CK[(taste_UK @ category_CK.T).argmax(1)].astype(np.float32),
        "preferences": [[words.CATEGORIES[k] for k in top_UC[u, : count_U[u]]] if told_U[u] else [] for u in range(n)],
    }


def _hour_mood(hour: int) -> Floats:
    """Mornings are short and serious, evenings long and light, nights calm."""
    evening, night = np.cos((hour - 20) * np.pi / 12), max(0.0, np.cos((hour - 1) * np.pi / 12))
    return np.array([0.9 * evening, 0.6 - 1.8 * night, -1.1 * evening], np.float32)


def _unit(x: Reals) -> Reals:
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))
