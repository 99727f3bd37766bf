"""JSON: one object in each message, `topic` first."""

from __future__ import annotations

from functools import lru_cache

import orjson

from ..errors import WireError
from ..messages import (
    AUTHORIZATION,
    ERROR,
    NO_DATA,
    REGISTRATION,
    STATUS,
    CloseCode,
    Problem,
    Request,
    Result,
    UnknownMessage,
    WatchStatus,
    parse_json,
    parse_registration,
)

MAX_PARTS = 256
"""Objects and arrays in one message of a client; a registration is one object. Bytes are limited elsewhere,
but to parse empty and nested arrays costs fifteen times as much as to parse text of the same length."""

_ALWAYS_FEW = 2 * MAX_PARTS  # bytes; each part has two

# Ids and results need no escaping: WEB_SOCKET_ID and AUTH_RESULT guarantee that.
_REGISTERED = f'{{"topic":"{REGISTRATION}","webSocketId":"'.encode()
_AUTHORIZED = f'{{"topic":"{AUTHORIZATION}","webSocketId":"'.encode()

_UNKNOWN = UnknownMessage(
    Problem("unknown_message", f'expected {{"topic":"{REGISTRATION}","webSocketId":"..."}}')
)


class JsonWire:
    """Web Flow's messages as plain JSON. Stateless: `JSON_WIRE` serves every session."""

    __slots__ = ()

    name = "json"
    binary = False
    either = False
    greeting = None
    outgoing = 0.0  # the pings of WebSocket are enough
    heartbeat = b""
    incomplete = 0

    def receive(self, message: bytes) -> tuple[Request, ...]:
        try:
            body = parse_object(message)
        except ValueError:
            raise WireError(CloseCode.INVALID_DATA, "not JSON") from None
        if body is None:
            return (_UNKNOWN,)
        # {"webSocketId": "..."} without a topic registers too, as in the protocol page's example.
        if body.get("topic", REGISTRATION if "webSocketId" in body else None) == REGISTRATION:
            wanted = parse_registration(body.get("webSocketId"), body.get("lastMessageId"), body.get("token"))
            # The registration comes first, so that its answer is sent before a status.
            return (wanted, WatchStatus()) if body.get("status") is True else (wanted,)
        return (_UNKNOWN,)

    def registered(self, web_socket_id: bytes) -> bytes:
        return _REGISTERED + web_socket_id + b'","registrationSucceeded":true}'

    def rejected(self, web_socket_id: object, problem: Problem) -> bytes:
        body: dict[str, object] = {"topic": REGISTRATION}
        if isinstance(web_socket_id, str) and len(web_socket_id) <= 200:
            body["webSocketId"] = web_socket_id
        return orjson.dumps(body | {"registrationSucceeded": False, "error": problem._asdict()})

    def error(self, problem: Problem) -> bytes:
        return orjson.dumps({"topic": ERROR, "error": problem._asdict()})

    def result(self, web_socket_id: bytes, result: Result) -> bytes:
        message = _AUTHORIZED + web_socket_id + _ending(result.auth_result)
        if result.message_id is None and result.data is NO_DATA:
            return message
        extra: dict[str, object] = {}
        if result.message_id is not None:
            extra["messageId"] = result.message_id
        if result.data is not NO_DATA:
            extra["data"] = result.data
        return message[:-1] + b"," + orjson.dumps(extra)[1:]

    def status(self, push: str) -> bytes:
        return f'{{"topic":"{STATUS}","push":"{push}"}}'.encode()


@lru_cache(256)  # backends use a handful of words
def _ending(auth_result: str) -> bytes:
    return f'","authResult":"{auth_result}"}}'.encode()


def parse_object(text: bytes) -> dict[str, object] | None:
    """The JSON object in a client's message. None for any other value, and for more than MAX_PARTS.

    Raises ValueError if it is no JSON.
    """
    body = None if has_many_parts(text) else parse_json(text)
    return body if isinstance(body, dict) else None


def has_many_parts(text: bytes) -> bool:
    """Whether a JSON text has more than MAX_PARTS objects and arrays, or as many brackets in its strings."""
    return len(text) > _ALWAYS_FEW and text.count(b"[") + text.count(b"{") > MAX_PARTS


JSON_WIRE = JsonWire()
