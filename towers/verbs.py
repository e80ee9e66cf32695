"""The jobs: what `towers <job>` runs, where its config lies, and what an install must have for it. Standard library only."""

from dataclasses import dataclass
from pathlib import Path

OWN_PACKAGES = ("towers", "training", "serving")


@dataclass(frozen=True)
class Verb:
    """One job.

    Attributes:
        name: `towers <name>`, and its config conf/<name>.yaml.
        target: `module:function` that runs it; imported only when it is asked for.
        extra: what to install for it: `pip install "towers[<extra>]"`.
        sentence: what it does.
    """

    name: str
    target: str
    extra: str
    sentence: str


VERBS = {
    verb.name: verb
    for verb in (
        Verb("prepare", "training.prepare:main", "train", "Read a log, check it, split it, and write training columns and a data card."),
        Verb("train", "training.train:main", "train", "Train the two towers, with checkpoints; run again, it continues."),
        Verb("evaluate", "training.evaluate:main", "train", "Rank every item for held-out users: metrics with intervals, and baselines."),
        Verb("report", "training.report:main", "train", "Results of many runs in one table, with baselines and published figures."),
        Verb("export", "training.export:main", "train", "Write embeddings as Parquet, and a sealed bundle with the ONNX towers."),
        Verb("index", "serving.index_run:main", "serve", "Build and tune the FAISS index; publish it as a new bundle version."),
        Verb("serve", "serving.serve:main", "serve", "Answer recommendation requests over HTTP from a bundle."),
        Verb("recommend", "serving.recommend:main", "serve", "Write the best items of every known user to Parquet."),
        Verb("feedback", "serving.feedback:main", "serve", "Join what people did to the lists that they were shown, as Parquet."),
        Verb("subject", "serving.subject:main", "serve", "Forget a user, show what is held of one, delete what is old, look for raw ids."),
        Verb("demo", "training.demo:main", "train,serve", "All of the above in a row, then ask the running server for three users."),
    )
}


def conf_dir() -> Path:
    """The folder of job configs: inside the installed package, or beside it in a checkout."""
    installed = Path(__file__).parent / "conf"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "conf"


def config_groups() -> dict[str, list[str]]:
    """Options by config group (`model` -> pooled, transformer), Hydra's own left out."""
    groups: dict[str, list[str]] = {}
    for path in sorted(conf_dir().glob("*/*.yaml")):
        if path.parent.name != "hydra":
            groups.setdefault(path.parent.name, []).append(path.stem)
    return groups


def missing_library(job: str, error: ModuleNotFoundError) -> str | None:
    """What to install when a job's import failed; None where the missing module is our own, which is a bug."""
    library = (error.name or "").partition(".")[0]
    if library in OWN_PACKAGES or job not in VERBS:
        return None
    return f'towers {job} needs: pip install "towers[{VERBS[job].extra}]" ({library} is not installed)'
