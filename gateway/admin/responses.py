"""The responses of the admin port: JSON and errors, which no cache may store and no other site may load."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from aiohttp import web

from ..server.responses import EVENT_STREAM, json_response, unbuffered_headers

PRIVATE_HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        # No page of another site may load the response, not even one that cannot read it.
        "Cross-Origin-Resource-Policy": "same-origin",
    }
)

STREAM_HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {**unbuffered_headers(EVENT_STREAM), **PRIVATE_HEADERS}
)


def private_json(
    body: object, status: int = 200, headers: Mapping[str, str] = PRIVATE_HEADERS
) -> web.Response:
    """`body` as JSON, with PRIVATE_HEADERS or with other headers instead."""
    return json_response(body, status, headers)


def error_response(
    status: int, code: str, message: str, headers: Mapping[str, str] = PRIVATE_HEADERS
) -> web.Response:
    """An error in the form that all of them have: a code for programs, a message for people."""
    return json_response({"error": {"code": code, "message": message}}, status, headers)
