"""Which inputs a tower's core reads, and which of them are rows gathered from large tables before it runs.

Large tables (items, users, other ids) stay outside the cores: torch gathers their rows in training, NumPy gathers them from
memory-mapped files in serving. Both follow the plan made here, so the two cannot differ.

Legend: B rows, L history length, M values of a multi-valued input, D dim (K of the spectral tables), V rows of a table.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from towers.batch import HISTORY_AGE, HISTORY_EVENT, HISTORY_GAP, HISTORY_ITEM, FeatureBatch, event_context
from towers.columns import FIRST_ROW, ITEM_ID, USER_ID
from towers.errors import ConfigError
from towers.half import Table
from towers.history import repeats
from towers.model_config import InputSpec, ModelConfig

ITEM_TABLE = ITEM_ID
HISTORY_TABLE = "history_item"
ASSOCIATION_TABLE = "association_item"
SPECTRAL_ITEM, SPECTRAL_HISTORY = "spectral_item", "spectral_history"
HISTORY_MASK, HISTORY_REPEAT = "history.mask", "history.repeat"
HISTORY_ROWS = f"{HISTORY_ITEM}.rows"
ASSOCIATION_ROWS = "history.association.rows"
SPECTRAL_HISTORY_ROWS, SPECTRAL_ITEM_ROWS = "history.spectral.rows", "item.spectral.rows"


@dataclass(frozen=True)
class CoreInput:
    """One array that a core reads.

    Attributes:
        name: its key among the gathered arrays, and its name in the ONNX graph.
        source: the FeatureBatch array it comes from.
        dtype: `int32` or `float32`; rows of a table may come in half precision.
        shape: its shape after the batch axis.
        table: the large table whose rows it holds, "" where it is the source itself or a mask.
        is_mask: 1.0 where the source is not padding, else 0.0.
        counts: how often each entry stands in its row of the source (see `history.repeats`).
    """

    name: str
    source: str
    dtype: str
    shape: tuple[int, ...]
    table: str = ""
    is_mask: bool = False
    counts: bool = False


@dataclass(frozen=True)
class TowerPlan:
    """What the two cores read.

    Attributes:
        user, item: the arrays of each core, in the order of the ONNX graph's inputs.
        user_specs, item_specs: the declared features among them.
        tables: rows of each large table.
        widths: numbers of each of its rows.
        history_table: name of the one that history items are looked up in.
        reads_event, reads_time: whether the history's event types are read, and its times (ages by a mean, gaps by a transformer).
        matched: context inputs that events of the history keep.
    """

    user: tuple[CoreInput, ...]
    item: tuple[CoreInput, ...]
    user_specs: tuple[InputSpec, ...]
    item_specs: tuple[InputSpec, ...]
    tables: Mapping[str, int]
    widths: Mapping[str, int]
    history_table: str
    reads_event: bool
    reads_time: bool
    matched: tuple[str, ...] = ()


def time_inputs(config: ModelConfig) -> tuple[str, ...]:
    """Which of the history's times a tower reads: ages by a mean, gaps by a transformer, which sees recency in the order of its columns."""
    if not config.history.use_age:
        return ()
    return (HISTORY_GAP,) if config.history.name == "transformer" else (HISTORY_AGE,)


def plan_towers(config: ModelConfig, inputs: Sequence[InputSpec], event_rows: int) -> TowerPlan:
    """Decide what each core reads.

    Args:
        inputs: the fitted preprocessor's inputs.
        event_rows: rows of the event type vocabulary, the reserved ones included.

    Raises:
        ConfigError: the item id is not among the inputs, or `model.use_user_id` is set and the user id is not.
    """
    user_id = f"user.{USER_ID}"
    user_specs = tuple(
        _user_spec(s, config) for s in inputs if not s.name.startswith("item.") and (config.use_user_id or s.name != user_id)
    )
    item_specs = tuple(s for s in inputs if s.name.startswith("item."))
    by_name = {s.name: s for s in inputs}
    if f"item.{ITEM_ID}" not in by_name:
        raise ConfigError(f"data.features: no input item.{ITEM_ID}, got {sorted(by_name)}; the item tower needs the item's id")
    if config.use_user_id and user_id not in by_name:
        raise ConfigError(
            "model.use_user_id: there is no user id among the inputs. Declare it in data.features"
            " (name: user_id, kind: id, owner: user) and prepare again, or set model.use_user_id=false"
        )
    tables = {s.table: s.rows for s in (*user_specs, *item_specs) if s.kind == "id"}
    tables |= {s.table: s.rows for s in user_specs if s.newcomer and by_name[s.name].table in tables}
    history_table = ITEM_TABLE if config.history.share_item_table else HISTORY_TABLE
    tables[history_table] = tables[ITEM_TABLE]
    if config.history.associations:
        tables[ASSOCIATION_TABLE] = tables[ITEM_TABLE]
    width = config.spectral_width
    spectral = (SPECTRAL_ITEM, SPECTRAL_HISTORY) if width else ()
    tables |= dict.fromkeys(spectral, tables[ITEM_TABLE])
    reads_event = config.history.use_event_type and event_rows > FIRST_ROW + 1  # one real event type tells nothing
    length, dim = config.history.length, config.dim
    history = [
        CoreInput(HISTORY_ROWS, HISTORY_ITEM, "float32", (length, dim), table=history_table),
        CoreInput(HISTORY_MASK, HISTORY_ITEM, "float32", (length,), is_mask=True),
    ]
    if reads_event:
        history.append(CoreInput(HISTORY_EVENT, HISTORY_EVENT, "int32", (length,)))
    matched = tuple(spec.name for spec in user_specs if spec.in_history)
    if matched and config.history.name != "mean":
        raise ConfigError("data.features.*.in_history: only the mean weighs events by their context. Use model.history.name=mean")
    kept = [event_context(name.partition(".")[2]) for name in matched]
    history += [CoreInput(name, name, "int32", (length,)) for name in (*time_inputs(config), *kept)]
    if config.history.use_repeats:
        history.append(CoreInput(HISTORY_REPEAT, HISTORY_ITEM, "int32", (length,), counts=True))
    if config.history.associations:
        history.append(CoreInput(ASSOCIATION_ROWS, HISTORY_ITEM, "float32", (length, dim), table=ASSOCIATION_TABLE))
    item = _feature_inputs(item_specs, tables, dim)
    if spectral:
        history.append(CoreInput(SPECTRAL_HISTORY_ROWS, HISTORY_ITEM, "float32", (length, width), table=SPECTRAL_HISTORY))
        item.append(CoreInput(SPECTRAL_ITEM_ROWS, f"item.{ITEM_ID}", "float32", (width,), table=SPECTRAL_ITEM))
    return TowerPlan(
        user=(*history, *_feature_inputs(user_specs, tables, dim)),
        item=tuple(item),
        user_specs=user_specs,
        item_specs=item_specs,
        tables=tables,
        widths=dict.fromkeys(tables, dim) | dict.fromkeys(spectral, width),
        history_table=history_table,
        reads_event=reads_event,
        reads_time=config.history.use_age,
        matched=matched,
    )


def gather(batch: FeatureBatch, wanted: Iterable[CoreInput], tables: Mapping[str, Table]) -> dict[str, NDArray[np.generic]]:
    """The arrays of a core, with the rows of large tables looked up, in the precision of their table.

    Args:
        tables: [V, D] arrays by name; memory-mapped ones are read only where rows are asked for.
    """
    gathered: dict[str, NDArray[np.generic]] = {}
    for entry in wanted:
        source = batch[entry.source]
        if entry.table:
            gathered[entry.name] = np.asarray(tables[entry.table][source])
        elif entry.is_mask:
            gathered[entry.name] = np.not_equal(source, 0).astype(np.float32)
        elif entry.counts:
            gathered[entry.name] = repeats(source)
        else:
            gathered[entry.name] = source
    return gathered


def _user_spec(spec: InputSpec, config: ModelConfig) -> InputSpec:
    """An input as the user tower reads it; a table's name may hold no dot."""
    own = config.own_preferences and spec.kind == "preferences"
    return replace(spec, table=spec.name.replace(".", "_"), newcomer=True) if own else spec


def _feature_inputs(specs: Iterable[InputSpec], tables: Mapping[str, int], dim: int) -> list[CoreInput]:
    found: list[CoreInput] = []
    for spec in specs:
        values = (spec.width,) if spec.width else ()
        if not spec.rows:
            found.append(CoreInput(spec.name, spec.name, "float32", values))
        elif spec.table not in tables:
            found.append(CoreInput(spec.name, spec.name, "int32", values))
        else:
            found.append(CoreInput(f"{spec.name}.rows", spec.name, "float32", (*values, dim), table=spec.table))
            if values:
                found.append(CoreInput(f"{spec.name}.mask", spec.name, "float32", values, is_mask=True))
    return found
