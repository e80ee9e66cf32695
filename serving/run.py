"""The serve job: open what the run left, listen, say where, stop in good order."""

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

from serving.api_keys import ApiKeys
from serving.app import ROUTE_NAMES, AppOptions, build_app, serve
from serving.config import ServeConfig, ServingConfig
from serving.events import Retention
from serving.logs import log_to_stderr
from serving.messages import Limits
from serving.metrics import Metrics
from serving.profiles import Profiles, open_histories
from serving.retriever import Retriever
from serving.sqlite_events import SqliteEvents
from serving.user_state import UserHistories
from serving.workers import Workers
from towers.bundle import Bundle, current
from towers.errors import ConfigError
from towers.identity import UserKeys
from towers.job import write_json


def run(config: ServingConfig) -> str:
    """Serve until told to stop.

    Returns:
        path of `serve.json` (url, pid, bundle, state), written when requests are answered and again after the last.

    Raises:
        ConfigError: the address cannot be had, or the users' secret is not where it should be.
        DataError: the bundle or the histories cannot be used.
    """
    settings, run_dir = config.serving, Path(config.run_dir)
    place = run_dir / "serve.json"
    with listen(settings.host, settings.port) as listener:
        place.unlink(missing_ok=True)  # whoever waits for it must not read a former server's; one still running holds the port
        folder = Path(settings.bundle) if settings.bundle else current(run_dir / "bundles")
        keys, known = users(settings, run_dir)
        retriever = Retriever.load(Bundle.open(folder), None, limits(settings), settings.runtime, settings.device)
        events(settings, run_dir, keys).close()  # what is wrong with the store is told here, not by each worker
        options = AppOptions(
            Metrics(ROUTE_NAMES, settings.workers), ApiKeys.open(settings.api_keys) if settings.api_keys else None, settings.access_log
        )
        announcement = {"url": url(settings.host, listener), "pid": os.getpid(), "bundle": str(folder)}
        log_to_stderr()

        def announce() -> None:
            write_json(place, {**announcement, "state": "listening"})
            print(f"serving on {announcement['url']}  ({retriever.model_version}, {len(retriever.catalog):,} items)", flush=True)

        def work(number: int, ready: Callable[[], None]) -> None:
            options.metrics.count_in(number)
            retriever.profiles = Profiles(keys, known, events(settings, run_dir, keys), settings.user_events)
            serve(build_app(retriever, options), listener, ready)

        if settings.workers == 1:
            work(0, announce)
        else:
            Workers(settings.workers, work).run(announce)
    return str(write_json(place, {**announcement, "state": "stopped"}))


def limits(settings: ServeConfig) -> Limits:
    """The bounds of one request."""
    return Limits(settings.max_k, settings.max_history, settings.max_events, settings.max_body_bytes)


def users(settings: ServeConfig, run_dir: Path) -> tuple[UserKeys, UserHistories | None]:
    """The secret of the user keys, and the exported histories.

    Raises:
        DataError, ConfigError: a file cannot be used, or files do not belong together.
    """
    exported = histories(settings, run_dir)
    if exported is None:
        return UserKeys.open(settings.key_file, create=True), None
    return open_histories(exported, settings.key_file)


def events(settings: ServeConfig, run_dir: Path, keys: UserKeys) -> SqliteEvents:
    """The store of live events: a connection belongs to the process that opened it.

    Raises:
        DataError: it cannot be opened, or is of another secret.
    """
    state_dir = Path(settings.state_dir) if settings.state_dir else run_dir / "state"
    return SqliteEvents(state_dir / "events.db", keys.fingerprint(), Retention(settings.user_events, settings.event_days))


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
