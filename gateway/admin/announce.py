"""HTTP for backends without a Redis client: POST /announce on the admin port.

One id as JSON. The answer says whether it is new, or what is wrong. A retry is idempotent.
"""

from __future__ import annotations

from collections import Counter
from http import HTTPStatus
from typing import Final

import structlog
from aiohttp import web

from ..errors import NotAnnounced, PublishError
from ..publishing.announcing import from_json
from ..publishing.publisher import LONGEST_ID, Publisher
from ..telemetry.logs import short_id
from .backend import RETRY_AFTER_HEADER, PublishToken, RejectedRequest, json_body
from .caller import caller_of
from .responses import PRIVATE_HEADERS, private_json

OUTCOMES: Final = ("new", "known", "not_announced", "invalid", "denied")
"""What may become of an id of POST /announce."""

log = structlog.get_logger()


class AnnounceEndpoint:
    """POST /announce, for backends that have the token."""

    def __init__(self, publisher: Publisher, token: str, channel_prefix: str, outcomes: Counter[str]) -> None:
        """With an empty `token` nobody may announce. `outcomes` counts what became of ids: see `OUTCOMES`."""
        self._publisher = publisher
        self.use_token(token)
        self._channel_prefix = channel_prefix
        self._outcomes = outcomes

    def use_token(self, token: str) -> None:
        """From now on, require this token."""
        self._token = PublishToken(token)

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/announce", self.announce)]

    async def announce(self, request: web.Request) -> web.Response:
        """Announce the id in the body.

        200: it is announced now (`new`), or had a retained value already. 400: it is not valid. 503: Redis
        has not confirmed it. A retry is idempotent.
        """
        caller = caller_of(request)
        try:
            self._token.authorize(request)
            item = await json_body(request)
        except RejectedRequest as rejected:
            self._outcomes["denied"] += 1
            log.warning("announce denied", kind=rejected.code, status=rejected.response.status, **caller)
            return rejected.response
        web_socket_id = _id_of(item)
        outcome = "not_announced"  # if the node stops meanwhile
        try:
            outcome, status, answer = await self._outcome(item)
        finally:  # an audit is complete, even if the node stops
            self._outcomes[outcome] += 1
            facts = {} if web_socket_id is None else {"id": short_id(web_socket_id)}
            log.info(
                "id announced", audit=True, outcome=outcome, **facts, token=self._token.fingerprint, **caller
            )
        retry = {"Retry-After": RETRY_AFTER_HEADER} if status is HTTPStatus.SERVICE_UNAVAILABLE else {}
        return private_json({"webSocketId": web_socket_id, **answer}, status, {**PRIVATE_HEADERS, **retry})

    async def _outcome(self, item: object) -> tuple[str, HTTPStatus, dict[str, object]]:
        """What becomes of an announcement: in a word, as a status, and as members of the answer."""
        try:
            is_new = await self._publisher.send_announcement(from_json(item, self._channel_prefix))
        except PublishError as error:
            return "invalid", HTTPStatus.BAD_REQUEST, _error("invalid", str(error))
        except NotAnnounced as error:
            log.warning("id not announced", reason=error.reason)
            return "not_announced", HTTPStatus.SERVICE_UNAVAILABLE, _error("not_announced", str(error))
        return "new" if is_new else "known", HTTPStatus.OK, {"new": is_new}


def _error(code: str, message: str) -> dict[str, object]:
    return {"error": {"code": code, "message": message}}


def _id_of(item: object) -> str | None:
    """The id to name in the answer, unless it is too long to be one."""
    value = item.get("webSocketId") if isinstance(item, dict) else None
    return value if isinstance(value, str) and len(value) <= LONGEST_ID else None
