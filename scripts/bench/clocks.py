"""Fair clocks: process CPU time, and forms that take turns."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Form = Callable[[], object]


def cpu_rounds(forms: Mapping[str, Form], rounds: int, calls: int = 1, warm: int = 2) -> dict[str, list[float]]:
    """Process CPU seconds a call, by form, one number a round.

    The forms take turns within a round, so that what else the machine does falls on all of them alike.
    """
    for form in forms.values():
        for _ in range(warm):
            form()
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, form in forms.items():
            since = time.process_time()
            for _ in range(calls):
                form()
            seconds[name].append((time.process_time() - since) / calls)
    return seconds


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times faster: the median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))
