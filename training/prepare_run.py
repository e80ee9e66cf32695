"""The work of `towers prepare`: ingest, sort, assemble, split, fit, encode; then one rename makes the result visible."""

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from towers.alone import alone_in
from towers.columns import EVENT_TYPE, NEGATIVE_EVENT_TYPES, NO_TIME, REMOVAL, USER_ID, USER_KEY, WEIGHT
from towers.errors import ConfigError, DataError
from towers.identity import KEY_BYTES, UserKeys
from towers.job import write_json
from towers.last_look import removals_wait
from towers.prepared import digest, remove_users
from towers.receipts import receipts_file
from towers.schema import Schema
from towers.values import LARGEST_NUMBER
from training.assemble import Assembler, Kept, sort_buckets
from training.catalogue import Catalogue, build_catalogue
from training.config import TrainingConfig
from training.data_card import PASSED_OVER, Stages, data_card, data_facts, warnings
from training.divide import Divider
from training.encode_columns import Encoder
from training.facts import Stopwatch, run_facts
from training.ingest import Ingest, Ingested
from training.npy_stream import NpyReader
from training.people import AUDIT, build_people, write_audit, write_users
from training.permission import Permission, state_of
from training.sources import open_source
from training.sources.base import SourceTables
from training.sources.live import with_live

PREPARED = "prepared"
SPLIT_NEEDS = {"given": ("split", "ingest"), "random": ("ingest",), "user_cold": ("ingest",)}
"""Columns of the log that only the split reads."""


def run(config: TrainingConfig) -> str:
    """Prepare config.data into run_dir/prepared; returns that folder.

    Raises:
        DataError: the data cannot be used as they are; an earlier run_dir/prepared stays as it was.
        ConfigError: a setting does not fit the data, or the secret that the run is keyed with is missing.
    """
    watch, began = Stopwatch(), time.time_ns() // 1000
    run_dir = Path(config.run_dir)
    # where something is keyed already, a secret that is missing is lost or elsewhere: a new one would make everybody in it unknown
    keyed = (run_dir / PREPARED, run_dir / "state", receipts_file(config.identity.receipts, config.identity.key_file))
    keys = UserKeys.open(config.identity.key_file, create=not any(path.exists() for path in keyed))
    permission = Permission.open(config, keys)
    with alone_in(run_dir), contextlib.ExitStack() as last:
        with new_folder(run_dir / PREPARED) as folder:
            stages = prepare(with_live(open_source(config.data), config.data.live, keys), config, folder, keys, permission)
            for warning in warnings(stages):
                tqdm.write(f"warning: {warning}", file=sys.stderr)
            facts = data_facts(stages)
            written = digest(folder)
            # `digest` follows removals, `made` does not
            facts["data"] |= {"digest": written, "made": written, "began": began, **permission.facts()}
            _tell_ahead(stages)
            document = {"run": run_facts(config, watch), **facts}
            write_json(folder / "prepare.json", document)
            (folder / "data_card.md").write_text(data_card(stages, config))
            # a removal that begins now waits until everything is in its place, and finds it there
            last.enter_context(removals_wait(state_of(config)))
            permission = Permission.open(config, keys)
            if _leave_out(folder, keys, permission, began):
                document = json.loads((folder / "prepare.json").read_text())
        audit = stages.source.audit
        if audit is not None:
            write_audit(run_dir / AUDIT, audit, keys, permission)
    write_json(run_dir / "prepare.json", document)
    return str(run_dir / PREPARED)


def _tell_ahead(stages: Stages) -> None:
    if stages.log.rows_ahead:
        print(
            f"warning: {stages.log.rows_ahead:,} rows are later than now, by up to {stages.log.lead_us / 3.6e9:.2f} hours: the log's clock"
            " is ahead, or its times are local ones written as UTC. Mend them: what people did before they were forgotten looks as if"
            " they did it later",
            file=sys.stderr,
            flush=True,
        )


def _leave_out(folder: Path, keys: UserKeys, permission: Permission, began: int) -> int:
    """Take out who was forgotten since a moment, microseconds UTC; how many rows went."""

    def since(keys_n: NDArray[np.uint8]) -> NDArray[np.int64]:
        return np.where(permission.forgotten(keys_n) >= began, np.iinfo(np.int64).max, NO_TIME)

    rejected = folder / "rejected.parquet"
    if rejected.is_file():
        table = pq.read_table(rejected)
        users = table.column(USER_KEY if USER_KEY in table.column_names else USER_ID).to_pylist()
        of = b"".join(user if isinstance(user, bytes) else keys.key(str(user)) for user in users)
        stays_n = since(np.frombuffer(of, np.uint8).reshape(-1, KEY_BYTES)) == NO_TIME
        if not stays_n.all():
            pq.write_table(table.filter(pa.array(stays_n)), rejected)
    return remove_users(folder, since)


def prepare(source: SourceTables, config: TrainingConfig, folder: Path, keys: UserKeys, permission: Permission) -> Stages:
    """Write a source's prepared columns into an empty folder, all but prepare.json and the data card.

    Raises:
        DataError: see `run`.
    """
    work = folder / "work"
    work.mkdir()
    log = ingest(source, config, keys, folder, work, permission)
    items, duplicates, taken_out = sort_and_list(source, config, log)
    weights = event_weights(source.schema, log.events.texts)
    kept = assemble(log, items.row_of_code, weights, config, folder, work)
    division = Divider(folder, work, config.split, kept.offsets, len(items.ids)).run()
    keys_U = NpyReader(folder / "user_keys.npy").read(0, kept.users)
    people = build_people(source.users, source.schema, keys, keys_U, permission)
    write_users(folder, people, keys, keys_U, log.raw_users)
    encoder = Encoder(folder, work, source.schema, log, items, people, division)
    encoder.write(encoder.fit())
    pq.write_table(items.with_train_counts(division.train_items), folder / "catalog.parquet")
    shutil.rmtree(work)
    times = time_range(NpyReader(folder / "timestamp.npy"))
    events = dict(zip(log.events.texts, encoder.event_counts.tolist(), strict=True))
    return Stages(source, config.split.name, log, duplicates, taken_out, items, kept, division, people, events, times)


def ingest(source: SourceTables, config: TrainingConfig, keys: UserKeys, folder: Path, work: Path, permission: Permission) -> Ingested:
    """First pass: check every row, spill the good ones."""
    by_split = config.split.name == "given"
    reader = Ingest(source, keys, work, folder / "rejected.parquet", by_split, config.identity.keep_raw_ids, permission)
    try:
        _show("reading", reader.chunks())
        return reader.finish(config.data.max_rejected_share)
    finally:
        reader.close()


def sort_and_list(source: SourceTables, config: TrainingConfig, log: Ingested) -> tuple[Catalogue, int, int]:
    """Sort the buckets, then list the items that have enough events; also how many duplicates were dropped, and rows taken out by users."""
    counts = np.zeros(len(log.items), np.int64)
    duplicates, taken_out = 0, 0
    for bucket_counts, dropped, gone in sort_buckets(log, source.schema.order, config.data.deduplicate):
        counts += bucket_counts
        duplicates += dropped
        taken_out += gone
    return build_catalogue(source.items, source.schema, log.items.texts, counts, config.data.min_item_events), duplicates, taken_out


def assemble(
    log: Ingested, row_of_code: NDArray[np.int32], weights: NDArray[np.float32], config: TrainingConfig, folder: Path, work: Path
) -> Kept:
    """Second pass: write the columns.

    Raises:
        DataError: fewer than two users are left, nothing weighs anything, or something more than can be held.
    """
    assembler = Assembler(log, folder, work, SPLIT_NEEDS.get(config.split.name, ()))
    _show("writing", assembler.run(row_of_code, weights, config.data.min_user_events))
    kept = assembler.finish()
    if kept.users < 2:
        raise DataError(
            f"interactions: {kept.users} users left of {kept.users_read} read, expected at least 2: a recommender learns what users have"
            " in common. Check data.columns.user_id"
            + (", or lower data.min_user_events and data.min_item_events" if kept.users < kept.users_read else "")
            + (f". Passed over were {_counted(log.passed_over)}" if log.passed_over.total() else "")
        )
    if kept.overweight:
        column = config.data.columns.get(WEIGHT, WEIGHT)
        raise DataError(
            f"weights: in {kept.overweight:,} of {kept.rows:,} interactions column {column!r} times the event type's weight"
            f" (data.event_weights, {weights.max():g} at most) is more than {LARGEST_NUMBER:.2g}. Only the ratio of weights matters: divide"
            " the column, or the weights of all event types, by a constant"
        )
    if not kept.targets:
        raise DataError(_weightless(kept, log.events.texts, weights, config))
    return kept


def _weightless(kept: Kept, event_types: list[str], weights: NDArray[np.float32], config: TrainingConfig) -> str:
    """Which of the two factors of a weight is to blame: the row's own, or that of its event type."""
    column = config.data.columns.get(WEIGHT, WEIGHT)
    if not kept.rows_weighed:
        why = f"column {column!r} is 0 in all of them (data.columns.{WEIGHT} names it). Name another, or leave it out: rows then weigh 1"
    else:
        types = ", ".join(
            f"{name} {weight:g}{' (what a person did not want)' if name in NEGATIVE_EVENT_TYPES else ''}"
            for name, weight in sorted(zip(event_types, weights.tolist(), strict=True))[:20]
            if name != REMOVAL
        )
        some = "" if kept.rows_weighed == kept.rows else f", and column {column!r} is 0 in the rows of the others"
        why = f"their event types weigh {types}{some}. Set data.event_weights, or check data.columns.{EVENT_TYPE}"
    return f"weights: all {kept.rows:,} interactions weigh 0, so none is there to learn from: {why}"


def event_weights(schema: Schema, event_types: list[str]) -> NDArray[np.float32]:
    """Training weight by event code: 0 for negative types, else as declared, else 1.

    Raises:
        ConfigError: a negative weight, one past what float32 holds, or one for a type that the log does not have.
    """
    for name, weight in schema.event_weights.items():
        if not 0 <= weight <= LARGEST_NUMBER:
            raise ConfigError(
                f"data.event_weights.{name}: got {weight}, expected a number of at least 0 (0 = never a target),"
                f" at most {LARGEST_NUMBER:.2g}"
            )
        if name not in event_types:
            raise ConfigError(f"data.event_weights.{name}: the log has no such event type; found are {', '.join(sorted(event_types)[:20])}")
    weights = [0.0 if name in NEGATIVE_EVENT_TYPES else schema.event_weights.get(name, 1.0) for name in event_types]
    return np.array(weights, np.float32)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder that takes `target`'s place once the block is done; after an error or a kill the old one stands as it was."""
    temporary, old = target.with_name(target.name + ".tmp"), target.with_name(target.name + ".old")
    if old.exists() and not target.exists():
        os.rename(old, target)  # killed between the two renames below
    for left in (temporary, old):
        shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        os.rename(target, old)
    os.rename(temporary, target)
    shutil.rmtree(old, ignore_errors=True)


def time_range(timestamps: NpyReader) -> tuple[int, int] | None:
    """First and last time of the log in microseconds; None without times."""
    low, high = [], []
    for block in timestamps.blocks():
        known = block[block != NO_TIME]
        if len(known):
            low.append(int(known.min()))
            high.append(int(known.max()))
    return (min(low), max(high)) if low else None


def _counted(rows: Mapping[str, int]) -> str:
    return "; ".join(f"{count:,} rows {PASSED_OVER[reason]}" for reason, count in rows.items() if count)


def _show(what: str, steps: Iterable[int]) -> None:
    """Run the steps under a progress bar; each yields the rows done so far."""
    with tqdm(desc=f"prepare: {what}", unit=" rows", unit_scale=True, disable=None) as bar:
        for rows in steps:
            bar.update(rows - bar.n)
