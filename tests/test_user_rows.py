"""Every module that touches rows of users, and what stands at its door: whoever adds one has to say it here.

The doors themselves are tried on random states in training/test_permission.py and serving/test_user_rows.py.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PREPARED = "reads prepared data, which hold rows of users who granted `train`"
STORE = "keeps or finds rows for the doors above it, and decides nothing"
FORMAT = "says what rows look like, and reads none"
DOORS = {
    "training/ingest.py": "train: `Permission.passed_over`, for every row of every log, live events among them",
    "training/people.py": "train: users of the log alone; `write_audit`: measure",
    "training/exporting.py": "personalize: histories and vectors; export.users_for besides",
    "training/inspection.py": "measure: real users beside a model",
    "training/groups.py": "measure: `measurable_U`, of audit.parquet, which `write_audit` wrote; prepared data else",
    "training/permission.py": "says whose rows may be used, and hands none on",
    "training/opening.py": "train: `open_permitted` refuses prepared data of people who withdrew since",
    "training/ranking.py": "reads what `open_permitted` opened; names to groups whose audit columns may be used",
    "training/rejects.py": "is given what `Ingest` let pass",
    "training/histories.py": "personalize: writes the users that exporting names",
    "training/sources/live.py": "hands rows to `Ingest`",
    "training/demo_asks.py": "asks for one user of a run that keeps raw ids, as a caller would",
    **dict.fromkeys(
        (
            "training/baseline_choice.py", "training/baselines.py", "training/batches.py", "training/events.py", "training/fit.py",
            "training/interactions.py", "training/pseudo_users.py", "training/queries.py", "training/rivals.py", "training/assemble.py",
            "training/prepare_run.py", "training/narrow.py",
        ),
        PREPARED,
    ),
    "training/held_out.py": PREPARED,
    "training/sweep_report.py": "counts the people of held-out queries, which are of prepared data",
    "serving/sweep_job.py": "personalize and measure: `_refuse_others`, for held-out queries; says whose its lists are",
    "serving/asked.py": "personalize: the only reader of profiles for a request; measure: `Known.logged_key`",
    "serving/intake.py": "personalize, train or measure: else an event is not kept",
    "serving/impressions.py": "measure: `Known.logged_key`",
    "serving/recommend_job.py": "personalize and recommend.purpose",
    "serving/feedback_job.py": "measure",
    "serving/recompute.py": "personalize, as allowed then and now",
    "serving/retriever.py": "hands `Asked` on to the log",
    "serving/held.py": "the person's own wish, whatever else is allowed",
    "serving/subjects.py": "the person's own wish, whatever else is allowed",
    "serving/cutting.py": "removes rows",
    "towers/last_look.py": "takes out whom the job that writes a file may not keep any more",
    "towers/prepared.py": "removes rows",
    "towers/alone.py": "removes what killed jobs left",
    "serving/rekey_files.py": "gives rows other keys",
    "serving/rekey_map.py": "gives rows other keys",
    "serving/rekey_prepared.py": "gives rows other keys",
    "serving/answers.py": "is given what feedback_job let pass",
    **dict.fromkeys(
        (
            "serving/events.py", "serving/sqlite_events.py", "serving/user_state.py", "serving/profiles.py", "serving/rolling.py",
            "serving/run.py", "serving/standing.py", "serving/live_users.py",
        ),
        STORE,
    ),
    **dict.fromkeys(
        (
            "serving/config.py", "serving/people_messages.py", "towers/columns.py", "towers/consent.py", "towers/encoder.py",
            "towers/identity.py", "towers/live_logs.py", "towers/model.py", "towers/receipts.py", "training/data_card.py",
            "training/data_config.py", "training/output_config.py", "towers/held_out.py",
        ),
        FORMAT,
    ),
}  # fmt: skip
ROWS = re.compile(
    r"USER_KEY|user_key|raw_user_ids|audit\.parquet|histories\.parquet|users\.parquet|\.history\(|profiles\.get|"
    r"IMPRESSION_SCHEMA|EVENT_SCHEMA|\.offsets\b"
)
"""What a module says that reads, writes or names rows of users."""


def touching() -> set[str]:
    files = [path for room in ("towers", "training", "serving") for path in (ROOT / room).rglob("*.py")]
    return {path.relative_to(ROOT).as_posix() for path in files if ROWS.search(path.read_text())}


def test_every_module_that_touches_rows_of_users_is_listed() -> None:
    assert touching() == set(DOORS)


@pytest.mark.parametrize("module", [name for name, door in DOORS.items() if re.match(r"(personalize|train|measure)\b", door)])
def test_what_asks_for_a_purpose_names_it_or_is_handed_what_may_pass(module: str) -> None:
    text = (ROOT / module).read_text()
    assert re.search(r"PERSONALIZE|TRAIN\b|MEASURE|logged_key|allowed_U|audit|rejects|Ingest|consent", text), module
