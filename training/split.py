"""Which interactions train, choose and test the model: pure functions on arrays, one for each `split.name`.

Legend: N rows, sorted by (user, time, ingest order) where offsets [U+1] are given; I items. Codes: 0 train, 1 valid, 2 test.
Rows of weight 0 (negative events) take the code of their place, so that nothing later leaks, but are never targets.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from towers.columns import NO_TIME, TEST, TRAIN, VALID

Codes = NDArray[np.uint8]
Blocks = Callable[[], Iterator[NDArray[np.int64]]]
"""Starts reading a long column anew, block by block."""

LEAST_EVENTS = 3
"""leave_one_out: users with fewer positive events stay in training entirely."""

_BINS = 1 << 16


def temporal_cuts(timestamps: Blocks, rows: int, valid_share: float, test_share: float) -> tuple[int, int]:
    """The two times of `global_temporal`: rows from the first on validate, from the second on test.

    The cuts are exact order statistics, found without holding or sorting the column. All rows of one time fall on one side.

    Args:
        timestamps: blocks of int64 microseconds.
        rows: N.
        valid_share, test_share: of the rows, at the end of the log.
    """
    test_cut = order_statistic(timestamps, int(rows * (1 - test_share)))
    valid_cut = order_statistic(timestamps, int(rows * (1 - test_share - valid_share)))
    return valid_cut, test_cut


def global_temporal(timestamp_N: NDArray[np.int64], cuts: tuple[int, int]) -> Codes:
    """Codes of rows by time: before both cuts, between them, from the second on."""
    valid_cut, test_cut = cuts
    codes: Codes = (timestamp_N >= valid_cut).astype(np.uint8) * VALID
    codes[timestamp_N >= test_cut] = TEST
    return codes


def leave_one_out(offsets: NDArray[np.int64], weight_N: NDArray[np.float32]) -> Codes:
    """Each user's last positive event tests, the one before validates, the rest trains.

    Users with fewer than LEAST_EVENTS positive events stay in training. A negative event after the held-out one belongs to
    the held-out one's side.
    """
    positive_N = weight_N > 0
    seen_N = np.concatenate([[0], np.cumsum(positive_N)])
    total_U = seen_N[offsets[1:]] - seen_N[offsets[:-1]]
    counts_U = np.diff(offsets)
    # positive events of the same user from this row on, this row included
    left_N = np.repeat(seen_N[offsets[1:]], counts_U) - seen_N[:-1]
    held_N = np.repeat(total_U >= LEAST_EVENTS, counts_U)
    codes = np.full(len(weight_N), TRAIN, np.uint8)
    codes[held_N & ((left_N == 2) & positive_N | (left_N == 1))] = VALID
    codes[held_N & ((left_N == 1) & positive_N | (left_N == 0))] = TEST
    return codes


def share_of_each_user(offsets: NDArray[np.int64], given_N: Codes, draw_N: NDArray[np.float64], share: float) -> Codes:
    """`given` without a validation set: a share of each user's training rows, rounded to the nearest, validates.

    Args:
        given_N: the codes given, of which training rows may change.
        draw_N: a random number per row; the smallest of each user are taken.
    """
    train_N = given_N == TRAIN
    rows = np.flatnonzero(train_N)
    before_N = np.concatenate([[0], np.cumsum(train_N)])
    counts_U = before_N[offsets[1:]] - before_N[offsets[:-1]]
    user = np.repeat(np.arange(len(counts_U)), counts_U)
    order = np.lexsort((draw_N[rows], user))
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(counts_U) - counts_U, counts_U)
    taken = rank < np.repeat(np.floor(counts_U * share + 0.5).astype(np.int64), counts_U)
    codes = given_N.copy()
    codes[rows[order[taken]]] = VALID
    return codes


def cold_items(items: int, valid_share: float, test_share: float, seed: int) -> Codes:
    """`item_cold`: a seeded share of the items leaves training entirely; the code of every item, uint8 [I]."""
    order = np.random.default_rng(seed).permutation(items)
    test = round(items * test_share)
    valid = round(items * valid_share)
    codes = np.full(items, TRAIN, np.uint8)
    codes[order[:test]] = TEST
    codes[order[test : test + valid]] = VALID
    return codes


def random_rows(draw_N: NDArray[np.float64], valid_share: float, test_share: float) -> Codes:
    """`random`: each row by its own draw in [0, 1): the lowest test, the next validate."""
    codes = np.full(len(draw_N), TRAIN, np.uint8)
    codes[draw_N < test_share + valid_share] = VALID
    codes[draw_N < test_share] = TEST
    return codes


def cold_users(offsets: NDArray[np.int64], ingest_N: NDArray[np.int64], valid_share: float, test_share: float, seed: int) -> Codes:
    """`user_cold`: a seeded share of the users leaves training entirely. A user is drawn by its first row in the log, because the order
    of user keys depends on their secret."""
    first_U = np.minimum.reduceat(ingest_N, offsets[:-1])
    return np.repeat(random_rows(draws(first_U, seed), valid_share, test_share), np.diff(offsets))


def warm_too(offsets: NDArray[np.int64], weight_N: NDArray[np.float32], cold_N: Codes) -> Codes:
    """`item_cold` with `leave_one_out` among the rows of the items that train."""
    trained_N = cold_N == TRAIN
    last_N = leave_one_out(offsets, np.where(trained_N, weight_N, 0).astype(np.float32))
    return np.where(trained_N, last_N, cold_N)


def draws(row_N: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each ingest row: a hash (splitmix64, Steele et al. 2014), so that neither the secret behind the user
    keys nor the order of processing changes a split."""
    with np.errstate(over="ignore"):
        x = row_N.astype(np.uint64) + np.uint64(seed & (2**64 - 1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))).astype(np.float64) / 2.0**64


def order_statistic(blocks: Blocks, rank: int) -> int:
    """The value that would stand at `rank` if the column were sorted, by narrowing histograms: a few passes, no copy."""
    low, high = _range(blocks)
    while low < high:
        width = (high - low) // _BINS + 1
        counts = np.zeros(_BINS, np.int64)
        below = 0
        for block in blocks():
            below += int(np.count_nonzero(block < low))
            inside = block[(block >= low) & (block <= high)]
            counts += np.bincount((inside - low) // width, minlength=_BINS)
        chosen = int(np.searchsorted(below + np.cumsum(counts), rank, side="right"))
        low, high = low + chosen * width, min(high, low + (chosen + 1) * width - 1)
    return low


def _range(blocks: Blocks) -> tuple[int, int]:
    low, high = -NO_TIME - 1, NO_TIME
    for block in blocks():
        low, high = min(low, int(block.min())), max(high, int(block.max()))
    return low, high
