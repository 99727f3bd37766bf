"""Frames, quoting and paths, beside Python's own JSON."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.messages import CloseCode
from gateway.wire import sockjs
from gateway.wire.sockjs import InvalidPayload, SockJSPath

from . import strategies  # noqa: F401 - sets hypothesis up

# What the protocol wants escaped, besides what JSON does.
MANGLED = [*range(0x20), *range(0x200C, 0x2010), *range(0x2028, 0x2030), *range(0x2060, 0x2070)]
MANGLED += range(0xFFF0, 0x10000)

texts = st.text() | st.text('a"\\\0\n\u2028\ufffff%ä🎉')
halves = st.characters(categories=["Cs"])
javascript_strings = st.text(st.characters() | halves)  # which need not be Unicode


# Bytes out


@given(st.lists(texts, min_size=1))
def test_messages_survive_a_frame(messages: list[str]) -> None:
    frame = sockjs.message_frame([sockjs.quote(message.encode()) for message in messages])
    assert frame[:1] == b"a"
    assert json.loads(frame[1:]) == messages


@given(texts)
def test_frames_are_lines_that_no_browser_mangles(message: str) -> None:
    frame = sockjs.message_frame([sockjs.quote(message.encode())])
    assert re.fullmatch(rb"[ -\x7f]+", frame)


def test_every_character_that_browsers_mangle_is_escaped() -> None:
    message = "".join(map(chr, MANGLED))
    quoted = sockjs.quote(message.encode())
    assert quoted.isascii()
    assert not re.search(rb"[\x00-\x1f]", quoted)
    assert json.loads(quoted) == message


@given(st.integers(1001, 4999), texts)
def test_a_close_says_code_and_reason(code: int, reason: str) -> None:
    frame = sockjs.close_frame(code, reason)
    assert frame[:1] == b"c"
    assert json.loads(frame[1:]) == [code, reason]


def test_the_normal_end_in_the_words_of_sockjs() -> None:
    assert sockjs.close_frame(CloseCode.NORMAL, "disconnected") == b'c[3000,"Go away!"]'


@given(texts)
def test_an_event_survives_what_its_client_does_to_it(message: str) -> None:
    """sockjs-client hands the data of an event to decodeURI, most of the time."""
    frame = sockjs.message_frame([sockjs.quote(message.encode())])
    event = sockjs.event(frame).decode()
    assert event.startswith("data: ")
    assert event.endswith("\r\n\r\n")
    data = event[6:-4]
    assert "%" not in data
    assert "\n" not in data
    assert "\r" not in data
    assert json.loads(data[1:]) == [message]


def test_a_line_for_xhr() -> None:
    assert sockjs.line(sockjs.OPEN_FRAME) == b"o\n"
    assert sockjs.line(sockjs.PRELUDE) == b"h" * 2048 + b"\n"


# Bytes in


@given(st.lists(texts), st.booleans())
def test_an_array_of_strings_is_its_messages(messages: list[str], ascii_only: bool) -> None:
    payload = json.dumps(messages, ensure_ascii=ascii_only).encode()
    assert sockjs.parse_messages(payload) == messages
    assert sockjs.parse_request_body(payload) == sockjs.parse_messages(payload)


@given(st.lists(javascript_strings))
def test_half_a_character_becomes_what_a_websocket_makes_of_it(messages: list[str]) -> None:
    received = sockjs.parse_messages(json.dumps(messages).encode())
    assert received == [
        message.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for message in messages
    ]


def test_a_pair_cut_between_two_messages() -> None:
    assert sockjs.parse_messages(rb'["a\ud83c","\udf89b"]') == ["a\ufffd", "\ufffdb"]
    assert sockjs.parse_messages(rb'["\ud83c\udf89\ud83c"]') == ["🎉\ufffd"]


def test_a_message_alone_and_none_at_all() -> None:
    assert sockjs.parse_messages(b'"x"') == ["x"]
    assert sockjs.parse_messages(rb'"\ud83c"') == ["\ufffd"]
    assert sockjs.parse_messages(b"") == sockjs.parse_messages(b"[]") == []


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"{}", "Payload expected."),
        (b"null", "Payload expected."),
        (b"1", "Payload expected."),
        (b'["a",1]', "Payload expected."),
        (b'[["a"]]', "Payload expected."),
        (rb'[1,"\ud83c"]', "Payload expected."),
        (b'["a', "Broken JSON encoding."),
        (b"[NaN]", "Broken JSON encoding."),
        (b'["\xff"]', "Broken JSON encoding."),
        (rb'["\u12"]', "Broken JSON encoding."),
        (rb'["\ud83c"', "Broken JSON encoding."),
        (b"[" * 255 + rb'"\ud83c"', "Broken JSON encoding."),
        (b"[" * 100_000 + rb'"\ud83c"', "Payload expected."),
        (b"[" + b"{}," * 300 + b'""]', "Payload expected."),
    ],
)
def test_what_is_no_array_of_messages(payload: bytes, says: str) -> None:
    with pytest.raises(InvalidPayload, match=f"^{re.escape(says)}$"):
        sockjs.parse_messages(payload)


def test_nothing_is_no_payload_of_a_request() -> None:
    with pytest.raises(InvalidPayload, match="Payload expected"):
        sockjs.parse_request_body(b"")


@given(st.binary() | st.text('[]"\\ud8x,', max_size=30).map(str.encode))
def test_whatever_comes_is_messages_or_broken(payload: bytes) -> None:
    try:
        messages = sockjs.parse_messages(payload)
    except InvalidPayload:
        return
    for message in messages:
        message.encode()


def test_brackets_in_messages_are_no_parts_of_the_payload() -> None:
    messages = ['{"webSocketId":"a"}' * 20, "[" * 200]
    assert sockjs.parse_messages(json.dumps(messages).encode()) == messages


# Paths


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("", SockJSPath("greeting")),
        ("/", SockJSPath("greeting")),
        ("/info", SockJSPath("info")),
        ("/websocket", SockJSPath("raw websocket")),
        ("/iframe.html", SockJSPath("iframe")),
        ("/iframe-1.6.1.html", SockJSPath("iframe")),
        ("/000/abc/websocket", SockJSPath("websocket", "abc")),
        ("/000/abc/xhr", SockJSPath("xhr", "abc")),
        ("/000/abc/xhr_send", SockJSPath("xhr_send", "abc")),
        ("/_/%2e/xhr_streaming", SockJSPath("xhr_streaming", "%2e")),
        ("/info/websocket/eventsource", SockJSPath("eventsource", "websocket")),
        ("/0/abc/jsonp", None),
        ("/0/abc/jsonp_send", None),
        ("/0/abc/htmlfile", None),
        ("/0/abc/XHR", None),
        ("/0/abc/xhr\n", None),
        ("/0/abc", None),
        ("//abc/xhr", None),
        ("/0//xhr", None),
        ("/0./abc/xhr", None),
        ("/0/a.c/xhr", None),
        ("/0/abc/xhr/", None),
        ("/0/0/abc/xhr", None),
        ("/iframe/.html", None),
        ("info", None),
    ],
)
def test_places(path: str, place: SockJSPath | None) -> None:
    assert sockjs.parse_path(path) == place


segments = st.text(st.characters(codec="ascii", exclude_characters="/."), min_size=1, max_size=200)


@given(segments, segments)
def test_the_server_part_means_nothing(server: str, session: str) -> None:
    assert sockjs.parse_path(f"/{server}/{session}/xhr") == SockJSPath("xhr", session)
    assert sockjs.parse_path(f"/{server}/{session}{'x' * 200}/xhr") is None


@given(st.text("/.ax") | st.text())
def test_any_path_is_a_place_or_none(path: str) -> None:
    sockjs.parse_path(path)


def test_the_page_for_iframes_loads_the_script() -> None:
    assert b'<script src="/js/sockjs.js"></script>' in sockjs.iframe("/js/sockjs.js")
