"""Ids, requests, published results."""

from __future__ import annotations

import json
import re
import sys

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.messages import (
    NO_DATA,
    OTHER_CODE,
    CloseCode,
    InvalidRegistration,
    InvalidResult,
    Origin,
    Register,
    Result,
    code_label,
    known_code,
    parse_json,
    parse_registration,
    parse_result,
)

from .wire import strategies  # noqa: F401 - sets hypothesis up

SHA512 = "0123456789abcdef" * 8


# registration


@pytest.mark.parametrize("text", ["12345678", SHA512, "a", ".", "A-z_0.9~", "x" * 200])
def test_ids_that_register(text: str) -> None:
    assert parse_registration(text) == Register(text)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (None, "missing_id"),
        (1, "invalid_id"),
        (True, "invalid_id"),
        (1.5, "invalid_id"),
        (["a"], "invalid_id"),
        ({"a": 1}, "invalid_id"),
        (b"a", "invalid_id"),
        ("", "invalid_id"),
        ("x" * 201, "invalid_id"),
        ("x" * 1_000_000, "invalid_id"),
        ("a b", "invalid_id"),
        ("a\n", "invalid_id"),
        ("a*", "invalid_id"),
        ("a:b", "invalid_id"),
        ("a/b", "invalid_id"),
        ("\x00", "invalid_id"),
        ("é", "invalid_id"),
        ("\uff11\uff12", "invalid_id"),  # digits, but not ASCII's
        ("__keyspace@0__", "invalid_id"),
    ],
)
def test_ids_that_do_not(value: object, code: str) -> None:
    request = parse_registration(value)
    assert isinstance(request, InvalidRegistration)
    assert request.web_socket_id == value
    assert request.problem.code == code
    assert request.problem.message.startswith("webSocketId")


@given(st.text() | st.none() | st.integers() | st.lists(st.text()) | st.binary())
def test_only_ids_in_their_form_register(value: object) -> None:
    allowed = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~-")
    good = isinstance(value, str) and 1 <= len(value) <= 200 and set(value) <= allowed
    assert isinstance(parse_registration(value), Register) is good


@pytest.mark.parametrize("last", ["m-1", "!", "~" * 200, '{"a":1}'])
def test_a_registration_may_say_what_the_client_has_had_last(last: str) -> None:
    assert parse_registration("a", last) == Register("a", last)


@pytest.mark.parametrize(
    "last", [None, "", " ", "a b", "é", "a\n", "x" * 201, 7, True, ["m-1"], {"m": 1}, b"m-1"]
)
def test_what_is_no_message_id_is_left_out_and_the_id_registers_all_the_same(last: object) -> None:
    assert parse_registration("a", last) == Register("a")


@pytest.mark.parametrize(
    ("token", "kept"),
    [
        (None, None),
        ("", ""),
        ("a.b.c", "a.b.c"),
        (7, ""),
        (False, ""),
        (["a"], ""),
        ({"a": 1}, ""),
        (b"a", ""),
    ],
)
def test_a_token_that_is_no_string_proves_nothing_and_is_there(token: object, kept: str | None) -> None:
    assert parse_registration("a", None, token) == Register("a", None, kept)
    assert isinstance(parse_registration("a b", None, token), InvalidRegistration)


def test_a_message_id_makes_no_bad_id_good() -> None:
    assert isinstance(parse_registration("a b", "m-1"), InvalidRegistration)


# parse_result


@pytest.mark.parametrize("word", ["CONFIRMED", "CONTINUE", "FAILED", "DONE", "A", "A_1", "X" * 64])
def test_a_bare_word_is_a_result(word: str) -> None:
    result = parse_result(word.encode(), b"id", 100)
    assert (result.auth_result, result.message_id, result.data) == (word, None, NO_DATA)


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (b"", "not a result"),
        (b"confirmed", "not a result"),
        (b"CONFIRMED\0", "not a result"),
        (b"\xa0CONFIRMED", "not a result"),
        (b"\x0bCONFIRMED", "not a result"),
        (b"\n", "not a result"),
        (b"CONFIRMED\nCONFIRMED", "not a result"),
        (b"1CONFIRMED", "not a result"),
        (b"_A", "not a result"),
        (b"X" * 65, "not a result"),
        (b"\xff\xfe", "not a result"),
        ("\uff2f\uff2b".encode(), "not a result"),
        (b'"CONFIRMED"', "not a result"),
        (b"[]", "not a result"),
        (b"null", "not a result"),
        (b"{", "not JSON"),
        (b'{"authResult":"A"} ,', "not JSON"),
        (b'{"authResult":"\xff"}', "not JSON"),
        (b'{"authResult":"A","data":NaN}', "not JSON"),
        (rb'{"authResult":"A","data":["\ud800",NaN]}', "not JSON"),
        (rb'{"authResult":"A","data":"\ud800}', "not JSON"),
        (b"{}", "no authResult"),
        (b'{"authResult":null}', "no authResult"),
        (b'{"authResult":"a"}', "no authResult"),
        (b'{"authResult":["A"]}', "no authResult"),
        (b'{"authResult":"A","messageId":7}', "bad messageId"),
        (b'{"authResult":"A","messageId":""}', "bad messageId"),
        (b'{"authResult":"A","messageId":"a b"}', "bad messageId"),
        (b'{"authResult":"A","messageId":"' + b"x" * 201 + b'"}', "bad messageId"),
        (b'{"authResult":"A","webSocketId":"other"}', "another webSocketId"),
        (b'{"authResult":"A","webSocketId":null}', "another webSocketId"),
        (b"X" * 301, "too big"),
        (b'{"authResult":"A","data":"' + b"x" * 300 + b'"}', "too big"),
    ],
)
def test_payloads_that_no_node_forwards(payload: bytes, kind: str) -> None:
    with pytest.raises(InvalidResult) as raised:
        parse_result(payload, b"id", 300)
    assert raised.value.kind == kind


def sent(result: Result) -> object:
    """The data of `result` as whoever gets it reads it."""
    return NO_DATA if result.data is NO_DATA else orjson.loads(orjson.dumps(result.data))


def test_an_object_says_more() -> None:
    payload = b'{"authResult":"A","messageId":"m-1","webSocketId":"id","data":{"x":[1,null]},"extra":1}'
    result = parse_result(payload, b"id", len(payload))
    assert (result.auth_result, result.message_id, sent(result)) == ("A", "m-1", {"x": [1, None]})
    assert repr(result) == "Result('A', message_id='m-1')"


def test_null_is_data_but_no_message_id() -> None:
    result = parse_result(b'{"authResult":"A","data":null,"messageId":null}', b"id", 100)
    assert sent(result) is None
    assert result.message_id is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


PRETTY = b"""
{
  "authResult": "A",
  "messageId": "m-1",
  "data": {
    "x": 1
  }
}
"""


def test_json_may_be_pretty_printed() -> None:
    result = parse_result(PRETTY, b"id", 100)
    assert (result.auth_result, result.message_id, sent(result)) == ("A", "m-1", {"x": 1})
    assert b"\n" not in orjson.dumps(result.data), "server-sent events are lines"


@pytest.mark.parametrize("space", [b" ", b"\t", b"\r\n", b"\n\n "])
@pytest.mark.parametrize("payload", [b"DONE", b'{"authResult":"DONE"}'])
def test_white_space_around_a_payload_means_nothing(space: bytes, payload: bytes) -> None:
    for spaced in (space + payload, payload + space, space + payload + space):
        assert parse_result(spaced, b"id", 100).auth_result == "DONE"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (rb'"\ud83d\ude00"', "\U0001f600"),
        (rb'"a\ud83d"', "a\ufffd"),
        (rb'"\uDE00b"', "\ufffdb"),
        (rb'"\ud83d\ud83d\ude00"', "\ufffd\U0001f600"),
        (rb'"\ud83d\u0041"', "\ufffdA"),
        (rb'"\\ud83d\udbff"', "\\ud83d\ufffd"),
        (
            rb'{"\udc00":[1,1.5,12345678901234567,true,null]}',
            {"\ufffd": [1, 1.5, 12345678901234567, True, None]},
        ),
    ],
)
def test_half_of_a_surrogate_pair_is_replaced(text: bytes, value: object) -> None:
    """JSON may have it, UTF-8 may not: what the client gets must be UTF-8, and it must get its result."""
    assert parse_json(text) == value
    result = parse_result(b'{"authResult":"A","data":' + text + b"}", b"id", 200)
    assert sent(result) == value
    orjson.dumps(result.data).decode()


javascript_strings = st.text(st.characters() | st.characters(categories=["Cs"]))


@given(st.recursive(javascript_strings, lambda inner: st.lists(inner, max_size=3), max_leaves=5))
def test_only_halves_of_pairs_differ_from_python(value: object) -> None:
    text = json.dumps(value)
    expected = re.sub("[\ud800-\udfff]", "\ufffd", json.dumps(json.loads(text), ensure_ascii=False))
    assert parse_json(text.encode()) == json.loads(expected)


@pytest.mark.parametrize(
    "text", [b"", b"[", b"\xff", rb'"\ud800', rb'"\ud800"x', b"[" * 5_000 + rb'"\ud800"']
)
def test_no_json(text: bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


def test_halves_of_pairs_cost_no_loop_of_python() -> None:
    """Counted, since the time depends on the machine: 7,000 of them once took 15 ms of the event loop."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    text = b"[" + rb'"\ud800",' * 7_000 + b"1]"
    sys.setprofile(count)
    try:
        parse_json(text)
    finally:
        sys.setprofile(None)
    assert calls < 200


@given(st.integers())
def test_the_codes_to_count_by_are_few(code: int) -> None:
    assert known_code(code) in {*CloseCode, OTHER_CODE}
    assert all(known_code(each) is each for each in CloseCode)
    assert [code_label(each) for each in (known_code(1000), known_code(4711))] == ["1000", "other"]


@given(st.binary() | json_values.map(orjson.dumps) | st.binary().map(lambda tail: b"{" + tail))
def test_whatever_is_published_is_a_result_or_invalid(payload: bytes) -> None:
    try:
        result = parse_result(payload, b"id", 100)
    except InvalidResult:
        return
    assert result.auth_result.isascii()


@given(
    st.from_regex(r"[A-Z][A-Z0-9_]{0,63}", fullmatch=True),
    st.none() | st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=200),
    json_values,
)
def test_what_a_publisher_may_write_is_read_as_written(
    auth_result: str, message_id: str | None, data: object
) -> None:
    body = {"authResult": auth_result, "messageId": message_id, "data": data}
    result = parse_result(orjson.dumps(body), b"id", 65_536)
    assert (result.auth_result, result.message_id, sent(result)) == (auth_result, message_id, data)


@pytest.mark.parametrize(
    ("members", "origin"),
    [
        ({}, None),
        ({"publishedAt": 1500}, Origin(1.5, None)),
        ({"publishedAt": True}, Origin(None, None)),
        ({"publishedAt": "today", "traceparent": "00-1"}, Origin(None, "00-1")),
        ({"traceparent": "00-1"}, Origin(None, "00-1")),
    ],
)
def test_where_a_result_comes_from(members: dict[str, object], origin: Origin | None) -> None:
    assert parse_result(orjson.dumps({"authResult": "DONE"} | members), b"id", 1_000).origin == origin


@pytest.mark.parametrize(
    ("data", "why"),
    [(b"[" * 500 + b"]" * 500, "data nested too deeply"), (b"[" + b"9e9," * 24 + b"1]", "too big")],
)
def test_data_that_cannot_be_sent(data: bytes, why: str) -> None:
    """Numbers become longer when they are written: the payload was not too big."""
    with pytest.raises(InvalidResult) as caught:
        parse_result(b'{"authResult":"A","data":' + data + b"}", b"id", 200 if why == "too big" else 2_000)
    assert str(caught.value) == why
