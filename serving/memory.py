"""Memory of a process that answers for weeks and shares what it can with the processes beside it."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec

import pyarrow as pa

from towers.memory import give_back_memory


@contextmanager
def _unfound(name: str) -> Iterator[None]:
    """Importing a module fails, as where it is not installed."""

    class Finder:
        @staticmethod
        def find_spec(fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
            if fullname == name:
                raise ModuleNotFoundError(f"{name} is left out", name=name)
            return None

    finder = Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def leave_pandas_out() -> None:
    """Have Arrow do without pandas, which it imports for the first array it makes, wherever that is installed: 25 MiB and a third of a
    second, for conversions that no service asks for. Others may import it; where it is loaded already nothing changes."""
    if "pandas" not in sys.modules:
        with _unfound("pandas"):
            pa.array([0])  # Arrow looks once, and remembers


def release() -> None:
    """Give back what was freed and is still held: after a large piece of work of a kind that comes seldom. A few milliseconds."""
    pa.default_memory_pool().release_unused()
    give_back_memory()


def settle() -> None:
    """To be called when everything is opened, before processes are forked: what is there stays.

    Objects that nobody frees any more are on no page that the collector writes to, and such pages stay shared between processes. Requests
    leave no cycles, so it need not look through the lists that wait to be logged again and again: that took a tenth of a request.
    """
    gc.collect()
    release()
    gc.freeze()
    gc.set_threshold(20_000, 10, 50)
