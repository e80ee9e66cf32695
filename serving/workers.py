"""Several processes behind one socket: opened once, then forked, so that what was read before is shared by all.

A worker that dies is started again, and the log says so. Told to stop, the parent tells its workers, and they finish what they are
answering.
"""

import contextlib
import logging
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable

Work = Callable[[int, Callable[[], None]], None]

STOP_S = 15.0
"""How long workers may take to finish; uvicorn gives running requests 10."""

_YOUNG_S, _MOST_EARLY_DEATHS, _WITHIN_S = 5.0, 5, 60.0
"""So many that die so young within so long are not started again: it would happen again. One that loops takes half of that."""

log = logging.getLogger("towers.serving")


class Workers:
    """The worker processes of a service.

    Args:
        count: how many.
        work: runs in each, with its number and a function to call once it answers; returns when the process is told to stop (SIGTERM).
        clock: seconds, of which only differences count.
    """

    def __init__(self, count: int, work: Work, clock: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._work = work
        self._number_of: dict[int, int] = {}
        self._started_s: dict[int, float] = {}
        self._early_s: deque[float] = deque(maxlen=_MOST_EARLY_DEATHS)
        self._clock = clock
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
            self._started_s[pid] = self._clock()
            return
        code = 1
        try:
            os.close(self._life_write)
            threading.Thread(target=_follow, args=(self._life_read,), daemon=True).start()
            self._work(number, self._tell_ready)
            code = 0
        except KeyboardInterrupt:
            code = 0
        except Exception as error:  # the process ends here, before anybody else could tell
            log.exception("worker failed", extra={"worker": number, "reason": repr(error)})
        finally:
            os._exit(code)

    def _tell_ready(self) -> None:
        os.write(self._ready_write, b"r")

    def _reap(self) -> bool:
        """Start again whoever has died; whether there was one."""
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return False
        number, now_s = self._number_of.pop(pid), self._clock()
        lived_s, code = now_s - self._started_s.pop(pid), os.waitstatus_to_exitcode(status)
        how = {"signal": signal.Signals(-code).name} if code < 0 else {"exit_code": code}
        log.error("worker ended, another is started", extra={"worker": number, "ended_pid": pid, "lived_s": round(lived_s, 1), **how})
        if lived_s < _YOUNG_S:
            self._early_s.append(now_s)
            if len(self._early_s) == _MOST_EARLY_DEATHS and now_s - self._early_s[0] < _WITHIN_S:
                raise RuntimeError(
                    f"{_MOST_EARLY_DEATHS} workers died within {_YOUNG_S:g} s of their start, one after the other, the last by {how};"
                    " the log says why"
                )
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
