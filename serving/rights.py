"""From settings to what acts on people's rows: the same for the service and for `towers subject`."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.bell import BELL_FILE, Bell
from serving.config import ServingConfig, state_dir
from serving.consent_store import CONSENT_FILE, ConsentStore
from serving.cutting import secret_of
from serving.database import kept
from serving.held import held
from serving.holding import Hold
from serving.sqlite_events import SqliteEvents
from serving.standing import ConsentTable, Standing
from serving.subjects import PREPARED, Places, Subjects
from towers.consent import named_table
from towers.errors import ConfigError, DataError
from towers.identity import UserKeys
from towers.live_logs import EVENTS_FILE
from towers.prepared import USER_TABLES
from towers.receipts import Erasures, Receipts, receipts_file
from towers.rekeying import refuse_unfinished


@dataclass(frozen=True)
class Rights:
    """What a process needs for people's wishes; connections in it belong to the process that opened them."""

    places: Places
    keys: UserKeys
    standing: Standing
    subjects: Subjects
    hold: Hold

    @classmethod
    def open(cls, config: ServingConfig, keys: UserKeys, table: ConsentTable | None = None) -> "Rights":
        """As the settings say.

        Args:
            table: of serving.consent; read where it is not given.

        Raises:
            DataError: the consent table, the receipts or the state cannot be used.
            ConfigError: they are of people keyed with another secret, or their secret is being exchanged.
        """
        settings, state = config.serving, state_dir(config)
        places = places_of(config)
        with kept(Hold(state)) as hold:
            refuse_unfinished(Path(config.run_dir))  # while it is held: none begins meanwhile
            with kept(ConsentStore(state / CONSENT_FILE, keys.fingerprint())) as store:
                erasures = Erasures(Receipts(places.receipts), keys.fingerprint())
                with kept(Bell(state / BELL_FILE)) as bell:
                    standing = Standing(table or consent_table(config, keys), store, erasures, bell)
        return cls(places, keys, standing, Subjects(places, keys, standing, settings.retrain_days, store), hold)

    def check_secret(self) -> None:
        """Raise ConfigError where rows are keyed with another secret: nobody's would be found, and none would seem to be there."""
        places, secret = self.places, self.keys.fingerprint()
        for path in [*places.tables(), places.run_dir / PREPARED / USER_TABLES[0]]:
            if secret_of(path) not in (None, secret):
                raise ConfigError(
                    f"user-key secret: not the one that the users of {path} were keyed with, so nobody's rows would be found. Point"
                    " serving.key_file or $TOWERS_KEY_FILE at the file that `towers prepare` used"
                )
        if (places.state_dir / EVENTS_FILE).is_file():
            with suppress(DataError):  # a damaged one says nothing, and is named by whoever reads or cuts it
                SqliteEvents(places.state_dir / EVENTS_FILE, secret).close()

    def held(self, user_id: str) -> dict[str, Any]:
        """Everything that is held of a person; see `serving.held`."""
        return held(user_id, self.places, self.keys, self.standing)

    def close(self) -> None:
        """Release the files."""
        self.standing.close()
        self.hold.close()


def places_of(config: ServingConfig) -> Places:
    """Where the settings say that rows of people lie."""
    settings = config.serving
    receipts = receipts_file(settings.receipts, settings.key_file)
    return Places(Path(config.run_dir), state_dir(config), Path(settings.history) if settings.history else None, receipts)


def consent_table(config: ServingConfig, keys: UserKeys) -> ConsentTable | None:
    """The table of users' decisions where one is named; raises DataError."""
    return ConsentTable(named_table("serving.consent", config.serving.consent), keys) if config.serving.consent else None
