"""JSON answers and errors of the admin port, and the headers that keep them from caches and other sites."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

import orjson
from aiohttp import web

JSON: Final = "application/json"

PRIVATE_HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        # No page of another site may load the answer, not even one that cannot read it.
        "Cross-Origin-Resource-Policy": "same-origin",
    }
)

SSE_HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {**PRIVATE_HEADERS, "Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
)
"""nginx would hold events back until its buffer is full, but for X-Accel-Buffering."""


def json_response(
    body: object,
    status: HTTPStatus = HTTPStatus.OK,
    headers: Mapping[str, str] = PRIVATE_HEADERS,
) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, headers=headers, content_type=JSON)


def error_response(
    status: HTTPStatus, code: str, message: str, headers: Mapping[str, str] = PRIVATE_HEADERS
) -> web.Response:
    """An error in the form that all of them have: a code for programs, a message for people."""
    return json_response({"error": {"code": code, "message": message}}, status, headers)
