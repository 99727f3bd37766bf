"""Which worker a request belongs to, where several processes serve one port. Pure.

A client of SockJS over HTTP sends one request after another, each on whatever connection there is, and the
kernel gives each connection to any worker. Its session lives in one of them: the one that a hash of the
session's name in the path says, which every worker can tell by itself.
"""

from __future__ import annotations

import re
import zlib

from ..wire import sockjs

_REQUEST = re.compile(rb"[A-Z]+ (?:https?://[^/? ]*)?(/[^? ]*)")
"""The path of a request's line; proxies may send the whole URL (RFC 9112 section 3.2.2)."""

_BY_REQUESTS = frozenset((sockjs.XHR, sockjs.XHR_SEND, sockjs.XHR_STREAMING, sockjs.EVENTSOURCE))


def owner(head: bytes, prefix: bytes, workers: int) -> int | None:
    """The number, from 1, of the worker that the request which begins with `head` belongs to.

    None where any will do: it is none of SockJS below `prefix`, or opens a WebSocket, which stays in place.
    """
    request = _REQUEST.match(head)
    if request is None or not request[1].startswith(prefix):
        return None
    place = sockjs.parse_path(request[1][len(prefix) :].decode("latin-1"))
    if place is None or place.name not in _BY_REQUESTS:
        return None
    return 1 + zlib.crc32(place.session.encode("latin-1")) % workers
