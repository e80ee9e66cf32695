"""`towers demo`: every job in a row, then three questions to the running server."""

from towers.job import run_job
from training.config import register, validate


def main() -> None:
    """Run the job; its work is imported after the settings are checked."""
    register()
    run_job("demo", "training.demo_run:run", validate)


if __name__ == "__main__":
    main()
