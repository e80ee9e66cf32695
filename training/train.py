"""`towers train`: fit the user tower and the item tower. The work is in training.fit, imported once the settings are right."""

from towers.job import run_job
from training.config import register, validate


def main() -> None:
    """Compose conf/train.yaml and the command line, then train."""
    register()
    run_job("train", "training.fit:run", validate)


if __name__ == "__main__":
    main()
