"""What is asked and answered about a whole page: several lists at once, or the caller's own candidates. See serving.messages."""

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

from serving.messages import Asker, Clauses, Fallback, Id, Item, Value
from towers.columns import MAX_ID_BYTES

MOST_ROWS = 50
"""Of one batch request."""
MOST_ITEMS = 10_000
"""Of all its rows together; `max_k` where a policy orders them."""


class Shelf(Struct, frozen=True, forbid_unknown_fields=True):
    """One row of a page.

    Attributes:
        name: comes back with the row.
        k: items wanted.
        context: over the request's own, for this row alone.
        filter: besides the request's own.
    """

    name: Annotated[str, Meta(max_length=MAX_ID_BYTES)] = ""
    k: int = 20
    context: dict[str, Value] = {}
    filter: Clauses = []


class BatchRequest(Asker, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Several rows for one person and moment; no item is in two of them. Earlier rows choose first. Together they want at most 10,000
    items, and no more than a single list may where a policy orders them.

    Of a `policy`, caps are of each row, and all else is of the page: near-duplicates are not in two rows either, and what earlier rows
    hold counts for calibration and diversity.
    """

    rows: Annotated[list[Shelf], Meta(min_length=1, max_length=MOST_ROWS)]


class RerankRequest(Asker, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The caller's own candidates, to be scored and ordered.

    Attributes:
        items: their ids; a repeated one counts once.
        k: how many of the best to return; all of them by default.
        exclude_seen: off by default here: the caller has chosen.
        policy: here nothing is turned unless it is given; `{}` orders as the service usually does.
    """

    items: Annotated[list[Id], Meta(min_length=1)]
    k: int | None = None
    exclude_seen: bool = False


class FilledShelf(Struct, frozen=True):
    """One row of the answer to a BatchRequest; see Recommendations."""

    name: str
    items: Sequence[Item]
    returned: int
    k: int
    shortage: str | None = None


class BatchRecommendations(Struct, frozen=True):
    """The answer to a BatchRequest; see Recommendations. Rows come in the order asked."""

    recommendation_id: str
    model_version: str
    index_version: str
    mode: str
    fallback: Fallback | None
    rows: list[FilledShelf]
    unknown_history_items: int
    profile: str


class Reranked(Struct, frozen=True):
    """The answer to a RerankRequest; see Recommendations.

    Attributes:
        unknown_items: candidates that are not in the catalogue.
    """

    recommendation_id: str
    model_version: str
    index_version: str
    mode: str
    fallback: Fallback | None
    items: Sequence[Item]
    returned: int
    k: int
    unknown_history_items: int
    unknown_items: list[str]
    profile: str
    shortage: str | None = None
