"""`towers subject`: settings first, so that a mistyped key fails before anything heavy is loaded."""

from serving.subject_config import register, validate
from towers.job import run_job


def main() -> None:
    """Entry of the verb."""
    register()
    run_job("subject", "serving.subject_job:run", validate, keep_settings=False)


if __name__ == "__main__":
    main()
