"""Which pages may connect: the Origin header held against the settings (RFC 6454)."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}


_PAGE_SCHEMES = {"ws": "http", "wss": "https"}
"""Traefik names a WebSocket's own scheme in X-Forwarded-Proto; the page that opened it has the other."""


@lru_cache(1024)  # a few pages on a few hosts bring everybody
def origin_allowed(origin: str | None, host: str, scheme: str | None, allowed: tuple[str, ...]) -> bool:
    """Whether a page from `origin` may connect (RFC 6454; browsers send it, programs do not).

    `allowed` holds exact origins, `*`, or `same-origin`: the origin's host and port are the ones in
    the request's Host header, and its scheme is `scheme` where a trusted proxy has told it.
    """
    if origin is None or "*" in allowed or ("://" in origin and origin.lower() in allowed):
        return True
    return "same-origin" in allowed and _same_origin(origin, host, scheme and scheme.lower())


def _same_origin(origin: str, host: str, scheme: str | None) -> bool:
    page_scheme = origin.partition("://")[0].lower()
    try:
        page, here = urlsplit(origin), urlsplit(f"{page_scheme}://{host}")
        page_port, here_port = page.port, here.port
    except ValueError:  # a port that is no number, a bracket too few
        return False
    default = _DEFAULT_PORTS.get(page_scheme)
    return (
        default is not None
        and (not scheme or _PAGE_SCHEMES.get(scheme, scheme) == page_scheme)
        and page.hostname is not None
        and (page.hostname, page_port or default) == (here.hostname, here_port or default)
    )
