"""What all tests share: no test touches the user's own key or data, and in CI a skip needs a good reason."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before torch or faiss start their thread pools: tests run in several processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Whatever started us in the background ignores Ctrl-C, and so would every process of ours that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# In CI the same examples each time: what it says is of the change that it was asked about. A busy machine draws them slowly.
settings.register_profile("towers", suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI")))
settings.load_profile("towers")

GOOD_REASONS = ("no GPU", "no dataset", "no right to mount")
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="session")
def own_user_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """User keys are made under a secret of this session, not under the one in the user's home."""
    before = os.environ.get("TOWERS_KEY_FILE")
    os.environ["TOWERS_KEY_FILE"] = str(tmp_path_factory.mktemp("key") / "user_key")
    yield
    if before is None:
        del os.environ["TOWERS_KEY_FILE"]
    else:
        os.environ["TOWERS_KEY_FILE"] = before


def datasets() -> Path:
    """The folder of real datasets."""
    return Path(os.environ.get("TOWERS_DATA_DIR") or "TOWERS_DATA_DIR (not set)")


@pytest.fixture
def ml_1m() -> Path:
    return dataset("ml-1m")


@pytest.fixture
def gowalla() -> Path:
    return dataset("gowalla")


@pytest.fixture
def amazon_beauty() -> Path:
    return dataset("amazon-beauty")


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """Finds a dataset by its folder's name."""
    return dataset


def dataset(name: str) -> Path:
    folder = datasets() / name
    if not folder.is_dir():
        pytest.skip(f"no dataset: {name} is not in {datasets()} (set TOWERS_DATA_DIR)")
    return folder


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path], None]]:
    """Mounts a file system of 2 MB at a folder, which it makes."""
    mounted: list[Path] = []

    def mount(folder: Path) -> None:
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no right to mount a file system: {done.stderr.strip()}")
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """A small disk without a byte left, as long as it lasts."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    try:
        yield
    finally:
        ballast.unlink()


class SkipsNeedReasons:
    """With TOWERS_FORBID_SKIPS=1 a skip fails the session, unless it says that a GPU or a dataset is missing."""

    def __init__(self) -> None:
        self.unwelcome: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.note(report.nodeid, report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.note(report.nodeid, report)

    def note(self, name: str, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            if not reason.removeprefix("Skipped: ").startswith(GOOD_REASONS):
                self.unwelcome.append(f"{name}: {reason}")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.unwelcome:
            terminalreporter.write_line(f"FORBIDDEN SKIP {line}", red=True)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unwelcome and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_configure(config: pytest.Config) -> None:
    # Under xdist the workers report to the controller, which judges.
    if os.environ.get("TOWERS_FORBID_SKIPS") == "1" and not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipsNeedReasons(), "skips-need-reasons")
