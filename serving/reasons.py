"""What a reply tells of why an item is in the list; see serving.explain."""

from msgspec import Struct

HISTORY, CONTEXT, PREFERENCE, FEATURE = "history", "context", "preference", "feature"


class Reason(Struct, frozen=True, omit_defaults=True, gc=False):
    """Something known of the person or the moment that speaks for an item.

    Attributes:
        kind: `history` (what was done with an item; several events with it are told together), `context`, `preference` (a declared like)
            or `feature` (of the user).
        part: what it adds to the score.
        share: of all that speaks for the item; above 0, at most 1.
        item_id, title, event_type: of an event; of several with one item, the type of the one that adds most.
        name, value: of what is no event. Values of sensitive features, ids, texts and vectors are not told.
    """

    kind: str
    part: float
    share: float
    item_id: str | None = None
    title: str | None = None
    event_type: str | None = None
    name: str | None = None
    value: str | list[str] | None = None


class Explanation(Struct, frozen=True, gc=False):
    """Why an item is in the list.

    Attributes:
        text: a sentence for people: plain text, to be escaped where it is put into a page, as titles are.
        reasons: what speaks most for it, the greatest share first; none under a fallback.
        rest: what else makes up the score: smaller parts, those that speak against it, and what is nobody's doing. The parts and the rest
            sum to the score.
        approximate: False: the tower is a weighted sum, and the parts are its terms. True: a part is what the score loses where the tower
            is asked again without the event or value.
    """

    text: str
    reasons: list[Reason]
    rest: float
    approximate: bool
