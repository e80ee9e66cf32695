"""Ctrl-C, and being told to end, at any moment of a job: one line and exit code 5, never a traceback, and never without effect.

An exception that is raised while modules are imported may be swallowed by one of them (`try: import ... except:`), and then the job would
run on. So until the work begins the process ends at once, as nothing is written yet; after that, an import that is under way is waited for.
"""

import os
import signal
import threading
import time
import types

from towers.errors import EXIT_INTERRUPTED

TOLD = "interrupted: what was saved is kept; run the same command again to continue"

STARTED_BY = "TOWERS_STARTED_BY"
"""Set for a job that another one starts as a step of itself, to that one's pid: the step ends with it, however it went."""

FOLLOW_S = 0.5
GRACE_S = 12.0
"""What a step has to end in good order."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGAIN_S = 0.02


def end_at_once() -> None:
    """Until `raise_in_work`: end where a signal finds us. Nothing may be written yet."""
    _handle(_end)


def raise_in_work() -> None:
    """From now on: KeyboardInterrupt, as soon as no import is under way."""
    _handle(_raise)
    signal.signal(signal.SIGALRM, _raise)


def follow_starter() -> None:
    """In a step of another job: be told to end, as by SIGTERM, soon after that one is gone. Elsewhere nothing happens."""
    starter = os.environ.pop(STARTED_BY, None)  # what this one starts has another parent
    if starter is not None:
        threading.Thread(target=_end_without, args=(int(starter),), name="starter", daemon=True).start()


def _end_without(starter: int) -> None:
    while os.getppid() == starter:  # an orphan gets another parent
        time.sleep(FOLLOW_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(EXIT_INTERRUPTED)


def _handle(handler: "signal._HANDLER") -> None:
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # a job in the background of a shell ignores Ctrl-C, and goes on doing so
            signal.signal(number, handler)


def _end(signum: int, frame: types.FrameType | None) -> None:
    os.write(2, f"{TOLD}\n".encode())
    os._exit(EXIT_INTERRUPTED)


def _raise(signum: int, frame: types.FrameType | None) -> None:
    if _importing(frame):
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
    else:
        raise KeyboardInterrupt


def _importing(frame: types.FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
