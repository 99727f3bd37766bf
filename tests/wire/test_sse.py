"""What is written, read as HTML 9.2.6 says (Interpreting an event stream)."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.messages import (
    AUTH_RESULT,
    DEGRADED,
    MESSAGE_ID,
    NO_DATA,
    RESTORED,
    WEB_SOCKET_ID,
    CloseCode,
    Problem,
    Result,
)
from gateway.wire.sse import RECONNECT_DELAY, REJECTED_EVENT_ID, SSE_WIRE, close_comment

from . import strategies  # noqa: F401 - sets hypothesis up


class Event(NamedTuple):
    type: str
    data: str
    last_id: str


def interpret(stream: bytes) -> list[Event]:
    """The events that a browser makes of `stream`."""
    events, kind, data, last_id = [], "", "", ""
    for line in stream.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                events.append(Event(kind or "message", data[:-1], last_id))
            kind = data = ""
        elif name == "event":
            kind = value
        elif name == "data":
            data += value + "\n"
        elif name == "id" and "\0" not in value:
            last_id = value
    return events


ids = st.from_regex(WEB_SOCKET_ID, fullmatch=True).map(str.encode)
results = st.from_regex(AUTH_RESULT, fullmatch=True)
message_ids = st.none() | st.from_regex(MESSAGE_ID, fullmatch=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(ids)
def test_registered(name: bytes) -> None:
    ((kind, data, _),) = interpret(RECONNECT_DELAY + SSE_WIRE.registered(name))
    assert kind == "registration"
    assert json.loads(data) == {"webSocketId": name.decode(), "registrationSucceeded": True}


@given(ids, results, message_ids, st.just(NO_DATA) | values)
def test_a_result(name: bytes, auth_result: str, message_id: str | None, data: object) -> None:
    before = b"id: before\n\n"
    ((kind, said, last_id),) = interpret(
        before + SSE_WIRE.result(name, Result(auth_result, message_id, data))
    )
    expected: dict[str, object] = {"webSocketId": name.decode(), "authResult": auth_result}
    if message_id is not None:
        expected["messageId"] = message_id
    if data is not NO_DATA:
        expected["data"] = data
    assert kind == "authorization"
    assert json.loads(said) == expected
    assert last_id == (message_id or "before"), "a result without an id leaves the last one in force"


@pytest.mark.parametrize("push", [DEGRADED, RESTORED])
def test_the_status(push: str) -> None:
    """An event with a name of its own, which an EventSource without a listener for it ignores."""
    ((kind, data, last_id),) = interpret(b"id: before\n\n" + SSE_WIRE.status(push))
    assert (kind, json.loads(data), last_id) == ("status", {"push": push}, "before")


@given(st.text(max_size=200), st.text())
def test_refused(name: str, message: str) -> None:
    ((kind, data, last_id),) = interpret(SSE_WIRE.rejected(name, Problem("not_allowed", message)))
    assert kind == "registration"
    assert last_id == REJECTED_EVENT_ID
    assert not MESSAGE_ID.fullmatch(last_id), "no result's id means it"
    assert json.loads(data) == {
        "webSocketId": name,
        "registrationSucceeded": False,
        "error": {"code": "not_allowed", "message": message},
    }


def test_what_no_browser_makes_an_event_of() -> None:
    silent = (
        RECONNECT_DELAY + SSE_WIRE.heartbeat + close_comment(CloseCode.SERVICE_RESTART, "service restart")
    )
    assert interpret(silent) == []
    assert silent.endswith(b": 1012 service restart\n\n")


def test_the_client_has_no_say() -> None:
    assert SSE_WIRE.receive(b'{"webSocketId":"a"}') == ()
    assert SSE_WIRE.error(Problem("unknown_message", "what?")) is None
