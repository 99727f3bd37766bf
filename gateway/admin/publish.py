"""HTTP for backends without a Redis client: POST /publish on the admin port.

One result, or up to a thousand, as JSON; for each the answer says how many nodes held the id and whether the
result is retained, or what is wrong. A retry with the same messageId is idempotent.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import structlog
from aiohttp import web

from ..errors import NotPublished, PublishError, Unconfirmed
from ..publishing.api import Published
from ..publishing.publisher import PUBLISH_BATCH, Outcome, Publisher, outcome_as_json
from ..telemetry.logs import short_id
from .backend import RETRY_AFTER_HEADER, PublishToken, RejectedRequest, json_body
from .caller import caller_of
from .responses import PRIVATE_HEADERS, private_json

MAX_RESULTS: Final = 1_000
log = structlog.get_logger()


class PublishEndpoint:
    """POST /publish, for backends that have the token."""

    def __init__(
        self, publisher: Publisher, token: str, channel_prefix: str, max_size: int, outcomes: Counter[str]
    ) -> None:
        """With an empty `token` nobody may publish. `max_size` is in bytes.

        `outcomes` counts results by what became of them (`outcome_label`), and requests that were denied.
        """
        self._publisher = publisher
        self.use_token(token)
        self._channel_prefix = channel_prefix
        self._max_size = max_size
        self._outcomes = outcomes

    def use_token(self, token: str) -> None:
        """From now on, require this token."""
        self._token = PublishToken(token)

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/publish", self.publish)]

    async def publish(self, request: web.Request) -> web.Response:
        """Publish the results in the body.

        200: all of them were published. 207: some of them. 400: none is valid. 503: Redis has confirmed none,
        and each answer says whether nothing was published, or whether that is unknown. A retry with the same
        messageIds is idempotent.
        """
        caller = caller_of(request)
        try:
            self._token.authorize(request)
            body = await json_body(request)
            batch = isinstance(body, dict) and "results" in body
            items = _items(body) if batch else [body]
        except RejectedRequest as rejected:
            self._outcomes["denied"] += 1
            log.warning("publish denied", kind=rejected.code, status=rejected.response.status, **caller)
            return rejected.response
        ends = await self._send(items, {**caller, "token": self._token.fingerprint})
        _warn(ends)
        answers = [outcome_as_json(item, end) for item, end in zip(items, ends, strict=True)]
        status = _status(ends)
        retry = {"Retry-After": RETRY_AFTER_HEADER} if status is HTTPStatus.SERVICE_UNAVAILABLE else {}
        headers = {**PRIVATE_HEADERS, **retry}
        return private_json({"results": answers} if batch else answers[0], status, headers)

    async def _send(self, items: Sequence[object], who: Mapping[str, str]) -> list[Outcome]:
        """Publish `items`; what becomes of each is counted and audited, even if the node stops meanwhile."""
        ends: Sequence[Outcome] = [Unconfirmed("the node stopped", "")] * len(items)
        try:
            ends = sent = await self._publisher.send_json(items, self._channel_prefix, self._max_size)
            return sent
        finally:
            self._outcomes.update(map(outcome_label, ends))
            await _audit(zip(items, ends, strict=True), who)


async def _audit(posted: Iterable[tuple[object, Outcome]], who: Mapping[str, str]) -> None:
    """Log each result: what it was, who posted it, and what became of it."""
    lines = iter(posted)
    try:
        for count, (item, end) in enumerate(lines, 1):
            _log_result(item, end, who)
            if not count % PUBLISH_BATCH:
                await asyncio.sleep(0)
    finally:  # an audit is complete, even if the node stops
        for item, end in lines:
            _log_result(item, end, who)


def _log_result(item: object, end: Outcome, who: Mapping[str, str]) -> None:
    members = item if isinstance(item, dict) else {}
    facts: dict[str, object] = {
        name: text if name != "id" else short_id(text)
        for name, member in (("id", "webSocketId"), ("result", "authResult"), ("message_id", "messageId"))
        if isinstance(text := members.get(member), str)
    }
    match end:
        case Published(receivers, retained, message_id):
            facts |= {"message_id": message_id, "receivers": receivers, "retained": retained}
        case NotPublished() | Unconfirmed():
            facts |= {"message_id": end.message_id, "reason": end.reason}
    log.info("result posted", audit=True, outcome=outcome_label(end), **facts, **who)


def outcome_label(end: Outcome) -> str:
    """What became of a result, in a word."""
    match end:
        case Published(receivers=0, retained=retained):
            return "retained" if retained else "no_receivers"
        case Published():
            return "received"
        case NotPublished():
            return "not_published"
        case Unconfirmed():
            return "unconfirmed"
        case _:
            return "invalid"


def _items(body: dict[str, Any]) -> list[object]:
    """The results of a batch."""
    items = body["results"]
    if len(body) != 1 or not isinstance(items, list) or not items:
        raise RejectedRequest(
            HTTPStatus.BAD_REQUEST,
            "invalid",
            "a batch must have one member, results: a list of at least one result",
        )
    if len(items) > MAX_RESULTS:
        raise RejectedRequest(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "too_many",
            f"a batch may have at most {MAX_RESULTS} results; this one has {len(items)}",
        )
    return items


def _warn(ends: Sequence[Outcome]) -> None:
    """Log the results that Redis has not confirmed."""
    refused = [end for end in ends if isinstance(end, NotPublished)]
    if refused:
        log.warning("results not published", count=len(refused), of=len(ends), reason=refused[0].reason)
    unconfirmed = [end for end in ends if isinstance(end, Unconfirmed)]
    if unconfirmed:
        log.warning("results unconfirmed", count=len(unconfirmed), of=len(ends), reason=unconfirmed[0].reason)


def _status(ends: Sequence[Outcome]) -> HTTPStatus:
    kinds = {type(end) for end in ends}
    if kinds == {Published}:
        return HTTPStatus.OK
    if Published in kinds:
        return HTTPStatus.MULTI_STATUS
    return HTTPStatus.BAD_REQUEST if kinds == {PublishError} else HTTPStatus.SERVICE_UNAVAILABLE
