"""Other trained runs as baselines: their models rank the same queries, so that differences are paired by query."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from towers.columns import ITEM_ID
from towers.errors import DataError
from towers.runtime import WEIGHTS_FILE
from training.interactions import Interactions
from training.opening import PREPARED, check_trained_on
from training.queries import Queries
from training.refit import check_unseen


def rivals(folders: Sequence[str], data: Interactions, split: str) -> dict[str, tuple[Path, Interactions]]:
    """The runs of evaluate.against: `run:<name of the folder>` -> its folder and prepared data.

    Another run may have other features or another tower; it must have the same users, events, items and split.

    Args:
        split: the one whose queries are ranked.

    Raises:
        DataError: a folder holds no trained run, it was prepared from other events or anew since, or two have one name.
        ConfigError: one was trained on the rows that are to be ranked.
    """
    found: dict[str, tuple[Path, Interactions]] = {}
    for folder in map(Path, folders):
        name = f"run:{folder.resolve().name}"
        if not (folder / "model" / WEIGHTS_FILE).is_file():
            raise DataError(f"evaluate.against: {folder / 'model'} holds no trained model. Name the run_dir of a `towers train`")
        if name in found:
            raise DataError(f"evaluate.against: two runs are called {folder.resolve().name!r}. Rename one of the folders")
        theirs = Interactions.open(folder / PREPARED)
        for column in ("user_keys", "offsets", "item", "split", "weight"):
            if not np.array_equal(getattr(theirs, column), getattr(data, column)):
                raise DataError(
                    f"evaluate.against: {folder} was prepared from other events (column {column} differs), so its lists answer other"
                    " queries. Prepare both runs with the same data, split and identity.key_file"
                )
        if not theirs.catalog.column(ITEM_ID).equals(data.catalog.column(ITEM_ID)):
            raise DataError(f"evaluate.against: {folder} has another catalogue. Prepare both runs with the same items")
        check_trained_on(folder, theirs, "evaluate.against: ")
        check_unseen(folder, split, "evaluate.against")
        found[name] = (folder, theirs)
    return found


def as_asked_of(queries: Queries, theirs: Interactions) -> Queries:
    """The same queries with another run's features."""
    return replace(queries, data=theirs)
