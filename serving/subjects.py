"""What people may ask of a run and its service: to be forgotten, to see what is held of them, and that nothing is kept too long."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from serving.consent_store import CONSENT_FILE, ConsentStore
from serving.cutting import Cut, all_of, cut_database, cut_table, cuts_left, older_than, strangers_to, tables_of_users
from serving.events import DAY_US
from serving.receipt_writer import write_receipt
from serving.rekey_files import sweep
from serving.standing import Standing
from towers.alone import remove_left as remove_left_of_jobs
from towers.columns import NO_TIME
from towers.errors import DataError, StorageError
from towers.held_out import QUERY_VECTORS
from towers.identity import UserKeys, mark
from towers.live_consent import LIVE_CONSENT
from towers.live_logs import EVENTS, IMPRESSIONS
from towers.partitions import only_one, remove_left
from towers.pointers import MANIFEST
from towers.prepared import FACTS, USER_TABLES, remove_users
from towers.receipts import FORGET, REMOVED, Erasures, Receipts

GRACE_US = 300_000
"""From the wish to be forgotten to the removal: requests that are being answered have ended, and what they leave is removed too."""
PREPARED = "prepared"
log = logging.getLogger("towers.serving")


@dataclass(frozen=True)
class Places:
    """Where rows of people lie.

    Attributes:
        run_dir: of the run: exports, prepared data, recommendations, audit columns.
        state_dir: what the service writes down.
        histories: the exported ones, where they lie outside of run_dir.
        receipts: the chain.
    """

    run_dir: Path
    state_dir: Path
    histories: Path | None
    receipts: Path

    def tables(self) -> list[Path]:
        """Parquet files with a user in each row, and damaged ones; those of prepared data with a row a user are left to `remove_users`."""
        roots = [root for root in (self.run_dir, self.state_dir) if root.is_dir()]
        found = dict.fromkeys(path.resolve() for root in roots for path in tables_of_users(root, USER_TABLES))
        if self.histories is not None and self.histories.is_file():
            found[self.histories.resolve()] = None
        return list(found)

    def databases(self) -> list[Path]:
        """SQLite files of the service."""
        return sorted(self.state_dir.glob("*.db"))

    def prepared(self) -> Path | None:
        """Prepared data, where there are any."""
        folder = self.run_dir / PREPARED
        return folder if (folder / FACTS).is_file() else None

    def vectors(self) -> list[Path]:
        """Exported vectors of users, each made of the history that was exported with it; none where no history was."""
        return sorted((self.run_dir / "export" / "users").glob("part-*.parquet")) if self.exported().is_file() else []

    def exported(self) -> Path:
        """The histories that export wrote."""
        return self.run_dir / "export" / "histories.parquet"

    def name(self, path: Path) -> str:
        """As a receipt calls a file: within the run, where it lies there."""
        for root, before in ((self.run_dir, ""), (self.state_dir, "state/")):
            if path.resolve().is_relative_to(root.resolve()):
                return before + path.resolve().relative_to(root.resolve()).as_posix()
        return path.name


class Subjects:
    """Acts on everything that a run and its service hold.

    Args:
        places: where that is.
        keys: makes user keys.
        standing: told before anything is removed, so that no request uses it any more.
        retrain_days: until when what was learned from a forgotten person is to be replaced.
        consent: decisions told to the service.
    """

    def __init__(
        self, places: Places, keys: UserKeys, standing: Standing, retrain_days: float = 30.0, consent: ConsentStore | None = None
    ) -> None:
        self._places, self._keys, self._standing = places, keys, standing
        self._retrain_days, self._consent = retrain_days, consent

    def forget(self, user_keys: Sequence[bytes]) -> dict[str, Any]:
        """Forget people; from the first line of the receipt on, no request reads what is held of them.

        Unknown people, and those forgotten before, are none the less: the receipt then says that nothing was found. A file that cannot be
        read or rewritten keeps nobody's rows in the others: the receipt names it in `not_removed_from`, with the reason.

        Returns:
            the receipt of the removal, with its `number` and `hash`.

        Raises:
            DataError: the chain was changed.
            ConfigError: the chain cannot be written.
        """
        moment, marks = now_us() + GRACE_US, [mark(key) for key in user_keys]
        secret = self._keys.fingerprint().decode()
        wish = {"what": FORGET, "at": iso(moment), "moment": moment, "secret": secret, "marks": [of.hex() for of in marks]}
        first = write_receipt(self._places.receipts, wish)
        self._standing.tell()
        time.sleep(max(0.0, (moment - now_us()) / 1e6))
        rows, failed = cut_everywhere(self._places, all_of(user_keys), self._keys)
        rows |= self._grants(dict.fromkeys(marks, moment))
        return self._told(rows, failed, {"forget": first.number})

    def replay(self) -> dict[str, Any] | None:
        """Forget again what a backup brought back; the receipt, or None where nothing was found, or where the disk takes none: that keeps
        no service from starting, and the log tells. Raises DataError."""
        erasures = Erasures(Receipts(self._places.receipts), self._keys.fingerprint())
        erasures.refresh()
        rows, failed = cut_everywhere(self._places, Cut(erasures.moments), self._keys) if len(erasures) else Removed({}, {})
        log_failures(failed)
        rows |= self._grants(erasures.marks())
        try:
            return self._told(rows, failed, {"forget": None}) if rows else None
        except StorageError as error:
            log.error("rows of forgotten people were removed without a receipt", extra={"rows": rows, "reason": str(error)})
            return None

    def purge(self, days: float) -> "Purged":
        """Delete everybody's rows older than so many days, and vectors of people of whom no history is left."""
        moment = now_us() - round(days * DAY_US)
        rows, failed = cut_everywhere(self._places, older_than(moment), self._keys, prepared=False)
        vectors = self._places.vectors()
        if vectors:
            of_vectors = self._cut_vectors(vectors)
            rows, failed = rows | of_vectors.rows, failed | of_vectors.failed
        return Purged(rows, failed, _older_prepared(self._places, moment, days))

    def _cut_vectors(self, vectors: Sequence[Path]) -> "Removed":
        """Remove vectors of people of whom no history is left."""
        exported = self._places.exported()
        try:
            strangers = strangers_to(exported)
        except DataError as error:
            return Removed({}, {self._places.name(exported): str(error)})
        with only_one(self._places.state_dir, wait=True):
            return _done([(self._places.name(path), partial(cut_table, path, strangers, self._keys)) for path in vectors])

    def _grants(self, moments: Mapping[bytes, int]) -> dict[str, int]:
        if self._consent is None or not moments or not (gone := self._consent.forget(moments)):
            return {}
        with only_one(self._places.state_dir, wait=True):
            self._consent.export(self._places.state_dir / LIVE_CONSENT)
        return {f"state/{CONSENT_FILE}": gone}

    def _told(self, rows: Mapping[str, int], failed: Mapping[str, str], of: Mapping[str, Any]) -> dict[str, Any]:
        """Write the receipt of a removal. Where a place could not be looked at, the person may be in it, and what was learned holds."""
        document = {
            "what": REMOVED, **of, "at": iso(now_us()), "run": self._places.run_dir.name, "rows": dict(rows), "found": bool(rows or failed),
            "not_removed_from": dict(failed),
            "still_learned_from": self._influenced() if rows or failed else [],
            "retrain_by": iso(now_us() + round(self._retrain_days * DAY_US)) if rows or failed else None,
        }  # fmt: skip
        written = write_receipt(self._places.receipts, document)
        return {**document, **written._asdict()}

    def _influenced(self) -> list[str]:
        """What was learned before now: models, and vectors made of them, that may hold an influence of whoever was in the log."""
        run = self._places.run_dir
        bundles = [f"bundles/{path.parent.name}" for path in sorted(run.glob(f"bundles/*/{MANIFEST}"))]
        vectors = [f"export/{path.name}" for path in sorted((run / "export").glob(QUERY_VECTORS))]
        return bundles + [name for name in ("model", "checkpoints", "tensorboard") if (run / name).exists()] + vectors


class Removed(NamedTuple):
    """Rows removed by place (of histories those that became shorter too), and why by place where none could be."""

    rows: dict[str, int]
    failed: dict[str, str]


class Purged(NamedTuple):
    """As `Removed`; and what is older and stays, by place, with what to do."""

    rows: dict[str, int]
    failed: dict[str, str]
    left: dict[str, str]


def _older_prepared(places: Places, moment: int, days: float) -> dict[str, str]:
    """Prepared rows, on which splits and counts rest: they are not cut but made anew."""
    folder = places.prepared()
    if folder is None:
        return {}
    anew = f"run `towers prepare` with data.retention_days={days:g}, then train and export: what was made of them goes then too"
    try:
        times_N = np.load(folder / "timestamp.npy", mmap_mode="r")
        older = int(np.count_nonzero((times_N != NO_TIME) & (times_N <= moment)))
    except (OSError, ValueError) as error:
        return {PREPARED: f"cannot be read ({error}); {anew}"}
    return {PREPARED: f"{older:,} older rows; {anew}"} if older else {}


def cut_everywhere(places: Places, cut: Cut, keys: UserKeys, prepared: bool = True) -> Removed:
    """Take rows out of all places; of prepared data too, unless told otherwise."""
    work: list[tuple[str, Callable[[], int]]] = []
    with only_one(places.state_dir, wait=True):  # no log moves on to another file meanwhile
        sweep(places.run_dir, places.state_dir, places.histories)  # copies that an exchange of secrets left
        _remove_left(places)
        folder = places.prepared()
        work += [(places.name(path), partial(cut_database, path, cut)) for path in places.databases()]
        work += [(places.name(path), partial(cut_table, path, cut, keys)) for path in places.tables()]
        if prepared and folder is not None:
            work.append((PREPARED, partial(remove_users, folder, cut.moments)))
        return _done(work)


def _remove_left(places: Places) -> None:
    """Copies of rows that killed processes left beside the files whose places they were to take."""
    for log in (IMPRESSIONS, EVENTS):
        remove_left(places.state_dir / log)
    for root in {places.run_dir, places.state_dir, *([places.histories.parent] if places.histories else [])}:
        for path in cuts_left(root):
            path.unlink(missing_ok=True)
    remove_left_of_jobs(places.run_dir)


def _done(work: Sequence[tuple[str, Callable[[], int]]]) -> Removed:
    """Do all of it, by place; what fails keeps nothing of the rest from being done."""
    rows, failed = {}, {}
    for place, removed in work:
        try:
            rows[place] = removed()
        except DataError as error:
            failed[place] = str(error)
    return Removed({place: count for place, count in rows.items() if count}, failed)


def log_failures(failed: Mapping[str, str]) -> None:
    """Say in the service's log what a removal could not reach, by place: who asked for it may not be who can mend the file."""
    for place, reason in failed.items():
        log.error("rows of users cannot be removed", extra={"place": place, "reason": reason})


def verify(path: Path) -> dict[str, Any]:
    """Read a whole chain: how many receipts it has, the last hash, and where there is one the length of a torn receipt at its end. Raises
    DataError naming the line that was changed."""
    receipts = Receipts(path)
    forgotten = sum(len(line.get("marks", ())) for line in receipts.fresh())
    told = {"receipts": receipts.count, "last_hash": receipts.last, "forgotten": forgotten}
    return told | ({"torn_bytes": receipts.torn} if receipts.torn else {})


def now_us() -> int:
    return time.time_ns() // 1000


def iso(moment: int) -> str:
    return (datetime.fromtimestamp(0, UTC) + timedelta(microseconds=moment)).strftime("%Y-%m-%dT%H:%M:%SZ")
