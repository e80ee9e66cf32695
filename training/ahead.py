"""Reading one step ahead: the next chunk is decoded by another thread while this one is worked on."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(source: Iterable[T]) -> Iterator[T]:
    """The same values in the same order, each computed while the one before it is in use. An error of the source is raised where its
    value would have come; a consumer that stops early waits for the value under way.

    >>> list(ahead(iter("abc")))
    ['a', 'b', 'c']
    """
    iterator = iter(source)

    def following() -> tuple[T, ...]:
        for value in iterator:
            return (value,)
        return ()

    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        coming = thread.submit(following)
        while found := coming.result():
            coming = thread.submit(following)
            yield found[0]
