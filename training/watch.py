"""Who of several training processes is still alive: a heartbeat, so that a death is noticed and named wherever the others wait.

Gloo's connection to a killed process breaks at once, NCCL's waits for ever, and neither says which process it was. So each counts up
a number in the store that all share, once a second, and looks at the others' numbers.
"""

import os
import socket
import sys
import threading
import time
from types import TracebackType
from typing import Protocol, Self

from towers.errors import EXIT_INTERRUPTED, TowersError

BEAT_S = 1.0
SUSPECT_BEATS, LOST_BEATS = 3, 20
"""Beats of one's own without one of another: after the first it is named where a connection broke, after the second it is given up."""
NAMING_S = 10.0


class Store(Protocol):
    """What all processes share: a part of torch.distributed.Store."""

    def set(self, key: str, value: str, /) -> None: ...

    def get(self, key: str, /) -> bytes: ...

    def add(self, key: str, amount: int, /) -> int: ...

    def check(self, keys: list[str], /) -> bool: ...


class ProcessLost(TowersError):
    """Another process of the run died or no longer answers; what was saved is kept."""

    exit_code = EXIT_INTERRUPTED


class Watch:
    """Beats for this process and listens for the others while it is entered.

    Args:
        store: shared by all processes.
        rank: this one.
        size: how many.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self._store, self._rank = store, rank
        self._others = [other for other in range(size) if other != rank]
        self._silent = dict.fromkeys(self._others, 0)
        self._last = dict.fromkeys(self._others, -1)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._store.set(f"who/{self._rank}", f"pid {os.getpid()} on {socket.gethostname()}")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopped.set()
        quiet = kind is None or isinstance(error, (ProcessLost, SystemExit))
        why = "" if quiet or kind is None else f"{kind.__name__}: {error}"
        try:
            self._store.set(f"left/{self._rank}", why)
        except RuntimeError:  # the store's own process is gone
            return
        self._thread.join(BEAT_S)

    def who_is_lost(self, error: RuntimeError) -> TowersError | RuntimeError:
        """What to raise where an exchange failed: names the process that failed or fell silent; `error` itself where none did."""
        deadline = time.monotonic() + NAMING_S
        while time.monotonic() < deadline:
            for other in sorted(self._others, key=lambda other: -self._silent[other]):
                why = self._left(other)
                if why:
                    return self._lost(other, f"failed with {why}")
                if why is None and self._silent[other] >= SUSPECT_BEATS:
                    return self._lost(other, "died")
            time.sleep(BEAT_S / 5)
        return error

    def _run(self) -> None:
        while not self._stopped.wait(BEAT_S):
            try:
                self._store.add(f"beat/{self._rank}", 1)
                self._listen()
            except RuntimeError:  # the store went with process 0 or the launcher; the connection to it tells the main thread
                for other in self._others:
                    self._silent[other] += other == 0
                if 0 not in self._others:
                    return
            for other in self._others:
                if self._silent[other] >= LOST_BEATS and not self._stopped.is_set() and self._left(other) is None:
                    # the main thread may wait inside torch, where no exception reaches it
                    print(f"error: {self._lost(other, f'has not answered for {LOST_BEATS * BEAT_S:.0f} s')}", file=sys.stderr, flush=True)
                    os._exit(EXIT_INTERRUPTED)

    def _listen(self) -> None:
        for other in self._others:
            beats = self._store.add(f"beat/{other}", 0)
            self._silent[other] = 0 if beats != self._last[other] else self._silent[other] + 1
            self._last[other] = beats

    def _left(self, other: int) -> str | None:
        """Why a process left: "" in order, None where it did not say goodbye."""
        try:
            return self._store.get(f"left/{other}").decode() if self._store.check([f"left/{other}"]) else None
        except RuntimeError:
            return None

    def _lost(self, other: int, how: str) -> ProcessLost:
        try:
            who = self._store.get(f"who/{other}").decode() if self._store.check([f"who/{other}"]) else "never seen"
        except RuntimeError:
            who = "its machine's store is gone too"
        return ProcessLost(
            f"process {other} ({who}) {how}, so process {self._rank} stops too. What was saved is kept; run the same command again to"
            " continue"
        )
