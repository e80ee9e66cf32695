"""What answers now: one retriever, replaced whole between two requests when items change or a new bundle is published."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from serving.handed_on import HandedOn
from serving.item_changes import Attributes, ItemChanges
from serving.live_items import LiveItems
from serving.memory import release
from serving.messages import ItemChanged
from serving.probes import check_answers
from serving.profiles import Profiles
from serving.retriever import Retriever
from towers.bundle import Bundle, current
from towers.errors import RequestError, StorageError, TowersError
from towers.pointers import MANIFEST, waiting

log = logging.getLogger("towers.serving")

TICK_S = 0.1
"""How often the state that processes share is looked at."""

_LONGEST_PAUSE_S = 0.5


class Engine:
    """Holds the retriever that answers, and keeps it up to date from a thread of its own between `start` and `close`.

    A request takes `retriever` once and uses it to its end. Where no thread runs, `put_item` and `delete_item` update it themselves.

    Args:
        retriever: of the bundle alone.
        changes: stored changes of items; None = items cannot be changed.
        bundles: folder whose CURRENT is followed; None = the bundle stays.
        load: opens the retriever of a verified bundle, for what `bundles` brings; is given what is stored of users so far.
        chores: called at every tick: what else must be done now and then.
        taken: shared with other processes that follow the same bundles: the last one that any of them has taken.

    Attributes:
        retriever: what answers now.
        refused: the last published bundle that was not taken (`bundle` and `reason`), until another is, or (`reason` alone) why none is
            known to be current; else None.
        waiting: version that was exported and is not current before it has its index; else None.
    """

    def __init__(
        self,
        retriever: Retriever,
        changes: ItemChanges | None = None,
        bundles: Path | None = None,
        load: Callable[[Bundle, Profiles], Retriever] | None = None,
        chores: Callable[[], None] | None = None,
        taken: HandedOn | None = None,
    ) -> None:
        self.refused: dict[str, str] | None = None
        self.waiting: str | None = None
        self._changes, self._bundles, self._load, self._chores = changes, bundles, load, chores
        self._taken = taken
        self._live = None if changes is None else LiveItems(retriever, changes)
        self._looked_at, self._verdict = _seal(retriever.bundle.folder), ""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._rest_until_s = 0.0
        self._not_stored = ""
        self.retriever = retriever
        self.refresh()

    def put_item(self, item_id: str, attributes: Attributes) -> ItemChanged:
        """Store a new item, or all attributes of a known one anew; it is found within a second.

        Args:
            attributes: title, categories, created_at, is_hidden and declared features; what is not given is missing.

        Raises:
            RequestError: names the attribute that does not fit.
        """
        changes, live = self._changeable()
        live.check(item_id, attributes)
        return self._changed(item_id, changes.put(item_id, attributes))

    def delete_item(self, item_id: str) -> ItemChanged:
        """Take an item down; within a second no list has it.

        Raises:
            RequestError: 404 where there is no such item.
        """
        changes, _ = self._changeable()
        if self.retriever.catalog.row(item_id) is None:
            self.refresh()  # another process may have put it just now
        if self.retriever.catalog.row(item_id) is None:
            raise RequestError("id", f"no item {item_id[:60]!r} in the catalogue", 404)
        return self._changed(item_id, changes.put(item_id, None))

    def refresh(self) -> None:
        """Take over changes of items that this or another process has stored."""
        if self._live is None:
            return
        with self._lock:
            self._take(self._live.refreshed())

    def follow(self) -> None:
        """Take over the bundle that CURRENT names, or say in `refused` why not; raises nothing."""
        if self._bundles is None or self._load is None:
            return
        self._look_who_waits(self._bundles)
        try:
            folder = current(self._bundles)
        except TowersError as error:
            self._refuse(None, str(error))
            return
        seal = _seal(folder)
        if seal != self._looked_at:
            self._looked_at, self._verdict = seal, self._taken_over(self._load, folder)
        self._refuse(folder.name, self._verdict)

    def health(self) -> dict[str, Any]:
        """Which versions answer, which was refused and why, which waits for its index, and why consent or the receipts are stale."""
        now = self.retriever
        told: dict[str, Any] = {"model_version": now.model_version, "index_version": now.bundle.version, "items": len(now.catalog)}
        if self.waiting:
            told["waiting"] = {"bundle": self.waiting, "reason": "it has no index yet: run `towers index`"}
        if refused := now.profiles.standing.refused:
            told["consent"] = {"refused": refused}
        if refused := now.profiles.standing.receipts_refused:
            told["receipts"] = {"refused": refused}
        return told | ({"refused": self.refused} if self.refused else {})

    def start(self) -> "Engine":
        """Keep up to date from now on; to be called in the process that answers, before it does: one that was started later first takes
        the bundle that the others have."""
        self._join_others()
        self._thread = threading.Thread(target=self._run, name="towers-engine", daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop the thread, after a last tick."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None

    def __enter__(self) -> "Engine":
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        while True:
            last = self._stop.wait(TICK_S)
            not_stored = ""
            for work in (self._refresh_at_leisure, self.follow, self._chores):
                try:
                    if work is not None:
                        work()
                except StorageError as error:
                    not_stored = str(error)
                except Exception:  # a full disk at this tick is no reason to stop looking at the next
                    log.exception("keeping up to date failed")
            if not_stored and not_stored != self._not_stored:  # ten times a second it would drown all else
                log.error("cannot be stored", extra={"reason": not_stored})
            self._not_stored = not_stored
            if last:
                return

    def _refresh_at_leisure(self) -> None:
        """Rebuilding what came takes a while where much came: it gets a quarter of the time, and a pause of half a second at most."""
        started = time.monotonic()
        if started >= self._rest_until_s:
            self.refresh()
            took = time.monotonic() - started
            self._rest_until_s = started + took + min(3 * took, _LONGEST_PAUSE_S)

    def _look_who_waits(self, bundles: Path) -> None:
        found = waiting(bundles)
        name = None if found is None else found.name
        if name is not None and name != self.waiting:
            log.info("bundle waits for its index", extra={"bundle": name, "answering": self.retriever.bundle.version})
        self.waiting = name

    def _taken_over(self, load: Callable[[Bundle, Profiles], Retriever], folder: Path) -> str:
        """Have a bundle answer; why it does not, "" where it does."""
        try:
            self._swap(load(Bundle.open(folder), self.retriever.profiles))
            release()  # what the bundle before it held, and what was held only to open this one
        except TowersError as error:
            return str(error)
        except Exception as error:  # whatever is wrong with a bundle, the one that answers is not
            log.exception("a new bundle could not be opened")
            return repr(error)
        return ""

    def _join_others(self) -> None:
        if self._taken is None or self._bundles is None or self._load is None:
            return
        with self._taken.alone():
            name = self._taken.get()
        if name is None:
            return  # none has taken another than it began with
        folder = self._bundles / name.decode()
        seal = _seal(folder)
        if reason := self._taken_over(self._load, folder):
            log.error("bundle of the other workers cannot be opened", extra={"bundle": folder.name, "reason": reason})
        else:
            self._looked_at, self._verdict = seal, ""
        self.follow()

    def _refuse(self, bundle: str | None, reason: str) -> None:
        """Tell why a bundle is not taken, once; nothing where there is no reason."""
        refused = {"reason": reason} if bundle is None else {"bundle": bundle, "reason": reason}
        if reason and refused != self.refused:
            log.error("no bundle is current" if bundle is None else "bundle refused", extra=refused)
        self.refused = refused if reason else None

    def _swap(self, opened: Retriever) -> None:
        check_answers(opened)
        with self._lock:
            live = None if self._changes is None else LiveItems(opened, self._changes)
            ready = (None if live is None else live.refreshed()) or opened
            self._live = live
            self._take(ready)
        if self._taken is not None:
            with self._taken.alone():
                self._taken.put(opened.bundle.folder.name.encode())

    def _take(self, ready: Retriever | None) -> None:
        if ready is not None:
            ready.inherit(self.retriever)
            self.retriever = ready

    def _changeable(self) -> tuple[ItemChanges, LiveItems]:
        if self._changes is None or self._live is None:
            raise RequestError("id", "this service keeps no changes of items", 404)
        return self._changes, self._live

    def _changed(self, item_id: str, generation: int) -> ItemChanged:
        if self._thread is None:
            self.refresh()
        return ItemChanged(item_id, generation)


def _seal(folder: Path) -> tuple[str, int]:
    """Changes when another bundle, or another seal on it, is there."""
    try:
        return folder.name, (folder / MANIFEST).stat().st_mtime_ns
    except OSError:
        return folder.name, 0
