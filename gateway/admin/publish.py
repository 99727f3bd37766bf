"""HTTP for backends without a Redis client: POST /publish on the admin port.

One result, or up to a thousand, as JSON; for each the answer says how many nodes held the id and whether the
result is retained, or what went wrong. A result that is posted again with the same messageId does no harm.
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import orjson
import structlog
from aiohttp import web

from ..errors import Unconfirmed
from ..publishing.api import Published
from ..publishing.publisher import Outcome, Publisher, outcome_as_json

MAX_RESULTS: Final = 1_000
MAX_PUBLISH_BODY: Final = 2 << 20
"""Bytes of a request: a thousand results with ids of 128 characters have 300 KB, without data."""

RETRY_AFTER_HEADER: Final = "1"
"""Seconds; the publisher has been trying for three by then."""

JSON: Final = "application/json"

log = structlog.get_logger()


class PublishEndpoint:
    """POST /publish, for who has the token."""

    def __init__(self, publisher: Publisher, token: str, channel_prefix: str, max_size: int) -> None:
        """With an empty `token` nobody may publish; the other two are the node's settings."""
        self._publisher = publisher
        self._token = token.encode()
        self._channel_prefix = channel_prefix
        self._max_size = max_size
        self.outcomes: Counter[str] = Counter()
        """Results by what became of them, in the words of `outcome`; requests that were denied."""

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/publish", self.publish)]

    async def publish(self, request: web.Request) -> web.Response:
        """Publish what the body says; the status tells of all its results together.

        200: all of them went out. 207: some of them. 400: none has a form that could. 503: none of them did
        as far as is known; to repeat them with their messageIds is of use and does no harm.
        """
        try:
            self._authorize(request)
            body = await _body(request)
            batch = isinstance(body, dict) and "results" in body
            items = _items(body) if batch else [body]
        except _RejectedRequest as refused:
            self.outcomes["denied"] += 1
            return refused.response
        ends = await self._publisher.send_json(items, self._channel_prefix, self._max_size)
        self.outcomes.update(map(outcome_label, ends))
        unconfirmed = [end for end in ends if isinstance(end, Unconfirmed)]
        if unconfirmed:
            log.warning("results unconfirmed", count=len(unconfirmed), of=len(ends), why=unconfirmed[0].why)
        answers = [outcome_as_json(item, end) for item, end in zip(items, ends, strict=True)]
        status = _status(ends)
        headers = {"Retry-After": RETRY_AFTER_HEADER} if status is HTTPStatus.SERVICE_UNAVAILABLE else {}
        return _json({"results": answers} if batch else answers[0], status, headers)

    def _authorize(self, request: web.Request) -> None:
        if not self._token:
            raise _RejectedRequest(
                HTTPStatus.FORBIDDEN,
                "off",
                "publishing over HTTP is off on this node: it has no token "
                "(--publish-token-file or --publish-token)",
            )
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        known = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._token)
        if scheme.lower() == "bearer" and known:
            return
        # RFC 6750 section 3.1: what is wrong with a token is told only to who has brought one.
        challenge = 'Bearer realm="webflow-gateway"' + (', error="invalid_token"' if scheme else "")
        raise _RejectedRequest(
            HTTPStatus.UNAUTHORIZED,
            "unauthorized",
            "send the node's publish token: Authorization: Bearer …",
            {"WWW-Authenticate": challenge},
        )


def outcome_label(end: Outcome) -> str:
    """What became of a result, in a word."""
    match end:
        case Published(receivers=0, retained=retained):
            return "retained" if retained else "nobody"
        case Published():
            return "held"
        case Unconfirmed():
            return "unconfirmed"
        case _:
            return "invalid"


class _RejectedRequest(Exception):
    """The request as a whole is none; `response` says why."""

    def __init__(
        self, status: HTTPStatus, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.response = _json({"error": {"code": code, "message": message}}, status, headers or {})


async def _body(request: web.Request) -> Any:
    if request.content_type != JSON:
        raise _RejectedRequest(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "not_json", f"the body must be {JSON}")
    try:
        return orjson.loads(await request.read())
    except web.HTTPRequestEntityTooLarge:
        raise _RejectedRequest(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_big", f"a request has at most {MAX_PUBLISH_BODY} bytes"
        ) from None
    except orjson.JSONDecodeError as error:
        raise _RejectedRequest(HTTPStatus.BAD_REQUEST, "not_json", f"the body is not JSON: {error}") from None


def _items(body: dict[str, Any]) -> list[object]:
    """The results of a batch."""
    items = body["results"]
    if len(body) != 1 or not isinstance(items, list) or not items:
        raise _RejectedRequest(
            HTTPStatus.BAD_REQUEST, "invalid", "a batch is results, a list of at least one, and nothing else"
        )
    if len(items) > MAX_RESULTS:
        raise _RejectedRequest(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "too_many",
            f"a batch has at most {MAX_RESULTS} results and not {len(items)}",
        )
    return items


def _status(ends: Sequence[Outcome]) -> HTTPStatus:
    kinds = {type(end) for end in ends}
    if kinds == {Published}:
        return HTTPStatus.OK
    if Published in kinds:
        return HTTPStatus.MULTI_STATUS
    return HTTPStatus.SERVICE_UNAVAILABLE if Unconfirmed in kinds else HTTPStatus.BAD_REQUEST


def _json(body: object, status: HTTPStatus, headers: Mapping[str, str]) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, headers=headers, content_type=JSON)
