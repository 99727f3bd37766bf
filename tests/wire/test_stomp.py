"""Each version's rules, every frame to the letter, and what real clients send."""

from __future__ import annotations

import gc
import tracemalloc
from typing import NamedTuple

import orjson
import pytest

from gateway.errors import WireError
from gateway.messages import (
    DEGRADED,
    RESTORED,
    CloseCode,
    Disconnect,
    InvalidRegistration,
    NextMessage,
    Problem,
    Register,
    Reply,
    Request,
    Result,
    UnknownMessage,
    WatchStatus,
)
from gateway.messages import parse_registration as asked_for
from gateway.wire import Wire
from gateway.wire.stomp import (
    HEARTBEAT,
    MAX_HEAD_SIZE,
    MAX_HEADERS,
    MAX_ID,
    MAX_KEPT,
    MAX_KEPT_BYTES,
    MAX_LINE,
    MAX_SHARED,
    MAX_SUBSCRIPTIONS,
    StompWire,
    _shared_head,
)

MAX_BODY = 1_000
VERSIONS = ("1.0", "1.1", "1.2")

REGISTRATION, AUTHORIZATION = "/user/topic/registration", "/user/topic/authorization"
STATUS = "/user/topic/status"
ID = b"12345678"
REGISTER = b'SEND\ndestination:/app/registration\n\n{"webSocketId":"12345678"}\0'
REGISTERED = b'{"webSocketId":"12345678","registrationSucceeded":true}'
DONE = Result("DONE")


def frame(command: str, *lines: str, body: bytes = b"") -> bytes:
    """A client's frame with these header lines as they stand."""
    return "\n".join((command, *lines, "", "")).encode() + body + b"\0"


def subscribe(destination: str, name: str = "sub-0", *more: str) -> bytes:
    return frame("SUBSCRIBE", f"id:{name}", f"destination:{destination}", *more)


class Said(NamedTuple):
    """One of the gateway's frames, read by the book and not by our codec."""

    command: str
    headers: dict[str, str]
    body: bytes


def read(payload: bytes | None) -> list[Said]:
    """The gateway's frames: no carriage return, no header twice, the announced length, and a NUL."""
    assert payload is not None
    frames = []
    while payload:
        head, _, rest = payload.partition(b"\n\n")
        assert b"\r" not in head
        command, *lines = head.decode().split("\n")
        pairs = [(name, value) for name, _, value in (line.partition(":") for line in lines)]
        headers = dict(pairs)
        assert len(headers) == len(pairs)
        length = int(headers.get("content-length", rest.index(b"\0")))
        frames.append(Said(command, headers, rest[:length]))
        assert rest[length : length + 1] == b"\0"
        payload = rest[length + 1 :]
    return frames


def said(requests: list[Request]) -> list[Said]:
    frames = []
    for request in requests:
        assert isinstance(request, Reply)
        frames += read(request.payload)
    return frames


def receive(wire: Wire, *messages: bytes) -> list[Request]:
    """What the messages ask for, without the marks between the frames of one message."""
    requests = [request for message in messages for request in wire.receive(message)]
    return [request for request in requests if not isinstance(request, NextMessage)]


def connected(version: str = "1.2", *subscribed: str) -> StompWire:
    """A wire whose client speaks `version` and subscribes with the ids sub-0, sub-1, ..."""
    wire = StompWire(MAX_BODY)
    receive(wire, frame("CONNECT", f"accept-version:{version}"))
    for number, destination in enumerate(subscribed):
        receive(wire, subscribe(destination, f"sub-{number}"))
    return wire


def refused(wire: Wire, *messages: bytes) -> tuple[CloseCode, Said]:
    """The close code and the ERROR that the last of `messages` ends the connection with."""
    receive(wire, *messages[:-1])
    with pytest.raises(WireError) as raised:
        receive(wire, messages[-1])
    (error,) = read(raised.value.last_message)
    assert error.command == "ERROR"
    assert error.headers["message"] == raised.value.reason == error.body.decode()
    assert error.headers["content-type"] == "text/plain"
    return raised.value.code, error


every_version = pytest.mark.parametrize("version", VERSIONS)


# CONNECT


@pytest.mark.parametrize("command", ["CONNECT", "STOMP"])
def test_connects_to_the_letter(command: str) -> None:
    assert receive(StompWire(MAX_BODY), frame(command, "accept-version:1.1,1.0", "host:example.com")) == [
        Reply(b"CONNECTED\nversion:1.1\nheart-beat:25000,25000\nserver:webflow-gateway\n\n\0")
    ]


@pytest.mark.parametrize(
    ("accepted", "version"),
    [
        (["accept-version:1.0"], "1.0"),
        (["accept-version:1.1"], "1.1"),
        (["accept-version:1.2"], "1.2"),
        (["accept-version:1.0,1.1,1.2"], "1.2"),
        (["accept-version:1.2,1.1,1.0"], "1.2"),
        (["accept-version:1.0,1.1"], "1.1"),
        (["accept-version: 1.0, 1.1"], "1.1"),
        (["accept-version:1.1,1.3,2.0"], "1.1"),
        ([], "1.0"),
    ],
)
def test_speaks_the_highest_version_in_common(accepted: list[str], version: str) -> None:
    (answer,) = said(receive(StompWire(MAX_BODY), frame("CONNECT", *accepted)))
    assert answer.headers["version"] == version


@pytest.mark.parametrize("accepted", ["2.0", "1.3", "", "1", "1.2.0"])
def test_no_version_in_common(accepted: str) -> None:
    code, error = refused(StompWire(MAX_BODY), frame("CONNECT", f"accept-version:{accepted}"))
    assert code is CloseCode.PROTOCOL_ERROR
    assert error.headers["version"] == "1.0,1.1,1.2"


@pytest.mark.parametrize(
    ("ours", "theirs", "outgoing"),
    [
        ((25_000, 25_000), "heart-beat:10000,10000", 25.0),
        ((25_000, 25_000), "heart-beat:30000,40000", 40.0),
        ((25_000, 10_000), "heart-beat:0,10000", 25.0),
        ((25_000, 10_000), "heart-beat:20000,0", 0.0),
        ((0, 0), "heart-beat:10000,10000", 0.0),
        ((25_000, 0), "heart-beat: 10000 , 10000 ", 25.0),
        ((25_000, 25_000), "heart-beat:0,0", 0.0),
        ((25_000, 25_000), "x:no heart-beat header", 0.0),
    ],
)
@pytest.mark.parametrize("version", ["1.1", "1.2"])
def test_agrees_on_heart_beats(version: str, ours: tuple[int, int], theirs: str, outgoing: float) -> None:
    wire = StompWire(MAX_BODY, ours)
    (answer,) = said(receive(wire, frame("CONNECT", f"accept-version:{version}", theirs)))
    assert answer.headers["heart-beat"] == f"{ours[0]},{ours[1]}"
    assert wire.outgoing == outgoing


def test_version_1_0_has_no_heart_beats_but_the_header() -> None:
    wire = StompWire(MAX_BODY)
    (answer,) = said(receive(wire, frame("CONNECT", "heart-beat:10000,10000")))
    assert answer.headers["heart-beat"] == "0,0"
    assert wire.outgoing == 0.0


@pytest.mark.parametrize("beats", ["", "1", "1,2,3", "a,b", "-1,1", "1.5,1", "1,9999999999"])
def test_heart_beats_that_are_no_numbers(beats: str) -> None:
    code, _ = refused(StompWire(MAX_BODY), frame("CONNECT", f"heart-beat:{beats}"))
    assert code is CloseCode.PROTOCOL_ERROR


def test_connect_is_not_unescaped() -> None:
    """The page's CSRF header: a colon and a backslash, as they are."""
    (answer,) = said(
        receive(StompWire(MAX_BODY), frame("CONNECT", r"X-CSRF-TOKEN:a1b2:c3-\x", "accept-version:1.2"))
    )
    assert answer.command == "CONNECTED"


@pytest.mark.parametrize("command", ["SEND", "SUBSCRIBE", "UNSUBSCRIBE", "ACK", "BEGIN", "DISCONNECT"])
def test_nothing_goes_before_connect(command: str) -> None:
    code, error = refused(StompWire(MAX_BODY), frame(command, "id:1", "destination:x", "receipt:r"))
    assert code is CloseCode.PROTOCOL_ERROR
    assert error.headers["receipt-id"] == "r"


@every_version
def test_connects_once(version: str) -> None:
    code, _ = refused(connected(version), frame("CONNECT", f"accept-version:{version}"))
    assert code is CloseCode.PROTOCOL_ERROR


# Registering


@every_version
@pytest.mark.parametrize("destination", ["/app/registration", "/user/topic/registration"])
def test_registers(version: str, destination: str) -> None:
    message = frame("SEND", f"destination:{destination}", body=b'{"webSocketId":"12345678"}')
    (request,) = receive(connected(version), message)
    assert isinstance(request, Register)
    assert request == asked_for("12345678")


@pytest.mark.parametrize(
    ("last", "known"),
    [(b'"m-1"', "m-1"), (b"null", None), (b'""', None), (b'"a b"', None), (b"7", None), (b"{}", None)],
)
def test_registers_with_what_the_client_has_had_last(last: bytes, known: str | None) -> None:
    body = b'{"webSocketId":"12345678","lastMessageId":%b}' % last
    (request,) = receive(connected(), frame("SEND", "destination:/app/registration", body=body))
    assert request == Register("12345678", known)


def test_a_body_does_not_ask_for_the_status() -> None:
    """SUBSCRIBE does; what nobody has subscribed to could not be sent."""
    body = b'{"webSocketId":"12345678","status":true}'
    (request,) = receive(connected(), frame("SEND", "destination:/app/registration", body=body))
    assert request == Register("12345678")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{}", "missing_id"),
        (b'{"webSocketId":null}', "missing_id"),
        (b'{"webSocketId":7}', "invalid_id"),
        (b'{"webSocketId":""}', "invalid_id"),
        (b'{"webSocketId":"a b"}', "invalid_id"),
        (b'{"webSocketId":"' + b"x" * 201 + b'"}', "invalid_id"),
    ],
)
def test_rejects(body: bytes, code: str) -> None:
    (request,) = receive(connected(), frame("SEND", "destination:/app/registration", body=body))
    assert isinstance(request, InvalidRegistration)
    assert request.problem.code == code


@pytest.mark.parametrize(
    "message",
    [
        frame("SEND", "destination:/app/other", body=b'{"webSocketId":"12345678"}'),
        frame("SEND", "destination:/APP/registration", body=b'{"webSocketId":"12345678"}'),
        frame("SEND", "destination:/user/topic/authorization", body=b'{"webSocketId":"12345678"}'),
        frame("SEND", "destination:/app/registration"),
        frame("SEND", "destination:/app/registration", body=b"12345678"),
        frame("SEND", "destination:/app/registration", body=b'"12345678"'),
        frame("SEND", "destination:/app/registration", body=b"[]"),
        frame("SEND", "destination:/app/registration", body=b'{"webSocketId"'),
        frame("SEND", "destination:/app/registration", "content-length:1", body=b"\0"),
        frame("SEND", "destination:/app/registration", body=b'{"webSocketId":"\xff"}'),
        frame("SEND", "destination:/app/registration", body=b'{"webSocketId":[' + b"{}," * 300 + b"1]}"),
    ],
)
def test_does_not_understand(message: bytes) -> None:
    (request,) = receive(connected(), message)
    assert isinstance(request, UnknownMessage)
    assert request.problem.code == "unknown_message"


def test_answers_to_the_letter() -> None:
    assert connected("1.2", REGISTRATION).registered(ID) == (
        b"MESSAGE\ndestination:/user/topic/registration\ncontent-type:application/json\n"
        b"subscription:sub-0\nmessage-id:1\ncontent-length:55\n\n" + REGISTERED + b"\0"
    )


def test_rejects_to_the_letter() -> None:
    (answer,) = read(connected("1.2", REGISTRATION).rejected("a b", Problem("invalid_id", 'say "please"')))
    assert answer.headers["destination"] == REGISTRATION
    assert answer.body == (
        b'{"webSocketId":"a b","registrationSucceeded":false,'
        b'"error":{"code":"invalid_id","message":"say \\"please\\""}}'
    )


def test_complains_to_who_listens() -> None:
    problem = Problem("unknown_message", "say what?")
    assert connected().error(problem) is None
    (complaint,) = read(connected("1.2", "/user/topic/error").error(problem))
    assert complaint.headers["destination"] == "/user/topic/error"
    assert complaint.body == b'{"error":{"code":"unknown_message","message":"say what?"}}'


def test_an_answer_waits_for_its_subscription() -> None:
    wire = connected()
    receive(wire, REGISTER)
    assert wire.registered(ID) is None
    assert receive(wire, subscribe(AUTHORIZATION, "other")) == []
    (answer,) = said(receive(wire, subscribe(REGISTRATION)))
    assert answer.body == REGISTERED
    assert receive(wire, subscribe(REGISTRATION, "sub-1")) == []


def test_only_the_newest_answer_waits() -> None:
    wire = connected()
    wire.registered(ID)
    wire.rejected("other", Problem("already_registered", "no"))
    (answer,) = said(receive(wire, subscribe(REGISTRATION)))
    assert orjson.loads(answer.body)["registrationSucceeded"] is False


# Results


def test_carries_a_result_to_the_letter() -> None:
    wire = connected("1.2", REGISTRATION, AUTHORIZATION)
    assert wire.result(ID, DONE) == (
        b"MESSAGE\ndestination:/user/topic/authorization\ncontent-type:application/json\n"
        b"subscription:sub-1\nmessage-id:1\ncontent-length:46\n\n"
        b'{"webSocketId":"12345678","authResult":"DONE"}\0'
    )


def test_carries_what_the_publisher_sent_along() -> None:
    wire = connected("1.2", AUTHORIZATION)
    (message,) = read(wire.result(ID, Result("DONE", "a:1", {"é": "\0"})))
    assert message.headers["message-id"] == "1"  # the publisher's has a colon, and may come twice
    assert message.body.decode() == (
        '{"webSocketId":"12345678","authResult":"DONE","messageId":"a:1","data":{"é":"\\u0000"}}'
    )


@every_version
def test_results_wait_for_their_subscription(version: str) -> None:
    wire = connected(version, REGISTRATION)
    assert wire.result(ID, Result("CONTINUE", "m1")) is None
    assert wire.result(ID, DONE) is wire.result(ID, DONE) is None  # without messageIds they may be two
    messages = said(receive(wire, subscribe(AUTHORIZATION, "sub-1", "receipt:r")))
    assert [message.command for message in messages] == ["RECEIPT", "MESSAGE", "MESSAGE", "MESSAGE"]
    results = [orjson.loads(message.body)["authResult"] for message in messages[1:]]
    assert results == ["CONTINUE", "DONE", "DONE"]
    assert receive(wire, subscribe(AUTHORIZATION, "sub-2")) == []


def test_results_wait_again_after_unsubscribing() -> None:
    wire = connected("1.2", AUTHORIZATION)
    receive(wire, frame("UNSUBSCRIBE", "id:sub-0"))
    assert wire.result(ID, DONE) is None
    assert len(receive(wire, subscribe(AUTHORIZATION, "sub-1"))) == 1


def test_only_the_newest_results_wait() -> None:
    wire = connected()
    for number in range(MAX_KEPT + 3):
        wire.result(ID, Result(f"R{number}"))
    waited = said(receive(wire, subscribe(AUTHORIZATION)))
    assert [orjson.loads(message.body)["authResult"] for message in waited] == [
        f"R{number}" for number in range(3, MAX_KEPT + 3)
    ]


def test_no_more_waits_than_may_be_written_at_once() -> None:
    wire = connected()
    for number in range(8):
        wire.result(ID, Result(f"R{number}", data="x" * (MAX_KEPT_BYTES // 4)))
    waited = said(receive(wire, subscribe(AUTHORIZATION)))
    assert [orjson.loads(message.body)["authResult"] for message in waited] == ["R5", "R6", "R7"]


def test_the_newest_result_waits_whatever_its_size() -> None:
    wire = connected()
    wire.result(ID, DONE)
    wire.result(ID, Result("LARGE", data="x" * MAX_KEPT_BYTES))
    (waited,) = said(receive(wire, subscribe(AUTHORIZATION)))
    assert orjson.loads(waited.body)["authResult"] == "LARGE"


def test_each_subscription_gets_a_message_with_an_id_of_its_own() -> None:
    wire = connected("1.1", AUTHORIZATION, "/topic/other", AUTHORIZATION)
    first, second = read(wire.result(ID, DONE))
    (third, fourth) = read(wire.result(ID, DONE))
    messages = (first, second, third, fourth)
    assert [message.headers["subscription"] for message in messages] == ["sub-0", "sub-2"] * 2
    assert [message.headers["message-id"] for message in messages] == ["1", "2", "3", "4"]


# The status of push


@every_version
def test_who_subscribes_to_the_status_watches_it(version: str) -> None:
    wire = connected(version, REGISTRATION, AUTHORIZATION)
    assert wire.status(DEGRADED) is None
    assert receive(wire, subscribe(STATUS, "sub-2")) == [WatchStatus()]
    told = [message for push in (DEGRADED, RESTORED) for message in read(wire.status(push))]
    assert [message.headers["destination"] for message in told] == [STATUS, STATUS]
    assert [message.headers["subscription"] for message in told] == ["sub-2", "sub-2"]
    assert [message.body for message in told] == [b'{"push":"degraded"}', b'{"push":"restored"}']


def test_who_watches_it_no_longer_is_told_nothing_and_nothing_waits() -> None:
    wire = connected("1.2", STATUS)
    receive(wire, frame("UNSUBSCRIBE", "id:sub-0"))
    assert wire.status(DEGRADED) is None
    assert receive(wire, subscribe(STATUS)) == [WatchStatus()]


def test_a_receipt_for_watching() -> None:
    receipt, watching = receive(connected(), subscribe(STATUS, "sub-0", "receipt:r"))
    assert receipt == Reply(b"RECEIPT\nreceipt-id:r\n\n\0")
    assert watching == WatchStatus()


# Subscriptions


@every_version
def test_destinations_that_nothing_is_published_to(version: str) -> None:
    wire = connected(version)
    assert receive(wire, subscribe("/topic/anything")) == []
    assert wire.registered(ID) is None


def test_version_1_0_needs_no_id() -> None:
    wire = connected("1.0")
    receive(wire, frame("SUBSCRIBE", f"destination: {AUTHORIZATION} "))
    (message,) = read(wire.result(ID, DONE))
    assert message.headers["subscription"] == AUTHORIZATION
    receive(wire, frame("UNSUBSCRIBE", f"destination:{AUTHORIZATION}"))
    assert wire.result(ID, DONE) is None


@pytest.mark.parametrize("version", ["1.1", "1.2"])
@pytest.mark.parametrize("command", ["SUBSCRIBE", "UNSUBSCRIBE"])
def test_later_versions_need_one(version: str, command: str) -> None:
    code, error = refused(connected(version), frame(command, f"destination:{REGISTRATION}", "receipt:r"))
    assert code is CloseCode.PROTOCOL_ERROR
    assert error.headers["receipt-id"] == "r"


@every_version
def test_an_id_that_nobody_subscribed_is_no_error(version: str) -> None:
    assert receive(connected(version), frame("UNSUBSCRIBE", "id:sub-99")) == []


@pytest.mark.parametrize("version", ["1.1", "1.2"])
def test_an_id_names_one_subscription(version: str) -> None:
    code, _ = refused(connected(version, REGISTRATION), subscribe(AUTHORIZATION, "sub-0"))
    assert code is CloseCode.PROTOCOL_ERROR


def test_subscriptions_are_counted() -> None:
    wire = connected("1.2", *[REGISTRATION] * MAX_SUBSCRIPTIONS)
    receive(wire, frame("UNSUBSCRIBE", "id:sub-3"), subscribe(REGISTRATION, "again"))
    code, _ = refused(wire, subscribe(REGISTRATION, "one-more"))
    assert code is CloseCode.POLICY


def test_an_id_is_kept_so_it_must_be_short() -> None:
    receive(connected(), subscribe(REGISTRATION, "x" * MAX_ID))
    code, _ = refused(connected(), subscribe(REGISTRATION, "x" * (MAX_ID + 1)))
    assert code is CloseCode.POLICY


# ACK and NACK


@every_version
@pytest.mark.parametrize("mode", ["auto", "client", "client-individual"])
def test_ack_modes(version: str, mode: str) -> None:
    """1.2 has a header `ack` for ACK to repeat; the older versions have message-id for that."""
    wire = connected(version)
    receive(wire, subscribe(AUTHORIZATION, "sub-0", f"ack:{mode}"))
    (message,) = read(wire.result(ID, DONE))
    assert ("ack" in message.headers) == (version == "1.2" and mode != "auto")
    number = message.headers.get("ack", message.headers["message-id"])
    line = f"id:{number}" if version == "1.2" else f"message-id:{number}"
    assert receive(wire, frame("NACK", line, "subscription:sub-0")) == []
    assert (wire.acked, wire.nacked) == (0, 1)
    assert receive(wire, frame("ACK", line, "subscription:sub-0")) == []
    assert (wire.acked, wire.nacked) == (1, 1)


def test_an_ack_of_what_was_never_sent_counts_for_nothing() -> None:
    wire = connected("1.2", AUTHORIZATION)
    wire.result(ID, DONE)
    for name in ("2", "0", "x", "-1", "9" * 4_000):
        assert receive(wire, frame("ACK", f"id:{name}")) == []
    assert wire.acked == 0


@pytest.mark.parametrize(
    ("version", "lines"),
    [
        ("1.0", ["id:1"]),
        ("1.1", ["message-id:1"]),
        ("1.1", ["subscription:sub-0"]),
        ("1.1", ["id:1", "subscription:sub-0"]),
        ("1.2", ["message-id:1", "subscription:sub-0"]),
    ],
)
@pytest.mark.parametrize("command", ["ACK", "NACK"])
def test_an_ack_must_say_of_what(command: str, version: str, lines: list[str]) -> None:
    code, _ = refused(connected(version), frame(command, *lines))
    assert code is CloseCode.PROTOCOL_ERROR


def test_no_other_ack_mode() -> None:
    code, _ = refused(connected(), subscribe(REGISTRATION, "sub-0", "ack:always"))
    assert code is CloseCode.PROTOCOL_ERROR


# Receipts, DISCONNECT, ERROR


@every_version
@pytest.mark.parametrize(
    "message",
    [
        subscribe(REGISTRATION, "s", "receipt:r-1"),
        frame("UNSUBSCRIBE", "id:nobody", "receipt:r-1"),
        frame("ACK", "id:1", "message-id:1", "subscription:s", "receipt:r-1"),
        frame("NACK", "id:1", "message-id:1", "subscription:s", "receipt:r-1"),
    ],
)
def test_a_receipt_for_every_frame_that_asks(version: str, message: bytes) -> None:
    assert receive(connected(version), message) == [Reply(b"RECEIPT\nreceipt-id:r-1\n\n\0")]


def test_a_receipt_for_send() -> None:
    message = frame("SEND", "destination:/app/registration", "receipt:7", body=b'{"webSocketId":"12345678"}')
    assert receive(connected(), message) == [
        Reply(b"RECEIPT\nreceipt-id:7\n\n\0"),
        asked_for("12345678"),
    ]


@every_version
def test_leaves_with_its_receipt(version: str) -> None:
    assert receive(connected(version), frame("DISCONNECT", "receipt:bye")) == [
        Disconnect(b"RECEIPT\nreceipt-id:bye\n\n\0")
    ]
    assert receive(connected(version), frame("DISCONNECT")) == [Disconnect(None)]


def test_nothing_counts_after_disconnect() -> None:
    assert receive(connected(), frame("DISCONNECT") + REGISTER + b"junk") == [Disconnect(None)]


@pytest.mark.parametrize("command", ["BEGIN", "COMMIT", "ABORT"])
def test_there_are_no_transactions(command: str) -> None:
    code, error = refused(connected(), frame(command, "transaction:tx-1", "receipt:r"))
    assert code is CloseCode.POLICY
    assert error.headers["message"] == "transactions are not supported"
    assert error.headers["receipt-id"] == "r"


@pytest.mark.parametrize(
    "message",
    [
        frame("SEND", "destination:/app/registration", "transaction:tx-1", body=b"{}"),
        frame("ACK", "id:1", "transaction:tx-1"),
        frame("NACK", "id:1", "transaction:tx-1"),
    ],
)
def test_nothing_joins_a_transaction(message: bytes) -> None:
    code, error = refused(connected(), message)
    assert (code, error.body) == (CloseCode.POLICY, b"transactions are not supported")


def test_an_error_to_the_letter() -> None:
    with pytest.raises(WireError) as raised:
        receive(connected(), frame("JUMP", "receipt:r-1"))
    assert raised.value.last_message == (
        b"ERROR\nmessage:unknown command\nreceipt-id:r-1\ncontent-type:text/plain\n"
        b"content-length:15\n\nunknown command\0"
    )


@pytest.mark.parametrize(
    "command", ["", "send", "CONNECTED", "MESSAGE", "RECEIPT", "ERROR", "GET / HTTP/1.1"]
)
def test_unknown_commands(command: str) -> None:
    code, _ = refused(connected(), frame(command, "id:1") if command else b":\n\n\0")
    assert code is CloseCode.PROTOCOL_ERROR


def test_what_came_before_the_error_counts() -> None:
    requests = connected().receive(REGISTER + frame("JUMP"))
    assert next(iter(requests)) == asked_for("12345678")
    assert next(iter(requests)) == NextMessage()
    with pytest.raises(WireError):
        next(iter(requests))


def test_send_needs_a_destination() -> None:
    code, _ = refused(connected(), frame("SEND", body=b"{}"))
    assert code is CloseCode.PROTOCOL_ERROR


# Frames: line ends, headers, escapes, lengths


@every_version
def test_lines_may_end_in_crlf(version: str) -> None:
    wire = connected(version)
    assert receive(wire, REGISTER.replace(b"\n", b"\r\n")) == [asked_for("12345678")]
    receive(wire, subscribe(REGISTRATION).replace(b"\n", b"\r\n"))
    (answer,) = read(wire.registered(ID))
    assert answer.headers["subscription"] == "sub-0"


def test_the_first_of_repeated_headers_counts() -> None:
    message = frame(
        "SEND", "destination:/app/registration", "destination:/app/other", body=b'{"webSocketId":"12345678"}'
    )
    assert receive(connected(), message) == [asked_for("12345678")]


@pytest.mark.parametrize(
    ("version", "value", "legal"),
    [
        ("1.0", r"a\n\c\\\r\t" + "\\", True),
        ("1.1", r"a\n\c\\b", True),
        ("1.1", r"a\\t", True),
        ("1.1", r"a\r", False),
        ("1.1", r"a\t", False),
        ("1.1", r"a\\\t", False),
        ("1.1", "a\\", False),
        ("1.2", r"a\n\c\\\r", True),
        ("1.2", r"a\\t", True),
        ("1.2", r"a\t", False),
        ("1.2", r"a\\\x", False),
        ("1.2", "a\\", False),
        ("1.2", "a\rb", False),
        ("1.1", "a\rb", True),
    ],
)
def test_escapes_by_version(version: str, value: str, legal: bool) -> None:
    """What is legal comes back as it was; what is not ends the connection."""
    message = frame("UNSUBSCRIBE", "id:x", f"receipt:{value}")
    if legal:
        assert receive(connected(version), message) == [
            Reply(b"RECEIPT\nreceipt-id:" + value.encode() + b"\n\n\0")
        ]
    else:
        code, _ = refused(connected(version), message)
        assert code is CloseCode.PROTOCOL_ERROR


@every_version
def test_ids_come_back_as_the_client_writes_them(version: str) -> None:
    """stompjs 2 and webstomp escape nothing in any version, and could not read an escaped colon."""
    wire = connected(version)
    receive(wire, subscribe(AUTHORIZATION, "a:1"))
    assert b"\nsubscription:a:1\n" in (wire.result(ID, DONE) or b"")


def test_spaces_count_from_1_1_on() -> None:
    (receipt,) = said(receive(connected("1.1"), frame("UNSUBSCRIBE", "id:x", "receipt: r ")))
    assert receipt.headers["receipt-id"] == " r "
    (receipt,) = said(receive(connected("1.0"), frame("UNSUBSCRIBE", "id:x", "receipt : r ")))
    assert receipt.headers["receipt-id"] == "r"


def test_headers_are_utf_8() -> None:
    receive(connected(), frame("UNSUBSCRIBE", "id:é"))
    code, _ = refused(connected(), b"UNSUBSCRIBE\nid:\xff\n\n\0")
    assert code is CloseCode.INVALID_DATA


@pytest.mark.parametrize("line", ["id", ":x", "\t"])
def test_a_header_has_a_name_and_a_colon(line: str) -> None:
    code, _ = refused(connected(), frame("UNSUBSCRIBE", "id:1", line))
    assert code is CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize(
    "message", [b"\0", b"SEND\0", b"SEND\ndestination:x\0", b"SEND\ndest\0ination:x\n\n\0"]
)
def test_a_blank_line_ends_the_headers(message: bytes) -> None:
    code, _ = refused(connected(), message)
    assert code is CloseCode.PROTOCOL_ERROR


def test_content_length_lets_a_body_hold_nul() -> None:
    message = frame("SEND", "destination:/app/x", "content-length:3", body=b"a\0b")
    assert [type(request) for request in receive(connected(), message + REGISTER)] == [
        UnknownMessage,
        type(asked_for("12345678")),
    ]


def test_content_length_counts_bytes() -> None:
    body = '{"webSocketId":"12345678","x":"é😀"}'.encode()
    message = frame("SEND", "destination:/app/registration", f"content-length:{len(body)}", body=body)
    assert receive(connected(), message) == [asked_for("12345678")]


@pytest.mark.parametrize("length", ["2", "25", "x", "-1", "", "0x10", "1_0", "٣"])
def test_a_wrong_content_length(length: str) -> None:
    message = frame("SEND", "destination:/app/registration", f"content-length:{length}", "receipt:r")
    code, error = refused(connected(), message[:-1] + b'{"webSocketId":"12345678"}\0' + REGISTER)
    assert code is CloseCode.PROTOCOL_ERROR
    assert error.headers["receipt-id"] == "r"


@pytest.mark.parametrize("message", [b"\n", b"\r\n", b"\n\n\r\n", b"\n" * 1_000])
def test_line_ends_between_frames_are_heart_beats(message: bytes) -> None:
    wire = connected()
    assert receive(wire, message, message) == []
    assert receive(wire, message + REGISTER + message + REGISTER + message) == [asked_for("12345678")] * 2
    assert receive(wire, REGISTER) == [asked_for("12345678")]


def test_a_heart_beat_is_a_line_feed() -> None:
    assert HEARTBEAT == b"\n"


def test_a_line_end_inside_a_body_is_no_heart_beat() -> None:
    wire = connected()
    body = b'{\n"webSocketId":"12345678"}'
    whole = frame("SEND", "destination:/app/registration", f"content-length:{len(body)}", body=body)
    start = whole.index(b"{") + 1
    assert receive(wire, whole[:start], b"\n", whole[start + 1 :]) == [asked_for("12345678")]


def test_several_frames_in_one_message() -> None:
    message = frame("CONNECT", "accept-version:1.1") + subscribe(REGISTRATION) + REGISTER
    connection, request = receive(StompWire(MAX_BODY), message)
    assert isinstance(connection, Reply)
    assert request == asked_for("12345678")


def test_one_frame_in_many_messages() -> None:
    """stompjs and webstomp cut at 16,384 characters, wherever that is."""
    wire = StompWire(65_536)
    receive(wire, frame("CONNECT", "accept-version:1.2"))
    body = b'{"webSocketId":"12345678","pad":"' + b"x" * 40_000 + b'"}'
    whole = frame("SEND", "destination:/app/registration", f"content-length:{len(body)}", body=body)
    pieces = [whole[start : start + 16_384] for start in range(0, len(whole), 16_384)]
    assert len(pieces) == 3
    assert receive(wire, *pieces[:-1]) == []
    assert receive(wire, pieces[-1]) == [asked_for("12345678")]


# Limits


def test_headers_are_counted() -> None:
    lines = [f"x{number}:1" for number in range(MAX_HEADERS - 1)]
    assert receive(connected(), frame("UNSUBSCRIBE", "id:1", *lines)) == []
    code, _ = refused(connected(), frame("UNSUBSCRIBE", "id:1", "one:more", *lines))
    assert code is CloseCode.POLICY


def test_a_header_is_measured() -> None:
    value = "v" * (MAX_LINE - 2)
    assert receive(connected(), frame("UNSUBSCRIBE", "id:1", f"x:{value}")) == []
    code, _ = refused(connected(), frame("UNSUBSCRIBE", "id:1", f"x:{value}v"))
    assert code is CloseCode.TOO_BIG


@pytest.mark.parametrize("end", ["\n\n\0", ""])
def test_a_head_is_measured_whether_it_ends_or_not(end: str) -> None:
    lines = "".join(f"\nx{number}:" + "v" * 995 for number in range(8))
    at_most = ("UNSUBSCRIBE\nid:1" + lines).ljust(MAX_HEAD_SIZE, "v")
    assert receive(connected(), (at_most + end).encode()) == []
    code, _ = refused(connected(), (at_most + "v" + end).encode())
    assert code is CloseCode.TOO_BIG


@pytest.mark.parametrize("length", [[], ["content-length:1000"]])
def test_a_body_is_measured(length: list[str]) -> None:
    message = frame("SEND", "destination:/app/x", *length, body=b"x" * MAX_BODY)
    (request,) = receive(connected(), message)
    assert isinstance(request, UnknownMessage)


def test_a_body_that_is_too_big_is_not_waited_for() -> None:
    head = frame("SEND", "destination:/app/x", "receipt:r")[:-1]
    wire = connected()
    assert receive(wire, head, b"x" * MAX_BODY) == []
    code, error = refused(wire, b"x")
    assert (code, error.headers["receipt-id"]) == (CloseCode.TOO_BIG, "r")
    for length in (str(MAX_BODY + 1), "9" * 4_000):
        code, _ = refused(connected(), frame("SEND", "destination:/app/x", f"content-length:{length}")[:-1])
        assert code is CloseCode.TOO_BIG


def test_the_next_frame_in_a_message_is_announced_before_it_is_parsed() -> None:
    requests = iter(connected().receive(frame("UNSUBSCRIBE", "id:1") + b"NONSENSE\n\n\0"))
    assert isinstance(next(requests), NextMessage)
    with pytest.raises(WireError):
        next(requests)


def test_line_ends_between_frames_are_no_messages() -> None:
    message = b"\n" + frame("UNSUBSCRIBE", "id:1") + b"\n\r\n"
    assert list(connected().receive(message)) == []
    assert list(connected().receive(message * 3)) == [NextMessage(), NextMessage()]


def test_a_waiting_client_costs_little() -> None:
    """Registered and idle, its two subscriptions with the longest ids that a real client has."""
    long_id = b"a" * 128
    register = REGISTER.replace(ID, long_id)

    def waiting() -> StompWire:
        wire = connected("1.1", REGISTRATION, AUTHORIZATION)
        receive(wire, HEARTBEAT, register[:50], register[50:])
        wire.registered(long_id)
        return wire

    waiting()
    wires: list[StompWire | None] = [None] * 100
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(100):
            wires[number] = waiting()
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used / 100 < 640


# What real clients send, recorded from them; `\n` and the like in these ids are two characters


class PlayBook(NamedTuple):
    """A client's messages in order, and the gateway's answers as `command detail`."""

    sent: list[bytes]
    answers: list[str]


CSRF = b"CONNECT\nX-CSRF-TOKEN:a1b2:c3-\\x\n"
ACCEPT_BEATS = b"heart-beat:10000,10000\n\n\0"
SEND = b'SEND\ndestination:/app/registration\ncontent-length:26\n\n{"webSocketId":"12345678"}\0'

PLAY_BOOKS = {
    "stompjs 2.3.3": PlayBook(
        [
            CSRF + b"accept-version:1.1,1.0\n" + ACCEPT_BEATS,
            b"SUBSCRIBE\nreceipt:a:b\nid:sub-0\ndestination:/user/topic/registration\n\n\0",
            SEND,
            b"UNSUBSCRIBE\nid:sub-99\n\n\0",
            b"SUBSCRIBE\nid:a:1\nack:client\ndestination:/user/topic/authorization\n\n\0",
            b"ACK\nmessage-id:2\nsubscription:a:1\n\n\0",
            b"\n",
            b"UNSUBSCRIBE\nid:sub-0\n\n\0",
            b"DISCONNECT\nreceipt:bye\n\n\0",
        ],
        ["CONNECTED 1.1", "RECEIPT a:b", "MESSAGE sub-0", "MESSAGE a:1", "RECEIPT bye"],
    ),
    "webstomp-client 1.2.6, v12.stomp": PlayBook(
        [
            CSRF + b"accept-version:1.2\n" + ACCEPT_BEATS,
            b"SUBSCRIBE\nreceipt:a:b\nid:sub-1795482041459-433\ndestination:/user/topic/registration\n\n\0",
            SEND,
            b"UNSUBSCRIBE\nid:sub-99\n\n\0",
            b"SUBSCRIBE\nid:a:1\nack:client\ndestination:/user/topic/authorization\n\n\0",
            b"ACK\nid:2\nsubscription:a:1\n\n\0",
            b"\n",
            b"UNSUBSCRIBE\nid:sub-1795482041459-433\n\n\0",
            b"DISCONNECT\nreceipt:bye\n\n\0",
        ],
        ["CONNECTED 1.2", "RECEIPT a:b", "MESSAGE sub-1795482041459-433", "MESSAGE a:1", "RECEIPT bye"],
    ),
    "webstomp-client 1.2.6, v10.stomp": PlayBook(
        [
            CSRF + b"accept-version:1.0\n" + ACCEPT_BEATS,
            b"SUBSCRIBE\nreceipt:a:b\nid:sub-1795482040756-603\ndestination:/user/topic/registration\n\n\0",
            SEND,
            b"UNSUBSCRIBE\nid:sub-99\n\n\0",
            b"SUBSCRIBE\nid:a:1\nack:client\ndestination:/user/topic/authorization\n\n\0",
            b"ACK\nmessage-id:2\nsubscription:a:1\n\n\0",
            b"UNSUBSCRIBE\nid:sub-1795482040756-603\n\n\0",
            b"DISCONNECT\nreceipt:bye\n\n\0",
        ],
        ["CONNECTED 1.0", "RECEIPT a:b", "MESSAGE sub-1795482040756-603", "MESSAGE a:1", "RECEIPT bye"],
    ),
    "@stomp/stompjs 7.5.0, 1.1": PlayBook(
        [
            CSRF + b"accept-version:1.1\n" + ACCEPT_BEATS,
            b"SUBSCRIBE\nreceipt:a:b\nid:sub-0\ndestination:/user/topic/registration\n\n\0",
            SEND,
            b"UNSUBSCRIBE\nid:sub-99\n\n\0",
            b"SUBSCRIBE\nid:a:1\\n\nack:client-individual\ndestination:/user/topic/authorization\n\n\0",
            b"ACK\nmessage-id:2\nsubscription:a:1\\n\n\n\0",
            b"\n",
            b"UNSUBSCRIBE\nid:sub-0\n\n\0",
            b"DISCONNECT\nreceipt:close-1\n\n\0",
        ],
        ["CONNECTED 1.1", "RECEIPT a:b", "MESSAGE sub-0", "MESSAGE a:1\\n", "RECEIPT close-1"],
    ),
    "@stomp/stompjs 7.5.0": PlayBook(
        [
            CSRF + b"accept-version:1.2,1.1,1.0\n" + ACCEPT_BEATS,
            b"SUBSCRIBE\nreceipt:a\\cb\nid:sub-0\ndestination:/user/topic/registration\n\n\0",
            SEND,
            b"UNSUBSCRIBE\nid:sub-99\n\n\0",
            b"SUBSCRIBE\nid:a\\c1\\\\n\nack:client-individual\ndestination:/user/topic/authorization\n\n\0",
            b"ACK\nid:2\nsubscription:a\\c1\\\\n\n\n\0",
            b"\n",
            b"UNSUBSCRIBE\nid:sub-0\n\n\0",
            b"DISCONNECT\nreceipt:close-1\n\n\0",
        ],
        ["CONNECTED 1.2", "RECEIPT a\\cb", "MESSAGE sub-0", "MESSAGE a\\c1\\\\n", "RECEIPT close-1"],
    ),
}


@pytest.mark.parametrize("client", PLAY_BOOKS)
def test_a_real_client(client: str) -> None:
    """It registers, gets a result that was there before it subscribed, acknowledges it, and leaves."""
    wire = StompWire(16_384)
    payloads = []
    for request in (request for message in PLAY_BOOKS[client].sent for request in wire.receive(message)):
        if isinstance(request, Reply | Disconnect):
            payloads.append(request.payload)
        else:
            assert request == asked_for("12345678")
            payloads.append(wire.registered(ID))
            assert wire.result(ID, DONE) is None
    answers = [
        f"{answer.command} {answer.headers.get(detail, '')}"
        for answer in read(b"".join(filter(None, payloads)))
        for detail in ("version", "subscription", "receipt-id")
        if detail in answer.headers
    ]
    assert answers == PLAY_BOOKS[client].answers
    assert wire.acked == 2


# Tokens


@pytest.mark.parametrize(
    ("lines", "members", "token"),
    [
        ((), b"", None),
        (("token:a.b.c",), b"", "a.b.c"),
        ((), b',"token":"a.b.c"', "a.b.c"),
        (("token:header",), b',"token":"body"', "body"),
        (("token:a.b.c",), b',"token":null', "a.b.c"),
        (("token:a.b.c",), b',"token":7', ""),
        (("token:",), b"", ""),
        (("token:ä",), b"", "ä"),
        (("token:first", "token:second"), b"", "first"),
        (("Token:a.b.c",), b"", None),
    ],
)
@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2"])
def test_registers_with_a_token(
    version: str, lines: tuple[str, ...], members: bytes, token: str | None
) -> None:
    body = b'{"webSocketId":"12345678"%b}' % members
    message = frame("SEND", "destination:/app/registration", *lines, body=body)
    assert receive(connected(version), message) == [Register("12345678", None, token)]


def test_a_token_in_a_header_is_bounded_as_every_header() -> None:
    longest = "x" * (MAX_LINE - len("token:"))
    body = b'{"webSocketId":"12345678"}'
    message = frame("SEND", "destination:/app/registration", f"token:{longest}", body=body)
    assert receive(connected(), message) == [Register("12345678", None, longest)]
    message = frame("SEND", "destination:/app/registration", f"token:{longest}x", body=body)
    assert refused(connected(), message)[0] is CloseCode.TOO_BIG


# Heads that clients share


def test_a_head_means_what_its_own_clients_version_says() -> None:
    """Heads are remembered, so a client's must not be read by what another's version allows."""
    escaped = subscribe("/user/topic/registration", r"a\r")
    spaced = frame("SUBSCRIBE", "id: s ", "destination: /user/topic/registration ")
    for _ in range(2):
        assert receive(connected("1.2"), escaped) == []
        assert refused(connected("1.1"), escaped)[0] is CloseCode.PROTOCOL_ERROR
        answers = {version: connected(version) for version in ("1.0", "1.2")}
        for wire in answers.values():
            receive(wire, spaced)
        assert read(answers["1.0"].registered(ID))[0].headers["subscription"] == "s"
        assert answers["1.2"].registered(ID) is None


def test_nothing_of_a_connect_is_remembered() -> None:
    """It brings a token."""
    before = _shared_head.cache_info()
    connected()
    assert _shared_head.cache_info() == before
    receive(connected(), frame("SUBSCRIBE", "id:1", "destination:x", f"x-long:{'x' * MAX_SHARED}"))
    assert _shared_head.cache_info() == before


def test_nothing_of_a_token_is_remembered() -> None:
    """The shortest that there is: HS256, an id of one character."""
    token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIiwiZXhwIjoxfQ." + "x" * 43
    before = _shared_head.cache_info()
    for destination in ("/app/registration", "/user/topic/registration"):
        receive(
            connected(),
            frame("SEND", f"destination:{destination}", f"token:{token}", body=b'{"webSocketId":"a"}'),
        )
    assert _shared_head.cache_info() == before


def test_what_is_kept_of_an_incomplete_frame() -> None:
    wire = connected()
    assert wire.incomplete == 0
    receive(wire, b"SEND\ndestination:/x\n")
    assert wire.incomplete == len(b"SEND\ndestination:/x\n")
    receive(wire, b"\nbody\0")
    assert wire.incomplete == 0
