"""Where each run of a multirun lies: `towers train -m seed=0,1` trains in run_dir/seed=0 and run_dir/seed=1."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

LONGEST_NAME = 120
PREPARED = "prepared"
DECIDES_PREPARED = ("data", "split", "identity", "experiment")


def combination_dir(run_dir: Path, overrides: Sequence[str], typed: Sequence[str]) -> Path:
    """The folder of one combination, named by what differs: the same sweep of another job finds the same folders.

    Args:
        run_dir: of the whole multirun.
        overrides: of this combination (`optim.lr=0.1`).
        typed: the command line; an override that stands in it as it is was not swept.

    Returns:
        run_dir itself where run_dir is all that was swept.
    """
    swept = sorted(o for o in overrides if o not in typed and not o.startswith("run_dir="))
    if not swept:
        return run_dir
    name = re.sub(r"[^A-Za-z0-9._=,+-]", "_", ",".join(swept))
    if len(name) > LONGEST_NAME:
        name = name[: LONGEST_NAME - 9] + "-" + hashlib.sha256(name.encode()).hexdigest()[:8]
    return run_dir / name


def share_prepared(run_dir: Path, combination: Path) -> None:
    """Let a combination train on the data prepared once in run_dir: a link, unless what was swept decides what is prepared.

    Args:
        run_dir: of the whole multirun.
        combination: one combination's folder, from `combination_dir`.
    """
    source, link = run_dir / PREPARED, combination / PREPARED
    groups = {part.partition("=")[0].partition(".")[0].lstrip("+~") for part in combination.name.split(",")}
    if combination == run_dir or groups.intersection(DECIDES_PREPARED) or not source.is_dir() or link.exists():
        return
    combination.mkdir(parents=True, exist_ok=True)
    link.symlink_to(Path("..") / PREPARED, target_is_directory=True)
