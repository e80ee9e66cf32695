"""What can be asked over HTTP: the table that the service, its OpenAPI document and `towers serve --help` are made of."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Route:
    """One row of it.

    Attributes:
        path: with `{id}` where an id stands.
        method: of HTTP.
        name: of its handler, and in metrics and logs.
        summary: what it is for.
        scope: what a key must allow; "" = nothing.
        takes_body: whether a body is read.
        slow: it reads or writes files.
        stores: it writes to a database, for which it may have to wait.
    """

    path: str
    method: str
    name: str
    summary: str
    scope: str = ""
    takes_body: bool = False
    slow: bool = False
    stores: bool = False


_ITEM, _USER = "/v1/items/{id}", "/v1/users/{id}"
ROUTES = (
    Route("/v1/recommend", "POST", "recommend", "The k items for one person and moment.", "recommend", True),
    Route("/v1/recommend:batch", "POST", "recommend_batch", "Several rows for one person, no item in two of them.", "recommend", True),
    Route("/v1/rerank", "POST", "rerank", "The caller's own candidates, scored and ordered.", "recommend", True),
    Route(
        "/v1/events",
        "POST",
        "events",
        "What people did: all of it is stored, or none. It counts from the next list on.",
        "events",
        True,
        stores=True,
    ),
    Route(
        _ITEM, "PUT", "put_item", "A new item, or all attributes of a known one anew; found within a second.", "items", True, stores=True
    ),
    Route(_ITEM, "DELETE", "delete_item", "Take an item down.", "items", stores=True),
    Route(f"{_ITEM}/similar", "GET", "similar", "Items like this one.", "recommend"),
    Route(
        f"{_USER}/consent", "PUT", "put_consent", "What a person allows; it counts from the next request on.", "subjects", True, stores=True
    ),
    Route(f"{_USER}/consent", "GET", "get_consent", "What a person allows.", "subjects"),
    Route(_USER, "GET", "get_user", "All that is held of a person.", "subjects", slow=True),
    Route(_USER, "DELETE", "delete_user", "Forget a person; from now on no list uses what is held.", "subjects", slow=True),
    Route("/health/live", "GET", "live", "The process answers."),
    Route("/health/ready", "GET", "ready", "Which model and index answer."),
    Route("/metrics", "GET", "metrics", "Counters and latencies.", "metrics"),
    Route("/openapi.json", "GET", "openapi", "All of this for machines."),
    Route("/", "GET", "page", "A page to try it by hand."),
)
"""Most asked first."""

ROUTE_NAMES = tuple(route.name for route in ROUTES)
SUMMARIES = {route.name: route.summary for route in ROUTES}


def listed() -> str:
    """The table as lines of a help text."""
    width = max(len(route.path) for route in ROUTES)
    return "\n".join(f"  {route.method:<6}  {route.path:<{width}}  {route.summary}" for route in ROUTES)
