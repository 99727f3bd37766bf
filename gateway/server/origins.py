"""Which pages may connect: compares the Origin header with the settings (RFC 6454)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from ..config import ANY_ORIGIN, DEFAULT_PORTS, NULL_ORIGIN, PAGE_SCHEMES, SAME_ORIGIN, normalise_origin

MAX_LENGTH: Final = 1_024
"""Characters of origin, Host header and scheme together. A host name has at most 253 (RFC 1035 section
2.3.4). The limit keeps the caches small: a client may send 16 KB in a header."""


def origin_allowed(origin: str | None, host: str, scheme: str | None, allowed: tuple[str, ...]) -> bool:
    """Whether a page from `origin` may connect (RFC 6454). Browsers send an origin, programs do not.

    `allowed` holds exact origins, `*`, or `same-origin`: the origin has the host and port of the request's
    Host header, and `scheme`, if a trusted proxy has sent it.
    """
    if origin is None:
        return True
    length = len(origin) + len(host) + (len(scheme) if scheme else 0)
    return length <= MAX_LENGTH and _allowed(origin, host, scheme, allowed)


@lru_cache(1024)  # a few pages on a few hosts open all sessions
def _allowed(origin: str, host: str, scheme: str | None, allowed: tuple[str, ...]) -> bool:
    if ANY_ORIGIN in allowed:
        return True
    try:
        page = normalise_origin(origin)
    except ValueError:
        return False
    return page in allowed or (SAME_ORIGIN in allowed and _same_origin(page, host, (scheme or "").lower()))


def _same_origin(page: str, host: str, scheme: str) -> bool:
    page_scheme = page.partition("://")[0]
    if page_scheme not in DEFAULT_PORTS or (scheme and PAGE_SCHEMES.get(scheme, scheme) != page_scheme):
        return False
    try:
        return normalise_origin(f"{page_scheme}://{host}") == page
    except ValueError:  # the Host header is empty, or no host
        return False


def frame_ancestors(allowed: Sequence[str]) -> str:
    """The pages from `allowed` origins, as sources for the directive frame-ancestors of a Content Security
    Policy (section 6.4.2). A page without an origin cannot be named there."""
    sources = [
        # A scheme without a host is written with a colon alone (section 2.3.1).
        "'self'" if origin == SAME_ORIGIN else origin.removesuffix("//") if origin.endswith("://") else origin
        for origin in allowed
        if origin != NULL_ORIGIN
    ]
    return " ".join(sources) or "'none'"
