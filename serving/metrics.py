"""Counters of the service in memory that its worker processes share: each writes its own row, whoever is asked adds them up.

A row is a few hundred float64; counting costs a fraction of a microsecond and takes no lock, because a row has one writer.
"""

import mmap
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

BOUNDS_S = (0.00005, 0.0001, 0.0002, 0.0003, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0)
"""Upper bounds of the latency buckets, in seconds."""

_WIDTH = len(BOUNDS_S) + 2
"""Of a histogram: its buckets, one for what is longer, and the sum."""

STAGES = ("state", "encode", "search", "select", "reply")
MODES = ("personalized", "cold", "fallback")
REASONS = ("no_history", "unknown_user", "no_user_histories", "unknown_history_items", "unknown_preferences", "not_wanted", "no_consent")
STATUSES = (200, 400, 401, 403, 404, 405, 408, 409, 413, 422, 500, 503)

OTHER = "other"
"""Of what is asked, whatever is no route; of statuses, those that are seldom."""


class Metrics:
    """The counters of all workers.

    Args:
        routes: names of what can be asked.
        workers: processes that will count; to be made before they are forked.
    """

    def __init__(self, routes: Iterable[str], workers: int = 1) -> None:
        self._routes = (*routes, OTHER)
        self._slots: dict[tuple[str, ...], int] = {}
        for route in self._routes:
            for status in (*STATUSES, OTHER):
                self._slots["requests", route, str(status)] = len(self._slots)
        for name, labels in (("mode", MODES), ("reason", REASONS)):
            for label in labels:
                self._slots[name, label] = len(self._slots)
        self._first = len(self._slots)
        kinds = [*(("request", route) for route in self._routes), *(("stage", stage) for stage in STAGES)]
        self._histograms = {kind: self._first + place * _WIDTH for place, kind in enumerate(kinds)}
        self._stages = {stage: self._histograms["stage", stage] for stage in STAGES}
        self._width = self._first + len(kinds) * _WIDTH
        self._shared = mmap.mmap(-1, 8 * workers * self._width)
        self._all = np.frombuffer(self._shared, np.float64).reshape(workers, self._width)
        self.count_in(0)

    def count_in(self, worker: int) -> None:
        """Say which row this process writes."""
        start = 8 * worker * self._width
        self._row = memoryview(self._shared)[start : start + 8 * self._width].cast("d")

    def request(self, route: str, status: int, seconds: float) -> None:
        """One answered request."""
        place = self._slots.get(("requests", route, str(status)))
        self._row[self._slots["requests", route, OTHER] if place is None else place] += 1
        self._observe(self._histograms["request", route], seconds)

    def lap(self, stage: str, started: float) -> float:
        """One stage of one recommendation, from `started` (of time.perf_counter) to now, which is returned."""
        now = time.perf_counter()
        self._observe(self._stages[stage], now - started)
        return now

    def recommended(self, mode: str, reason: str) -> None:
        """How a list came about; `reason` of a fallback, else ""."""
        self._row[self._slots["mode", mode]] += 1
        if reason:
            self._row[self._slots["reason", reason]] += 1

    def text(self, gauges: Mapping[str, float], info: Mapping[str, str]) -> str:
        """Everything in Prometheus' text format.

        Args:
            gauges: by name; what holds at this moment.
            info: labels of `towers_info`.
        """
        total = self._all.sum(0)
        modes = {mode: total[self._slots["mode", mode]] for mode in MODES}
        gauges = {**gauges, "towers_fallback_ratio": modes["fallback"] / max(1.0, sum(modes.values()))}
        lines = [*self._counters(total)]
        for name, key, kinds in (("towers_request_seconds", "request", self._routes), ("towers_stage_seconds", "stage", STAGES)):
            lines.append(f"# TYPE {name} histogram")
            label = "route" if key == "request" else "stage"
            for kind in kinds:
                lines += _histogram(name, f'{label}="{kind}"', total[self._part(self._histograms[key, kind])])
        for name, value in gauges.items():
            lines += [f"# TYPE {name} gauge", f"{name} {value:.9g}"]
        labels = ",".join(f'{name}="{value}"' for name, value in info.items())
        return "\n".join([*lines, "# TYPE towers_info gauge", f"towers_info{{{labels}}} 1", ""])

    def _observe(self, start: int, seconds: float) -> None:
        row = self._row
        row[start + bisect_left(BOUNDS_S, seconds)] += 1
        row[start + _WIDTH - 1] += seconds

    def _part(self, start: int) -> slice:
        return slice(start, start + _WIDTH)

    def _counters(self, total: np.ndarray) -> Iterator[str]:
        families = (
            ("requests", "towers_requests_total", ("route", "status")),
            ("mode", "towers_recommendations_total", ("mode",)),
            ("reason", "towers_fallbacks_total", ("reason",)),
        )
        for family, name, labels in families:
            yield f"# TYPE {name} counter"
            for key, slot in self._slots.items():
                if key[0] == family and (total[slot] or family != "requests"):
                    told = ",".join(f'{label}="{value}"' for label, value in zip(labels, key[1:], strict=True))
                    yield f"{name}{{{told}}} {total[slot]:.0f}"


def _histogram(name: str, label: str, part: Sequence[float] | np.ndarray) -> Iterator[str]:
    counts = np.cumsum(part[:-1])
    for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), counts, strict=True):
        yield f'{name}_bucket{{{label},le="{bound}"}} {count:.0f}'
    yield f"{name}_sum{{{label}}} {part[-1]:.9g}"
    yield f"{name}_count{{{label}}} {counts[-1]:.0f}"
