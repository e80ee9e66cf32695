"""How `towers serve` begins: the bundle's checksums are computed while all that it needs is still being imported."""

import importlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from serving.config import ServingConfig
from towers.bundle import Bundle, current

_SERVER = "serving.run"
"""Imported by name, and late: with what it imports that takes half a second, in which another core has nothing else to do."""


def run(config: ServingConfig) -> str:
    """See serving.run."""
    aside = ThreadPoolExecutor(1)
    bundle = aside.submit(_verified, config)
    aside.shutdown(wait=False)  # the thread ends with its work: processes are forked later
    served: str = importlib.import_module(_SERVER).run(config, bundle)
    return served


def _verified(config: ServingConfig) -> Bundle:
    chosen = config.serving.bundle
    return Bundle.open(Path(chosen) if chosen else current(Path(config.run_dir) / "bundles"))
