"""`towers report`: the results of many runs in one table. The work is in training.reporting."""

from towers.job import run_job
from training.config import register, validate


def main() -> None:
    """Compose conf/report.yaml and the command line, then report."""
    register()
    run_job("report", "training.reporting:run", validate)


if __name__ == "__main__":
    main()
