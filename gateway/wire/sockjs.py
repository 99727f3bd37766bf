"""SockJS 0.3, an envelope for the messages of another protocol: frames, quoting and paths. Pure.

    o                    the session is open
    h                    a heartbeat
    a["…","…"]           messages
    c[3000,"Go away!"]   the session is closed

"The protocol" below means the comments in sockjs-protocol.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

import orjson

from ..messages import CloseCode, parse_json
from .json import has_many_parts

OPEN_FRAME: Final = b"o"
HEARTBEAT_FRAME: Final = b"h"
PRELUDE: Final = b"h" * 2048
"""Sent before an XHR stream: some browsers hold back the first 2 KB."""

MAX_SEGMENT: Final = 200
"""Characters of a server or session id. sockjs-client makes ids of 8. A session keeps its id in memory."""


class InvalidPayload(ValueError):
    """The payload is no array of messages. The text is the answer of all SockJS servers."""


def message_frame(quoted: Iterable[bytes]) -> bytes:
    """The frame with these messages, which are quoted already."""
    return b"a[" + b",".join(quoted) + b"]"


def quote(message: bytes) -> bytes:
    """`message`, which is UTF-8, as a JSON string that no browser changes.

    The protocol lists characters that some browsers change unless they are escaped. Except for control
    characters, all of them are outside ASCII. So everything outside ASCII is escaped: it is rare.
    """
    if message.isascii():
        return orjson.dumps(message.decode())
    return json.dumps(message.decode()).encode()


def close_frame(code: int, reason: str) -> bytes:
    """The frame that closes a session. For 1000, the normal end, all SockJS servers send the same frame."""
    if code == CloseCode.NORMAL:
        return GO_AWAY_FRAME
    return b"c[%d,%b]" % (code, quote(reason.encode()))


GO_AWAY_FRAME: Final = b'c[3000,"Go away!"]'
ANOTHER_CONNECTION_FRAME: Final = b'c[2010,"Another connection still open"]'


def parse_messages(payload: bytes) -> list[str]:
    """The messages in a payload: a JSON array of strings, or nothing. No message has half a surrogate pair.

    Raises InvalidPayload for anything else.
    """
    if not payload:
        return []
    if has_many_parts(payload):
        raise InvalidPayload("Payload expected.")
    try:
        found = parse_json(payload)
    except ValueError:
        raise InvalidPayload("Broken JSON encoding.") from None
    if isinstance(found, str):  # over a WebSocket, older clients send one message without an array
        return [found]
    if not isinstance(found, list) or not all(isinstance(message, str) for message in found):
        raise InvalidPayload("Payload expected.")
    return found


def parse_request_body(payload: bytes) -> list[str]:
    """The messages in the body of a request. Raises InvalidPayload, also for an empty body."""
    if not payload:
        raise InvalidPayload("Payload expected.")
    return parse_messages(payload)


# How each transport separates its frames


def line(frame: bytes) -> bytes:
    """For xhr and xhr_streaming."""
    return frame + b"\n"


def event(frame: bytes) -> bytes:
    """For eventsource. sockjs-client reads `%` and what follows as a hexadecimal character code."""
    return b"data: " + frame.replace(b"%", rb"\u0025") + b"\r\n\r\n"


EVENTS_PRELUDE: Final = b"\r\n"

# Paths


class SockJSPath(NamedTuple):
    """A path below the prefix: the name of a resource, or of a transport and its session."""

    name: str
    session: str = ""


GREETING, INFO, IFRAME, RAW_WEBSOCKET = "greeting", "info", "iframe", "raw websocket"
XHR, XHR_SEND, XHR_STREAMING, EVENTSOURCE = "xhr", "xhr_send", "xhr_streaming", "eventsource"
WEBSOCKET = "websocket"

_RESOURCES: Final = {
    "": SockJSPath(GREETING),
    "/": SockJSPath(GREETING),
    "/info": SockJSPath(INFO),
    "/websocket": SockJSPath(RAW_WEBSOCKET),
}
_IFRAME: Final = re.compile(r"/iframe[0-9A-Za-z._-]*\.html")
_SESSION: Final = re.compile(
    rf"/[^/.]{{1,{MAX_SEGMENT}}}/([^/.]{{1,{MAX_SEGMENT}}})"
    rf"/({WEBSOCKET}|{XHR}|{XHR_SEND}|{XHR_STREAMING}|{EVENTSOURCE})"
)


def parse_path(path: str) -> SockJSPath | None:
    """The parsed `path`, which is as the client wrote it, without the prefix and the query.

    None for unknown paths. Among them are jsonp and htmlfile, the transports of old browsers. The server's
    part of a path is for load balancers and is ignored. A part may be anything but empty, and has no dot.
    """
    resource = _RESOURCES.get(path)
    if resource is not None:
        return resource
    if _IFRAME.fullmatch(path):
        return SockJSPath(IFRAME)
    found = _SESSION.fullmatch(path)
    return SockJSPath(found[2], found[1]) if found else None


def iframe(script: str) -> bytes:
    """The page that old browsers load into an iframe. `script` is the address of the client library.

    `script` must need no escaping in HTML.
    """
    return f"""<!DOCTYPE html>
<html>
<head>
  <meta http-equiv="X-UA-Compatible" content="IE=edge" />
  <meta http-equiv="Content-Type" content="text/html; charset=UTF-8" />
  <script src="{script}"></script>
  <script>
    document.domain = document.domain;
    SockJS.bootstrap_iframe();
  </script>
</head>
<body>
  <h2>Don't panic!</h2>
  <p>This is a SockJS hidden iframe. It's used for cross domain magic.</p>
</body>
</html>""".encode()
