"""Against a real HTTP server on this machine: success, wrong digest, a connection that ends early, nobody there."""

import hashlib
import http.server
import io
import threading
import zipfile
from collections.abc import Iterator

import pytest

from towers.errors import DataError
from training.sources import download
from training.sources.download import Archive, fetch


def packed(members: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name, text in members.items():
            zipped.writestr(name, text)
    return buffer.getvalue()


GOOD = packed({"ml-x/ratings.dat": "1::1::5::978300019\n" * 30_000, "ml-x/README": "cite us", "ml-x/extra": "", "../evil": "x"})


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/missing.zip":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(GOOD)))
        self.end_headers()
        self.wfile.write(GOOD[: len(GOOD) // 2] if self.path == "/cut.zip" else GOOD)

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def server(monkeypatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def archive(url: str, body: bytes = GOOD, holds: tuple[str, ...] = ("ratings.dat",)) -> Archive:
    return Archive("ml-x", url, hashlib.sha256(body).hexdigest(), holds)


def test_fetch_unpacks_what_is_needed_and_downloads_once(server, tmp_path, capfd):
    cache = tmp_path / "new" / "cache"
    folder = fetch(archive(f"{server}/good.zip"), cache)
    assert folder == cache / "ml-x"
    assert sorted(p.name for p in folder.iterdir()) == ["README", "ratings.dat"]
    assert len((folder / "ratings.dat").read_text().splitlines()) == 30_000
    assert [p.name for p in cache.iterdir()] == ["ml-x"] and not (tmp_path / "evil").exists()
    assert "ml-x" in capfd.readouterr().err  # the progress bar
    assert fetch(archive("http://127.0.0.1:9/never-asked"), cache) == folder


def test_wrong_digest_leaves_nothing_and_says_both(server, tmp_path):
    with pytest.raises(DataError, match=r"sha256 is [0-9a-f]{64}, expected [0-9a-f]{64}.*data\.path"):
        fetch(archive(f"{server}/good.zip", b"something else"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_connection_that_ends_early_leaves_nothing(server, tmp_path):
    with pytest.raises(DataError, match=r"cut\.zip"):
        fetch(archive(f"{server}/cut.zip"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_interrupt_leaves_nothing(server, tmp_path, monkeypatch):
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "_unpack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(archive(f"{server}/good.zip"), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["/missing.zip", None])
def test_offline_or_gone_says_what_to_do(server, tmp_path, place, monkeypatch):
    monkeypatch.delenv("TOWERS_DATA_DIR", raising=False)
    url = f"{server}{place}" if place else "http://127.0.0.1:9/ml-x.zip"
    with pytest.raises(DataError, match=r"cannot download.*unpack it.*set data\.path to the folder ml-x/.*\(not set\)") as error:
        fetch(archive(url), tmp_path)
    assert url in str(error.value) and list(tmp_path.iterdir()) == []


def test_archive_without_the_files_is_refused(server, tmp_path):
    with pytest.raises(DataError, match=r"no ml-x/movies\.dat"):
        fetch(archive(f"{server}/good.zip", holds=("ratings.dat", "movies.dat")), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_cache_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot keep the download"):
        fetch(archive(f"{server}/good.zip"), tmp_path / "file")
