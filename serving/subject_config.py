"""Typed settings of `towers subject`, over those of the serving jobs."""

from dataclasses import dataclass, field

from serving import config as serving_config
from serving.config import ServingConfig
from towers.errors import ConfigError

ACTIONS = ("forget", "export", "purge", "scan", "verify", "rekey")
REFUSE, DELETE = "refuse", "delete"


@dataclass
class SubjectConfig:
    """What `towers subject` needs besides who and what.

    Attributes:
        users: text file of user ids, one a line, for action=forget: many at once cost little more than one.
        out: the file that action=export writes; readable by you alone, and yours to delete.
        days: for action=purge: rows older than this go, everybody's. null = serving.event_days for all.
        ids: for action=scan: the user ids looked for; a text file, one a line, or Parquet or .csv with a column user_id. null = those that
            the run has kept (identity.keep_raw_ids). For action=rekey: everybody's, forgotten people's too.
        old_key: for action=rekey: file of the secret that keys were made with until now; serving.key_file is the new one, made where it is
            absent.
        unnamed: for action=rekey: refuse | delete: what becomes of rows of people whom subject.ids does not name, for a key does not tell
            the id that it was made of. delete also gives up knowing forgotten people again in a log, where they are not named.
    """

    users: str | None = None
    out: str | None = None
    days: float | None = None
    ids: str | None = None
    old_key: str | None = None
    unnamed: str = REFUSE


@dataclass
class SubjectJobConfig(ServingConfig):
    """`action`: forget | export | purge | scan | verify | rekey; `user`: whom it is about, in the caller's own words."""

    action: str = "verify"
    user: str | None = None
    subject: SubjectConfig = field(default_factory=SubjectConfig)


def register() -> None:
    """Tell Hydra the schema; conf/subject.yaml starts from it."""
    serving_config.register(subject_schema=SubjectJobConfig)


def validate(config: SubjectJobConfig) -> None:
    """Checks across settings, before any work.

    Raises:
        ConfigError: names the knob to turn.
    """
    serving_config.validate(config)
    if config.action not in ACTIONS:
        raise ConfigError(f"action: got {config.action!r}, expected one of {', '.join(ACTIONS)}")
    if config.action == "forget" and (config.user is None) == (config.subject.users is None):
        raise ConfigError("user: action=forget needs a user id, or a file of them as subject.users, and not both")
    if config.action == "export" and (config.user is None or config.subject.out is None):
        raise ConfigError("user: action=export needs a user id, and subject.out=<file> to write what is held of them")
    if config.user == "":
        raise ConfigError("user: got an empty id")
    if config.subject.days is not None and not config.subject.days > 0:
        raise ConfigError(f"subject.days: got {config.subject.days}, expected a number above 0")
    if config.action == "purge" and config.subject.days is None and config.serving.event_days is None:
        raise ConfigError("subject.days: action=purge needs the number of days that rows are kept")
    if config.action == "rekey" and config.subject.old_key is None:
        raise ConfigError("subject.old_key: action=rekey needs the file of the secret until now; serving.key_file names the new one")
    if config.subject.unnamed not in (REFUSE, DELETE):
        raise ConfigError(f"subject.unnamed: got {config.subject.unnamed!r}, expected {REFUSE} or {DELETE}")
