"""The responses that every HTTP endpoint shares: JSON, rejections, streams that nothing may buffer, CORS."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

import orjson
from aiohttp import web

from ..transports import http
from ..wire.handshake import Rejection

NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})

EVENT_STREAM: Final = "text/event-stream"

YEAR: Final = 31_536_000
"""Seconds for which responses that never change may be cached."""


def json_response(body: object, status: int = 200, headers: Mapping[str, str] = NO_HEADERS) -> web.Response:
    """`body` as JSON, with these headers in addition."""
    return _json(orjson.dumps(body), status, headers)


def rejection_response(rejection: Rejection, headers: Mapping[str, str] = NO_HEADERS) -> web.Response:
    """`rejection` as an aiohttp response, with these headers in addition."""
    return _json(rejection.body, rejection.status, {**rejection.headers, **headers})


def _json(body: bytes, status: int, headers: Mapping[str, str]) -> web.Response:
    return web.Response(
        body=body, status=status, headers=headers, content_type="application/json", charset="utf-8"
    )


@lru_cache(1024)  # a few origins open all sessions
def cors_headers(origin: str | None) -> Mapping[str, str]:
    """The headers that let a page from `origin`, which may connect, read the response."""
    if origin is None:
        return MappingProxyType({"Vary": "Origin"})
    return MappingProxyType(
        {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Credentials": "true",
            "Vary": "Origin",
        }
    )


def preflight_response(request: web.Request, methods: Sequence[str]) -> web.Response:
    """The answer to a CORS preflight request from a page that may connect: it may use `methods`, and the
    headers that it asks for."""
    headers = {**cacheable_headers(), **cors_headers(request.headers.get("Origin"))}
    headers["Access-Control-Allow-Methods"] = ", ".join(methods)
    headers["Access-Control-Max-Age"] = str(YEAR)
    wanted = request.headers.get("Access-Control-Request-Headers", "")
    if wanted and wanted.isascii():
        headers["Access-Control-Allow-Headers"] = wanted
    return web.Response(status=HTTPStatus.NO_CONTENT, headers=headers)


def cacheable_headers() -> dict[str, str]:
    """The headers of a response that never changes."""
    return {
        "Cache-Control": f"public, max-age={YEAR}",
        "Expires": formatdate(time.time() + YEAR, usegmt=True),
    }


def unbuffered_headers(content_type: str) -> dict[str, str]:
    """The headers of a response that no cache may store and no proxy may buffer."""
    return {"Content-Type": content_type, "Cache-Control": http.NO_STORE, "X-Accel-Buffering": "no"}


@lru_cache(1024)
def stream_headers(content_type: str, origin: str | None) -> Mapping[str, str]:
    """`unbuffered_headers`, for a page from `origin`."""
    return MappingProxyType({**unbuffered_headers(content_type), **cors_headers(origin)})
