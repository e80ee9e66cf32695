"""The work of `towers feedback`: the logs brought up to now, then every list with what people did with it, a row for each item shown."""

import os
import shutil
import sys
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serving.aging import FEEDBACK
from serving.answers import EVENT_COLUMNS, LISTS_READ, Answers
from serving.config import ServingConfig, state_dir
from serving.impressions import OUTBOX_FILE, Outbox
from serving.rights import Rights
from serving.rolling import aged, roll_events, roll_impressions
from serving.run import events, users
from serving.standing import Standing
from towers.alone import JOINING, alone_in
from towers.columns import TIMESTAMP, USER_KEY
from towers.consent import BITS, MEASURE
from towers.errors import DataError
from towers.job import write_json
from towers.live_logs import EVENT_SCHEMA, EVENTS, IMPRESSION_SCHEMA, IMPRESSIONS
from towers.partitions import Reading, only_one


def run(config: ServingConfig) -> str:
    """Write run_dir/feedback/part-*.parquet anew.

    Returns:
        path of run_dir/feedback.json.

    Raises:
        DataError: nothing was ever shown, or no file of a log can be read; what was joined before stays as it was.
        ConfigError: the users' secret is not where it should be, or not theirs; or another process joins in the same run.
    """
    began = time.perf_counter()
    run_dir, state = Path(config.run_dir), state_dir(config)
    if not (state / OUTBOX_FILE).is_file() and not (state / IMPRESSIONS).is_dir():
        raise DataError(f"{state}: no list was shown from here. Run `towers serve` with serving.impression_days above 0, and ask it")
    secret = users(config.serving, run_dir)[0]
    # from here on nobody exchanges it
    with alone_in(run_dir, work=JOINING), closing(Rights.open(config, secret)) as rights:
        bring_up_to_now(config, state)
        return _join(config, rights.standing, began)


def _join(config: ServingConfig, standing: Standing, began: float) -> str:
    """Of people who do not allow measuring no event is read, and lists are nobody's; what was forgotten and came back is passed over."""
    run_dir, state = Path(config.run_dir), state_dir(config)
    told = Reading(state / EVENTS, EVENT_SCHEMA, columns=EVENT_COLUMNS)
    shown = Reading(state / IMPRESSIONS, IMPRESSION_SCHEMA, since=_since(config), columns=LISTS_READ)
    answers = Answers(table.filter(pc.and_(_allowed(table, standing), _remembered(table, standing))) for table in told)
    target, temporary = run_dir / FEEDBACK, run_dir / f"{FEEDBACK}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for number, lists in enumerate(shown):
        pq.write_table(
            answers.join(_nameless(lists.filter(_remembered(lists, standing)), standing)),
            temporary / f"part-{number:05d}.parquet",
            compression="zstd",
        )
    try:
        _tell_of_damage(shown, told)
    except DataError:
        shutil.rmtree(temporary)
        raise
    with only_one(state, wait=True):  # a removal that begins now waits, and finds the files in their place
        _leave_out(temporary, standing)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
    counts = answers.counts
    document = {
        **asdict(counts),
        "joined_share": counts.joined / counts.with_id if counts.with_id else None,
        "click_rate": counts.clicked / counts.slots if counts.slots else None,
        "skipped_files": {**shown.skipped, **told.skipped},
        "wall_s": round(time.perf_counter() - began, 2),
    }
    print(
        f"{counts.lists:,} lists, {counts.with_id:,} events that answer one, {counts.joined:,} of them joined;"
        f" {len(document['skipped_files'])} files skipped"
    )
    return str(write_json(run_dir / "feedback.json", document))


def _leave_out(folder: Path, standing: Standing) -> None:
    """Take out the lists of people who were forgotten since they were read."""
    standing.refresh()
    for path in sorted(folder.glob("part-*.parquet")):
        table = pq.read_table(path, columns=[USER_KEY, TIMESTAMP])
        kept = _remembered(table, standing)
        if not pc.all(kept).as_py():
            pq.write_table(pq.read_table(path).filter(kept), path, compression="zstd")


def _since(config: ServingConfig) -> int | None:
    """Lists before it (microseconds UTC) are too old, though no service runs that deletes them."""
    days = config.serving.impression_days
    return None if days is None else aged(days, time.time_ns() // 1000)


def _tell_of_damage(*logs: Reading) -> None:
    """Warn of files that were skipped; raises DataError where that is a whole log, without which all lists or all clicks would be gone."""
    for log in logs:
        if log.skipped and not log.read:
            raise DataError(f"{log.told()}\nPut one back from a backup or delete all, then run it again. What was joined before stays")
        if log.skipped:
            print(f"warning: {log.told()}", file=sys.stderr, flush=True)


def _allowed(table: pa.Table, standing: Standing) -> pa.Array:
    """Whether the person of each row allows measuring; a row of nobody is allowed."""
    coded = table.column(USER_KEY).combine_chunks().dictionary_encode()
    allowed = [bool(standing.mask(key) & BITS[MEASURE]) for key in coded.dictionary.to_pylist()]
    return pc.fill_null(pa.array(allowed, pa.bool_()).take(coded.indices), True)


def _remembered(table: pa.Table, standing: Standing) -> pa.Array:
    """Whether each row is later than what its person had forgotten; a row of nobody is."""
    coded = table.column(USER_KEY).combine_chunks().dictionary_encode()
    moments = [standing.forgotten(key) for key in coded.dictionary.to_pylist()]
    times = table.column(TIMESTAMP).combine_chunks().cast(pa.int64())
    return pc.fill_null(pc.greater(times, pa.array(moments, pa.int64()).take(coded.indices)), True)


def _nameless(lists: pa.Table, standing: Standing) -> pa.Table:
    """The lists, those of people who do not allow measuring without their keys."""
    place, keys = lists.column_names.index(USER_KEY), lists.column(USER_KEY)
    return lists.set_column(place, lists.schema.field(place), pc.if_else(_allowed(lists, standing), keys, pa.scalar(None, keys.type)))


def bring_up_to_now(config: ServingConfig, state: Path) -> None:
    """What waits to be written as Parquet is, whether a service is running or not; nothing is deleted for its age."""
    keys, _ = users(config.serving, Path(config.run_dir))
    now = time.time_ns() // 1000
    with (
        closing(events(config.serving, state, keys)) as store,
        closing(Outbox(state / OUTBOX_FILE, "")) as outbox,
        only_one(state, wait=True),
    ):
        roll_impressions(outbox, state / IMPRESSIONS, now, everything=True)
        roll_events(store, state / EVENTS, now, everything=True)
