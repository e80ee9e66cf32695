"""What is asked and answered about a person's own rows. See serving.messages."""

from typing import Any

from msgspec import Struct

from towers.consent import PURPOSES
from towers.errors import RequestError


class ConsentRequest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A person's decisions; purposes that are not named stay as they are.

    Attributes:
        personalize: what is stored shapes the lists that the person gets.
        train: models learn from it.
        marketing: it is used for messages that the person did not ask for.
        measure: it is looked at to judge the service; the person's key stands in the log of lists.
    """

    personalize: bool | None = None
    train: bool | None = None
    marketing: bool | None = None
    measure: bool | None = None

    def named(self) -> dict[str, bool]:
        """What was decided, by purpose.

        Raises:
            RequestError: nothing.
        """
        given = {purpose: getattr(self, purpose) for purpose in PURPOSES}
        found = {purpose: value for purpose, value in given.items() if value is not None}
        if not found:
            raise RequestError("body", f"no decision; expected true or false for at least one of {', '.join(PURPOSES)}")
        return found


class ConsentState(Struct, frozen=True):
    """What a person allows now."""

    personalize: bool
    train: bool
    marketing: bool
    measure: bool


class Receipt(Struct, frozen=True):
    """What was removed for a person who asked to be forgotten.

    Attributes:
        what: `removed`.
        forget: number of the receipt of the wish itself.
        at, retrain_by: RFC 3339; the second says until when to replace what is named in `still_learned_from`.
        run: name of the run's folder.
        rows: removed ones by place, the same unit everywhere: of prepared data an interaction each, of histories a person's each.
        found: whether there were any, or may be some where nothing could be removed.
        not_removed_from: why nothing could be removed there, by place: files that cannot be read or rewritten, and may still hold rows.
        still_learned_from: models and bundles of this run that may hold what was learned from the person.
        number, hash: of this receipt in the chain; keep the hash elsewhere.
    """

    what: str
    forget: int | None
    at: str
    run: str
    rows: dict[str, int]
    found: bool
    not_removed_from: dict[str, str]
    still_learned_from: list[str]
    retrain_by: str | None
    number: int
    hash: str


class Decision(Struct, frozen=True):
    """Something that a person allowed or refused.

    Attributes:
        timestamp: RFC 3339.
        source: `told` to the service, or in the `table` of serving.consent.
    """

    purpose: str
    granted: bool
    timestamp: str
    source: str


class Held(Struct, frozen=True):
    """All that is held of a person.

    Attributes:
        consent: what is allowed now, by purpose.
        decisions: the last ones that were made about each purpose, by source; of each purpose the latest counts.
        held: rows by place, each with what that place tells.
        unread: why not, by place: files that cannot be read, and may hold rows.
    """

    user_id: str
    user_key: str
    consent: dict[str, bool]
    held: dict[str, list[dict[str, Any]]]
    unread: dict[str, str]
    decisions: list[Decision] = []
