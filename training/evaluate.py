"""`towers evaluate`: rank every item for held-out users, measure, and compare with baselines. The work is in training.ranking,
imported once the settings are right."""

from towers.job import run_job
from training.config import register, validate


def main() -> None:
    """Compose conf/evaluate.yaml and the command line, then evaluate."""
    register()
    run_job("evaluate", "training.ranking:run", validate)


if __name__ == "__main__":
    main()
