"""`towers prepare`: from a log to training columns. The work is in training.prepare_run, imported once the settings are right."""

from towers.job import run_job
from training.config import register, validate


def main() -> None:
    """Compose conf/prepare.yaml and the command line, then prepare."""
    register()
    run_job("prepare", "training.prepare_run:run", validate)


if __name__ == "__main__":
    main()
