"""Fits preprocessing while training rows stream by: vocabularies and number statistics, nothing kept per row."""

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers.columns import EVENT_TYPE
from towers.preprocess import VOCABULARY_KINDS, Preprocessor
from towers.schema import Feature, Schema
from towers.values import Column, as_lists, as_numbers, as_strings
from towers.vocab import Vocabulary

LARGEST_POWER, SMALLEST_POWER = 130, -150
FAR_POWERS = 10
"""A number is absurd from this many powers of 2 beyond all but the largest hundredth of a feature's values."""


class PreprocessorFit:
    """Collects what `Preprocessor` needs. Give it training rows only: what it has not seen is unknown for ever.

    Args:
        schema: the declared features.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self._counts: dict[str, Counter[str]] = {f.vocabulary: Counter() for f in schema.features if f.kind in VOCABULARY_KINDS}
        self._events: set[str] = set()
        self._moments = {f.input_name: Moments() for f in schema.features if f.kind == "numeric"}

    def see(self, owner: str, columns: Mapping[str, Column]) -> None:
        """Take in rows of an owner: raw values by feature name, any number of times."""
        for f in self.schema.owned_by(owner):
            if f.name in columns and f.kind != "preferences":
                self._see_feature(f, columns[f.name])

    def see_events(self, event_types: Iterable[str]) -> None:
        """Take in the event types of training rows."""
        self._events.update(event_types)

    def finish(self) -> Preprocessor:
        """The fitted preprocessor."""
        least = {f.vocabulary: f.min_count for f in self.schema.features if not f.like}
        vocabularies = {
            name: Vocabulary.fit(value for value, count in counts.items() if count >= least[name]) for name, counts in self._counts.items()
        }
        vocabularies[EVENT_TYPE] = Vocabulary.fit(self._events)
        return Preprocessor(self.schema, vocabularies, {name: moments.fit() for name, moments in self._moments.items()})

    def _see_feature(self, f: Feature, values: Column) -> None:
        if f.kind == "numeric":
            self._moments[f.input_name].see(as_numbers(f.input_name, values))
        elif f.kind == "multi_categorical":
            flat, _ = as_lists(f.input_name, values)
            self._counts[f.vocabulary].update(value for value in flat if value is not None)
        elif f.kind in VOCABULARY_KINDS:
            self._counts[f.vocabulary].update(_counted(f.input_name, values))


def _counted(name: str, values: Column) -> Counter[str]:
    """Occurrences by text; Arrow columns are counted without a Python object per row."""
    if not isinstance(values, pa.Array | pa.ChunkedArray):
        return Counter(text for text in as_strings(name, values) if text is not None)
    tally = values.value_counts() if isinstance(values, pa.Array) else values.combine_chunks().value_counts()
    texts = as_strings(name, tally.field("values"))
    counted: Counter[str] = Counter()
    for text, count in zip(texts, tally.field("counts").to_pylist(), strict=True):
        if text is not None:
            counted[text] += count
    return counted


class Moments:
    """Mean and standard deviation of a stream, which one absurd value (3e38 among prices) does not move.

    Moments are kept by power of 2 of the magnitude, so that what is absurd can be told, and left out, when all has been seen. They are
    counts, means and sums of squared distances to those means, merged pairwise (Chan, Golub and LeVeque 1983, "Algorithms for computing
    the sample variance"): sums of plain squares would lose a deviation of seconds in the squares of Unix times.

    >>> moments = Moments()
    >>> moments.see(np.array([2.0, 4.0, np.nan]))
    >>> moments.see(np.array([6.0, 3e38]))
    >>> [round(x, 4) for x in moments.fit()]
    [4.0, 1.633]
    """

    def __init__(self) -> None:
        self._count_P, self._mean_P, self._square_P = np.zeros((3, LARGEST_POWER - SMALLEST_POWER + 1))

    def see(self, numbers: NDArray[np.float64]) -> None:
        """Take in numbers; those that are not finite are missing."""
        numbers = numbers[np.isfinite(numbers)]
        powers = np.frexp(numbers)[1].clip(SMALLEST_POWER, LARGEST_POWER) - SMALLEST_POWER
        powers[numbers == 0] = 0

        def summed(terms: NDArray[np.float64] | None) -> NDArray[np.float64]:
            return np.bincount(powers, terms, minlength=len(self._count_P)).astype(np.float64)

        count_P = summed(None)
        share_P = 1 / np.maximum(count_P, 1)
        mean_P = summed(numbers) * share_P
        apart = numbers - mean_P[powers]
        # what the rounded means are off by, which a second pass sees
        off_P = summed(apart)
        square_P = summed(np.square(apart)) - np.square(off_P) * share_P
        mean_P += off_P * share_P

        total_P = self._count_P + count_P
        step_P = (mean_P - self._mean_P) * count_P / np.maximum(total_P, 1)
        self._square_P += square_P + step_P * (mean_P - self._mean_P) * self._count_P
        self._mean_P += step_P
        self._count_P = total_P

    def fit(self) -> tuple[float, float]:
        """Mean and standard deviation; a constant (or absent) feature gets deviation 1, so that it stays finite."""
        # zeros lie in front and do not count: a feature that is 0 for most has its scale from the others
        seen_P = np.cumsum(self._count_P[1:])
        common = int(np.searchsorted(seen_P, (seen_P[-1] - 1) * 99 // 100 + 1))
        kept = slice(common + 2 + FAR_POWERS)
        count_P, mean_P = self._count_P[kept], self._mean_P[kept]
        count = float(count_P.sum())
        if count == 0:
            return 0.0, 1.0
        mean = float(count_P @ mean_P) / count
        deviation = max(float(self._square_P[kept].sum() + count_P @ np.square(mean_P - mean)) / count, 0.0) ** 0.5
        return mean, deviation if deviation > 1e-12 * max(1.0, abs(mean)) else 1.0
