"""STOMP 1.0, 1.1 and 1.2, server side, without I/O: the protocol of Web Flow's own page.

    client                                        gateway
    CONNECT    accept-version:1.1,1.0         ->
                                              <-  CONNECTED  version:1.1
    SUBSCRIBE  /user/topic/registration       ->
    SEND       /app/registration              ->  (Register)
                                              <-  MESSAGE    /user/topic/registration
    SUBSCRIBE  /user/topic/authorization      ->  (the next screen; earlier results have waited for it)
                                              <-  MESSAGE    /user/topic/authorization

A reference such as "1.2, Value Encoding" names a section of that version's specification.

Header values are compared and echoed as they were sent, and never unescaped. No name, destination or word
that the gateway knows contains a character that is escaped, so unescaping could not change a comparison. A
client gets its own ids back in the spelling that it can read: stompjs 2 and webstomp escape nothing in any
version, @stomp/stompjs nothing in 1.1. Escapes are only checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from ..errors import WireError
from ..messages import (
    AUTHORIZATION,
    ERROR,
    REGISTRATION,
    STATUS,
    CloseCode,
    Disconnect,
    NextMessage,
    Problem,
    Reply,
    Request,
    Result,
    UnknownMessage,
    WatchStatus,
    parse_registration,
)
from .json import JSON_WIRE, parse_object

SUBPROTOCOLS: Final = ("v12.stomp", "v11.stomp", "v10.stomp")
"""The WebSocket subprotocols, the best first. The version is decided by CONNECT alone."""

HEARTBEAT: Final = b"\n"
"""A heart-beat. It must be a message of its own, because clients compare the whole message."""

MAX_HEADERS = 32
"""Headers in one frame. The known clients send at most seven."""

MAX_LINE = 4_096
"""Bytes of one header's line. A CSRF token has 40, a signed token 2,000."""

MAX_HEAD_SIZE = 8_192
"""Bytes of all headers of a frame, as in HTTP servers."""

MAX_ID = 256
"""Bytes of a subscription's id, which a session keeps in memory. Clients use `sub-0`."""

MAX_SUBSCRIPTIONS = 16
"""Subscriptions of one session. Web Flow's page has two."""

MAX_KEPT = 16
"""Results that are kept until the client subscribes to them. A session remembers as many messageIds.

The newest are kept, because the newest result has the current state of the operation. Equal results without a
messageId are all kept, because they may be different results."""

MAX_KEPT_BYTES = 65_536
"""Bytes of the kept results; the newest is kept in any case. They are written at once, and must fit into the
write buffer of a session."""

MAX_SHARED = 128
"""Bytes of a head whose parsed form is cached. Except for CONNECT, all clients send the same few heads. A
SEND with a token is longer: it is a secret of its client.

The cache reduces a SUBSCRIBE, with its WebSocket frame, from 65,000 to 36,000 instructions
(docs/benchmark.md), and sessions share one copy of the parts that they keep."""

# Versions; 0 before CONNECT. Plain integers: Python 3.11 needs 200 ns to look up an enum's member.
_V10, _V11, _V12 = 10, 11, 12
_VERSIONS: Final = {b"1.0": _V10, b"1.1": _V11, b"1.2": _V12}

# 1.1 and 1.2, Value Encoding. A head must have no other backslashes than these.
_ESCAPES: Final = {_V11: re.compile(rb"\\[nc\\]"), _V12: re.compile(rb"\\[rnc\\]")}
_NO_EOL: Final = re.compile(rb"[^\r\n]")  # line ends between two frames are heart-beats, or follow a NUL
_BLANK_LINE: Final = re.compile(rb"\n\r?\n")
_HEART_BEAT: Final = re.compile(rb"\s*(\d{1,9})\s*,\s*(\d{1,9})\s*")

_REGISTRATION, _AUTHORIZATION, _ERROR = REGISTRATION.encode(), AUTHORIZATION.encode(), ERROR.encode()
_STATUS: Final = STATUS.encode()
_SILENT: Final = b""  # every other destination: clients may subscribe, but nothing is ever published
_TOPICS: Final = {topic: topic for topic in (_REGISTRATION, _AUTHORIZATION, _ERROR, _STATUS)}

# Web Flow's page uses the first, its public documentation names the second.
_REGISTER_AT: Final = (b"/app/registration", _REGISTRATION)

# The body of a MESSAGE is the message of the JSON wire without the topic, which is the destination.
_AFTER_REGISTRATION, _AFTER_AUTHORIZATION, _AFTER_ERROR, _AFTER_STATUS = (
    len(b'{"topic":"",') + len(topic) for topic in _TOPICS
)

# Headers in Spring's order, with LF: CR LF hangs stompjs 2 and webstomp. No value written here has a colon.
_MESSAGE: Final = (
    b"MESSAGE\ndestination:%b\ncontent-type:application/json\nsubscription:%b\nmessage-id:%d\n"
    b"content-length:%d\n\n%b\0"
)
_MESSAGE_TO_ACK: Final = _MESSAGE.replace(b"\ncontent-length", b"\nack:%d\ncontent-length")
# stompjs 2 never calls back when `heart-beat` is missing.
_CONNECTED: Final = b"CONNECTED\nversion:%b\nheart-beat:%d,%d\nserver:webflow-gateway\n\n\0"

_UNKNOWN: Final = UnknownMessage(
    Problem("unknown_message", 'expected SEND to /app/registration with {"webSocketId":"..."}')
)

Headers = Mapping[bytes, bytes]


class _Head(NamedTuple):
    """A frame without its body."""

    command: bytes
    headers: Headers
    length: int
    """The value of content-length. -1 if there is none: the body ends at the next NUL."""


_Frame = tuple[_Head, bytes, int]
"""Head, body, and the position after the frame."""


class _Subscription(NamedTuple):
    id: bytes
    topic: bytes
    to_ack: bool
    """The MESSAGE has an `ack` header, which ACK repeats (1.2, MESSAGE)."""


_subscription = lru_cache(128)(_Subscription)  # clients use the same few ids


class StompWire:
    """The codec of one client. It must not be used after a `Disconnect` or a `WireError`.

    Errors end in ERROR, which a WireError brings as its last message: 1002 when the client broke the
    protocol, 1008 when the gateway does not do what it asks, 1009 when something is too big.
    """

    __slots__ = (
        "_answer",
        "_buffer",
        "_intervals",
        "_kept",
        "_max_body",
        "_sent",
        "_subscriptions",
        "_version",
        "acked",
        "nacked",
        "outgoing",
    )

    name: Final = "stomp"
    binary: Final = False
    either: Final = True  # for @stomp/stompjs on React Native; Spring and RabbitMQ take both, too
    greeting: Final = None
    heartbeat: Final = HEARTBEAT

    def __init__(self, max_body: int, intervals: tuple[int, int] = (25_000, 25_000)) -> None:
        """A frame's body may have `max_body` bytes.

        `intervals`: the shortest milliseconds between two heart-beats that the gateway can send, and that it
        wants to receive; 0 for none.
        """
        self._max_body = max_body
        self._intervals = intervals
        self._version = 0
        self._buffer = b""
        self._subscriptions: tuple[_Subscription, ...] = ()
        self._sent = 0  # MESSAGE frames, and the last one's message-id
        self._answer: bytes | None = None  # the newest, to a registration that came before its SUBSCRIBE
        self._kept: tuple[bytes, ...] = ()  # results before their SUBSCRIBE
        self.outgoing = 0.0
        """Seconds without a message after which the client expects a HEARTBEAT. 0 for none."""
        self.acked = 0
        """The last message-id in an ACK of the client. 0 before the first."""
        self.nacked = 0
        """The last message-id in a NACK of the client. 0 before the first."""

    # Bytes in

    @property
    def incomplete(self) -> int:
        """Bytes of a frame that is not complete."""
        return len(self._buffer)

    def receive(self, message: bytes) -> Iterable[Request]:
        """The requests in the frames that `message` completes, in order. An incomplete frame is kept.

        Raises WireError, with an ERROR frame as its last message, at the first frame that is wrong.
        """
        # Nearly always a message is one frame, and its only NUL is at its end.
        lines, _, rest = message.partition(b"\n\n")
        alone = rest and message.find(b"\0") == len(message) - 1
        if alone and not self._buffer and len(lines) <= MAX_HEAD_SIZE:
            size = len(rest) - 1
            shared = self._version and len(lines) <= MAX_SHARED  # CONNECT has a token of one client
            head = (_shared_head if shared else _plain_head)(lines, self._version)
            if head is not None and head.length in (-1, size) and size <= self._max_body:
                return self._execute(head, rest[:size])
        return self._receive_any(message)

    def _receive_any(self, message: bytes) -> Iterator[Request]:
        """As `receive`, for any message."""
        data = self._buffer + message if self._buffer else message
        self._buffer = b""
        position = 0
        while (frame := self._frame(data, position)) is not None:
            head, body, position = frame
            yield from self._execute(head, body)
            if head.command == b"DISCONNECT":
                return
            if _NO_EOL.search(data, position):  # the next frame is paid for before it is parsed
                yield NextMessage()
        # The rest begins after a frame, so leading line ends are heart-beats.
        self._buffer = data[position:].lstrip(b"\r\n")

    def _frame(self, data: bytes, start: int) -> _Frame | None:
        """The frame at `start`. None while it is incomplete.

        An incomplete frame never has more than MAX_HEAD_SIZE and `max_body` bytes: that would raise
        WireError.
        """
        if data[start : start + 1] <= b"\r":  # nothing, a line end, or an unknown command
            first = _NO_EOL.search(data, start)
            if first is None:
                return None
            start = first.start()
        blank = _BLANK_LINE.search(data, start)
        head_end = len(data) if blank is None else blank.start()
        if head_end - start > MAX_HEAD_SIZE:
            raise _error(CloseCode.TOO_BIG, f"headers may have {MAX_HEAD_SIZE} bytes")
        if data.find(b"\0", start, head_end) >= 0:
            raise _error(CloseCode.PROTOCOL_ERROR, "NUL in the headers, or no blank line after them")
        if blank is None:
            return None
        head = _head(data[start:head_end], self._version)
        begin = blank.end()
        end = self._body_end(data, begin, head)
        return None if end < 0 else (head, data[begin:end], end + 1)

    def _body_end(self, data: bytes, begin: int, head: _Head) -> int:
        """The position of the NUL after the body. -1 while it has not arrived.

        Only SEND may have a body (1.2, Body). But a body in another frame is no reason to end a login.
        """
        if head.length < 0:
            end = data.find(b"\0", begin, begin + self._max_body + 1)
            if end < 0 and len(data) - begin > self._max_body:
                raise self._too_big(head)
            return end
        if head.length > self._max_body:
            raise self._too_big(head)
        end = begin + head.length
        if len(data) <= end:
            return -1
        if data[end]:
            raise _error(CloseCode.PROTOCOL_ERROR, "no NUL where content-length says", head.headers)
        return end

    def _too_big(self, head: _Head) -> WireError:
        return _error(CloseCode.TOO_BIG, f"a body may have {self._max_body} bytes", head.headers)

    # Commands

    def _execute(self, head: _Head, body: bytes) -> tuple[Request, ...]:
        command, headers, _length = head
        execute = _COMMANDS.get(command)
        if execute is None:
            raise _error(CloseCode.PROTOCOL_ERROR, "unknown command", headers)
        if not self._version and execute is not StompWire._connect:
            raise _error(CloseCode.PROTOCOL_ERROR, "expected CONNECT", headers)
        requests = execute(self, headers, body)
        if b"receipt" in headers and command not in (b"CONNECT", b"STOMP", b"DISCONNECT"):
            return (Reply(_receipt(headers)), *requests)
        return requests

    def _connect(self, headers: Headers, body: bytes) -> tuple[Request, ...]:
        if self._version:
            raise _error(CloseCode.PROTOCOL_ERROR, "connected already", headers)
        version = _highest_version(headers.get(b"accept-version", b"1.0"))
        if not version:
            raise _error(CloseCode.PROTOCOL_ERROR, "supported versions are 1.0 1.1 1.2", headers, _VERSION)
        interval = _wanted_interval(headers.get(b"heart-beat", b"0,0"))
        if interval is None:
            raise _error(CloseCode.PROTOCOL_ERROR, "heart-beat must be two numbers", headers)
        self._version = _VERSIONS[version]
        can_send, wants = self._intervals if self._version > _V10 else (0, 0)  # 1.0 has none
        # 1.2, Heart-beating: none unless one can and the other wants; else the slower of the two.
        self.outgoing = max(can_send, interval) / 1000 if can_send and interval else 0.0
        return _connected(version, can_send, wants)

    def _send(self, headers: Headers, body: bytes) -> tuple[Request, ...]:
        _check_no_transaction(headers)
        if _required(headers, b"destination") not in _REGISTER_AT:
            return (_UNKNOWN,)
        try:
            registration = parse_object(body)
        except ValueError:
            return (_UNKNOWN,)
        if registration is None:
            return (_UNKNOWN,)
        token = registration.get("token")
        if token is None and b"token" in headers:
            token = headers[b"token"].decode()
        return (
            parse_registration(registration.get("webSocketId"), registration.get("lastMessageId"), token),
        )

    def _subscribe(self, headers: Headers, body: bytes) -> tuple[Request, ...]:
        topic = _TOPICS.get(_required(headers, b"destination"), _SILENT)
        name = self._subscription_id(headers)
        ack = headers.get(b"ack", b"auto")
        if ack not in (b"auto", b"client", b"client-individual"):
            raise _error(CloseCode.PROTOCOL_ERROR, "ack must be auto, client or client-individual", headers)
        if self._subscriptions and any(name == each.id for each in self._subscriptions):
            raise _error(CloseCode.PROTOCOL_ERROR, "this subscription id is in use", headers)
        if len(self._subscriptions) >= MAX_SUBSCRIPTIONS:
            raise _error(CloseCode.POLICY, f"a client may have {MAX_SUBSCRIPTIONS} subscriptions", headers)
        if len(name) > MAX_ID:
            raise _error(CloseCode.POLICY, f"a subscription id may have {MAX_ID} bytes", headers)
        to_ack = self._version == _V12 and ack != b"auto"
        self._subscriptions += (_subscription(name, topic, to_ack),)
        if topic is _STATUS:
            return (WatchStatus(),)
        waiting = self._take_waiting(topic)
        if not waiting:
            return ()
        frames = [self._publish(topic, body) for body in waiting]
        results = topic is _AUTHORIZATION
        return tuple(
            [
                Reply(frame, (len(frames) - number) * results)
                for number, frame in enumerate(frames)
                if frame is not None
            ]
        )

    def _take_waiting(self, topic: bytes) -> tuple[bytes, ...]:
        waiting: tuple[bytes, ...] = ()
        if topic is _REGISTRATION and self._answer is not None:
            waiting, self._answer = (self._answer,), None
        elif topic is _AUTHORIZATION:
            waiting, self._kept = self._kept, ()
        return waiting

    def _unsubscribe(self, headers: Headers, body: bytes) -> tuple[Request, ...]:
        # Web Flow's page sends ids that nobody has subscribed.
        name = self._subscription_id(headers)
        self._subscriptions = tuple(each for each in self._subscriptions if each.id != name)
        return ()

    def _subscription_id(self, headers: Headers) -> bytes:
        # 1.0, SUBSCRIBE: the id is optional, and UNSUBSCRIBE may name the destination instead.
        if self._version == _V10 and not headers.get(b"id"):
            return _required(headers, b"destination")
        return _required(headers, b"id")

    def _ack(self, headers: Headers, body: bytes) -> tuple[Request, ...]:
        self.acked = self._message_named_by(headers) or self.acked
        return ()

    def _nack(self, headers: Headers, body: bytes) -> tuple[Request, ...]:
        self.nacked = self._message_named_by(headers) or self.nacked
        return ()

    def _message_named_by(self, headers: Headers) -> int:
        """The message-id that an ACK or NACK names; 0 when no message has had it."""
        _check_no_transaction(headers)
        if self._version == _V11:
            _required(headers, b"subscription")
        name = _required(headers, b"id" if self._version == _V12 else b"message-id")
        number = int(name) if name.isdigit() and len(name) <= 9 else 0
        return number if number <= self._sent else 0

    def _disconnect(self, headers: Headers, body: bytes) -> tuple[Request, ...]:
        return (Disconnect(_receipt(headers) if b"receipt" in headers else None),)

    def _reject_transaction(self, headers: Headers, body: bytes) -> tuple[Request, ...]:
        raise _error(CloseCode.POLICY, "transactions are not supported", headers)

    # Bytes out

    def registered(self, web_socket_id: bytes) -> bytes | None:
        """The MESSAGE: registered.

        None while the client has not subscribed to it. Then it waits for the SUBSCRIBE, and `receive` returns
        it.
        """
        return self._answer_with(JSON_WIRE.registered(web_socket_id))

    def rejected(self, web_socket_id: object, problem: Problem) -> bytes | None:
        """The MESSAGE: not registered, and why. It waits as `registered` does."""
        return self._answer_with(JSON_WIRE.rejected(web_socket_id, problem))

    def error(self, problem: Problem) -> bytes | None:
        """The MESSAGE: not understood. None when the client has not subscribed to it."""
        return self._publish(_ERROR, b"{" + JSON_WIRE.error(problem)[_AFTER_ERROR:])

    def result(self, web_socket_id: bytes, result: Result) -> bytes | None:
        """The MESSAGE with a result, once for each subscription to it.

        None while there is no subscription. It waits as `registered` does, behind earlier results.
        """
        body = b"{" + JSON_WIRE.result(web_socket_id, result)[_AFTER_AUTHORIZATION:]
        frames = self._publish(_AUTHORIZATION, body)
        if frames is None:
            self._keep(body)
        return frames

    def status(self, push: str) -> bytes | None:
        """The MESSAGE with the state of push. None, and not kept, when the client has unsubscribed."""
        return self._publish(_STATUS, b"{" + JSON_WIRE.status(push)[_AFTER_STATUS:])

    def _keep(self, body: bytes) -> None:
        kept = (*self._kept[1 - MAX_KEPT :], body)
        while len(kept) > 1 and sum(map(len, kept)) > MAX_KEPT_BYTES:
            kept = kept[1:]
        self._kept = kept

    def _answer_with(self, message: bytes) -> bytes | None:
        body = b"{" + message[_AFTER_REGISTRATION:]
        frames = self._publish(_REGISTRATION, body)
        self._answer = body if frames is None else None
        return frames

    def _publish(self, topic: bytes, body: bytes) -> bytes | None:
        """A MESSAGE for each subscription to `topic`; None while there is none."""
        frames = b""
        for subscription in self._subscriptions:
            if subscription.topic is topic:
                self._sent = number = self._sent + 1
                if subscription.to_ack:
                    frames += _MESSAGE_TO_ACK % (topic, subscription.id, number, number, len(body), body)
                else:
                    frames += _MESSAGE % (topic, subscription.id, number, len(body), body)
        return frames or None


_COMMANDS: Final[dict[bytes, Callable[[StompWire, Headers, bytes], tuple[Request, ...]]]] = {
    b"CONNECT": StompWire._connect,
    b"STOMP": StompWire._connect,
    b"SEND": StompWire._send,
    b"SUBSCRIBE": StompWire._subscribe,
    b"UNSUBSCRIBE": StompWire._unsubscribe,
    b"ACK": StompWire._ack,
    b"NACK": StompWire._nack,
    b"BEGIN": StompWire._reject_transaction,
    b"COMMIT": StompWire._reject_transaction,
    b"ABORT": StompWire._reject_transaction,
    b"DISCONNECT": StompWire._disconnect,
}

_VERSION: Final = b"version:1.0,1.1,1.2\n"  # 1.2, Protocol Negotiation


@lru_cache(64)
def _highest_version(accepted: bytes) -> bytes:
    """The highest common version; empty for none. The order is ignored: webstomp lists 1.0 first."""
    return max({word.strip() for word in accepted.split(b",")} & _VERSIONS.keys(), default=b"")


@lru_cache(64)
def _wanted_interval(heart_beat: bytes) -> int | None:
    """Milliseconds between two heart-beats that the client wants. None if the header is malformed."""
    numbers = _HEART_BEAT.fullmatch(heart_beat)
    return int(numbers[2]) if numbers else None


@lru_cache(8)
def _connected(version: bytes, can_send: int, wants: int) -> tuple[Reply]:
    return (Reply(_CONNECTED % (version, can_send, wants)),)


def _head(head: bytes, version: int) -> _Head:
    """The parsed lines before the blank line. Raises WireError for what `version` does not allow."""
    if b"\r" in head:  # 1.2, STOMP Frames: a line may end in CR LF; accepted in older versions too
        head = (head + b"\n").replace(b"\r\n", b"\n")[:-1]
    _check_octets(head, version)
    lines = head.split(b"\n")
    if len(lines) > MAX_HEADERS + 1:
        raise _error(CloseCode.POLICY, f"a frame may have {MAX_HEADERS} headers")
    if len(head) > MAX_LINE and max(map(len, lines)) > MAX_LINE:
        raise _error(CloseCode.TOO_BIG, f"a header may have {MAX_LINE} bytes")
    lines.reverse()  # 1.2, Repeated Header Entries: the first one counts, so it is set last
    command = lines.pop()
    headers = {}
    for line in lines:
        name, colon, value = line.partition(b":")  # clients do not escape colons in values
        if not (colon and name):
            raise _error(CloseCode.PROTOCOL_ERROR, "a header must have a name and a colon")
        headers[name] = value
    if version == _V10:  # the specification of 1.0 writes `login: <username>`
        headers = {name.strip(): value.strip() for name, value in headers.items()}
    return _Head(command, headers, _content_length(headers))


def _content_length(headers: Headers) -> int:
    value = headers.get(b"content-length")
    if value is None:
        return -1
    if not value.isdigit():
        raise _error(CloseCode.PROTOCOL_ERROR, "content-length must be a number", headers)
    return int(value) if len(value) <= 9 else 10**9  # no body may have so many bytes


def _plain_head(head: bytes, version: int) -> _Head | None:
    """As `_head`, but None for a head with CR or leading line ends, which needs more work."""
    return None if head[:1] <= b"\r" or b"\r" in head else _head(head, version)


_shared_head = lru_cache(128)(_plain_head)


def _check_octets(head: bytes, version: int) -> None:
    if b"\\" in head and version >= _V11 and b"\\" in _ESCAPES[version].sub(b"", head):
        raise _error(CloseCode.PROTOCOL_ERROR, "undefined escape in a header")
    if version == _V12 and b"\r" in head:
        raise _error(CloseCode.PROTOCOL_ERROR, "CR in a header must be escaped")
    if not head.isascii():
        try:
            head.decode()
        except UnicodeDecodeError:
            raise _error(CloseCode.INVALID_DATA, "headers must be UTF-8") from None


def _error(code: CloseCode, reason: str, headers: Headers | None = None, extra: bytes = b"") -> WireError:
    """The error for a frame with these headers. `reason` is ASCII without colon and backslash."""
    text = reason.encode()
    if headers is not None and b"receipt" in headers:
        extra += b"receipt-id:%b\n" % headers[b"receipt"]
    frame = b"ERROR\nmessage:%b\n%bcontent-type:text/plain\ncontent-length:%d\n\n%b\0"
    return WireError(code, reason, last_message=frame % (text, extra, len(text), text))


def _receipt(headers: Headers) -> bytes:
    return b"RECEIPT\nreceipt-id:%b\n\n\0" % headers[b"receipt"]


def _required(headers: Headers, name: bytes) -> bytes:
    value = headers.get(name)
    if not value:
        raise _error(CloseCode.PROTOCOL_ERROR, f"header {name.decode()} is missing", headers)
    return value


def _check_no_transaction(headers: Headers) -> None:
    if b"transaction" in headers:
        raise _error(CloseCode.POLICY, "transactions are not supported", headers)
