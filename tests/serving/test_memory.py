"""What a serving process does not hold."""

import importlib.util
import os
import subprocess
import sys

import pytest

_LEFT_OUT = """
import sys
from serving.memory import leave_pandas_out
leave_pandas_out()
import pyarrow as pa
assert pa.array([0, None]).fill_null(1).to_pylist() == [0, 1] and pa.array([1]).to_numpy().tolist() == [1]
assert "pandas" not in sys.modules, "Arrow imported it"
import pandas
assert pandas.DataFrame({"a": [1]}).a.tolist() == [1], "others may"
leave_pandas_out()
"""

_GIVEN_BACK = """
import pyarrow as pa
from serving.memory import release

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

held = [bytes(2000) for _ in range(50_000)]
kept = held[::5000]
del held
before = resident()
release()
print(before - resident())
"""


@pytest.mark.skipif(importlib.util.find_spec("pandas") is None, reason="there is none to leave out")
def test_arrow_does_without_pandas_and_others_may_have_it() -> None:
    subprocess.run([sys.executable, "-c", _LEFT_OUT], check=True, timeout=60)


@pytest.mark.skipif(sys.platform != "linux" or os.confstr("CS_GNU_LIBC_VERSION") is None, reason="glibc's allocator")
def test_what_was_freed_is_given_back_though_something_between_it_stays() -> None:
    told = subprocess.run([sys.executable, "-c", _GIVEN_BACK], check=True, timeout=60, capture_output=True, text=True).stdout
    assert float(told) > 50, "of 100 MB in pieces of 2 KB"
