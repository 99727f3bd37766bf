"""What POST /publish and POST /announce have in common: the token, and a body in JSON."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import orjson
from aiohttp import web

from ..errors import GatewayError
from ..messages import parse_json
from .responses import PRIVATE_HEADERS, error_response

MAX_PUBLISH_BODY: Final = 2 << 20
"""Bytes of a request: a thousand results with ids of 128 characters and no data have 300 KB."""

RETRY_AFTER_HEADER: Final = "1"
"""Seconds; the publisher has been trying for three by then."""


class RejectedRequest(GatewayError):
    """The request as a whole is rejected; `response` is the answer."""

    def __init__(
        self, status: HTTPStatus, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.response = error_response(status, code, message, {**PRIVATE_HEADERS, **(headers or {})})


class PublishToken:
    """The token that backends send."""

    def __init__(self, token: str) -> None:
        """With an empty `token` every request is rejected."""
        self.text = token.encode()
        # Tells auditors which token it was, while tokens are exchanged for new ones.
        self.fingerprint = hashlib.sha256(self.text).hexdigest()[:8]

    def authorize(self, request: web.Request) -> None:
        """Raises RejectedRequest for a request without the token."""
        if not self.text:
            raise RejectedRequest(
                HTTPStatus.FORBIDDEN,
                "off",
                "publishing over HTTP is off: this node has no token; set --publish-token-file "
                "(GATEWAY_PUBLISH_TOKEN_FILE) or --publish-token (GATEWAY_PUBLISH_TOKEN)",
            )
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        matches = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self.text)
        if scheme.lower() == "bearer" and matches:
            return
        # RFC 6750 section 3.1: a request without a token gets no error code.
        challenge = 'Bearer realm="webflow-gateway"' + (', error="invalid_token"' if scheme else "")
        raise RejectedRequest(
            HTTPStatus.UNAUTHORIZED,
            "unauthorized",
            "send the node's publish token in the header Authorization: Bearer …",
            {"WWW-Authenticate": challenge},
        )


async def json_body(request: web.Request) -> Any:
    """The body of a request. Raises RejectedRequest."""
    if request.content_type != "application/json":
        raise RejectedRequest(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "not_json", "Content-Type must be application/json"
        )
    try:
        return parse_json(await request.read())
    except web.HTTPRequestEntityTooLarge:
        raise RejectedRequest(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "too_big",
            f"a request may have at most {MAX_PUBLISH_BODY} bytes",
        ) from None
    except orjson.JSONDecodeError as error:
        raise RejectedRequest(HTTPStatus.BAD_REQUEST, "not_json", f"the body is not JSON: {error}") from None
