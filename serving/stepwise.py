"""Work that is done in steps, so that a long piece of it holds nobody up who asks meanwhile."""

import asyncio
from collections.abc import Callable, Generator
from typing import Any, TypeVar

_T = TypeVar("_T")
Steps = Generator[None, None, _T]
"""Yields where others may come between; what it returns is the result."""


def finished(steps: Steps[_T]) -> _T:
    """The result, with nothing between the steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: _T = end.value
            return result


async def between_others(steps: Steps[Any], check: Callable[[], None]) -> Any:
    """The result; before each step, whoever else is waited for on the event loop has a turn.

    Args:
        check: called before each step; raises once nobody waits.
    """
    while True:
        check()
        try:
            next(steps)
        except StopIteration as end:
            return end.value
        await asyncio.sleep(0)
