"""From SQLite to Parquet: what was shown and what people did, a file an hour or when much has come (see towers.live_logs), and what they
decided, at once and whole (see towers.live_consent).

Impressions leave the outbox when they are on the disk as Parquet; events stay where requests read them, and are copied. One process of a
service does it at a time. A death at any moment loses and doubles nothing: files are named by the rows that they hold.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.json as pj

from serving.aging import age_events, age_feedback
from serving.consent_store import ConsentStore
from serving.events import DAY_US
from serving.impressions import Outbox
from serving.memory import release
from serving.sqlite_events import ArrivedEvent, Exported, SqliteEvents
from towers import columns as c
from towers.identity import KEY_BYTES, SECRET_FINGERPRINT
from towers.live_consent import LIVE_CONSENT
from towers.live_logs import EVENT_SCHEMA, EVENTS, IMPRESSION_SCHEMA, IMPRESSIONS
from towers.partitions import HOUR_US, hour_folder, last_written, only_one, purge, remove_left, write_part

LOOK_EVERY_S = 5.0
PART_ROWS = 20_000
"""Rows that make a file before their hour is over; no more are held in memory at once."""
PART_BYTES = 1 << 26
"""Of the JSON of impressions: so much makes a file too."""
_AGED = ".aged"
"""Tells of which hour, and by which settings, old rows were looked for last."""


class Rolling:
    """Moves a service's logs to Parquet.

    Args:
        state_dir: the service's; its folders `impressions` and `events` take the files.
        outbox: None = no impressions are kept.
        events: read over a connection of its own, so that requests do not wait.
        impression_days, event_days: what is older is deleted, lists by the hour, events by their own time once an hour; None = none is for
            its age, 0 = all is.
        consent: decisions, read over a connection of its own; None = they stay where they are.
        feedback: folder of what was made of the lists, which is kept no longer than they are; None = there is none.
    """

    def __init__(
        self,
        state_dir: Path,
        outbox: Outbox | None,
        events: SqliteEvents,
        impression_days: float | None,
        event_days: float | None,
        consent: ConsentStore | None = None,
        feedback: Path | None = None,
    ) -> None:
        self._state_dir, self._outbox, self._events, self._consent = state_dir, outbox, events, consent
        self._impression_days, self._event_days, self._feedback = impression_days, event_days, feedback
        self._looked_s = -LOOK_EVERY_S

    def tick(self) -> None:
        """Do what is due; called often, it looks every five seconds."""
        if time.monotonic() - self._looked_s >= LOOK_EVERY_S:
            self._looked_s = time.monotonic()
            self.roll(time.time_ns() // 1000)

    def roll(self, now: int, everything: bool = False) -> None:
        """Write files of the hours that are over, and of what has come in numbers; delete those whose time is over.

        Args:
            now: microseconds UTC.
            everything: of the present hour too.
        """
        with only_one(self._state_dir, wait=everything) as mine:
            if not mine:
                return
            if self._outbox is not None:
                roll_impressions(self._outbox, self._state_dir / IMPRESSIONS, now, everything)
            roll_events(self._events, self._state_dir / EVENTS, now, everything)
            if self._consent is not None:
                self._consent.export(self._state_dir / LIVE_CONSENT)
            self._age(now)

    def _age(self, now: int) -> None:
        """Delete what is too old. What takes a look into files is done once an hour, by one process."""
        shown, told = (None if days is None else aged(days, now) for days in (self._impression_days, self._event_days))
        for log, before in ((IMPRESSIONS, shown), (EVENTS, told)):
            if before is not None:
                purge(self._state_dir / log, before)
        note, due = self._state_dir / _AGED, f"{now // HOUR_US} {self._impression_days} {self._event_days}"
        if note.exists() and note.read_text() == due:
            return
        for log in (IMPRESSIONS, EVENTS):  # nothing tells how old the rows in these are
            remove_left(self._state_dir / log)
        if self._feedback is not None and shown is not None:
            age_feedback(self._feedback, shown)
        if told is not None:
            age_events(self._state_dir / EVENTS, told)
        note.write_text(due)


def aged(days: float, now: int) -> int:
    """Before when (microseconds UTC) rows are too old: of 0 days even those of the hour that is not over."""
    return now - round(days * DAY_US) if days else now + HOUR_US


def roll_impressions(outbox: Outbox, root: Path, now: int, everything: bool = False) -> None:
    """Move rows of hours that are over, or all, to their hours' folders.

    What is looked at are the first rows of the outbox, so a file of an hour holds all its rows up to the file's number: a row that comes
    up again, because the process died before it was removed, is recognized.
    """
    while (oldest := outbox.oldest()) is not None:
        if not (everything or oldest.timestamp // HOUR_US < now // HOUR_US or oldest.rows >= PART_ROWS):
            return
        found = outbox.waiting(PART_ROWS, PART_BYTES)
        moved: dict[int, list[int]] = {}
        for at, timestamp in enumerate(found.timestamps):
            if everything or found.full or timestamp // HOUR_US < now // HOUR_US:
                moved.setdefault(timestamp // HOUR_US, []).append(at)
        for hour, places in moved.items():
            folder = hour_folder(root, hour * HOUR_US)
            written = last_written(folder, outbox.name)
            fresh = [at for at in places if found.places[at] > written]
            if fresh:
                write_part(folder, outbox.name, found.places[fresh[-1]], impression_table([found.rows[at] for at in fresh]))
            outbox.remove([found.places[at] for at in places])
        release()


def impression_table(rows: Sequence[str]) -> pa.Table:
    """Rows of the log from their JSON; an attribute left out is null."""
    text = "\n".join(rows).encode()
    kinds = {pa.timestamp("us", "UTC"): pa.int64(), pa.binary(KEY_BYTES): pa.string()}
    told = pa.schema([(f.name, kinds.get(f.type, f.type)) for f in IMPRESSION_SCHEMA])
    # one block, because a row may not lie in two; the reader works without Python's lock, so requests go on meanwhile
    options = pj.ReadOptions(use_threads=False, block_size=len(text) + 1)
    table = pj.read_json(pa.BufferReader(text), options, pj.ParseOptions(told, unexpected_field_behavior="error"))
    keys = [None if key is None else bytes.fromhex(key) for key in table.column(c.USER_KEY).to_pylist()]
    table = table.set_column(table.column_names.index(c.USER_KEY), c.USER_KEY, pa.array(keys, pa.binary(KEY_BYTES)))
    return table.select(IMPRESSION_SCHEMA.names).cast(IMPRESSION_SCHEMA)


def roll_events(store: SqliteEvents, root: Path, now: int, everything: bool = False) -> None:
    """Copy events, once an hour or when there are many, to the folder of the present hour, whatever time they tell themselves."""
    hour = now // HOUR_US
    while True:
        done = store.exported()
        if not (everything or done.hour < hour or store.taken() - done.last >= PART_ROWS):
            return
        found = store.arrived(done.last, PART_ROWS)
        if not found:
            return
        written = last_written(root, store.name)
        fresh = [event for event in found if event.arrival > written]
        if fresh:
            write_part(hour_folder(root, now), store.name, fresh[-1].arrival, event_table(fresh, store.secret))
        store.note_exported(Exported(found[-1].arrival, hour))


def event_table(events: Sequence[ArrivedEvent], secret: bytes) -> pa.Table:
    """Rows of the log; what an event tells besides its fixed columns stood in the store as JSON."""
    facts = [msgspec.json.decode(event.facts) if event.facts else {} for event in events]
    contexts = [told.get("context") for told in facts]
    columns = {
        **{name: [told.get(name) for told in facts] for name in (c.VALUE, c.SESSION_ID, c.CHANNEL)},
        **dict(zip(ArrivedEvent._fields, zip(*events, strict=True), strict=True)),
        "context": [None if context is None else msgspec.json.encode(context).decode() for context in contexts],
    }
    table = pa.table([pa.array(columns[field.name], field.type) for field in EVENT_SCHEMA], schema=EVENT_SCHEMA)
    return table.replace_schema_metadata({SECRET_FINGERPRINT: secret})
