"""What users have decided about themselves, as every request asks it: a copy in memory, read again when a process rings the bell."""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.bell import Bell
from serving.consent_store import ConsentStore, Decisions
from serving.handed_on import HandedOn
from towers.columns import NO_TIME
from towers.consent import BITS, EVERYTHING, PURPOSES, Consent
from towers.errors import ConfigError, DataError
from towers.identity import UserKeys, mark
from towers.receipts import Erasures

log = logging.getLogger("towers.serving")


TOLD, TABLE = "told", "table"


@dataclass(frozen=True)
class Decided:
    """A decision of a user, whether it counts or a later one does.

    Attributes:
        timestamp: when it was made, microseconds UTC.
        source: `told` to a service, or in the caller's `table`.
    """

    purpose: str
    granted: bool
    timestamp: int
    source: str


class ConsentTable:
    """The caller's own table of decisions, read again when it is replaced and when a row in it comes into force.

    Args:
        path: see `Consent.open`.
        keys: makes user keys.

    Attributes:
        refused: why the file as it is now could not be read; "" = it was.

    Raises:
        DataError: it cannot be used.
    """

    def __init__(self, path: Path, keys: UserKeys) -> None:
        self._path, self._keys, self.refused = path, keys, ""
        self._handed_on = HandedOn()
        self._read = self._seal()
        self.consent = Consent.open(path, keys, time.time_ns() // 1000)

    def refresh(self) -> None:
        """Follow the file; one that cannot be used is told of in the log, and what was read before counts on, in whichever process."""
        if self._is_read(time.time_ns() // 1000, self._seal()):
            return
        with self._handed_on.alone():  # from the look at the file on: what is handed on is what was read last
            now, self._read = time.time_ns() // 1000, self._seal()
            try:
                self.consent = Consent.open(self._path, self._keys, now)
                self.refused = ""
                self._hand_on(self.consent)
            except DataError as error:
                self.refused = str(error)
                log.error("consent table refused", extra={"reason": str(error)})
                # this process may be forked from one that read the table long before others did
                last = self._handed_on.get()
                self.consent = self.consent if last is None else Consent.from_bytes(last)

    def _is_read(self, now: int, seal: tuple[int, int]) -> bool:
        return seal == self._read and (self.consent.due is None or now < self.consent.due)

    def _hand_on(self, consent: Consent) -> None:
        try:
            self._handed_on.put(consent.to_bytes())
        except OSError as error:
            log.error("consent table cannot be handed on to workers to come", extra={"reason": str(error)})

    def _seal(self) -> tuple[int, int]:
        try:
            stat = self._path.stat()
        except OSError:
            return 0, 0
        return stat.st_mtime_ns, stat.st_size


class Standing:
    """What may be done with whose rows.

    Args:
        table: decisions that others keep; with one, what nobody granted is denied. None = everything is allowed until a user refuses.
        store: decisions told to this service; None = they end with the process.
        erasures: people who are forgotten; None = nobody.
        bell: tells processes of each other's changes; None = this process is the only one, or `refresh` is called often enough.

    Attributes:
        receipts_refused: why the receipts as they are now cannot be read, so that nobody forgotten since is known; "" = they can.
    """

    def __init__(
        self,
        table: ConsentTable | None = None,
        store: ConsentStore | None = None,
        erasures: Erasures | None = None,
        bell: Bell | None = None,
    ) -> None:
        self._table, self._store, self._erasures, self._bell = table, store, erasures, bell
        self._decided: dict[bytes, Decisions] = {}
        self._generation, self._heard = 0, -1
        self.receipts_refused = ""
        self._lock = threading.Lock()
        if erasures is not None:
            erasures.refresh()
        self.refresh()

    def mask(self, user_key: bytes) -> int:
        """Bits of the purposes that a user allows (`towers.consent.BITS`); of a table's row and a decision told here the later counts."""
        self._listen()
        if self._table is None and not self._decided:
            return EVERYTHING
        consent = None if self._table is None else self._table.consent
        allowed = EVERYTHING if consent is None else consent.mask(user_key)
        decided = self._decided.get(mark(user_key))
        forgotten = self.forgotten(user_key) if decided else None
        for purpose, (granted, moment) in (decided or {}).items():
            if granted and forgotten is not None and moment <= forgotten:
                continue  # a grant is forgotten with the rest, a refusal is not
            if consent is None or moment >= consent.times(user_key)[PURPOSES.index(purpose)]:
                allowed = allowed | BITS[purpose] if granted else allowed & ~BITS[purpose]
        return allowed

    def decisions(self, user_key: bytes) -> list[Decided]:
        """What a user decided, by purpose and then by time: the last in the table and the last told here."""
        mask, forgotten = 0, self.forgotten(user_key)
        times = [NO_TIME] * len(PURPOSES)
        if self._table is not None:
            mask, times = self._table.consent.mask(user_key), self._table.consent.times(user_key)
        found = [Decided(of, bool(mask & BITS[of]), time, TABLE) for of, time in zip(PURPOSES, times, strict=True) if time != NO_TIME]
        for purpose, (granted, moment) in self._decided.get(mark(user_key), {}).items():
            if not granted or forgotten is None or moment > forgotten:
                found.append(Decided(purpose, granted, moment, TOLD))
        return sorted(found, key=lambda one: (PURPOSES.index(one.purpose), one.timestamp))

    def forgotten(self, user_key: bytes) -> int | None:
        """What a user did up to this moment (microseconds UTC) is forgotten; None = nothing is."""
        self._listen()
        return None if self._erasures is None else self._erasures.moment(user_key)

    def decide(self, user_key: bytes, granted: Mapping[str, bool]) -> int:
        """Take a user's decisions, which count from the next request on; the mask that follows."""
        now, of = time.time_ns() // 1000, mark(user_key)
        if self._store is not None:
            self._store.put(of, granted, now)
        with self._lock:
            self._decided[of] = {**self._decided.get(of, {}), **{purpose: (given, now) for purpose, given in granted.items()}}
        self.tell()
        return self.mask(user_key)

    @property
    def refused(self) -> str:
        """Why the caller's table of decisions as it is now is not followed; "" = it is."""
        return "" if self._table is None else self._table.refused

    def tell(self) -> None:
        """Have all processes read again what is on the disk."""
        if self._bell is not None:
            self._bell.ring()
        self._follow()

    def refresh(self) -> None:
        """Take over what other processes were told, who was forgotten, and what the table says now. No request does it: a large table
        takes seconds to read, and until then what it said before counts."""
        if self._table is not None:
            self._table.refresh()
        self._follow()

    def _listen(self) -> None:
        """Follow where a process has rung; it is heard once that is done, for another thread may ask meanwhile."""
        if self._bell is not None and (rung := self._bell.rung()) != self._heard:
            self._follow()
            self._heard = rung

    def _follow(self) -> None:
        """Take over what other processes were told and who was forgotten."""
        with self._lock:
            if self._store is not None:
                changed, self._generation = self._store.since(self._generation)
                for of, decisions in changed.items():
                    self._decided[of] = {**self._decided.get(of, {}), **decisions}
            self._follow_receipts()

    def _follow_receipts(self) -> None:
        refused = ""
        try:
            if self._erasures is not None:
                self._erasures.refresh()
        except (DataError, ConfigError) as error:  # who was forgotten before stays forgotten
            refused = str(error)
        if refused and refused != self.receipts_refused:
            log.error("receipts refused", extra={"reason": refused})
        self.receipts_refused = refused

    def close(self) -> None:
        """Release the files."""
        for file in (self._store, self._bell):
            if file is not None:
                file.close()
