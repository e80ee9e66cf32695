"""What a model has learned from, the models that it started from included: whether validation rows may still judge it.

A run that starts from another's weights has learned what that one learned. Where rows that validate the new run were among it, validation
flatters: it chooses epochs by what the model remembers.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from towers.columns import NO_TIME, TRAIN, VALID
from training.interactions import BLOCK_ROWS, Interactions
from training.opening import made_of, result_of
from training.protocol import RULE
from training.tracking import say

LEARNED = "learned"
"""Of train.json and of a bundle's manifest."""


@dataclass(frozen=True)
class Learned:
    """What a trained model has learned from.

    Attributes:
        prepared: which prepared data (`made_of`); empty = not told.
        validation: it learned from rows that validate there: refitted, or from the model that it started from.
        newest: time of the newest event that it learned from, microseconds UTC; None = not known, or the data have no times.
        through: trainer.init_from, where validation rows came in by it; empty otherwise.
    """

    prepared: str = ""
    validation: bool = False
    newest: int | None = None
    through: str = ""

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Self:
        """From a document that `as_json` went into, or one of before."""
        return cls(**{name: told[name] for name in asdict(cls()) if name in told})

    @classmethod
    def of_run(cls, run_dir: Path) -> Self:
        """Of the run's model; of a run of before, what its result tells."""
        result = result_of(run_dir)
        before = {"prepared": result.get("prepared", ""), "validation": bool(result.get("refit"))}
        return cls.read(result.get(LEARNED) or before)

    def as_json(self) -> dict[str, Any]:
        """As it stands in train.json."""
        return asdict(self)

    def holds_validation_of(self, data: Interactions) -> bool:
        """Whether the model has learned from rows that validate in `data`, as far as that can be known.

        Of the same prepared data it is known. Of another, such as the log of a day later, times tell: what is newer than all that the
        model has seen is new to it, so a refitted model may be brought up to date and validated on the days since; and a split by time
        that validates earlier events validates rows that were trained on. Otherwise (`leave_one_out`: who had no new event is held out
        with the same rows as before) a refitted model has seen some of them. One that was not refitted has not: rows only ever move from
        test to validation to training as the log grows.
        """
        if self.prepared and self.prepared == made_of(data):
            return self.validation
        validating = times_of(data, VALID)
        if self.newest is not None and validating is not None:
            if self.newest < validating[0]:
                return False
            if data.facts.get("data", {}).get("split", {}).get("name") == "global_temporal":
                return True
        return self.validation


def inherited(old: Learned, data: Interactions) -> Learned:
    """What a training on `data` that starts from the old model begins with; `validation` tells of rows that validate here."""
    return replace(old, validation=old.holds_validation_of(data))


def learned_by(data: Interactions, refitted: bool, started: Mapping[str, Any], init_from: str) -> Learned:
    """What a training learned from.

    Args:
        data: what it trained on, as it read it: validation rows are training rows in a refit.
        started: what it began with (`inherited`, as JSON); empty = with a new model.
        init_from: trainer.init_from.
    """
    own = times_of(data, TRAIN)
    newest = None if own is None else own[1]
    if not started:
        return Learned(made_of(data), refitted, newest)
    before = Learned.read(started)
    newest = max(newest, before.newest) if newest is not None and before.newest is not None else None
    return Learned(made_of(data), refitted or before.validation, newest, init_from if before.validation else "")


def warn_of_validation(init_from: str) -> None:
    """Say loudly that validation cannot judge the run."""
    for line in (
        RULE,
        f"WARNING: {init_from} HAS LEARNED FROM ROWS THAT VALIDATE HERE. What validation chooses here (epochs, weights) and all valid/...",
        "figures tell what the model remembers. Start from a model that was trained without these rows (trainer.refit=false), or",
        "measure with evaluate.split=test; evaluate.split=valid will be refused.",
        RULE,
    ):
        say(line)


def times_of(data: Interactions, code: int) -> tuple[int, int] | None:
    """Oldest and newest time of a split's rows in microseconds; None without rows, or without times. The columns are read in blocks."""
    low, high = -NO_TIME - 1, NO_TIME
    for start in range(0, len(data), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        times = data.timestamp[rows][data.split[rows] == code]
        low, high = min(low, int(times.min(initial=low))), max(high, int(times.max(initial=high)))
    data.release()
    return (low, high) if NO_TIME < low <= high else None
