"""The embedded world as a source: a small streaming service whose truth is known, made in seconds from a seed."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from towers import columns as c
from towers.errors import ConfigError
from training.data_config import DataConfig, SyntheticConfig, schema_of
from training.sources import synthetic_words as words
from training.sources.base import SourceTables, chunks, interactions_of, side_table
from training.sources.synthetic_events import EVENT_TYPES, Events, simulate
from training.sources.synthetic_world import CHANNELS, DAY_US, DEVICES, GROUPS, HOURS, START_US, TRAITS, World, build_world


def open_synthetic(data: DataConfig) -> SourceTables:
    """Simulate the world that `data.synthetic` describes.

    Context columns are `hour` ("0".."23"), `device` and `channel`; item columns `provider`, `description` and `minutes`; user column
    `preferences` (categories liked, as told on arrival; empty for those who told none); audit column `group`.

    Raises:
        ConfigError: a size is too small to make a world.
    """
    _check(data.synthetic)
    schema = schema_of(data)
    world = build_world(data.synthetic)
    log = _log(simulate(world, data.synthetic), world)

    def interactions() -> Iterator[pa.Table]:
        return chunks(log, data.chunk_rows)

    return SourceTables(
        name="synthetic",
        schema=schema,
        interactions=interactions,
        items=side_table(schema, "item", _items(world), "synthetic items"),
        users=side_table(schema, "user", {c.USER_ID: world.user_ids, "preferences": world.preferences}, "synthetic users"),
        audit=pa.table({c.USER_ID: world.user_ids, "group": [list(GROUPS)[g] for g in world.group_U]}),
        notes={
            "origin": f"simulated by Towers, seed {data.synthetic.seed}; no real person is in it",
            "licence": "as the project's",
            "truth": "true utilities are known: evaluate compares with the oracle",
        },
        oracle=world,
    )


def _items(world: World) -> dict[str, list[object]]:
    rng = np.random.default_rng([len(world.item_ids), 3])
    pairs = zip(world.main_I.tolist(), world.second_I.tolist(), world.subject_I.tolist(), strict=True)
    categories, topics, others = [], [], []
    for main, second, subject in pairs:
        names = words.CATEGORIES[main], words.CATEGORIES[second]
        categories.append(list(dict.fromkeys(names)))
        topics.append(words.TOPICS[names[0]][subject])
        others.append(words.TOPICS[names[1]][subject])
    ranks_IR = world.trait_IR.argsort(0).argsort(0)
    quarters_IR = ranks_IR * 4 // len(ranks_IR)
    providers = [words.PROVIDERS[p] for p in world.provider_I]
    titles = words.titles(topics, rng)
    quarters = quarters_IR[:, :TRAITS].tolist()
    described = [words.description(*told) for told in zip(categories, topics, others, providers, quarters, strict=True)]
    created_us = START_US + (world.created_I.astype(np.float64) * DAY_US).astype(np.int64)
    return {
        c.ITEM_ID: list(world.item_ids),
        c.TITLE: list(titles),
        c.CATEGORIES: list(categories),
        c.CREATED_AT: created_us.tolist(),
        c.IS_HIDDEN: [False] * len(topics),
        "provider": list(providers),
        "description": list(described),
        "minutes": np.round(10 * np.exp(0.7 * world.trait_IR[:, 0].astype(np.float64)), 1).tolist(),
    }


def _log(events: Events, world: World) -> pa.Table:
    return interactions_of(
        {
            c.USER_ID: _named(events.user, world.user_ids),
            c.ITEM_ID: _named(events.item, world.item_ids),
            c.TIMESTAMP: pa.array(events.time_us).cast(pa.timestamp("us", "UTC")),
            c.EVENT_TYPE: _named(events.reaction, EVENT_TYPES),
            c.VALUE: events.dwell_s,
            "hour": _named(events.hour, HOURS),
            "device": _named(events.device, DEVICES),
            "channel": _named(events.channel, CHANNELS),
        }
    )


def _named(rows: np.ndarray, names: list[str] | tuple[str, ...]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(rows.astype(np.int32), pa.array(names, pa.string())).dictionary_decode()


def _check(config: SyntheticConfig) -> None:
    for key, value, least in (("users", config.users, 2), ("items", config.items, 12), ("days", config.days, 1)):
        if value < least:
            raise ConfigError(f"data.synthetic.{key}: got {value}, expected at least {least}")
    if not 1 <= config.events_per_user <= config.items:
        got = f"data.synthetic.events_per_user: got {config.events_per_user}"
        raise ConfigError(f"{got}, expected 1 to {config.items} (data.synthetic.items)")
