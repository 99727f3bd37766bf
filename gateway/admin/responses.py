"""JSON answers and errors of the admin port, and the headers that keep them from caches and other sites."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

from aiohttp import web

from ..server import responses

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
    {**responses.unbuffered_headers(responses.EVENT_STREAM), **PRIVATE_HEADERS}
)


def json_response(
    body: object,
    status: HTTPStatus = HTTPStatus.OK,
    headers: Mapping[str, str] = PRIVATE_HEADERS,
) -> web.Response:
    return responses.json_response(body, status, headers)


def error_response(
    status: HTTPStatus, code: str, message: str, headers: Mapping[str, str] = PRIVATE_HEADERS
) -> web.Response:
    """An error in the form that all of them have: a code for programs, a message for people."""
    return json_response({"error": {"code": code, "message": message}}, status, headers)
