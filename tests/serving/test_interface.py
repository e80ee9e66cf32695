"""The interface as its document tells it, asked by schemathesis: whatever fits the document or not, no answer is our bug."""

import json
import math
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from serving.openapi import document
from serving.retriever import Retriever

CHECKED_IN = Path(__file__).parent / "openapi.json"
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
QUICK, LONG = 60, 2000


@pytest.fixture(scope="module")
def strategy(client: httpx.Client) -> st.SearchStrategy[Any]:
    """Calls of every operation, fitting and not."""
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    modes = list(schemathesis.GenerationMode)
    operations = [operation.ok() for operation in schema.get_all_operations()]
    return st.one_of([operation.as_strategy(generation_mode=mode) for operation in operations for mode in modes])


def test_the_document_is_the_one_checked_in(retriever: Retriever, tmp_path: Path) -> None:
    """Whoever changes the interface changes this file with it, and sees in its difference what callers will meet."""
    served = document(retriever.limits, retriever.encoder.preprocessor)
    made = tmp_path / CHECKED_IN.name
    made.write_text(json.dumps(served, indent=1) + "\n")
    assert json.loads(CHECKED_IN.read_text()) == served, f"if the change is meant: cp {made} {CHECKED_IN}"


def answer_to(case: Any, client: httpx.Client) -> None:
    response = case.call(base_url=str(client.base_url))
    case.validate_response(response, checks=CHECKS)
    if response.status_code != 200 or response.headers["content-type"] != ["application/json"]:
        return
    found = response.json()
    lists = [found["items"]] if "items" in found and isinstance(found["items"], list) else [row["items"] for row in found.get("rows", ())]
    together = [item["item_id"] for items in lists for item in items]
    assert len(together) == len(set(together)) and None not in together and "-1" not in together
    asked = case.body if isinstance(case.body, dict) else {}
    for items in lists:
        scores = [item["score"] for item in items]
        assert all(math.isfinite(score) for score in scores) and (asked.get("policy") or scores == sorted(scores, reverse=True))
    assert not set(together) & {item for name in ("exclude", "less_like") for item in asked.get(name, ()) if isinstance(item, str)}
    for clause in asked.get("filter", ()):
        if clause["field"] == "categories":
            for item in (item for items in lists for item in items):
                labels = set(item["categories"])
                assert clause.get("any_of") is None or labels & {str(value) for value in clause["any_of"]}
                assert clause.get("none_of") is None or not labels & {str(value) for value in clause["none_of"]}


def run(client: httpx.Client, strategy: st.SearchStrategy[Any], count: int) -> None:
    seen: list[int] = []

    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    @given(strategy)
    def ask(case: Any) -> None:
        answer_to(case, client)
        seen.append(1)

    ask()
    assert len(seen) >= count


def test_some_calls(client: httpx.Client, strategy: st.SearchStrategy[Any]) -> None:
    run(client, strategy, QUICK)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_thousands_of_calls(client: httpx.Client, strategy: st.SearchStrategy[Any]) -> None:
    run(client, strategy, LONG)
