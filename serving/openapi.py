"""The OpenAPI document: what the service can be asked, and what this model's context and preferences are called."""

import inspect
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import msgspec

from serving.bounds import Limits
from serving.calls import LONGEST_TIMEOUT_MS, REQUEST_ID, TIMEOUT
from serving.item_changes import known_attributes
from serving.messages import (
    EventsAdded,
    EventsRequest,
    ItemChanged,
    ItemRequest,
    Problem,
    Recommendations,
    RecommendRequest,
    SimilarItems,
)
from serving.page_messages import BatchRecommendations, BatchRequest, Reranked, RerankRequest
from serving.people_messages import ConsentRequest, ConsentState, Held, Receipt
from serving.policy import MostSettings, least
from serving.routes import SUMMARIES
from towers import __version__
from towers.preprocess import VOCABULARY_KINDS, Preprocessor
from towers.schema import Feature

_TYPES = (
    RecommendRequest, Recommendations, BatchRequest, BatchRecommendations, RerankRequest, Reranked, EventsRequest, EventsAdded,
    ItemRequest, ItemChanged, SimilarItems, ConsentRequest, ConsentState, Receipt, Held,
    Problem,
)  # fmt: skip
_REQUEST_ID = {
    "name": REQUEST_ID, "in": "header", "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
    "description": "comes back with the reply; made where it is missing",
}  # fmt: skip
_TIMEOUT = {
    "name": TIMEOUT, "in": "header", "schema": {"type": "integer", "minimum": 1, "maximum": LONGEST_TIMEOUT_MS},
    "description": "milliseconds that the caller waits: after them a body is not read on, and work is not begun",
}  # fmt: skip
_ITEM_ID = {
    "name": "id", "in": "path", "required": True, "schema": {"type": "string"},
    "description": "item id, percent-encoded, a slash in it as %2F",
}  # fmt: skip

_USER_ID = {**_ITEM_ID, "description": "the caller's id of a person, percent-encoded, a slash in it as %2F"}

EXAMPLES = 50
"""Most values named of a feature that takes one of a vocabulary."""


def document(limits: Limits, preprocessor: Preprocessor, most: MostSettings | None = None) -> dict[str, Any]:
    """OpenAPI 3.1: paths by hand, schemas from the message types, declared features from the model, bounds from the service."""
    _, schemas = msgspec.json.schema_components(_TYPES, ref_template="#/components/schemas/{name}")
    for schema in schemas.values():  # from docstrings, of which newer Pythons alone take the indentation away
        if "description" in schema:
            schema["description"] = inspect.cleandoc(schema["description"])
    preferences = [f for f in preprocessor.schema.owned_by("user") if f.kind == "preferences"]
    for name in ("RecommendRequest", "BatchRequest", "RerankRequest"):
        asked = schemas[name]["properties"]
        for field in ("history", "exclude"):
            asked[field]["maxItems"] = limits.max_history
        _declare(asked["context"], preprocessor.schema.owned_by("context"), preprocessor, limits)
        _declare(asked["preferences"]["anyOf"][1], preferences, preprocessor, limits)
        asked["preferences"]["anyOf"][0] = _bounded(asked["preferences"]["anyOf"][0], limits)
    schemas["EventsRequest"]["properties"]["events"]["maxItems"] = limits.max_events
    attributes, known = schemas["ItemRequest"]["properties"]["attributes"], known_attributes(preprocessor)
    widest = max((f.width for f in preprocessor.schema.owned_by("item")), default=0)
    attributes["propertyNames"] = {"enum": list(known)}
    attributes["additionalProperties"] = _bounded(attributes["additionalProperties"], limits, widest)
    for name in ("Shelf", "Event"):
        _declare(schemas[name]["properties"]["context"], preprocessor.schema.owned_by("context"), preprocessor, limits)
    for name in ("RecommendRequest", "Shelf"):
        schemas[name]["properties"]["k"] |= {"minimum": 1, "maximum": limits.max_k}
    for name, bound in asdict(most or MostSettings()).items():
        schemas["Steer"]["properties"][name]["anyOf"][0] |= {"minimum": least(name, bound), "maximum": bound}
    schemas["RerankRequest"]["properties"]["k"]["anyOf"][0] |= {"minimum": 1, "maximum": limits.max_k}
    schemas["RerankRequest"]["properties"]["items"]["maxItems"] = limits.max_history
    schemas["RecommendRequest"]["properties"]["candidate_items"]["anyOf"][0]["maxItems"] = limits.max_history
    keys = {"bearer": {"type": "http", "scheme": "bearer"}, "header": {"type": "apiKey", "in": "header", "name": "x-api-key"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Towers", "version": __version__, "description": "Recommendations from a two-tower model."},
        "paths": _paths(limits),
        "components": {"schemas": schemas, "securitySchemes": keys},
    }


def _paths(limits: Limits) -> dict[str, Any]:
    """Keys are needed where the service was given some: `{}` stands for none."""
    posts = {
        "/v1/recommend": (SUMMARIES["recommend"], "RecommendRequest", "Recommendations"),
        "/v1/recommend:batch": (SUMMARIES["recommend_batch"], "BatchRequest", "BatchRecommendations"),
        "/v1/rerank": (SUMMARIES["rerank"], "RerankRequest", "Reranked"),
    }
    paths: dict[str, Any] = {path: {"post": _post(*told)} for path, told in posts.items()}
    events = _post(SUMMARIES["events"], "EventsRequest", "EventsAdded")
    events["responses"] |= _LATER
    paths["/v1/events"] = {"post": events}
    put = _post(SUMMARIES["put_item"], "ItemRequest", "ItemChanged")
    gone = {"200": _json("within a second no list has it", "ItemChanged"), **_REFUSED, "404": _problem("no such item"), **_LATER}
    delete = _operation(SUMMARIES["delete_item"], gone, keyed=True)
    paths["/v1/items/{id}"] = {
        "put": {
            **put,
            "responses": {**put["responses"], "404": _problem("this service keeps no changes of items"), **_LATER},
            "parameters": [*put["parameters"], _ITEM_ID],
        },
        "delete": {**delete, "parameters": [*delete["parameters"], _ITEM_ID]},
    }
    paths["/v1/items/{id}/similar"] = {"get": _similar(limits)}
    paths["/v1/users/{id}"] = _person()
    paths["/v1/users/{id}/consent"] = _consent()
    paths["/health/live"] = {"get": _operation(SUMMARIES["live"], {"200": _free("alive")})}
    paths["/health/ready"] = {"get": _operation(SUMMARIES["ready"], {"200": _free("ready")})}
    text = {"description": "Prometheus' text format", "content": {"text/plain": {"schema": {"type": "string"}}}}
    paths["/metrics"] = {"get": _operation(SUMMARIES["metrics"], {"200": text, **_REFUSED}, keyed=True)}
    return paths


def _person() -> dict[str, Any]:
    gone = {"404": _problem("this service keeps no rows of users")}
    told = {
        "get": (SUMMARIES["get_user"], "by place", "Held"),
        "delete": (SUMMARIES["delete_user"], "what was removed", "Receipt"),
    }
    found = {}
    for method, (summary, meaning, reply) in told.items():
        operation = _operation(
            summary, {"200": _json(meaning, reply), **_REFUSED, **gone, **(_LATER if method == "delete" else {})}, keyed=True
        )
        found[method] = {**operation, "parameters": [*operation["parameters"], _USER_ID]}
    return found


def _consent() -> dict[str, Any]:
    put = _post(SUMMARIES["put_consent"], "ConsentRequest", "ConsentState")
    put["responses"] |= {"200": _json("what the person allows now", "ConsentState"), **_LATER}
    get = _operation(SUMMARIES["get_consent"], {"200": put["responses"]["200"], **_REFUSED}, keyed=True)
    return {method: {**call, "parameters": [*call["parameters"], _USER_ID]} for method, call in (("put", put), ("get", get))}


def _bounded(schema: dict[str, Any], limits: Limits, width: int = 0) -> dict[str, Any]:
    """A value's schema, with the bounds of `serving.bounds`."""
    if "anyOf" in schema:
        return {**schema, "anyOf": [_bounded(one, limits, width) for one in schema["anyOf"]]}
    if schema["type"] == "array":
        return {**schema, "items": _bounded(schema["items"], limits), "maxItems": max(limits.max_values, width)}
    return {**schema, "maxLength": limits.max_text} if schema["type"] == "string" else schema


def _declare(mapping: dict[str, Any], features: Sequence[Feature], preprocessor: Preprocessor, limits: Limits) -> None:
    """Name the keys that a mapping takes, instead of any: others are refused."""
    any_value = mapping["additionalProperties"]
    mapping["properties"] = {}
    mapping["additionalProperties"] = False
    for f in features:
        value = _bounded(any_value, limits, f.width)
        # ids and what is sensitive are not told to whoever asks
        named = f.kind in VOCABULARY_KINDS and f.kind != "id" and not f.sensitive
        known = preprocessor.vocabularies[f.vocabulary].values()[:EXAMPLES].to_pylist() if named else []
        examples = {"examples": known} if known else {}
        if f.kind == "preferences":
            mapping["properties"][f.name] = {**value, "description": f.kind, "items": {**value["items"], **examples}}
        else:
            mapping["properties"][f.name] = {**value, "description": f.kind, **examples}


def _post(summary: str, request: str, reply: str) -> dict[str, Any]:
    responses = {
        "200": _json("best first", reply),
        "400": _problem("the body is not JSON"),
        **_REFUSED,
        "408": _problem("the time that the caller gave has passed, or the body has not come in the time that the service gives"),
        "413": _problem("the body is too large"),
        "415": _problem("the body is encoded"),
        "422": _problem("a field does not fit; `field` names it"),
    }
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{request}"}}}
    return {**_operation(summary, responses, keyed=True), "requestBody": {"required": True, "content": content}}


def _similar(limits: Limits) -> dict[str, Any]:
    responses = {
        "200": _json("best first", "SimilarItems"),
        **_REFUSED,
        "404": _problem("no such item"),
        "422": _problem("a parameter does not fit; `field` names it"),
    }
    operation = _operation(SUMMARIES["similar"], responses, keyed=True)
    bounds = {"type": "integer", "minimum": 1, "maximum": limits.max_k, "default": 20}
    return {**operation, "parameters": [*operation["parameters"], _ITEM_ID, {"name": "k", "in": "query", "schema": bounds}]}


def _operation(summary: str, responses: dict[str, Any], keyed: bool = False) -> dict[str, Any]:
    responses = {"408": _problem("the time that the caller gave has passed"), "422": _problem("a header does not fit"), **responses}
    operation: dict[str, Any] = {"summary": summary, "responses": responses, "parameters": [_REQUEST_ID, _TIMEOUT]}
    return {**operation, "security": [{"bearer": []}, {"header": []}, {}]} if keyed else operation


def _free(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": {"type": "object"}}}}


def _json(description: str, schema: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}


def _problem(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


_REFUSED = {
    "401": _problem("a key is needed"),
    "403": _problem("the key lacks the scope"),
}
_LATER = {"503": _problem("it cannot be stored just now, and nothing of it was; `retry-after` says when to try again")}
