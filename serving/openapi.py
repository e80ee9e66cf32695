"""The OpenAPI document and the start page: what the service can be asked."""

import html
from typing import Any

import msgspec

from serving.messages import Limits, Problem, Recommendations, RecommendRequest, SimilarItems
from towers import __version__


def document(limits: Limits) -> dict[str, Any]:
    """OpenAPI 3.1: paths by hand, schemas from the message types."""
    types = (RecommendRequest, Recommendations, SimilarItems, Problem)
    _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    schemas["RecommendRequest"]["properties"]["k"]["maximum"] = limits.max_k
    for field in ("history", "exclude"):
        schemas["RecommendRequest"]["properties"][field]["maxItems"] = limits.max_history
    return {
        "openapi": "3.1.0",
        "info": {"title": "Towers", "version": __version__, "description": "Recommendations from a two-tower model."},
        "paths": {
            "/v1/recommend": {"post": _recommend()},
            "/v1/items/{id}/similar": {"get": _similar(limits)},
            "/health/live": {"get": _operation("The process answers.", {"200": _free("alive")})},
            "/health/ready": {"get": _operation("Which model and index answer.", {"200": _free("ready")})},
        },
        "components": {"schemas": schemas},
    }


def _recommend() -> dict[str, Any]:
    operation = _operation(
        "The k items for one person and moment.",
        {
            "200": _json("best first", "Recommendations"),
            "400": _problem("the body is not JSON"),
            "413": _problem("the body is too large"),
            "422": _problem("a field does not fit; `field` names it"),
        },
    )
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/RecommendRequest"}}}
    return {**operation, "requestBody": {"required": True, "content": content}}


def _similar(limits: Limits) -> dict[str, Any]:
    operation = _operation(
        "Items like this one.",
        {
            "200": _json("best first", "SimilarItems"),
            "404": _problem("no such item"),
            "422": _problem("a parameter does not fit; `field` names it"),
        },
    )
    bounds = {"type": "integer", "minimum": 1, "maximum": limits.max_k, "default": 20}
    item_id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}, "description": "item id, percent-encoded"}
    return {**operation, "parameters": [item_id, {"name": "k", "in": "query", "schema": bounds}]}


def _operation(summary: str, responses: dict[str, Any]) -> dict[str, Any]:
    return {"summary": summary, "responses": responses}


def _free(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": {"type": "object"}}}}


def _json(description: str, schema: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}


def _problem(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


def start_page(model_version: str, items: int, sample_id: str) -> str:
    """A page for people who open the address in a browser."""
    body = html.escape(f'{{"history": ["{sample_id}"], "k": 5}}')
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Towers</title>
<style>body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 3rem auto; padding: 0 1rem }}
pre {{ background: #f4f4f4; padding: 1rem; overflow: auto }}</style>
<h1>Towers</h1>
<p>Model <b>{html.escape(model_version)}</b>, {items:,} items.</p>
<ul>
<li><code>POST /v1/recommend</code>: user_id or history, context, preferences, k, exclude, exclude_seen</li>
<li><code>GET /v1/items/{{id}}/similar?k=20</code></li>
<li><a href="/health/live">/health/live</a>, <a href="/health/ready">/health/ready</a>, <a href="/openapi.json">/openapi.json</a></li>
</ul>
<pre>curl -s http://HOST:PORT/v1/recommend -d '{body}'</pre>
</html>
"""
