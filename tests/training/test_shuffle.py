import numpy as np
import pytest

from training.shuffle import Order


def make(counts, seed=1, epoch=0, buffer=50):
    firsts = np.cumsum([0, *counts])
    reads = []

    def members(block):
        reads.append(block)
        return np.arange(firsts[block], firsts[block + 1])

    return Order(np.array(counts, np.int64), members, seed, epoch, buffer), reads


@pytest.mark.parametrize("counts", [[7], [3, 0, 9, 40], [0, 0, 5], [60] * 9, [5] * 100, [130, 1, 1, 200, 3], [0], []])
@pytest.mark.parametrize("buffer", [1, 50, 1000])
def test_every_example_comes_once(counts, buffer):
    order, _ = make(counts, buffer=buffer)
    assert len(order) == sum(counts)
    assert sorted(order[:]) == list(range(sum(counts)))


@pytest.mark.parametrize("step", [1, 7, 64])
def test_any_slice_is_that_of_the_whole(step):
    counts = np.random.default_rng(0).integers(0, 30, 60).tolist()
    whole = make(counts)[0][:]
    starts = list(range(0, len(whole) + step, step))
    for start in [*starts, *starts[::-7]]:
        assert (make(counts)[0][start : start + step] == whole[start : start + step]).all()


def test_seed_and_epoch_decide():
    same, again = make([20] * 10)[0][:], make([20] * 10)[0][:]
    assert (same == again).all()
    assert (same != make([20] * 10, seed=2)[0][:]).any() and (same != make([20] * 10, epoch=1)[0][:]).any()


def test_a_buffer_is_read_once_and_holds_no_more_than_it_and_a_block():
    order, reads = make([20] * 100)
    for start in range(0, 2000, 16):
        order[start : start + 16]
        assert len(order._held[1]) <= 50 + 20
    assert sorted(reads) == list(range(100))


def test_an_epoch_within_the_buffer_is_shuffled_entirely():
    """Neighbours on disk are no more often neighbours in the order than chance has it."""
    order, _ = make([100] * 20, buffer=10_000)
    assert np.count_nonzero(np.abs(np.diff(order[:])) == 1) < 12


def test_blocks_of_a_buffer_come_from_everywhere():
    order, _ = make([10] * 1000, buffer=1000)
    first = order[:1000]
    assert first.min() < 500 and first.max() > 9500 and 4000 < first.mean() < 6000
