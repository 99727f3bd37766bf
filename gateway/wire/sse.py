"""Server-sent events, for an EventSource or `curl -N`. Pure. The client sends nothing after its request."""

from __future__ import annotations

from typing import Final

from ..messages import AUTHORIZATION, REGISTRATION, STATUS, CloseCode, Problem, Request, Result
from .json import JSON_WIRE

RECONNECT_DELAY: Final = b"retry: 1000\n\n"
"""Milliseconds that an EventSource waits before it reconnects. Its default is 3 to 5 s."""

REJECTED_EVENT_ID: Final = "not registered"
"""The event id of a rejected registration, which the browser sends when it reconnects. No messageId has a
space. HTML ("server-sent events") has no event that ends an EventSource: only the response to a request
does."""

# The data of an event is the message of the JSON wire without the topic, which is the event's name.
_REGISTRATION: Final = len(f'{{"topic":"{REGISTRATION}",')
_AUTHORIZATION: Final = len(f'{{"topic":"{AUTHORIZATION}",')
_STATUS: Final = len(f'{{"topic":"{STATUS}",')


class SSEWire:
    """Web Flow's messages as events. Stateless: `SSE_WIRE` serves every session."""

    __slots__ = ()

    name = "sse"
    binary = False
    either = False
    greeting = RECONNECT_DELAY
    outgoing = 0.0
    heartbeat = b":\n\n"
    """A comment."""
    incomplete = 0

    def receive(self, message: bytes) -> tuple[Request, ...]:
        """Nothing: the client sends no messages."""
        return ()

    def registered(self, web_socket_id: bytes) -> bytes:
        return _event(b"registration", JSON_WIRE.registered(web_socket_id)[_REGISTRATION:])

    def rejected(self, web_socket_id: object, problem: Problem) -> bytes:
        event = _event(b"registration", JSON_WIRE.rejected(web_socket_id, problem)[_REGISTRATION:])
        return b"id: %b\n%b" % (REJECTED_EVENT_ID.encode(), event)

    def error(self, problem: Problem) -> bytes | None:
        """Nothing: the client sends no messages."""
        return None

    def result(self, web_socket_id: bytes, result: Result) -> bytes:
        event = _event(b"authorization", JSON_WIRE.result(web_socket_id, result)[_AUTHORIZATION:])
        return event if result.message_id is None else b"id: %b\n%b" % (result.message_id.encode(), event)

    def status(self, push: str) -> bytes:
        return _event(b"status", JSON_WIRE.status(push)[_STATUS:])


def _event(name: bytes, members: bytes) -> bytes:
    # orjson writes no line ends, so the data is one line.
    return b"event: %b\ndata: {%b\n\n" % (name, members)


def close_comment(code: CloseCode, reason: str) -> bytes:
    """A comment with the reason why the stream ends, for people. An EventSource ignores it and reconnects."""
    return b": %d %b\n\n" % (code, reason.encode())


SSE_WIRE = SSEWire()
