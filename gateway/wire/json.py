"""JSON over WebSocket: one object a message, `topic` first."""

from __future__ import annotations

import orjson

from ..errors import WireError
from ..messages import (
    AUTHORIZATION,
    ERROR,
    NO_DATA,
    REGISTRATION,
    CloseCode,
    Problem,
    Request,
    Result,
    Unknown,
    registration,
)

_UNKNOWN = Unknown(Problem("unknown_message", f'expected {{"topic":"{REGISTRATION}","webSocketId":"..."}}'))


class JsonWire:
    """Web Flow's messages as plain JSON. Stateless: `JSON_WIRE` serves every session."""

    __slots__ = ()

    def receive(self, message: bytes) -> tuple[Request]:
        try:
            body = orjson.loads(message)
        except orjson.JSONDecodeError:
            raise WireError(CloseCode.INVALID_DATA, "not JSON") from None
        if not isinstance(body, dict):
            return (_UNKNOWN,)
        # The bare {"webSocketId": "..."} registers too: the protocol page's example, typed by hand.
        if body.get("topic", REGISTRATION if "webSocketId" in body else None) == REGISTRATION:
            return (registration(body.get("webSocketId")),)
        return (_UNKNOWN,)

    def acknowledge(self, web_socket_id: str) -> bytes:
        # Ids need no escaping, see WEB_SOCKET_ID, here and below.
        return (
            f'{{"topic":"{REGISTRATION}","webSocketId":"{web_socket_id}","registrationSucceeded":true}}'
        ).encode()

    def reject(self, web_socket_id: object, problem: Problem) -> bytes:
        body: dict[str, object] = {"topic": REGISTRATION}
        if isinstance(web_socket_id, str) and len(web_socket_id) <= 200:
            body["webSocketId"] = web_socket_id
        return orjson.dumps(body | {"registrationSucceeded": False, "error": problem._asdict()})

    def complain(self, problem: Problem) -> bytes:
        return orjson.dumps({"topic": ERROR, "error": problem._asdict()})

    def result(self, web_socket_id: str, result: Result) -> bytes:
        message = (
            f'{{"topic":"{AUTHORIZATION}","webSocketId":"{web_socket_id}","authResult":"{result.auth_result}"'
        ).encode()
        if result.message_id is not None:
            message += b',"messageId":' + orjson.dumps(result.message_id)
        if result.data is not NO_DATA:
            message += b',"data":' + orjson.dumps(result.data)
        return message + b"}"


JSON_WIRE = JsonWire()
