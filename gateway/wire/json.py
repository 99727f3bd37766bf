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
    parse_registration,
)

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
    greeting = None
    outgoing = 0.0  # the pings of WebSocket are enough
    heartbeat = b""

    def receive(self, message: bytes) -> tuple[Request, ...]:
        try:
            body = orjson.loads(message)
        except orjson.JSONDecodeError:
            raise WireError(CloseCode.INVALID_DATA, "not JSON") from None
        if not isinstance(body, dict):
            return (_UNKNOWN,)
        # {"webSocketId": "..."} without a topic registers too, as in the protocol page's example.
        if body.get("topic", REGISTRATION if "webSocketId" in body else None) == REGISTRATION:
            wanted = parse_registration(body.get("webSocketId"), body.get("lastMessageId"))
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


JSON_WIRE = JsonWire()
