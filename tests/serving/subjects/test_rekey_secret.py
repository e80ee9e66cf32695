"""Exchanging the secret of the user keys: a new one is written down when nothing stands in the way."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import rekey
from serving.rights import places_of
from serving.subject_config import SubjectJobConfig, validate
from serving.subject_job import run
from towers.errors import ConfigError, DataError
from towers.identity import UserKeys

USER = "user-4"


@pytest.fixture
def exchange(used: Any, tmp_path: Path) -> Any:
    """Runs the job for some people, towards a secret that is not there yet."""

    def do(users: list[str]) -> Path:
        (tmp_path / "ids.csv").write_text("user_id\n" + "\n".join(users) + "\n")
        config = SubjectJobConfig(**vars(used.config), action="rekey")
        config.subject.old_key, config.subject.ids = old_file, str(tmp_path / "ids.csv")
        config.serving.key_file = str(tmp_path / "new_key")
        try:
            validate(config)
            run(config)
        finally:
            config.serving.key_file = old_file
        return tmp_path / "new_key"

    old_file = str(used.config.serving.key_file)
    return do


def keys_of(used: Any) -> set[bytes]:
    return {key.tobytes() for key in np.load(used.dir / "prepared" / "user_keys.npy")}


def test_what_is_refused_leaves_no_secret(exchange: Any, used: Any, world: Any, tmp_path: Path) -> None:
    """A job started next would take it for the one in use."""
    users, before = sorted(world.users), keys_of(used)
    with pytest.raises(DataError, match="Nothing was changed"):
        exchange([user for user in users if user != USER])
    with used.served(), pytest.raises(ConfigError, match="a service or another job is using it"):
        exchange(users)
    assert not list(tmp_path.glob("*new_key*")) and keys_of(used) == before
    made = exchange(users)
    assert made.stat().st_mode & 0o777 == 0o600
    assert keys_of(used) == {UserKeys.open(str(made)).key(user) for user in users} != before


def test_a_secret_that_came_meanwhile_stays(exchange: Any, used: Any, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, before, file = rekey._forget_again, keys_of(used), tmp_path / "new_key"

    def meanwhile(*given: Any) -> None:
        real(*given)
        file.write_bytes(b"m" * 32)

    with monkeypatch.context() as patched, pytest.raises(ConfigError, match="another process has just made a secret there"):
        patched.setattr(rekey, "_forget_again", meanwhile)
        exchange(sorted(world.users))
    assert keys_of(used) == before and file.read_bytes() == b"m" * 32 and not list(places_of(used.config).run_dir.rglob("*.rekeyed*"))
    exchange(sorted(world.users))
    assert USER in world.users and UserKeys(b"m" * 32).key(USER) in keys_of(used)
