"""The OpenAPI document: what the service can be asked, and what this model's context and preferences are called."""

from collections.abc import Sequence
from typing import Any

import msgspec

from serving.messages import Limits, Problem, Recommendations, RecommendRequest, SimilarItems
from towers import __version__
from towers.preprocess import VOCABULARY_KINDS, Preprocessor
from towers.schema import Feature

EXAMPLES = 50
"""Most values named of a feature that takes one of a vocabulary."""


def document(limits: Limits, preprocessor: Preprocessor) -> dict[str, Any]:
    """OpenAPI 3.1: paths by hand, schemas from the message types, declared features from the model."""
    types = (RecommendRequest, Recommendations, SimilarItems, Problem)
    _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    asked = schemas["RecommendRequest"]["properties"]
    asked["k"] |= {"minimum": 1, "maximum": limits.max_k}
    for field in ("history", "exclude"):
        asked[field]["maxItems"] = limits.max_history
    asked["candidate_items"]["anyOf"][0]["maxItems"] = limits.max_history
    _declare(asked["context"], preprocessor.schema.owned_by("context"), preprocessor)
    _declare(asked["preferences"]["anyOf"][1], [f for f in preprocessor.schema.owned_by("user") if f.kind == "preferences"], preprocessor)
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


def _declare(mapping: dict[str, Any], features: Sequence[Feature], preprocessor: Preprocessor) -> None:
    """Name the keys that a mapping takes, instead of any: others are refused."""
    value = mapping["additionalProperties"]
    mapping["properties"] = {}
    mapping["additionalProperties"] = False
    for f in features:
        # ids and what is sensitive are not told to whoever asks
        named = f.kind in VOCABULARY_KINDS and f.kind != "id" and not f.sensitive
        known = preprocessor.vocabularies[f.vocabulary].values()[:EXAMPLES].to_pylist() if named else []
        examples = {"examples": known} if known else {}
        if f.kind == "preferences":
            mapping["properties"][f.name] = {**value, "description": f.kind, "items": {**value["items"], **examples}}
        else:
            mapping["properties"][f.name] = {**value, "description": f.kind, **examples}


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
