"""Make tests/golden/bundle_v<format>: a tiny bundle, what stands beside it, and the answers it gave when it was made.

    .venv/bin/python scripts/make_golden.py

The bundle goes through the public jobs, so that the golden files are what users' files are. A test opens them with today's code: a
change of the format that older bundles do not survive is noticed, and either undone or given a new format version. Until the first
release the format stays 0 and the files are remade.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from serving.retriever import Retriever
from towers.bundle import FORMAT_VERSION, current

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
ITEMS, USERS, EVENTS, NOW_S = 90, 40, 25, 1_700_000_000
GENRES = ("comedy", "drama", "jazz", "ünï code")
CONFIG = """\
# @package _global_
data:
  name: table
  path: {path}
  interactions: log.csv
  items: items.csv
  users: users.csv
  features:
    - {{name: categories, kind: multi_categorical, owner: item}}
    - {{name: title, kind: text, owner: item, buckets: 64}}
    - {{name: price, kind: numeric, owner: item}}
    - {{name: device, kind: categorical, owner: context}}
    - {{name: likes, kind: preferences, owner: user, like: categories}}
"""
TRAIN = ("data=golden", "model.dim=8", "model.history.length=8", "trainer.epochs=3", "trainer.threads=1", "export.name=golden")
SKIPPED = {"item_id": "i/10", "event_type": "skip", "timestamp": NOW_S - 60}
REQUESTS: tuple[dict[str, object], ...] = (
    {"user_id": "user 1", "k": 5, "now": NOW_S},
    {"history": ["i/05", SKIPPED], "context": {"device": "tv"}, "k": 5, "now": NOW_S},
    {"user_id": "a stranger", "preferences": ["jazz"], "k": 5, "now": NOW_S},
    {"k": 5, "now": NOW_S},
)
LEAST_GAP = 1e-3
"""Between neighbours' scores, so that no machine's rounding changes an order."""


def main() -> int:
    target = GOLDEN / f"bundle_v{FORMAT_VERSION}"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "data").mkdir()
        (folder / "data" / "golden.yaml").write_text(CONFIG.format(path=json.dumps(str(folder))))
        write_log(folder)
        key_file = folder / "user_key"
        key_file.write_bytes(bytes(range(32)))  # no secret: the users are invented
        for job in ("prepare", "train", "export"):
            run_job(folder, key_file, job, f"--config-dir={folder}", *TRAIN)
        run_job(folder, key_file, "index", "index=ivf", "index.k=10", "index.recall_floor=0.3")
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(current(folder / "run" / "bundles"), target / "bundle")
        shutil.copy(folder / "run" / "export" / "histories.parquet", target)
        shutil.copy(key_file, target)
    answers = [answer(target, request) for request in REQUESTS]
    (target / "answers.json").write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target.relative_to(GOLDEN.parent.parent)}: {size:,} bytes")
    return 0


def write_log(folder: Path) -> None:
    """Users who like one genre, and say so in part; items named by number."""
    rng = np.random.default_rng(7)
    genre = {f"i/{n:02d}": GENRES[n % len(GENRES)] for n in range(ITEMS)}
    with (folder / "items.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["item_id", "title", "categories", "price"])
        rows.writerows(
            [item, f"{kind} number {item[2:]}", kind, "" if item.endswith("7") else int(item[2:]) % 9] for item, kind in genre.items()
        )
    with (folder / "users.csv").open("w", newline="") as users, (folder / "log.csv").open("w", newline="") as log:
        people, rows = csv.writer(users), csv.writer(log)
        people.writerow(["user_id", "likes"])
        rows.writerow(["user_id", "item_id", "timestamp", "event_type", "device"])
        for user in range(USERS):
            liked = GENRES[user % len(GENRES)]
            people.writerow([f"user {user}", liked if user % 3 else ""])
            for event in range(EVENTS):
                near = [item for item, kind in genre.items() if (kind == liked) == (rng.random() < 0.8)]
                time_s = NOW_S - (EVENTS - event) * 86_400 + user
                kind, device = ("skip" if rng.random() < 0.1 else "play"), ("tv", "phone")[int(rng.integers(2))]
                rows.writerow([f"user {user}", near[int(rng.integers(len(near)))], time_s, kind, device])


def run_job(folder: Path, key_file: Path, job: str, *arguments: str) -> None:
    environment = {**os.environ, "TOWERS_KEY_FILE": str(key_file), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "towers", job, *arguments, f"run_dir={folder / 'run'}"], check=True, env=environment)


def answer(target: Path, request: dict[str, object]) -> dict[str, object]:
    """A request and what is to be answered to it, whatever the machine."""
    retriever = Retriever.open(target / "bundle", target / "histories.parquet", target / "user_key")
    reply = retriever.recommend(**request)  # type: ignore[arg-type]
    longer = retriever.recommend(**{**request, "k": len(reply.items) + 1})  # type: ignore[arg-type]
    gap = -float(np.diff([item.score for item in longer.items]).max())
    if reply.fallback is None and gap < LEAST_GAP:
        raise SystemExit(f"{request}: neighbours' scores differ by {gap:.1e}, expected {LEAST_GAP:.0e}; choose another request")
    items = [{"item_id": item.item_id, "title": item.title, "score": item.score, "categories": item.categories} for item in reply.items]
    reason = reply.fallback.reason if reply.fallback else None
    return {"request": request, "mode": reply.mode, "fallback": reason, "items": items}


if __name__ == "__main__":
    sys.exit(main())
