"""Any legal frame survives any split; any bytes at all end in an answer or an ERROR."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

import orjson
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.errors import WireError
from gateway.messages import (
    Disconnect,
    InvalidRegistration,
    NextMessage,
    Reply,
    Request,
    Result,
    UnknownMessage,
)
from gateway.messages import parse_registration as asked_for
from gateway.wire.stomp import MAX_HEAD_SIZE, MAX_ID, StompWire

from . import strategies  # noqa: F401 - sets hypothesis up
from .test_stomp import ID, MAX_BODY, connected, receive, subscribe

# By the book: section "Value Encoding" of 1.1 and of 1.2; 1.0 has no escapes.
ESCAPES = {
    "1.0": {},
    "1.1": {"\\": "\\\\", "\n": "\\n", ":": "\\c"},
    "1.2": {"\\": "\\\\", "\n": "\\n", ":": "\\c", "\r": "\\r"},
}
# What has no escape cannot be written. A NUL ends a frame; spaces at the ends do not count in 1.0.
UNWRITABLE = {"1.0": "\n\r: \t\v\f", "1.1": "\r", "1.2": ""}

versions = st.sampled_from(list(ESCAPES))


def texts(version: str, max_size: int = 12) -> st.SearchStrategy[str]:
    characters = st.characters(exclude_characters="\0" + UNWRITABLE[version], exclude_categories=["Cs"])
    return st.text(
        st.sampled_from("\\:nrcat\n\r ").filter(lambda c: c not in UNWRITABLE[version]) | characters,
        min_size=1,
        max_size=max_size,
    )


def escaped(version: str, value: str) -> str:
    return "".join(ESCAPES[version].get(character, character) for character in value)


def unescaped(version: str, value: str) -> str:
    """Read left to right, as the specification has it, and not by replacing one escape after the other."""
    meaning = {code: character for character, code in ESCAPES[version].items()}
    result, rest = "", value
    while rest:
        step = 2 if rest[0] == "\\" and meaning else 1
        result += meaning.get(rest[:step], rest[:step])
        rest = rest[step:]
    return result


@st.composite
def sends(draw: st.DrawFn, version: str) -> tuple[bytes, list[Request]]:
    """A SEND by the book, and what it asks for."""
    body = draw(
        st.sampled_from([b'{"webSocketId":"12345678"}', b'{"webSocketId":"12345678"}\n'])
        | st.binary(max_size=40)
    )
    headers = draw(st.lists(st.tuples(texts(version), texts(version)), max_size=4))
    lines = [f"x-{escaped(version, name)}:{escaped(version, value)}" for name, value in headers]
    lines.insert(draw(st.integers(0, len(lines))), "destination:/app/registration")
    if b"\0" in body or draw(st.booleans()):
        lines.insert(draw(st.integers(0, len(lines))), f"content-length:{len(body)}")
    receipt = draw(st.none() | texts(version))
    if receipt is not None:
        lines.append(f"receipt:{escaped(version, receipt)}")
    eol = draw(st.sampled_from(["\n", "\r\n"]))
    frame = eol.join(["SEND", *lines, "", ""]).encode() + body + b"\0" + b"\n" * draw(st.integers(0, 2))
    expected: list[Request] = []
    if receipt is not None:
        expected.append(Reply(f"RECEIPT\nreceipt-id:{escaped(version, receipt)}\n\n\0".encode()))
    expected.append(asked_for("12345678") if body.startswith(b'{"webSocketId":"12345678"}') else UNKNOWN)
    return frame, expected


(UNKNOWN,) = receive(connected(), b"SEND\ndestination:/app/registration\n\n\0")


def settled(request: Request) -> Request:
    """Bodies that are JSON by chance may mean something else; which it is, other tests say."""
    return request if isinstance(request, Reply) or request == asked_for("12345678") else UNKNOWN


@given(st.data())
def test_legal_frames_survive_every_split(data: st.DataObject) -> None:
    version = data.draw(versions)
    drawn = data.draw(st.lists(sends(version), min_size=1, max_size=3))
    stream = b"".join(frame for frame, _ in drawn)
    expected = [request for _, requests in drawn for request in requests]
    for cut in range(len(stream) + 1):
        requests = receive(connected(version), stream[:cut], stream[cut:])
        assert [settled(request) for request in requests] == expected
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=12)) | {0, len(stream)})
    pieces = [stream[start:end] for start, end in pairwise(cuts)]
    assert [settled(request) for request in receive(connected(version), *pieces)] == expected


@given(st.data())
def test_a_client_gets_its_own_ids_back(data: st.DataObject) -> None:
    version = data.draw(versions)
    name = data.draw(texts(version, 40))
    assert len(escaped(version, name).encode()) <= MAX_ID
    wire = connected(version)
    receive(wire, subscribe("/user/topic/authorization", escaped(version, name)))
    head, _, body = (wire.result(ID, Result("DONE")) or b"").partition(b"\n\n")
    headers = dict(line.split(":", 1) for line in head.decode().split("\n")[1:])
    assert unescaped(version, headers["subscription"]) == name
    assert orjson.loads(body[:-1]) == {"webSocketId": "12345678", "authResult": "DONE"}


words = st.sampled_from(
    [
        *(b"CONNECT STOMP SEND SUBSCRIBE UNSUBSCRIBE ACK NACK BEGIN DISCONNECT MESSAGE".split()),
        b"\naccept-version:1.2,1.1",
        b"\naccept-version:1.1",
        b"\nheart-beat:1,1",
        b"\ndestination:/app/registration",
        b"\ndestination:/user/topic/authorization",
        b"\ndestination:/user/topic/status",
        b"\nid:1",
        b"\nmessage-id:1",
        b"\nsubscription:1",
        b"\nack:client",
        b"\nreceipt:r",
        b"\ntransaction:t",
        b"\ncontent-length:3",
        b"\n\n",
        b"\r\n\r\n",
        b"\n",
        b"\r",
        b"\0",
        b"\\c",
        b"\\",
        b":",
        b'{"webSocketId":"12345678"}',
    ]
)
streams = st.lists(st.lists(words | st.binary(max_size=6), max_size=12).map(b"".join), max_size=8)


@given(st.none() | versions, streams)
@example("1.2", [b"SEND\ncontent-length:" + b"9" * 4_050])
@example(None, [b"\0" * 100])
@example(None, [b"\n" * 20_000, b"\r" * 20_000])
def test_any_bytes_at_all_are_answered_or_end_in_an_error(version: str | None, messages: list[bytes]) -> None:
    wire = StompWire(100) if version is None else connected(version)
    for message in messages:
        last_message = hear(wire, message)
        if last_message is not None:
            assert last_message.endswith(b"\0")
            last_message.decode()
            return


def hear(wire: StompWire, message: bytes) -> bytes | None:
    """Answer whatever `message` asks for. What the connection ends with, if it does."""
    try:
        for request in wire.receive(message):
            if isinstance(request, Reply):
                assert request.payload.endswith(b"\0")
                request.payload.decode()
            elif isinstance(request, Disconnect):
                return request.payload
            elif isinstance(request, InvalidRegistration):
                wire.rejected(request.web_socket_id, request.problem)
            elif isinstance(request, UnknownMessage):
                wire.error(request.problem)
            elif not isinstance(request, NextMessage):
                wire.registered(ID)
                wire.result(ID, Result("DONE"))
    except WireError as error:
        return error.last_message
    return None


heads = st.lists(words.filter(lambda word: b"\0" not in word) | st.binary(max_size=6), max_size=6).map(
    b"".join
)
bodies = st.sampled_from(
    [b"\0", b"\0\0", b"\0\n", b"\0a", b"abc\0", b"ab\0\0", b"abc", b"x" * 100 + b"\0", b""]
)


@given(
    st.none() | versions, st.builds(lambda *parts: b"".join(parts), words, heads, st.just(b"\n\n"), bodies)
)
@example("1.2", b"SEND\ndestination:/app/registration\n\n" + b"x" * (MAX_BODY + 1) + b"\0")
@example("1.2", b"SEND\nx:" + b"x" * MAX_HEAD_SIZE + b"\n\n\0")
@example("1.2", b"SEND\nx:" + b"x" * (MAX_HEAD_SIZE - 7) + b"\n\n\0")
@example("1.2", b"SUBSCRIBE\nid:1\ndestination:x\n\r\nack:no\n\n\0")
@example("1.2", b"\n\n\n\n\0")
def test_a_message_that_is_a_frame_means_what_it_means_among_others(
    version: str | None, message: bytes
) -> None:
    def fresh() -> StompWire:
        return StompWire(MAX_BODY) if version is None else connected(version)

    assert outcome(fresh().receive, message) == outcome(fresh()._receive_any, message)


def outcome(receive: Callable[[bytes], Iterable[Request]], message: bytes) -> tuple[object, ...]:
    try:
        return tuple(receive(message))
    except WireError as error:
        return error.code, error.reason, error.last_message
