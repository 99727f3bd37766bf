"""The files of the pages, with headers that let a page load nothing from other sites."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

STATIC = Path(__file__).parents[1] / "static"

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def file_response(name: str) -> web.FileResponse:
    """A file of `STATIC`, with these headers."""
    return web.FileResponse(
        STATIC / name,
        headers={
            "Content-Security-Policy": CONTENT_SECURITY_POLICY,
            "Cross-Origin-Resource-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        },
    )
