"""What clients may say, and every answer to the letter."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import WireError
from gateway.messages import (
    DEGRADED,
    NO_DATA,
    RESTORED,
    CloseCode,
    InvalidRegistration,
    InvalidResult,
    Problem,
    Register,
    Request,
    Result,
    UnknownMessage,
    WatchStatus,
    parse_result,
)
from gateway.wire.json import JSON_WIRE

from . import strategies  # noqa: F401 - sets hypothesis up

WIRE = JSON_WIRE


def receive(message: bytes) -> Request:
    """What `message` asks for first; a registration may also ask for the status."""
    request, *more = WIRE.receive(message)
    assert more in ([], [WatchStatus()])
    return request


# Bytes in


@pytest.mark.parametrize(
    "message",
    [
        b'{"topic":"/user/topic/registration","webSocketId":"12345678"}',
        b'{"webSocketId":"12345678","topic":"/user/topic/registration"}',
        b'{"webSocketId":"12345678"}',
        b' {"webSocketId" : "12345678"}\r\n',
        b'{"webSocketId":"\\u00312345678"}',
        b'{"webSocketId":"other","webSocketId":"12345678"}',
        b'{"webSocketId":"12345678","more":[1,2,3]}',
        b'{"webSocketId":"12345678","more":"\\udfff"}',
        b'{"webSocketId":"12345678","more":[' + b"{}," * 200 + b"{}]}",
    ],
)
def test_registers(message: bytes) -> None:
    assert receive(message) == Register("12345678")


@pytest.mark.parametrize(
    ("member", "last"),
    [
        (b'"lastMessageId":"m-1"', "m-1"),
        (b'"lastMessageId":null', None),
        (b'"lastMessageId":""', None),
        (b'"lastMessageId":"a b"', None),
        (b'"lastMessageId":7', None),
        (b'"lastMessageId":["m-1"]', None),
        (b'"lastmessageid":"m-1"', None),
    ],
)
def test_registers_with_what_the_client_has_had_last(member: bytes, last: str | None) -> None:
    assert receive(b'{"webSocketId":"12345678",%b}' % member) == Register("12345678", last)


@pytest.mark.parametrize(
    ("member", "token"),
    [(b'"token":"a.b.c"', "a.b.c"), (b'"token":null', None), (b'"token":7', ""), (b'"Token":"a"', None)],
)
def test_registers_with_a_token(member: bytes, token: str | None) -> None:
    assert receive(b'{"webSocketId":"12345678",%b}' % member) == Register("12345678", None, token)


@pytest.mark.parametrize("topic", [b"", b'"topic":"/user/topic/registration",'])
def test_a_registration_may_ask_for_the_status(topic: bytes) -> None:
    asked = list(WIRE.receive(b'{%b"webSocketId":"12345678","status":true}' % topic))
    assert asked == [Register("12345678"), WatchStatus()], "the answer first, then how push is"


@pytest.mark.parametrize("value", [b"false", b"null", b"1", b'"true"', b"[true]", b"{}"])
def test_nothing_else_asks_for_it(value: bytes) -> None:
    assert list(WIRE.receive(b'{"webSocketId":"12345678","status":%b}' % value)) == [Register("12345678")]


def test_also_when_the_id_is_refused() -> None:
    """The next one on this connection may be good."""
    rejected, watching = WIRE.receive(b'{"webSocketId":"a b","status":true}')
    assert isinstance(rejected, InvalidRegistration)
    assert watching == WatchStatus()


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b'{"topic":"/user/topic/registration"}', "missing_id"),
        (b'{"topic":"/user/topic/registration","webSocketId":null}', "missing_id"),
        (b'{"webSocketId":null}', "missing_id"),
        (b'{"webSocketId":7}', "invalid_id"),
        (b'{"webSocketId":["a"]}', "invalid_id"),
        (b'{"webSocketId":""}', "invalid_id"),
        (b'{"webSocketId":"a b"}', "invalid_id"),
        (b'{"webSocketId":"\\u0000"}', "invalid_id"),
        (b'{"webSocketId":"' + b"x" * 201 + b'"}', "invalid_id"),
        (b'{"webSocketId":"a\\ud800"}', "invalid_id"),
    ],
)
def test_rejects(message: bytes, code: str) -> None:
    request = receive(message)
    assert isinstance(request, InvalidRegistration)
    assert request.problem.code == code


@pytest.mark.parametrize(
    "message",
    [
        b"{}",
        b"[]",
        b"null",
        b"7",
        b'"12345678"',
        b'{"topic":"/user/topic/authorization","webSocketId":"12345678"}',
        b'{"topic":"/USER/TOPIC/REGISTRATION","webSocketId":"12345678"}',
        b'{"topic":null,"webSocketId":"12345678"}',
        b'{"topic":["/user/topic/registration"],"webSocketId":"12345678"}',
        b'{"authResult":"CONFIRMED"}',
        b"[" * 16_000,
        b'{"webSocketId":"12345678","x":[' + b"{}," * 256 + b"{}]}",
    ],
)
def test_does_not_understand(message: bytes) -> None:
    request = receive(message)
    assert isinstance(request, UnknownMessage)
    assert request.problem.code == "unknown_message"


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b" ",
        b"\x00",
        b"12345678x",
        b"{",
        b'{"webSocketId":"12345678"',
        b'{"webSocketId":"12345678"}{}',
        b"{'webSocketId':'12345678'}",
        b'{"webSocketId":"12345678",}',
        b'\xef\xbb\xbf{"webSocketId":"12345678"}',  # RFC 8259 section 8.1: no byte order mark
        b'{"webSocketId":"\xff"}',
        b'{"webSocketId":"\\ud800}',
        b'{"webSocketId":NaN}',
        b"[" * 256,
    ],
)
def test_what_is_not_json_ends_the_connection(message: bytes) -> None:
    with pytest.raises(WireError) as raised:
        WIRE.receive(message)
    assert raised.value.code is CloseCode.INVALID_DATA
    assert raised.value.reason == "not JSON"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["topic", "webSocketId", "x"]) | st.text(max_size=5), inner, max_size=4
        )
    ),
    max_leaves=20,
)
like_ours = st.fixed_dictionaries(
    {},
    optional={
        "topic": st.sampled_from(["/user/topic/registration", "/user/topic/error", ""]) | json_values,
        "webSocketId": st.text(max_size=210) | json_values,
        "lastMessageId": st.text(max_size=210) | json_values,
        "status": json_values,
    },
)


def dumped(value: object) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # an integer or a surrogate that orjson does not write
        return repr(value).encode(errors="surrogatepass")


@given(st.binary(max_size=200) | (json_values | like_ours).map(dumped))
def test_any_bytes_at_all_ask_for_something_or_end_the_connection(message: bytes) -> None:
    try:
        request = receive(message)
    except WireError:
        return
    if isinstance(request, Register):
        assert 1 <= len(request.web_socket_id) <= 200
        assert request.web_socket_id.isascii()
        assert request.last_message_id is None or request.last_message_id.isascii()
    elif isinstance(request, InvalidRegistration):  # whatever it is, it can be answered
        orjson.loads(WIRE.rejected(request.web_socket_id, request.problem))
    else:
        assert isinstance(request, UnknownMessage)
        orjson.loads(WIRE.error(request.problem))


# Bytes out

PROBLEM = Problem("invalid_id", 'say "please"')


def test_acknowledges_to_the_letter() -> None:
    assert WIRE.registered(b"12345678") == (
        b'{"topic":"/user/topic/registration","webSocketId":"12345678","registrationSucceeded":true}'
    )


def test_rejects_to_the_letter() -> None:
    assert WIRE.rejected("a b", PROBLEM) == (
        b'{"topic":"/user/topic/registration","webSocketId":"a b","registrationSucceeded":false,'
        b'"error":{"code":"invalid_id","message":"say \\"please\\""}}'
    )


@pytest.mark.parametrize("web_socket_id", [None, 7, ["x"], "x" * 201, {"x": {}}])
def test_an_id_that_was_none_is_not_repeated(web_socket_id: object) -> None:
    assert "webSocketId" not in orjson.loads(WIRE.rejected(web_socket_id, PROBLEM))


def test_complains_to_the_letter() -> None:
    assert WIRE.error(PROBLEM) == (
        b'{"topic":"/user/topic/error","error":{"code":"invalid_id","message":"say \\"please\\""}}'
    )


@pytest.mark.parametrize("push", [DEGRADED, RESTORED])
def test_tells_of_the_status_to_the_letter(push: str) -> None:
    assert WIRE.status(push) == b'{"topic":"/user/topic/status","push":"%b"}' % push.encode()
    assert push in ("degraded", "restored")


@pytest.mark.parametrize(
    ("result", "rest"),
    [
        (Result("CONFIRMED"), b"}"),
        (Result("CONFIRMED", "m-1"), b',"messageId":"m-1"}'),
        (Result("CONFIRMED", 'm"1\\'), b',"messageId":"m\\"1\\\\"}'),
        (Result("CONFIRMED", data=None), b',"data":null}'),
        (Result("CONFIRMED", data={"a": ["é"]}), ',"data":{"a":["é"]}}'.encode()),
        (Result("CONFIRMED", "m-1", "x"), b',"messageId":"m-1","data":"x"}'),
    ],
)
def test_carries_a_result_to_the_letter(result: Result, rest: bytes) -> None:
    assert WIRE.result(b"12345678", result) == (
        b'{"topic":"/user/topic/authorization","webSocketId":"12345678","authResult":"CONFIRMED"' + rest
    )


@given(
    st.fixed_dictionaries(
        {"authResult": st.just("DONE")}, optional={"data": json_values, "messageId": st.text()}
    )
)
def test_a_valid_result_can_be_sent(body: dict[str, object]) -> None:
    """With what its publisher sent along, and nothing else."""
    try:
        result = parse_result(dumped(body | {"secret": 1}), b"id", 65_536)
    except InvalidResult:
        return
    sent = orjson.loads(WIRE.result(b"id", result))
    assert sent.pop("topic") == "/user/topic/authorization"
    assert sent.pop("webSocketId") == "id"
    assert sent.pop("authResult") == "DONE"
    assert sent.pop("messageId", None) == result.message_id
    if result.data is not NO_DATA:
        assert sent.pop("data") == orjson.loads(orjson.dumps(result.data))
    assert not sent


@pytest.mark.parametrize(
    "depth", [1, 100, 250, 251, 252, 253, 254, 255, 256, 300, 1_000, 1_020, 5_000, 30_000]
)
def test_data_may_be_as_deep_as_its_publisher_likes(depth: int) -> None:
    """It is sent or refused as invalid: it must not raise, for it comes out of the connection to Redis."""
    payload = b'{"authResult":"DONE","data":' + b"[" * depth + b"]" * depth + b"}"
    try:
        result = parse_result(payload, b"id", 65_536)
    except InvalidResult:
        return
    assert WIRE.result(b"id", result).endswith(b',"data":' + b"[" * depth + b"]" * depth + b"}")


def test_the_status_is_a_message_of_its_own_topic() -> None:
    assert orjson.loads(WIRE.status("lost")) == {"topic": "/user/topic/status", "push": "lost"}


def test_a_word_that_no_backend_has_sent_before() -> None:
    message = WIRE.result(b"id", Result("NEVER_SENT_BEFORE"))
    assert orjson.loads(message)["authResult"] == "NEVER_SENT_BEFORE"
