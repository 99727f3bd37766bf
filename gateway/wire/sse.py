"""Server-sent events: what an EventSource, or `curl -N`, is sent. Pure; the client only listens."""

from __future__ import annotations

from typing import Final

from ..messages import AUTHORIZATION, REGISTRATION, STATUS, CloseCode, Problem, Request, Result
from .json import JSON_WIRE

RECONNECT_DELAY: Final = b"retry: 1000\n\n"
"""Milliseconds that an EventSource waits before it connects again; its own default is 3 to 5 s."""

REJECTED_EVENT_ID: Final = "not registered"
"""The id of a registration that failed, which the browser says when it connects again; no messageId has a
space. HTML ("server-sent events") lets nothing in a stream end an EventSource, but an answer that is none."""

# An event's data is what JSON over WebSocket says, without the topic: the event's name says it.
_REGISTRATION: Final = len(f'{{"topic":"{REGISTRATION}",')
_AUTHORIZATION: Final = len(f'{{"topic":"{AUTHORIZATION}",')
_STATUS: Final = len(f'{{"topic":"{STATUS}",')


class SSEWire:
    """Web Flow's messages as events. Stateless: `SSE_WIRE` serves every session."""

    __slots__ = ()

    name = "sse"
    outgoing = 0.0
    heartbeat = b":\n\n"
    """A comment."""

    def receive(self, message: bytes) -> tuple[Request, ...]:
        """Nothing: the request's query has said it all."""
        return ()

    def acknowledge(self, web_socket_id: bytes) -> bytes:
        return _event(b"registration", JSON_WIRE.acknowledge(web_socket_id)[_REGISTRATION:])

    def reject(self, web_socket_id: object, problem: Problem) -> bytes:
        event = _event(b"registration", JSON_WIRE.reject(web_socket_id, problem)[_REGISTRATION:])
        return b"id: %b\n%b" % (REJECTED_EVENT_ID.encode(), event)

    def complain(self, problem: Problem) -> bytes:
        """Nothing: a client that says nothing cannot be misunderstood."""
        return b""

    def result(self, web_socket_id: bytes, result: Result) -> bytes:
        event = _event(b"authorization", JSON_WIRE.result(web_socket_id, result)[_AUTHORIZATION:])
        return event if result.message_id is None else b"id: %b\n%b" % (result.message_id.encode(), event)

    def status(self, push: str) -> bytes:
        return _event(b"status", JSON_WIRE.status(push)[_STATUS:])


def _event(name: bytes, members: bytes) -> bytes:
    # orjson writes neither line ends nor spaces, so the data is one line.
    return b"event: %b\ndata: {%b\n\n" % (name, members)


def close_comment(code: CloseCode, reason: str) -> bytes:
    """A comment that says why the stream ends, for people: an EventSource connects again whatever it is."""
    return b": %d %b\n\n" % (code, reason.encode())


SSE_WIRE = SSEWire()
