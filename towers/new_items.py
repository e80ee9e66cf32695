"""Vectors of items that were not in training, told from their content by a regression on the vectors of those that were.

    v = s x W / |x W|

x holds, of an item: 1 for each value of its categories and texts, and for each pair of values of a category field that has few; a place
between knots for each number (piecewise linear); the numbers of dense features; and 1. W is fitted by training.new_items_fit. Towers that
learn with ids see so little of content alone that it hardly learns to speak for itself; the settled vectors say more of what it means.

Legend: C items, J entries of x at most, F columns of x, M values of a bag, D dim.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from towers.batch import FeatureBatch
from towers.columns import ITEM_ID, OOV_ROW, PAD_ROW
from towers.errors import BundleError
from towers.model_config import InputSpec

PREFIX = "new_items."
"""Starts the names of its tensors, which lie among the model's weights, and of its layout in that file's metadata."""
ID_INPUT = f"item.{ITEM_ID}"
_LAYOUT, _WEIGHTS = f"{PREFIX}layout", f"{PREFIX}weights"
_KNOTS, _PAIRED_ROWS, _PAIRED_WIDTH, _MOST_ROWS = 8, 64, 16, 1 << 17
"""Knots of a number; the largest vocabulary and bag whose pairs are told apart; the largest vocabulary that is read at all."""


@dataclass(frozen=True)
class Block:
    """Columns of x that one input fills.

    Attributes:
        input: its name; "" = the one column that every item has.
        kind: values | pairs | number | dense | one.
        size: how many.
        knots: of a number, ascending.
    """

    input: str
    kind: str
    size: int
    knots: tuple[float, ...] = ()

    def entries(self, batch: FeatureBatch, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Columns within the block and what stands there, [C, J] each; where there is nothing, 0."""
        if self.kind == "one":
            return np.zeros((count, 1), np.int64), np.ones((count, 1), np.float32)
        given = np.asarray(batch[self.input])
        if self.kind == "number":
            return self._between_knots(given)
        if self.kind == "dense":
            return np.tile(np.arange(self.size), (count, 1)), given.astype(np.float32)
        rows_CM = given.reshape(count, -1).astype(np.int64)
        if self.kind == "values":
            return rows_CM, (rows_CM != PAD_ROW).astype(np.float32)
        first_J, second_J = np.triu_indices(rows_CM.shape[1], 1)
        low_CJ = np.minimum(rows_CM[:, first_J], rows_CM[:, second_J])
        high_CJ = np.maximum(rows_CM[:, first_J], rows_CM[:, second_J])
        return low_CJ * round(self.size**0.5) + high_CJ, (low_CJ != PAD_ROW).astype(np.float32)

    def _between_knots(self, given_C2: NDArray[np.generic]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        number_C, missing_C = given_C2[:, 0].astype(np.float64), given_C2[:, 1].astype(bool)
        place_C = np.interp(number_C, self.knots, np.arange(len(self.knots)))
        low_C = np.minimum(place_C.astype(np.int64), len(self.knots) - 1)
        columns_C3 = np.stack([low_C, np.minimum(low_C + 1, len(self.knots) - 1), np.full(len(low_C), len(self.knots))], axis=1)
        share_C = place_C - low_C
        values_C3 = np.stack([(1 - share_C) * ~missing_C, share_C * ~missing_C, missing_C], axis=1)
        return columns_C3, values_C3.astype(np.float32)


@dataclass(frozen=True)
class NewItems:
    """The fitted regression.

    Attributes:
        blocks: of the columns, in their order.
        weights_FD: W.
        length: s, how long vectors of trained items are.
    """

    blocks: tuple[Block, ...]
    weights_FD: NDArray[np.float32]
    length: float

    def put(self, batch: FeatureBatch, vectors_CD: NDArray[np.float32]) -> NDArray[np.float32]:
        """The towers' vectors with those of items without a trained id replaced, in place where the array may be written to."""
        new_C = np.asarray(batch[ID_INPUT]) == OOV_ROW
        if new_C.any():
            vectors_CD = np.require(vectors_CD, requirements="W")
            vectors_CD[new_C] = self.vectors({name: array[new_C] for name, array in batch.items() if name.startswith("item.")})
        return vectors_CD

    def vectors(self, batch: FeatureBatch) -> NDArray[np.float32]:
        """From inputs of the item tower, ids apart: float32 [C, D]."""
        columns_CJ, values_CJ = entries(self.blocks, batch)
        told_CD = np.matmul(values_CJ[:, None], self.weights_FD[columns_CJ])[:, 0]
        length_C1 = np.maximum(np.linalg.norm(told_CD, axis=1, keepdims=True), 1e-12)
        found: NDArray[np.float32] = told_CD * (self.length / length_C1)
        return found

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """What `open_new_items` reads, beside `layout`."""
        return {_WEIGHTS: self.weights_FD}

    def layout(self) -> dict[str, str]:
        """Metadata of the file that holds `tensors`."""
        return {_LAYOUT: json.dumps({"length": self.length, "blocks": [asdict(block) for block in self.blocks]})}


def open_new_items(weights: Path) -> NewItems | None:
    """Of a model's weights file; None where training fitted none.

    Raises:
        BundleError: its parts do not belong together.
        OSError, SafetensorError: the file cannot be read.
    """
    with safe_open(weights, framework="numpy") as file:
        told = (file.metadata() or {}).get(_LAYOUT)
        if told is None:
            return None
        raw, weights_FD = json.loads(told), file.get_tensor(_WEIGHTS)
    blocks = tuple(Block(**{**block, "knots": tuple(block["knots"])}) for block in raw["blocks"])
    if weights_FD.dtype != np.float32 or weights_FD.ndim != 2 or len(weights_FD) != sum(block.size for block in blocks):
        raise BundleError(f"{weights}: {_WEIGHTS} is {weights_FD.dtype} {weights_FD.shape}, which its layout does not fit")
    return NewItems(blocks, weights_FD, float(raw["length"]))


def lay_out(specs: Sequence[InputSpec], trained: Mapping[str, NDArray[np.generic]]) -> tuple[Block, ...]:
    """The columns of a schema's item inputs.

    Args:
        specs: of the item tower.
        trained: the inputs of trained items, whose numbers give the knots.
    """
    return (*_blocks(specs, trained), Block("", "one", 1))


def _blocks(specs: Sequence[InputSpec], trained: Mapping[str, NDArray[np.generic]]) -> Iterator[Block]:
    for spec in specs:
        if spec.name == ID_INPUT or spec.rows > _MOST_ROWS:
            continue
        if spec.rows:
            yield Block(spec.name, "values", spec.rows)
            if spec.kind == "multi_categorical" and spec.rows <= _PAIRED_ROWS and 1 < spec.width <= _PAIRED_WIDTH:
                yield Block(spec.name, "pairs", spec.rows**2)
        elif spec.kind == "numeric":
            given_C2 = np.asarray(trained[spec.name], np.float64)
            known_C = given_C2[given_C2[:, 1] == 0, 0]
            knots = np.unique(np.quantile(known_C, np.linspace(0, 1, _KNOTS))) if len(known_C) else np.zeros(1)
            yield Block(spec.name, "number", len(knots) + 1, tuple(float(knot) for knot in knots))
        else:
            yield Block(spec.name, "dense", spec.width)


def entries(blocks: Sequence[Block], batch: FeatureBatch) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """x of a batch: columns and what stands there, [C, J] each; a column may stand several times, and counts each time."""
    count = len(batch[ID_INPUT]) if ID_INPUT in batch else len(next(iter(batch.values())))
    columns, values, start = [], [], 0
    for block in blocks:
        columns_CJ, values_CJ = block.entries(batch, count)
        columns.append(columns_CJ + start)
        values.append(values_CJ)
        start += block.size
    return np.concatenate(columns, axis=1), np.concatenate(values, axis=1)
