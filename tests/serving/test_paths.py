"""Ids in paths: which slash is whose, what is no text, and what is told of paths that are none."""

import re
import subprocess
import sys

import httpx
import pytest

from serving.routes import ROUTES

ALL = {"personalize": True, "train": True, "marketing": True, "measure": True}


def test_what_a_person_allows_is_not_that_of_an_id_that_ends_like_the_route(client: httpx.Client) -> None:
    assert client.put("/v1/users/slashed%2Fconsent/consent", json={"train": False}).json() == {**ALL, "train": False}
    assert client.get("/v1/users/slashed%2fconsent/consent").json() == {**ALL, "train": False}
    assert client.get("/v1/users/slashed/consent").json() == ALL
    whole = client.get("/v1/users/slashed%2Fconsent")
    assert (whole.status_code, whole.json()["field"]) == (404, "id"), "all that is held, which this service has none of"


def test_a_slash_as_it_stands_belongs_to_the_route(client: httpx.Client) -> None:
    assert client.get("/v1/items/a%2Fsimilar/similar").json()["item_id"] == "a/similar"
    refused = client.get("/v1/items/a%2Fb%20c%2Fsimilar")
    assert (refused.status_code, refused.headers["allow"]) == (405, "DELETE, PUT")
    for path in ("/v1/items/a/b%20c/similar", "/v1/users/a/b", "/v1/users/a/b/consent"):
        found = client.get(path)
        assert found.status_code == 404 and "GET /openapi.json" in found.json()["detail"], path


@pytest.mark.parametrize("spelled", ["%FF", "ok%C3", "%ED%A0%80", "%C0%AF", "%F5%80%80%80"])
def test_bytes_that_are_no_text_are_no_id(client: httpx.Client, spelled: str) -> None:
    calls = [("GET", f"/v1/items/{spelled}/similar"), ("DELETE", f"/v1/items/{spelled}"), ("GET", f"/v1/users/{spelled}/consent")]
    for method, path in [*calls, ("DELETE", f"/v1/users/{spelled}")]:
        refused = client.request(method, path)
        assert (refused.status_code, refused.json()["field"]) == (422, "id"), path
        assert refused.headers["content-type"] == "application/problem+json" and "UTF-8" in refused.json()["detail"]


def test_no_path_is_sent_elsewhere(client: httpx.Client) -> None:
    """A redirected POST would come without its body from many clients."""
    for path in ("/v1/recommend/", "/v1/events/", "/health/live/", "/v1/users/a/consent/"):
        refused = client.post(path, json={})
        assert (refused.status_code, refused.headers["content-type"]) == (404, "application/problem+json"), path
        assert refused.json()["request_id"] == refused.headers["x-request-id"]


def test_a_method_that_is_not_taken_is_told_all_that_are(client: httpx.Client) -> None:
    for path, allowed in (("/v1/items/x", "DELETE, PUT"), ("/v1/users/x", "DELETE, GET, HEAD"), ("/v1/recommend", "POST")):
        assert client.patch(path).headers["allow"] == allowed


def test_the_help_lists_all_that_can_be_asked(client: httpx.Client) -> None:
    help_text = subprocess.run([sys.executable, "-m", "towers", "serve", "--help"], capture_output=True, text=True, timeout=60).stdout
    listed = set(re.findall(r"^  (GET|POST|PUT|DELETE) +(/\S*)  +\w", help_text, re.MULTILINE))
    documented = client.get("/openapi.json").json()["paths"]
    asked = {(method.upper(), path) for path, operations in documented.items() for method in operations}
    assert listed == asked | {("GET", "/"), ("GET", "/openapi.json")} == {(route.method, route.path) for route in ROUTES}
