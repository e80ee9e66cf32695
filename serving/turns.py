"""Calls that store something, one after the other in a thread of their own: what they wait for holds up no list."""

import asyncio
import contextvars
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from towers.errors import StorageError

LONGEST_TURN_S = 2.0
"""How long a call waits for others before it."""


class Turns:
    """In the order in which they came."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "towers-writer")

    async def take(self, check: Callable[[], None], work: Callable[[], object]) -> object:
        """What the work returns.

        Args:
            check: raises where nobody waits for it any more.

        Raises:
            StorageError: its turn did not come in time.
        """
        came_s = time.perf_counter()

        def turn() -> object:
            check()
            if time.perf_counter() - came_s > LONGEST_TURN_S:  # what kept those before it waiting would keep this one too
                raise StorageError("what came before is not stored yet; nothing of this was, and it may be sent again")
            return work()

        return await asyncio.get_running_loop().run_in_executor(self._thread, contextvars.copy_context().run, turn)
