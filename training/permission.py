"""What the training jobs may use of whom: consent, forgotten people and the bound on age, as they are when a job begins."""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from towers.columns import NO_TIME
from towers.consent import MEASURE, Consent, named_table
from towers.errors import DataError
from towers.identity import UserKeys
from towers.last_look import LastLook
from towers.live_consent import LIVE_CONSENT, LiveConsent
from towers.receipts import Erasures, Receipts, receipts_file
from towers.rekeying import refuse_unfinished
from training.config import TrainingConfig
from training.interactions import Interactions

DAY_US = 86_400_000_000
NOT_ALLOWED, FORGOTTEN, TOO_OLD = "not_allowed", "forgotten", "too_old"
"""Why a row is passed over."""


@dataclass(frozen=True)
class Permission:
    """Whose rows a job may use.

    Attributes:
        consent: of `data.consent`; None = everything is allowed that nobody refused.
        erasures: people who are forgotten; None = nobody.
        oldest: microseconds UTC; rows before it are passed over. None = none is for its age.
        live: what people told a service; None = nothing.
        now: microseconds UTC when the job began; None = any time may have come.
        digest: changes with the decisions; empty where nobody made any.
    """

    consent: Consent | None = None
    erasures: Erasures | None = None
    oldest: int | None = None
    live: LiveConsent | None = None
    digest: str = ""
    now: int | None = None

    @classmethod
    def open(cls, config: TrainingConfig, keys: UserKeys | None = None) -> "Permission":
        """As the settings say.

        Raises:
            DataError: the consent table, the decisions told to a service or the receipts cannot be used.
            ConfigError: the secret of the user keys cannot be read, or is another than these were made with, or is being
                exchanged.
        """
        refuse_unfinished(Path(config.run_dir))
        now, consent, live, digest = time.time_ns() // 1000, None, None, ""
        told = _told_to_a_service(config)
        receipts = Receipts(receipts_file(config.identity.receipts, config.identity.key_file))
        asked = config.data.consent is not None or told is not None or receipts.path.exists()
        keys = UserKeys.open(config.identity.key_file) if keys is None and asked else keys
        erasures = Erasures(receipts, None if keys is None else keys.fingerprint())
        if erasures.refresh():
            digest = receipts.last[:16]
        if config.data.consent is not None and keys is not None:
            path = named_table("data.consent", config.data.consent)
            consent = Consent.open(path, keys, now)
            digest += hashlib.sha256(path.read_bytes()).hexdigest()[:16] + str(consent.future)
        if told is not None and keys is not None:
            live = LiveConsent.open(told, keys, erasures.marks())
            digest += hashlib.sha256(told.read_bytes()).hexdigest()[:16]
        days = config.data.retention_days
        return cls(consent, erasures if len(erasures) else None, None if days is None else now - round(days * DAY_US), live, digest, now)

    @property
    def asks(self) -> bool:
        """Whether anything is passed over at all."""
        return any(rule is not None for rule in (self.consent, self.live, self.erasures, self.oldest))

    def allows(self, keys_n: NDArray[np.uint8], purpose: str) -> NDArray[np.bool_]:
        """Whether the rows of each user (keys uint8 [n, 16]) may be used: bool [n]."""
        allowed_n = np.ones(len(keys_n), bool) if self.consent is None else self.consent.allowed(keys_n, purpose)
        return allowed_n if self.live is None else self.live.settle(allowed_n, keys_n, purpose, self.consent)

    def forgotten(self, keys_n: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Of each user, the moment (microseconds UTC) up to which everything is forgotten; NO_TIME = nothing is."""
        return np.full(len(keys_n), NO_TIME, np.int64) if self.erasures is None else self.erasures.moments(keys_n)

    @property
    def asks_people(self) -> bool:
        """Whether anybody decided anything, or is forgotten."""
        return any(rule is not None for rule in (self.consent, self.live, self.erasures))

    def usable(self, data: Interactions, purpose: str) -> NDArray[np.bool_]:
        """Users of prepared data who allow a purpose, and of whom no prepared event is to be forgotten: bool [U]."""
        allowed_U = self.allows(data.user_keys, purpose)
        if self.erasures is None:
            return allowed_U
        first_U, filled_U = np.full(data.n_users, NO_TIME), np.diff(data.offsets) > 0
        first_U[filled_U] = np.minimum.reduceat(data.timestamp, data.offsets[:-1][filled_U])
        moment_U = self.forgotten(data.user_keys)
        kept_U: NDArray[np.bool_] = allowed_U & ((moment_U == NO_TIME) | (first_U > moment_U))
        if (began := data.facts.get("data", {}).get("began")) is not None:
            kept_U &= moment_U < began  # whatever times these data tell, they are of before the wish
        return kept_U

    def measurable(self, keys_n: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Whether what no time dates of each user (keys uint8 [n, 16]) may be looked at: they allow `measure`, and never were forgotten."""
        known_n: NDArray[np.bool_] = self.forgotten(keys_n) == NO_TIME
        return known_n & self.allows(keys_n, MEASURE)

    def passed_over(
        self, keys_u: NDArray[np.uint8], purpose: str, user_n: NDArray[np.int64], time_n: NDArray[np.int64]
    ) -> dict[str, NDArray[np.bool_]]:
        """Rows that may not be used, by reason; a row has one reason at most.

        Args:
            keys_u: of the users met, uint8 [u, 16].
            user_n: the user of each row, by place in keys_u; len(keys_u) = nobody's.
            time_n: microseconds UTC, NO_TIME where unknown: such a row is forgotten with its user, and is never too old. So is one later
                than now: it was not done after its user was forgotten, but by a clock that is ahead.
        """
        refused_n = np.append(~self.allows(keys_u, purpose), False)[user_n]
        moment_n = np.append(self.forgotten(keys_u), NO_TIME)[user_n]
        ahead_n = np.zeros(len(user_n), bool) if self.now is None else time_n > self.now
        forgotten_n = ~refused_n & (moment_n != NO_TIME) & ((time_n <= moment_n) | ahead_n)
        old_n = np.zeros(len(user_n), bool)
        if self.oldest is not None:
            old_n = ~refused_n & ~forgotten_n & (time_n != NO_TIME) & (time_n < self.oldest)
        return {NOT_ALLOWED: refused_n, FORGOTTEN: forgotten_n, TOO_OLD: old_n}

    def facts(self) -> dict[str, Any]:
        """For prepare.json; nothing where nobody is asked."""
        found: dict[str, Any] = {}
        if self.consent is not None:
            found["consent"] = {"users": len(self.consent), "future_rows": self.consent.future}
        if self.live is not None:
            found["live_consent"] = {"users": len(self.live)}
        return found


def last_look(config: TrainingConfig, began: int, *purposes: str) -> LastLook:
    """Puts the files of a job in their places without those who were forgotten since it began, or withdrew one of the purposes.

    Args:
        began: microseconds UTC, of before the job asked for the first time.
    """

    def allowed(keys_n: NDArray[np.uint8]) -> NDArray[np.bool_]:
        now = Permission.open(config)
        rules = [now.forgotten(keys_n) < began, *(now.allows(keys_n, purpose) for purpose in purposes)]
        return np.logical_and.reduce(rules)  # type: ignore[no-any-return]

    return LastLook(state_of(config), allowed)


def state_of(config: TrainingConfig) -> Path:
    """The state_dir of the service that this run has to do with; there may be none."""
    return Path(config.run_dir) / "state" if config.data.live is None else Path(config.data.live).expanduser().parent


def _told_to_a_service(config: TrainingConfig) -> Path | None:
    """The file of decisions that a service was told; None where there is none. Raises DataError where one is named and missing."""
    named = config.data.live_consent
    if named is not None:
        path = Path(named).expanduser()
        if not path.is_file():
            raise DataError(f"data.live_consent: no file {named!r}; a service writes run_dir/state/{LIVE_CONSENT} once somebody decides")
        return path
    path = state_of(config) / LIVE_CONSENT
    return path if path.is_file() else None
