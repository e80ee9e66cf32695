"""Prepared values as people read them: what `Preprocessor.encode_feature` made of a feature, told back as far as it was kept."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from towers.columns import FIRST_ROW, MISSING_ROW, PAD_ROW
from towers.preprocess import HOUR_ROW, VOCABULARY_KINDS, WEEKDAY_ROW, Preprocessor
from towers.schema import Feature
from towers.vocab import Vocabulary

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def decoded(preprocessor: Preprocessor, feature: Feature, values_n: NDArray[Any]) -> list[Any]:
    """One value for each row of a feature's array [n, ...], None where none is known.

    Numbers come back in their own unit (cut at `NUMERIC_BOUND` deviations), times as hour and day of the week in UTC, and of texts only
    the hash buckets are kept. Values outside the vocabulary were not kept: None, or left out of a list.
    """
    if feature.kind in VOCABULARY_KINDS:
        vocabulary = preprocessor.vocabularies[feature.vocabulary]
        if values_n.ndim == 1:
            return _names(vocabulary, values_n)
        return [[name for name in _names(vocabulary, row) if name is not None] or None for row in values_n]
    if feature.kind == "numeric":
        mean, deviation = preprocessor.numbers[feature.input_name]
        return [None if missing else mean + deviation * scaled for scaled, missing in values_n.tolist()]
    if feature.kind == "time":
        return [_clock(hour, weekday) for hour, weekday in values_n.tolist()]
    if feature.kind == "text":
        return [[bucket for bucket in row if bucket != PAD_ROW] or None for row in values_n.tolist()]
    return list(values_n.tolist())


def _names(vocabulary: Vocabulary, rows_n: NDArray[Any]) -> list[str | None]:
    place_n = np.asarray(rows_n, np.int64) - FIRST_ROW
    values = vocabulary.values()
    return [values[place].as_py() if place >= 0 else None for place in place_n.tolist()]


def _clock(hour_row: int, weekday_row: int) -> dict[str, Any] | None:
    return None if hour_row == MISSING_ROW else {"hour": hour_row - HOUR_ROW, "weekday": WEEKDAYS[weekday_row - WEEKDAY_ROW]}
