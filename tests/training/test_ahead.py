import doctest
import threading

import pytest

from training import ahead as module
from training.ahead import ahead


def test_doctests():
    assert doctest.testmod(module).failed == 0


def test_one_value_is_computed_ahead_by_another_thread():
    begun, threads = [threading.Event() for _ in range(4)], set()

    def source():
        for i, event in enumerate(begun[:3]):
            threads.add(threading.current_thread().name)
            event.set()
            yield i

    for value in ahead(source()):
        if value < 2:
            assert begun[value + 1].wait(5), "the next value is under way"
        assert not (value == 0 and begun[2].is_set()), "and no more than that"
    assert threading.current_thread().name not in threads


def test_an_error_comes_in_its_place():
    def source():
        yield 1
        raise ValueError("damaged")

    values = ahead(source())
    assert next(values) == 1
    with pytest.raises(ValueError, match="damaged"):
        next(values)


def test_stopping_early_leaves_no_thread():
    before = threading.active_count()
    for _ in ahead(iter(range(100))):
        break
    assert threading.active_count() == before


def test_nothing_gives_nothing():
    assert list(ahead([])) == []
