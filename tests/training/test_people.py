"""Users belong to the secret that they were keyed with."""

from pathlib import Path

import pytest

from towers.errors import ConfigError
from towers.identity import UserKeys
from training.people import People, check_secret, write_users


def test_another_secret_is_refused_and_none_is_not_asked_for(tmp_path: Path) -> None:
    """Under another one, receipts and decisions would be sought in vain."""
    keys = UserKeys.open(str(tmp_path / "key"), create=True)
    write_users(tmp_path, People({}, {}, {}), keys, keys.keys(["u1", "u2"]), {})
    check_secret(tmp_path / "users.parquet", str(tmp_path / "key"))
    check_secret(tmp_path / "users.parquet", str(tmp_path / "nowhere"))
    UserKeys.open(str(tmp_path / "another"), create=True)
    with pytest.raises(ConfigError, match="not the one that the users of"):
        check_secret(tmp_path / "users.parquet", str(tmp_path / "another"))
