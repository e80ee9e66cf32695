"""What the training jobs may use of whom: the consent table as it is when a job begins."""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from towers.consent import Consent
from towers.identity import UserKeys
from training.config import TrainingConfig


@dataclass(frozen=True)
class Permission:
    """Whose rows a job may use.

    Attributes:
        consent: of `data.consent`; None = everything is allowed.
        digest: changes with the decisions; empty where none are asked.
    """

    consent: Consent | None = None
    digest: str = ""

    @classmethod
    def open(cls, config: TrainingConfig, keys: UserKeys | None = None) -> "Permission":
        """As the settings say.

        Raises:
            DataError: the consent table cannot be used.
            ConfigError: the secret of the user keys cannot be read.
        """
        if config.data.consent is None:
            return cls()
        path = Path(config.data.consent).expanduser()
        consent = Consent.open(path, keys or UserKeys.open(config.identity.key_file), time.time_ns() // 1000)
        return cls(consent, hashlib.sha256(path.read_bytes()).hexdigest()[:16] + str(consent.future))

    def allows(self, keys_n: NDArray[np.uint8], purpose: str) -> NDArray[np.bool_]:
        """Whether the rows of each user (keys uint8 [n, 16]) may be used: bool [n]."""
        return np.ones(len(keys_n), bool) if self.consent is None else self.consent.allowed(keys_n, purpose)

    def facts(self) -> dict[str, Any]:
        """For prepare.json; nothing where nobody is asked."""
        return {} if self.consent is None else {"consent": {"users": len(self.consent), "future_rows": self.consent.future}}
