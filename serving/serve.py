"""`towers serve`: settings first, so that a mistyped key fails before anything heavy is loaded."""

from serving.config import register, validate
from towers.job import run_job


def main() -> None:
    """Entry of the verb."""
    register()
    run_job("serve", "serving.start:run", validate)


if __name__ == "__main__":
    main()
