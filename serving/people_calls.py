"""Calls about a person's own rows: what they allow, what is held, and that it be forgotten."""

import logging

from serving.calls import Call
from serving.decoding import check_id, decode
from serving.engine import Engine
from serving.people_messages import ConsentRequest, ConsentState, Held, Receipt
from serving.profiles import Profiles
from serving.rights import Rights
from serving.subjects import log_failures
from towers.consent import purposes_of
from towers.errors import ConfigError, DataError, RequestError, StorageError

log = logging.getLogger("towers.serving")


class PeopleCalls:
    """The handlers over whichever retriever serves at the moment.

    Args:
        rights: None = this service keeps nothing that outlives it.
    """

    def __init__(self, engine: Engine, rights: Rights | None) -> None:
        self._engine, self._rights = engine, rights

    def put_consent(self, call: Call) -> object:
        profiles, key = self._who(call)
        return ConsentState(**purposes_of(profiles.standing.decide(key, decode(call.body, ConsentRequest).named())))

    def get_consent(self, call: Call) -> object:
        profiles, key = self._who(call)
        return ConsentState(**purposes_of(profiles.standing.mask(key)))

    def get_user(self, call: Call) -> object:
        self._who(call)
        return Held(**self._kept().held(call.params["id"]))

    def delete_user(self, call: Call) -> object:
        _, key = self._who(call)
        subjects = self._kept().subjects
        try:
            receipt = subjects.forget([key])
        except StorageError:
            raise
        except (ConfigError, DataError) as error:
            log.error("nobody can be forgotten", extra={"reason": str(error)})
            raise RequestError("receipts", str(error), 500) from error
        log_failures(receipt["not_removed_from"])
        return Receipt(**receipt)

    def _kept(self) -> Rights:
        if self._rights is None:
            raise RequestError("id", "this service keeps no rows of users", 404)
        return self._rights

    def _who(self, call: Call) -> tuple[Profiles, bytes]:
        user_id = call.params["id"]
        check_id("id", user_id)
        profiles = self._engine.retriever.profiles
        return profiles, profiles.keys.key(user_id)
