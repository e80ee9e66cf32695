"""The files of the service's state, which processes share."""

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

from serving.database import Database
from towers.errors import DataError

SCHEMA = ("CREATE TABLE IF NOT EXISTS told (word TEXT)",)
COME_AND_GO = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT count(*) FROM told').fetchall(); c.close()"


def test_what_is_acknowledged_stays_when_another_process_comes_and_goes(tmp_path: Path) -> None:
    """A process that closes the file last moves the log into it and removes it: nobody may pass for the last while a service runs."""
    path = tmp_path / "state.db"
    first = Database(path, SCHEMA)
    Database(path, SCHEMA).close()  # a second connection of the same process
    subprocess.run([sys.executable, "-c", COME_AND_GO, str(path)], check=True, timeout=60)
    with first.transaction() as connection:
        connection.execute("INSERT INTO told VALUES ('kept')")
    reader = sqlite3.connect(path)  # as another process would, after this one was killed: from the file and its log
    assert reader.execute("SELECT word FROM told").fetchall() == [("kept",)]
    reader.close()
    first.close()


def test_a_new_file_is_its_owners_alone(tmp_path: Path) -> None:
    Database(tmp_path / "state.db", SCHEMA).close()
    assert (tmp_path / "state.db").stat().st_mode & 0o777 == 0o600


def test_several_may_make_a_new_file_at_once(tmp_path: Path) -> None:
    """SQLite does not wait where two change a file to one that is written ahead: one of them hears that it is locked, now and then."""
    refused: list[Exception] = []

    def make(path: Path, together: threading.Barrier) -> None:
        together.wait()
        try:
            Database(path, SCHEMA).close()
        except DataError as error:
            refused.append(error)

    for number in range(100):
        together = threading.Barrier(8)
        threads = [threading.Thread(target=make, args=(tmp_path / f"{number}.db", together)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert refused == []
