"""Which pages may connect: compares the Origin header with the settings (RFC 6454)."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}


_PAGE_SCHEMES = {"ws": "http", "wss": "https"}
"""Traefik sends the WebSocket's scheme in X-Forwarded-Proto. The page that opened it has the other."""


@lru_cache(1024)  # a few pages on a few hosts open all sessions
def origin_allowed(origin: str | None, host: str, scheme: str | None, allowed: tuple[str, ...]) -> bool:
    """Whether a page from `origin` may connect (RFC 6454). Browsers send an origin, programs do not.

    `allowed` holds exact origins, `*`, or `same-origin`: the origin has the host and port of the request's
    Host header, and `scheme`, if a trusted proxy has sent it.
    """
    if origin is None or "*" in allowed or ("://" in origin and origin.lower() in allowed):
        return True
    return "same-origin" in allowed and _same_origin(origin, host, scheme and scheme.lower())


def _same_origin(origin: str, host: str, scheme: str | None) -> bool:
    page_scheme = origin.partition("://")[0].lower()
    try:
        page, here = urlsplit(origin), urlsplit(f"{page_scheme}://{host}")
        page_port, here_port = page.port, here.port
    except ValueError:  # an invalid port, a missing bracket
        return False
    default = _DEFAULT_PORTS.get(page_scheme)
    return (
        default is not None
        and (not scheme or _PAGE_SCHEMES.get(scheme, scheme) == page_scheme)
        and page.hostname is not None
        and (page.hostname, page_port or default) == (here.hostname, here_port or default)
    )
