"""The messages between clients, nodes and publishers, independent of every wire."""

from __future__ import annotations

import re
from enum import IntEnum
from functools import lru_cache
from typing import Final, NamedTuple

import orjson

WEB_SOCKET_ID = re.compile(r"[A-Za-z0-9._~-]{1,200}", re.ASCII)
"""A webSocketId. It needs no escaping in JSON, in a URL or in the name of a Redis channel."""

AUTH_RESULT = re.compile(r"[A-Z][A-Z0-9_]{0,63}", re.ASCII)
"""An authResult: CONFIRMED, CONTINUE, FAILED, DONE or another word of the backend."""

MESSAGE_ID = re.compile(r"[!-~]{1,200}", re.ASCII)
"""A messageId: visible ASCII, so that an HTTP header can hold it. A UUID has 36 characters."""

TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
"""A trace: W3C Trace Context, section 3.2.2."""

NO_DATA: Final = object()
"""The `data` of a result that has none. None is JSON's null, which is data."""

REGISTRATION = "/user/topic/registration"
AUTHORIZATION = "/user/topic/authorization"
ERROR = "/user/topic/error"
STATUS = "/user/topic/status"

DEGRADED = "degraded"
"""The value of `push` on the status topic after some seconds in which results could not be received."""

RESTORED = "restored"
"""The value of `push` when results are received again, and the retained ones have been sent."""


class CloseCode(IntEnum):
    """Why a connection ended: RFC 6455 section 7.4.1 and its IANA registry."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS = 1005  # never sent: the peer closed without a code
    ABNORMAL = 1006  # never sent: the peer disconnected without a close frame
    INVALID_DATA = 1007
    POLICY = 1008
    TOO_BIG = 1009
    INTERNAL = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013


OTHER_CODE: Final = 0
"""In the place of a close code that is not in `CloseCode`. Clients may choose any from 3000 to 4999."""

OTHER: Final = "other"
"""What is counted under no name of its own."""

_CODES: Final = {int(code): code for code in CloseCode}


def known_code(code: int) -> int:
    """`code` if it is a `CloseCode`, else OTHER_CODE: what is counted by codes must not grow with them."""
    return _CODES.get(code, OTHER_CODE)


def code_label(code: int) -> str:
    """A known code as people and metrics see it."""
    return OTHER if code == OTHER_CODE else str(int(code))


NODE_STOPPED: Final = "node stopped"
"""The reason of a session that ends because its node stops, and does not wait for a close frame."""

SLOW_CONSUMER: Final = "slow consumer"
"""The reason of a session that ends because its client left too many bytes unread."""


class Problem(NamedTuple):
    """What is wrong with a client's message. `code` is for programs, `message` for people."""

    code: str
    message: str


UNKNOWN_ID: Final = Problem("unknown_id", "nobody has announced this webSocketId")
"""With `--registration announced`."""

NOT_AUTHORIZED: Final = Problem("not_authorized", "the token does not allow this webSocketId")
"""With `--registration signed`. Why it does not is for the log: an attacker needs no help."""


class Register(NamedTuple):
    """The client asks for the results of `web_socket_id`, which has the form of `WEB_SOCKET_ID`.

    `last_message_id` is the last messageId that the client has had, on any connection. That result is not
    sent again. `token` is what the client offers as a proof that it may register the id.
    """

    web_socket_id: str
    last_message_id: str | None = None
    token: str | None = None


class WatchStatus(NamedTuple):
    """The client wants to know when results cannot be received, and when they can be again."""


class InvalidRegistration(NamedTuple):
    """The client asked to register an id that cannot be registered."""

    web_socket_id: object
    problem: Problem


class UnknownMessage(NamedTuple):
    """The client sent a well-formed message that the gateway does not know."""

    problem: Problem


class Reply(NamedTuple):
    """Send `payload`, one of the wire's messages, to the client.

    `kept` is for a result that the wire has kept until now: 1 for the newest, 2 for the one before it.
    """

    payload: bytes
    kept: int = 0


class NextMessage(NamedTuple):
    """What follows is one more message, though it came together with the last one. It is not read yet."""


class Disconnect(NamedTuple):
    """The client disconnects: send `payload`, one of the wire's messages, unless it is None. Then close."""

    payload: bytes | None


Request = Register | WatchStatus | InvalidRegistration | UnknownMessage | Reply | NextMessage | Disconnect


_HALF_A_PAIR: Final = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
"""The escape of a high surrogate that no low one follows, or of a low one that follows no high one."""


def parse_json(text: bytes) -> object:
    """The value of a JSON text in UTF-8. Raises ValueError if it is none.

    JSON may escape half of a surrogate pair (RFC 8259 section 8.2), as JavaScript and Java do with a string
    that was cut there. UTF-8 cannot represent it, so it becomes U+FFFD, as in a browser's TextEncoder.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        # Without escaped backslashes, every backslash begins an escape.
        whole, found = _HALF_A_PAIR.subn(rb"\\ufffd", text.replace(rb"\\", rb"\u005c"))
        if not found:
            raise
    return orjson.loads(whole)


def parse_registration(
    web_socket_id: object, last_message_id: object = None, token: object = None
) -> Register | InvalidRegistration:
    """The request to register `web_socket_id`, which may be any JSON value, as the others may.

    An invalid `last_message_id` is ignored: a duplicate result does no harm, but a rejection could end a
    login. A `token` that is no string becomes the empty one, which proves nothing.
    """
    if isinstance(web_socket_id, str) and WEB_SOCKET_ID.fullmatch(web_socket_id):
        if token is not None and not isinstance(token, str):
            token = ""
        return Register(web_socket_id, as_message_id(last_message_id), token)
    if web_socket_id is None:
        problem = Problem("missing_id", "webSocketId is missing")
    elif not isinstance(web_socket_id, str):
        problem = Problem("invalid_id", "webSocketId must be a string")
    elif not 1 <= len(web_socket_id) <= 200:
        problem = Problem("invalid_id", "webSocketId must have 1 to 200 characters")
    else:
        problem = Problem("invalid_id", "webSocketId may contain only A-Z a-z 0-9 . _ ~ -")
    return InvalidRegistration(web_socket_id, problem)


def as_message_id(value: object) -> str | None:
    """`value` if it is a valid messageId, else None."""
    return value if isinstance(value, str) and MESSAGE_ID.fullmatch(value) else None


class Origin(NamedTuple):
    """What a publisher says about the origin of a result. It is for operators, not for clients."""

    published_at: float | None
    """Seconds since 1970 by the publisher's clock."""
    traceparent: object
    """The result's trace, unchecked: see TRACEPARENT."""


class Result:
    """One published result.

    `data` is any JSON value that orjson can write, or `NO_DATA`.
    """

    __slots__ = ("auth_result", "data", "message_id", "origin")

    def __init__(
        self,
        auth_result: str,
        message_id: str | None = None,
        data: object = NO_DATA,
        origin: Origin | None = None,
    ) -> None:
        self.auth_result = auth_result
        self.message_id = message_id
        self.data = data
        self.origin = origin

    def __repr__(self) -> str:
        return f"Result({self.auth_result!r}, message_id={self.message_id!r})"


INVALID_KINDS: Final = (
    "too big",
    "not JSON",
    "not a result",
    "no authResult",
    "bad messageId",
    "another webSocketId",
    "data nested too deeply",
)
"""The kinds of payloads that no node forwards."""


_WHITE_SPACE: Final = b" \t\n\r"
"""RFC 8259 section 2. Shells and template engines leave it around a payload."""


class InvalidResult(ValueError):
    """A published payload that no node forwards. `kind` is one of `INVALID_KINDS`, for counting."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


def parse_result(payload: bytes, web_socket_id: bytes, max_size: int) -> Result:
    """The result in a payload that was published for `web_socket_id`. It may have `max_size` bytes.

    A payload is a word such as `CONFIRMED`, or a JSON object with `authResult` and optional `messageId`,
    `data` and `webSocketId`. Either may have JSON's white space around it. Raises InvalidResult for anything
    else. `publishedAt` (milliseconds since 1970) and `traceparent` are for operators. They never make a
    result invalid.
    """
    if len(payload) > max_size:
        raise InvalidResult("too big")
    if payload[:1] != b"{" and payload.lstrip(_WHITE_SPACE)[:1] != b"{":
        return _bare_result(payload)
    try:
        body = parse_json(payload)
    except ValueError:
        raise InvalidResult("not JSON") from None
    assert isinstance(body, dict)  # it begins with a brace
    return _result_of(body, web_socket_id, max_size)


@lru_cache(256)  # backends use a handful of words. An invalid one raises, and is not kept
def _bare_result(payload: bytes) -> Result:
    word = payload.strip(_WHITE_SPACE).decode("latin-1")
    if not AUTH_RESULT.fullmatch(word):
        raise InvalidResult("not a result")
    return Result(word)


def _result_of(body: dict[str, object], web_socket_id: bytes, max_size: int) -> Result:
    auth_result = body.get("authResult")
    if not isinstance(auth_result, str) or not AUTH_RESULT.fullmatch(auth_result):
        raise InvalidResult("no authResult")
    message_id = body.get("messageId")
    if message_id is not None and not (isinstance(message_id, str) and MESSAGE_ID.fullmatch(message_id)):
        raise InvalidResult("bad messageId")
    if "webSocketId" in body and body["webSocketId"] != web_socket_id.decode():
        raise InvalidResult("another webSocketId")
    data = _fragment(body["data"], max_size) if "data" in body else NO_DATA
    return Result(auth_result, message_id, data, _origin_of(body))


def _origin_of(body: dict[str, object]) -> Origin | None:
    if "publishedAt" not in body and "traceparent" not in body:
        return None
    published_at = body.get("publishedAt")
    known = isinstance(published_at, (int, float)) and not isinstance(published_at, bool)
    return Origin(published_at / 1000 if known else None, body.get("traceparent"))  # type: ignore[operator]


def _fragment(data: object, max_size: int) -> orjson.Fragment:
    """`data` as the JSON text that is sent.

    orjson can read deeper nesting than it can write, and it writes 1e15 as 1000000000000000.0.
    """
    try:
        text = orjson.dumps(data)
    except orjson.JSONEncodeError:
        raise InvalidResult("data nested too deeply") from None
    if len(text) > max_size:
        raise InvalidResult("too big")
    return orjson.Fragment(text)
