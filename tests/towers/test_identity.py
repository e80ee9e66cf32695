"""User keys: HMAC-SHA256, one secret, made once, readable by its owner alone."""

import hashlib
import hmac
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from towers.errors import ConfigError
from towers.identity import UserKeys, key_file


def test_keys_are_truncated_hmac_sha256() -> None:
    secret = bytes(range(32))
    expected = hmac.new(secret, b"42", hashlib.sha256).digest()[:16]
    assert UserKeys(secret).key("42") == expected
    assert UserKeys(secret).keys(["42", "é"])[0].tobytes() == expected
    assert UserKeys(secret).keys([]).shape == (0, 16)


def test_a_fingerprint_tells_secrets_apart_and_is_no_users_key() -> None:
    one, other = UserKeys(bytes(32)), UserKeys(bytes(31) + b"1")
    assert one.fingerprint() == UserKeys(bytes(32)).fingerprint() != other.fingerprint()
    assert bytes.fromhex(one.fingerprint().decode()) != one.key("\xff which secret is this")[:8]


def test_secret_is_made_once_with_mode_0600(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "key"
    with ThreadPoolExecutor(8) as pool:
        keys = {k.key("a") for k in pool.map(lambda _: UserKeys.open(str(file), create=True), range(16))}
    assert len(keys) == 1
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [p.name for p in file.parent.iterdir()] == ["key"]


def test_a_secret_that_others_can_read_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "key"
    UserKeys.open(str(path), create=True)
    assert UserKeys.warning(str(path)) == ""
    path.chmod(0o644)
    assert "mode 0644" in UserKeys.warning(str(path)) and f"chmod 600 {path}" in UserKeys.warning(str(path))


def test_missing_or_short_secret_names_the_knob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="identity.key_file"):
        UserKeys.open(str(tmp_path / "none"))
    (tmp_path / "short").write_bytes(b"abc")
    with pytest.raises(ConfigError, match="3 bytes, expected 32"):
        UserKeys.open(str(tmp_path / "short"))
    monkeypatch.setenv("TOWERS_KEY_FILE", str(tmp_path / "from_env"))
    assert key_file(None) == tmp_path / "from_env"
