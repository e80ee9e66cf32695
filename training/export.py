"""`towers export`: vectors for other systems, and the bundle for serving."""

from towers.job import run_job
from training.config import register, validate


def main() -> None:
    """Run the job; its work is imported after the settings are checked."""
    register()
    run_job("export", "training.exporting:run", validate)


if __name__ == "__main__":
    main()
