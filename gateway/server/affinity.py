"""Which worker owns a request, where several processes serve one port. Pure.

A SockJS client over HTTP sends its requests on any connection, and the kernel gives each connection to any
worker. The session is in one worker: a hash of the session's name, which is in the path, tells every worker
which one.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable

from ..wire import sockjs

_REQUEST_LINE = re.compile(rb"[A-Z]+ (?:https?://[^/? ]*)?(/[^? ]*)")
"""Captures the path. Proxies may send the whole URL (RFC 9112 section 3.2.2)."""

_HTTP_TRANSPORTS = frozenset((sockjs.XHR, sockjs.XHR_SEND, sockjs.XHR_STREAMING, sockjs.EVENTSOURCE))


def owner(head: bytes, prefixes: Iterable[str], workers: int) -> int | None:
    """The number, from 1, of the worker that owns the request that begins with `head`.

    None if any worker can answer: the path is below none of these SockJS prefixes, or the request opens a
    WebSocket, which stays in one process.
    """
    request = _REQUEST_LINE.match(head)
    if request is None:
        return None
    path = request[1].decode("latin-1")
    places = (sockjs.parse_path(path[len(each) :]) for each in prefixes if path.startswith(each))
    found = next((place for place in places if place is not None), None)
    if found is None or found.name not in _HTTP_TRANSPORTS:
        return None
    return 1 + zlib.crc32(found.session.encode("latin-1")) % workers
