"""Whom the demo asks for: requests that fit the data, and what is printed of their answers."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from towers.schema import Feature, make_schema
from towers.vocab import Vocabulary
from training.demo_asks import cold, show_reply
from training.demo_table import show_metrics

FIGURE = {"value": 0.25, "ci95": [0.2, 0.3], "n": 10}


def test_table_shows_whole_set_figures_beside_baselines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {name: FIGURE for name in ("test/recall@20", "test/ndcg@20", "test/ndcg@10", "test/cold/ndcg@20", "test/history=1-2/ndcg@20")}
    metrics["test/coverage@20"] = {"value": 0.5, "ci95": None, "n": 10}
    document = {"metrics": metrics, "baselines": {"most_popular": {"test/ndcg@20": FIGURE}}}
    (tmp_path / "metrics.json").write_text(json.dumps(document))
    show_metrics(tmp_path)
    header, *rows = capsys.readouterr().out.splitlines()[2:]
    assert header.split() == ["test/recall@20", "test/ndcg@20"]
    assert [row.split()[0] for row in rows] == ["model", "most_popular"]
    assert rows[1].split()[1:] == ["-", "0.2500", "[0.2000,", "0.3000]"]


def test_reply_shows_titles_scores_and_says_fallback(capsys: pytest.CaptureFixture[str]) -> None:
    items = [
        {"item_id": "a", "title": None, "score": 0.5, "categories": []},
        {"item_id": "b", "title": "B!", "score": 0.4, "categories": ["x"], "explanation": {"text": "because of “A”"}},
    ]
    fallback = {"strategy": "most_popular", "reason": "unknown_user"}
    reply = {"mode": "fallback", "fallback": fallback, "items": items}
    show_reply({"who": "Someone", "known": ["likes x"], "latency_ms": 1.25, "reply": reply})
    out = capsys.readouterr().out
    assert "most_popular, because unknown user" in out and "likes x" in out
    assert "1.  0.5000  a\n   2.  0.4000  B!  [x]\n               because of “A”\n" in out


@pytest.mark.parametrize("declared", [[], ["likes"], ["likes", "moods"]])
def test_a_new_users_likes_name_their_feature(declared: list[str]) -> None:
    """A plain list would be refused by a model with two such features."""
    liked = Feature("categories", "multi_categorical", "item")
    schema = make_schema([liked, *(Feature(name, "preferences", "user", like="categories") for name in declared)], "time", {})
    vocabularies = {"categories": Vocabulary.fit(["x", "y", "z"])}
    data = SimpleNamespace(schema=schema, preprocessor=SimpleNamespace(vocabularies=vocabularies))
    asked = cold(data, {"k": 5})  # type: ignore[arg-type]
    assert asked.body.get("preferences") == ({declared[0]: ["x", "y"]} if declared else None)
    assert asked.body["k"] == 5 and "user_id" in asked.body
