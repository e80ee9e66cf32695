"""The serve job: open what the run left, listen, say where, stop in good order."""

import errno
import hashlib
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from serving.aging import FEEDBACK
from serving.announcement import Announcement
from serving.api_keys import ApiKeys
from serving.app import AppOptions, build_app, serve
from serving.bounds import Limits
from serving.config import ServeConfig, ServingConfig, state_dir
from serving.consent_store import CONSENT_FILE, ConsentStore
from serving.database import ANSWER_S, BUSY_S, TICK_S
from serving.engine import Engine
from serving.events import Retention
from serving.handed_on import HandedOn
from serving.impressions import OUTBOX_FILE, Outbox
from serving.item_changes import ITEMS_FILE, ItemChanges
from serving.live_items import came, count_items
from serving.logs import log_to_stderr
from serving.memory import leave_pandas_out, settle
from serving.metrics import Metrics
from serving.profiles import Profiles, open_histories
from serving.retriever import Retriever
from serving.rights import Rights, consent_table
from serving.rolling import Rolling
from serving.routes import ROUTE_NAMES
from serving.sqlite_events import PURGE_ROWS, SqliteEvents
from serving.standing import Standing
from serving.user_state import UserHistories
from serving.workers import Workers
from towers.bundle import Bundle
from towers.errors import ConfigError
from towers.identity import UserKeys
from towers.live_logs import EVENTS_FILE

PURGE_EVERY_S = 3600.0
log = logging.getLogger("towers.serving")


def run(config: ServingConfig, verified: Future[Bundle]) -> str:
    """Serve until told to stop.

    Args:
        verified: the bundle to begin with, whose checksums are being computed.

    Returns:
        path of `serve.json` (url, pid, state), written when requests are answered and again after the last.

    Raises:
        ConfigError: the run is served already, the address cannot be had, or the users' secret is not where it should be.
        DataError: the bundle or the histories cannot be used.
    """
    settings, run_dir = config.serving, Path(config.run_dir)
    leave_pandas_out()
    with Announcement(run_dir) as announcement, listen(settings.host, settings.port) as listener:
        announcement.clear()
        keys, known = users(settings, run_dir)
        retriever = opened(verified.result(), settings, Profiles(keys, known))
        log_to_stderr()
        if warning := UserKeys.warning(settings.key_file):
            log.warning(warning)
        folder_of_state = state_dir(config)
        with closing(events(settings, folder_of_state, keys)) as store:  # what is wrong with one is told here, not by each worker
            store.find_users()
        with closing(ItemChanges(folder_of_state / ITEMS_FILE)) as changes:
            items = count_items(retriever, changes)
            retriever.chooser.warn_of_unknown(came(retriever, changes))
        table = consent_table(config, keys)
        with closing(Rights.open(config, keys, table)) as rights:
            rights.subjects.replay()  # what a backup brought back of people who are forgotten
        if settings.impression_days == 0:
            discard_lists(folder_of_state)
        options = AppOptions(
            Metrics(ROUTE_NAMES, settings.workers),
            ApiKeys.open(settings.api_keys) if settings.api_keys else None,
            settings.access_log,
            read_timeout_s=settings.read_timeout_s,
        )
        address = url(settings.host, listener)
        told = f"serving on {address}  ({retriever.model_version}, {items:,} items)"
        taken = HandedOn()
        first = [(retriever, known)]  # held here alone: where one process answers, what a later bundle replaces is let go
        del retriever, known
        settle()

        def announce() -> None:
            announcement.write(address, "listening")
            print(told, flush=True)

        def begin(standing: Standing, store: SqliteEvents) -> Retriever:
            """What this process begins with; others are forked from the one that keeps it."""
            opened, known = first.pop() if settings.workers == 1 else first[0]
            opened.profiles = Profiles(keys, known, store, settings.user_events, standing)
            return opened

        def work(number: int, ready: Callable[[], None]) -> None:
            options.metrics.count_in(number)
            with (
                closing(Rights.open(config, keys, table)) as rights,
                closing(events(settings, folder_of_state, keys)) as store,
                live(config, begin(rights.standing, store), taken) as engine,
            ):
                serve(build_app(engine, replace(options, rights=rights)), listener, ready, settings.read_timeout_s)

        if settings.workers == 1:
            work(0, announce)
        else:
            Workers(settings.workers, work).run(announce)
        return str(announcement.write(address, "stopped"))


def opened(bundle: Bundle, settings: ServeConfig, profiles: Profiles) -> Retriever:
    """A retriever of a bundle as the settings want it.

    Raises:
        BundleError: the bundle is damaged or incomplete.
        ConfigError: the selector names an attribute that its items lack.
    """
    retriever = Retriever.load(bundle, profiles, limits(settings), settings.runtime, settings.device)
    retriever.steer(settings.selector)
    return retriever


def limits(settings: ServeConfig) -> Limits:
    """The bounds of one request."""
    names = ("max_k", "max_history", "max_events", "max_body_bytes", "max_values", "max_text")
    return Limits(**{name: getattr(settings, name) for name in names})


def users(settings: ServeConfig, run_dir: Path) -> tuple[UserKeys, UserHistories | None]:
    """The secret of the user keys, and the exported histories.

    Raises:
        DataError, ConfigError: a file cannot be used, or files do not belong together.
    """
    exported = histories(settings, run_dir)
    if exported is None:
        return UserKeys.open(settings.key_file, create=True), None
    return open_histories(exported, settings.key_file)


def events(settings: ServeConfig, folder: Path, keys: UserKeys, busy_s: float = ANSWER_S) -> SqliteEvents:
    """The store of live events: a connection belongs to the process that opened it.

    Args:
        busy_s: seconds that a write waits for another process's.

    Raises:
        DataError: it cannot be opened, or is of another secret.
    """
    return SqliteEvents(folder / EVENTS_FILE, keys.fingerprint(), Retention(settings.user_events, settings.event_days), busy_s)


def discard_lists(folder: Path) -> None:
    """Delete the lists that an earlier service left waiting. Raises DataError."""
    if (folder / OUTBOX_FILE).exists():
        with closing(Outbox(folder / OUTBOX_FILE, "")) as outbox:
            outbox.discard()


@contextmanager
def live(config: ServingConfig, retriever: Retriever, taken: HandedOn | None = None) -> Iterator[Engine]:
    """An engine that keeps a process up to date: changed items, new bundles, logs written, old events deleted; `taken` as it says."""
    settings, folder, keys = config.serving, state_dir(config), retriever.profiles.keys
    keep, standing = settings.impression_days != 0, retriever.profiles.standing
    with ExitStack() as files:
        outbox = Outbox(folder / OUTBOX_FILE, config_hash(settings), settings.candidate_share, standing.forgotten) if keep else None
        if outbox is not None:
            files.callback(outbox.close)
        own = files.enter_context(closing(events(settings, folder, keys, TICK_S)))
        decided = files.enter_context(closing(ConsentStore(folder / CONSENT_FILE, keys.fingerprint())))
        changes = files.enter_context(closing(ItemChanges(folder / ITEMS_FILE)))
        rolling = Rolling(folder, outbox, own, settings.impression_days, settings.event_days, decided, Path(config.run_dir) / FEEDBACK)
        retriever.outbox = outbox
        purged_s = -PURGE_EVERY_S

        def follow_purges() -> None:
            engine.retriever.profiles.follow(histories(settings, Path(config.run_dir)))

        def purge() -> None:
            """A part at each tick, until nothing is left of what expired within the last hour."""
            nonlocal purged_s
            if time.monotonic() - purged_s >= PURGE_EVERY_S and own.purge_some(time.time_ns() // 1000) < PURGE_ROWS:
                purged_s = time.monotonic()

        def chores() -> None:
            with ExitStack() as others:  # which are done too where one fails
                others.callback(purge)
                others.callback(follow_purges)
                others.callback(rolling.tick)
                if outbox is not None:
                    others.callback(outbox.flush)
                standing.refresh()

        def load(bundle: Bundle, profiles: Profiles) -> Retriever:
            """With the histories that lie there now: export wrote them before it published the bundle."""
            return opened(bundle, settings, profiles.with_histories(histories(settings, Path(config.run_dir))))

        bundles = None if settings.bundle else Path(config.run_dir) / "bundles"
        engine = Engine(retriever, changes, bundles, load, chores, taken)
        del retriever  # the engine's now, until it has another
        try:
            follow_purges()  # before it answers: this process may be forked from one that read them long ago
            with engine:
                yield engine
        finally:
            if outbox is not None:
                outbox.flush(BUSY_S)
            rolling.roll(time.time_ns() // 1000, everything=True)


def config_hash(settings: ServeConfig) -> str:
    """Of the settings: lists of the same hash and versions were made alike."""
    return hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode()).hexdigest()[:16]


def histories(settings: ServeConfig, run_dir: Path) -> Path | None:
    """The Parquet file of user histories; None where the run has none and none was asked for."""
    if settings.history:
        return Path(settings.history)
    exported = run_dir / "export" / "histories.parquet"
    return exported if exported.exists() else None


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket.

    Raises:
        ConfigError: the port is taken or the host is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise ConfigError(f"serving.host: {host!r} cannot be resolved ({error.strerror}); expected an address such as 127.0.0.1") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise ConfigError(
                f"serving.port: {port} on {host} cannot be used ({error.strerror}); stop what holds it, choose another,"
                " or set serving.port=0 for a free one"
            ) from error
        raise ConfigError(f"serving.host: cannot listen on {host} ({error.strerror}); expected an address of this machine") from error
    return listener


def url(host: str, listener: socket.socket) -> str:
    """Where to reach it: the real port, and this machine's own address where it listens on all."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    shown = f"[{reachable}]" if ":" in reachable else reachable
    return f"http://{shown}:{listener.getsockname()[1]}"
