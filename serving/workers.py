"""Several processes behind one socket: opened once, then forked, so that what was read before is shared by all.

A worker that dies is started again. Told to stop, the parent tells its workers, and they finish what they are answering.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable

Work = Callable[[int, Callable[[], None]], None]

STOP_S = 15.0
"""How long workers may take to finish; uvicorn gives running requests 10."""

_YOUNG_S, _MOST_EARLY_DEATHS = 5.0, 5


class Workers:
    """The worker processes of a service.

    Args:
        count: how many.
        work: runs in each, with its number and a function to call once it answers; returns when the process is told to stop (SIGTERM).
    """

    def __init__(self, count: int, work: Work) -> None:
        self._count = count
        self._work = work
        self._number_of: dict[int, int] = {}
        self._started_s: dict[int, float] = {}
        self._early_deaths = 0
        self._ready_read, self._ready_write = os.pipe()
        self._life_read, self._life_write = os.pipe()

    def run(self, on_ready: Callable[[], None]) -> None:
        """Start them all, and keep them running until SIGTERM or SIGINT.

        Args:
            on_ready: called once all of them answer.

        Raises:
            RuntimeError: they die again and again as soon as they start.
        """
        try:
            for number in range(self._count):
                self._start(number)
            waiting = self._count
            while True:
                if waiting and select.select([self._ready_read], [], [], 0.05)[0]:
                    waiting -= len(os.read(self._ready_read, waiting))
                    if not waiting:
                        on_ready()
                if self._reap() or waiting:
                    continue
                time.sleep(0.2)
        except KeyboardInterrupt:
            pass  # SIGTERM comes as one as well: being told to stop is no failure
        finally:
            self._stop()

    def _start(self, number: int) -> None:
        pid = os.fork()
        if pid:
            self._number_of[pid] = number
            self._started_s[pid] = time.monotonic()
            return
        code = 1
        try:
            os.close(self._life_write)
            threading.Thread(target=_follow, args=(self._life_read,), daemon=True).start()
            self._work(number, self._tell_ready)
            code = 0
        except KeyboardInterrupt:
            code = 0
        finally:
            os._exit(code)

    def _tell_ready(self) -> None:
        os.write(self._ready_write, b"r")

    def _reap(self) -> bool:
        """Start again whoever has died; whether there was one."""
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return False
        number = self._number_of.pop(pid)
        if time.monotonic() - self._started_s.pop(pid) < _YOUNG_S:
            self._early_deaths += 1
            if self._early_deaths >= _MOST_EARLY_DEATHS:
                raise RuntimeError(f"worker {number} died {_MOST_EARLY_DEATHS} times within {_YOUNG_S:g} s of its start, last by {status}")
        self._start(number)
        return True

    def _stop(self) -> None:
        for pid in self._number_of:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + STOP_S
        while self._number_of and time.monotonic() < until:
            with contextlib.suppress(ChildProcessError):
                pid, _ = os.waitpid(-1, os.WNOHANG)
                self._number_of.pop(pid, None)
                if pid:
                    continue
            time.sleep(0.02)
        for pid in self._number_of:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        for handle in (self._ready_read, self._ready_write, self._life_read, self._life_write):
            os.close(handle)


def _follow(lifeline: int) -> None:
    """End with the parent: the pipe closes when it is gone, however it went."""
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGTERM)
