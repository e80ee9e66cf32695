"""What every training job says about itself in its result file."""

import hashlib
import json
import resource
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.config import TrainingConfig

NOT_IN_HASH = {
    "": ("run_dir", "experiment", "identity", "export", "inspect", "demo", "report"),
    "data": ("path", "chunk_rows"),
    "evaluate": ("split", "ks", "baselines", "draws", "slices", "without", "history_curve", "against"),
    "trainer": ("resume", "keep_checkpoints", "checkpoint_every", "log_every", "processes", "threads", "device", "half_from", "new_items"),
}
"""Settings that do not change what is trained, but for rounding and what is fitted on the trained model: a run moved to another folder or
machine, or saved more often, is still the same run."""
AS_BY_DEFAULT: dict[str, dict[str, Any]] = {"evaluate": {"exposure": False, "provider": None, "groups": []}}
"""More of them, which stand in the hashes of checkpoints of before: as they are where nobody sets them."""


def config_hash(config: TrainingConfig) -> str:
    """sha256 of every setting that decides the trained weights."""
    settings = _deciding(config)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def deciding_settings(config: TrainingConfig) -> dict[str, Any]:
    """What goes into `config_hash`, by the setting's full name: values are numbers, text, lists of them, or lists of features.

    >>> deciding_settings(TrainingConfig(run_dir="runs/a"))["optim.lr"]
    0.003
    """
    flat: dict[str, Any] = {}

    def walk(prefix: str, settings: dict[str, Any]) -> None:
        for name, value in settings.items():
            if isinstance(value, dict):
                walk(f"{prefix}{name}.", value)
            else:
                flat[prefix + name] = value

    walk("", _deciding(config))
    return flat


def _deciding(config: TrainingConfig) -> dict[str, Any]:
    settings = asdict(config)
    for section, names in NOT_IN_HASH.items():
        part = settings[section] if section else settings
        for name in names:
            del part[name]
    for section, values in AS_BY_DEFAULT.items():
        settings[section] |= values
    return settings


class Stopwatch:
    """Wall and CPU seconds since it was made, and the process's peak memory."""

    def __init__(self) -> None:
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def facts(self) -> dict[str, float]:
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "wall_s": round(time.perf_counter() - self._wall_s, 3),
            "cpu_s": round(time.process_time() - self._cpu_s, 3),
            "peak_rss_mib": round(peak_kib / 1024, 1),
        }


def run_facts(config: TrainingConfig, watch: Stopwatch) -> dict[str, Any]:
    """The `run` section of a result file: experiment, seed, config_hash, git_commit, wall_s, cpu_s, peak_rss_mib."""
    return {
        "experiment": config.experiment,
        "seed": config.seed,
        "config_hash": config_hash(config),
        "git_commit": git_commit(),
        **watch.facts(),
    }


def git_commit() -> str | None:
    """The commit that this code was checked out from; None where it was not (an installed package)."""
    folder = Path(__file__).resolve().parent
    asked = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    tracked = ["git", "-C", str(folder), "ls-files", "--error-unmatch", Path(__file__).name]
    try:
        known = subprocess.run(tracked, capture_output=True, timeout=10).returncode == 0
        found = subprocess.run(asked, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if known and found.returncode == 0 else None
