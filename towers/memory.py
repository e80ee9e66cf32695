"""Memory that a process has freed and its C library still holds."""

import ctypes
from contextlib import suppress


def give_back_memory() -> None:
    """Give it back to the system once: after work that frees more than what follows will ask for. A few milliseconds; C libraries other
    than glibc keep their own house."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
