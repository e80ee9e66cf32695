"""`towers index`: build, tune and publish the item index of a run.

Nothing heavy is imported here: an error in the settings is told before faiss loads.
"""

from serving.config import register, validate
from towers.job import run_job


def main() -> None:
    """Run the job and exit with its code."""
    register()
    run_job("index", "serving.index_job:run", validate)


if __name__ == "__main__":
    main()
