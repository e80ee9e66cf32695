"""Calls about a person's own rows: what they allow."""

from serving.calls import Call
from serving.decoding import decode
from serving.engine import Engine
from serving.people_messages import ConsentRequest, ConsentState
from serving.profiles import Profiles
from towers.columns import MAX_ID_BYTES
from towers.consent import purposes_of
from towers.errors import RequestError


class PeopleCalls:
    """The handlers over whichever retriever serves at the moment."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def put_consent(self, call: Call) -> object:
        profiles, key = self._who(call)
        return ConsentState(**purposes_of(profiles.standing.decide(key, decode(call.body, ConsentRequest).named())))

    def get_consent(self, call: Call) -> object:
        profiles, key = self._who(call)
        return ConsentState(**purposes_of(profiles.standing.mask(key)))

    def _who(self, call: Call) -> tuple[Profiles, bytes]:
        user_id = call.params["id"]
        if not 1 <= len(user_id.encode("utf-8", "surrogatepass")) <= MAX_ID_BYTES:
            raise RequestError("id", f"expected 1 to {MAX_ID_BYTES} bytes of UTF-8")
        profiles = self._engine.retriever.profiles
        return profiles, profiles.keys.key(user_id)
