"""Frames against RFC 6455: each MUST for who reads, any cut of the stream, a peer of another make."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Message, Ping, Pong, TextMessage

from gateway.errors import WireError
from gateway.messages import CloseCode
from gateway.wire import frames
from gateway.wire.frames import BinaryFrameReader, EitherFrameReader, FrameReader, Opcode

from .strategies import Frame, chunks, client_frame, conversations, keys, masked

MAX = 2_000

Messages = list[tuple[Opcode, bytes]]


def read(
    *pieces: bytes, max_size: int = MAX, kind: type[FrameReader] = FrameReader
) -> tuple[Messages, CloseCode | None]:
    """What a reader makes of `pieces`: the messages, and the code of the error that ended it, if any."""
    reader = kind(max_size)
    messages: Messages = []
    try:
        for piece in pieces:
            for message in reader.feed(piece):
                messages.append(message)
    except WireError as error:
        return messages, error.code
    return messages, None


def cut_everywhere(stream: bytes) -> list[tuple[Messages, CloseCode | None]]:
    """What a reader makes of `stream` cut in two, at each place, and byte by byte."""
    halves = [read(stream[:i], stream[i:]) for i in range(len(stream) + 1)]
    return [*halves, read(*(stream[i : i + 1] for i in range(len(stream))))]


def text(payload: bytes, *, final: bool = True) -> bytes:
    return client_frame(Opcode.TEXT, payload, final=final)


def more(payload: bytes, *, final: bool = True) -> bytes:
    return client_frame(Opcode.CONTINUATION, payload, final=final)


def unmasked(frame: bytes) -> bytes:
    """A short client frame without mask bit, key and masking."""
    return bytes([frame[0], frame[1] & 0x7F]) + frame[6:]


# Examples: what is read


@pytest.mark.parametrize(
    ("stream", "messages"),
    [
        (b"", []),
        (text(b""), [(Opcode.TEXT, b"")]),
        (text(b"Hello"), [(Opcode.TEXT, b"Hello")]),
        (text(b"x" * 125), [(Opcode.TEXT, b"x" * 125)]),
        (text(b"x" * 126), [(Opcode.TEXT, b"x" * 126)]),
        (text(b"x" * MAX), [(Opcode.TEXT, b"x" * MAX)]),
        (text("κόσμε".encode()), [(Opcode.TEXT, "κόσμε".encode())]),
        (text(b"Hel", final=False) + more(b"lo"), [(Opcode.CONTINUATION, b""), (Opcode.TEXT, b"Hello")]),
        (client_frame(Opcode.PING), [(Opcode.PING, b"")]),
        (client_frame(Opcode.PING, b"\xff" * 125), [(Opcode.PING, b"\xff" * 125)]),
        (client_frame(Opcode.PONG, b"unasked"), [(Opcode.PONG, b"unasked")]),
        (client_frame(Opcode.CLOSE), [(Opcode.CLOSE, b"")]),
        (client_frame(Opcode.CLOSE, b"\x03\xe8"), [(Opcode.CLOSE, b"\x03\xe8")]),
        (client_frame(Opcode.CLOSE, b"\x03\xe8" + b"x" * 123), [(Opcode.CLOSE, b"\x03\xe8" + b"x" * 123)]),
        (client_frame(Opcode.TEXT, b"key", key=b"\0\0\0\0"), [(Opcode.TEXT, b"key")]),
    ],
)
def test_reads(stream: bytes, messages: Messages) -> None:
    assert read(stream) == (messages, None)
    assert all(outcome == (messages, None) for outcome in cut_everywhere(stream))


def test_reads_the_masked_hello_of_section_5_7() -> None:
    assert read(bytes.fromhex("818537fa213d7f9f4d5158")) == ([(Opcode.TEXT, b"Hello")], None)


def test_reads_a_length_of_64_bits() -> None:
    assert read(text(b"x" * 65_536), max_size=70_000) == ([(Opcode.TEXT, b"x" * 65_536)], None)


def test_control_frames_come_out_between_fragments_in_their_order() -> None:
    stream = (
        text(b"a", final=False)
        + client_frame(Opcode.PING, b"1")
        + more(b"b", final=False)
        + client_frame(Opcode.PONG, b"2")
        + more(b"c")
        + text(b"d")
    )
    messages, error = read(stream)
    assert error is None
    assert [message for message in messages if message[0] is not Opcode.CONTINUATION] == [
        (Opcode.PING, b"1"),
        (Opcode.PONG, b"2"),
        (Opcode.TEXT, b"abc"),
        (Opcode.TEXT, b"d"),
    ]


def test_a_fragment_that_completes_nothing_is_still_something_to_count() -> None:
    stream = text(b"", final=False) + more(b"", final=False) * 3 + more(b"")
    assert read(stream) == ([(Opcode.CONTINUATION, b"")] * 4 + [(Opcode.TEXT, b"")], None)


def test_a_character_may_be_cut_by_a_fragments_border() -> None:
    euro = "€".encode()
    for i in range(len(euro) + 1):
        assert read(text(euro[:i], final=False) + more(euro[i:]))[0][-1] == (Opcode.TEXT, euro)


def test_a_reader_is_as_good_after_a_fragmented_message_as_before() -> None:
    message = text(b"a" * (MAX // 2), final=False) + more(b"b" * (MAX // 2))
    assert read(message * 5)[1] is None
    assert [payload for opcode, payload in read(message * 5)[0] if opcode is Opcode.TEXT] == [
        b"a" * (MAX // 2) + b"b" * (MAX // 2)
    ] * 5


# Examples: what is refused

PROTOCOL, INVALID, BIG = CloseCode.PROTOCOL_ERROR, CloseCode.INVALID_DATA, CloseCode.TOO_BIG


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        # 5.1: a client MUST mask
        (unmasked(text(b"Hello")), PROTOCOL),
        (unmasked(client_frame(Opcode.PING)), PROTOCOL),
        (unmasked(client_frame(Opcode.CLOSE)), PROTOCOL),
        # 5.2: RSV1-3 MUST be 0 without an extension
        (client_frame(Opcode.TEXT, b"a", rsv=1), PROTOCOL),
        (client_frame(Opcode.TEXT, b"a", rsv=2), PROTOCOL),
        (client_frame(Opcode.TEXT, b"a", rsv=4), PROTOCOL),
        (client_frame(Opcode.PING, rsv=4), PROTOCOL),
        (client_frame(Opcode.CLOSE, rsv=1), PROTOCOL),
        # 5.2: unknown opcodes MUST fail the connection
        *((client_frame(opcode), PROTOCOL) for opcode in (*range(3, 8), *range(11, 16))),
        # 5.2: the minimal number of bytes MUST be used for the length, and bit 63 MUST be 0
        (b"\x81\xfe\x00\x7d", PROTOCOL),
        (b"\x81\xfe\x00\x00", PROTOCOL),
        (b"\x81\xff" + (65_535).to_bytes(8, "big"), PROTOCOL),
        (b"\x81\xff" + (0).to_bytes(8, "big"), PROTOCOL),
        (b"\x81\xff" + (1 << 63).to_bytes(8, "big"), PROTOCOL),
        (b"\x81\xff" + b"\xff" * 8, PROTOCOL),
        # 5.4: fragments in their order, nothing else between them
        (more(b"a"), PROTOCOL),
        (more(b"a", final=False), PROTOCOL),
        (text(b"a", final=False) + text(b"b"), PROTOCOL),
        (text(b"a", final=False) + text(b"b", final=False), PROTOCOL),
        (text(b"a", final=False) + more(b"b") + more(b"c"), PROTOCOL),
        # 5.5: control frames MUST have 125 bytes or less and MUST NOT be fragmented
        *(
            (client_frame(opcode, b"\x03\xe8" * 63, final=final), PROTOCOL)
            for opcode in (Opcode.CLOSE, Opcode.PING, Opcode.PONG)
            for final in (True, False)
        ),
        *(
            (client_frame(opcode, final=False), PROTOCOL)
            for opcode in (Opcode.CLOSE, Opcode.PING, Opcode.PONG)
        ),
        # 5.5.1: the body of a CLOSE MUST begin with a whole code, its reason MUST be UTF-8
        (client_frame(Opcode.CLOSE, b"\x03"), PROTOCOL),
        (client_frame(Opcode.CLOSE, b"\x03\xe8\xff"), INVALID),
        (client_frame(Opcode.CLOSE, b"\x03\xe8" + "€".encode()[:2]), INVALID),
        # 5.6 and 8.1: text MUST be UTF-8, as a whole
        (text(b"\xff"), INVALID),
        (text(b"\xc0\xaf"), INVALID),  # overlong
        (text(b"\xed\xa0\x80"), INVALID),  # a surrogate
        (text(b"\xf4\x90\x80\x80"), INVALID),  # above U+10FFFF
        (text("€".encode()[:2]), INVALID),
        (text("€".encode()[:2], final=False) + more(b"a", final=False), INVALID),
        (text("€".encode()[:2], final=False) + more(b""), INVALID),
        (text(b"ok", final=False) + more(b"\xff", final=False), INVALID),  # at once, not at the last
        # The gateway's own: text only, and not too much of it
        (client_frame(Opcode.BINARY, b"a"), CloseCode.UNSUPPORTED_DATA),
        (client_frame(Opcode.BINARY, b"a", final=False), CloseCode.UNSUPPORTED_DATA),
        (text(b"x" * (MAX + 1)), BIG),
        (b"\x81\xff" + (1 << 40).to_bytes(8, "big"), BIG),
        (text(b"x" * MAX, final=False) + more(b"x"), BIG),
        (text(b"x", final=False) + more(b"x" * MAX, final=False), BIG),
    ],
)
def test_refuses(stream: bytes, code: CloseCode) -> None:
    assert read(stream)[1] is code
    assert read(*(stream[i : i + 1] for i in range(len(stream))))[1] is code
    if len(stream) < 300:
        assert all(outcome == read(stream) for outcome in cut_everywhere(stream))


def test_what_is_too_big_is_refused_by_its_header() -> None:
    """Nobody waits for, or keeps, the bytes that it announces."""
    header = b"\x81\xfe" + (MAX + 1).to_bytes(2, "big")
    assert read(header)[1] is BIG


def test_a_control_frame_is_not_part_of_the_messages_size() -> None:
    stream = text(b"x" * MAX, final=False) + client_frame(Opcode.PING, b"y" * 125) + more(b"")
    assert read(stream)[1] is None


def test_close_codes() -> None:
    """Section 7.4 and the IANA registry: what may stand on the wire, of all that fits there."""
    allowed = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}
    for code in (*range(5_001), 65_535):
        outcome = read(client_frame(Opcode.CLOSE, code.to_bytes(2, "big")))
        assert outcome[1] is (None if code in allowed else PROTOCOL), code


def test_messages_before_the_error_have_been_read() -> None:
    assert read(text(b"good") + text(b"\xff") + text(b"late")) == ([(Opcode.TEXT, b"good")], INVALID)


def test_a_reader_keeps_nothing_while_idle() -> None:
    reader = FrameReader(MAX)
    assert not hasattr(reader, "__dict__")
    fresh = [getattr(reader, name) for name in FrameReader.__slots__]
    assert list(reader.feed(text(b"x" * 1_000, final=False)[:500])) == []
    list(reader.feed(text(b"x" * 1_000, final=False)[500:] + more(b"y") + client_frame(Opcode.PING)))
    assert [getattr(reader, name) for name in FrameReader.__slots__] == fresh


# Properties


@given(st.data(), masked(conversations()))
def test_any_cut_of_the_stream_reads_the_same(data: st.DataObject, drawn: tuple[list[Frame], bytes]) -> None:
    sent, stream = drawn
    at_once = read(stream)
    assert at_once == (_meant(sent), None)
    assert read(*data.draw(chunks(stream))) == at_once


def _meant(sent: list[Frame]) -> Messages:
    """What the frames say, told without a codec."""
    messages: Messages = []
    collected = b""
    for frame in sent:
        if frame.opcode >= Opcode.CLOSE:
            messages.append((Opcode(frame.opcode), frame.payload))
            continue
        collected += frame.payload
        messages.append((Opcode.TEXT, collected) if frame.final else (Opcode.CONTINUATION, b""))
        if frame.final:
            collected = b""
    return messages


any_frames = st.builds(
    client_frame,
    st.integers(0, 15),
    st.binary(max_size=140),
    final=st.booleans(),
    rsv=st.sampled_from([0, 0, 0, 0, 1, 2, 4]),
    key=keys,
)
damaged = st.tuples(masked(conversations()), st.integers(0, 400), st.binary(min_size=1, max_size=3)).map(
    lambda drawn: drawn[0][1][: drawn[1]] + drawn[2] + drawn[0][1][drawn[1] + len(drawn[2]) :]
)


@given(st.data(), st.binary(max_size=300) | st.lists(any_frames, max_size=6).map(b"".join) | damaged)
def test_any_bytes_at_all_are_read_or_refused(data: st.DataObject, stream: bytes) -> None:
    """Nothing but WireError is raised, and the cut makes no difference to what is read or to the code."""
    at_once = read(stream)
    assert at_once[1] in (None, PROTOCOL, INVALID, BIG, CloseCode.UNSUPPORTED_DATA)
    assert read(*data.draw(chunks(stream))) == at_once
    assert read(*(stream[i : i + 1] for i in range(len(stream)))) == at_once


# Written for a peer of another make


def client() -> Connection:
    return Connection(ConnectionType.CLIENT)


def events(stream: bytes) -> list[Event]:
    """What wsproto's client makes of what the server wrote."""
    peer = client()
    peer.receive_data(stream)
    return list(peer.events())


@given(st.text(max_size=300) | st.sampled_from(["x" * n for n in (125, 126, 127, 65_535, 65_536, 70_000)]))
def test_a_client_reads_our_text(message: str) -> None:
    told = events(frames.text(message.encode()))
    assert "".join(str(event.data) for event in told if isinstance(event, Message)) == message
    assert all(isinstance(event, TextMessage) for event in told)


@given(st.binary(max_size=125))
def test_a_client_reads_our_pong(payload: bytes) -> None:
    assert events(frames.pong(payload)) == [Pong(payload=payload)]


def test_a_client_reads_our_ping() -> None:
    assert events(frames.PING_FRAME) == [Ping(payload=b"")]


@given(st.sampled_from([code for code in CloseCode if code not in (1005, 1006)]), st.text(max_size=200))
def test_a_client_reads_our_close(code: CloseCode, reason: str) -> None:
    (told,) = events(frames.close(code, reason))
    assert isinstance(told, CloseConnection)
    assert told.code == code
    assert reason.startswith(told.reason or "")
    if len(reason.encode()) <= 123:
        assert (told.reason or "") == reason


def test_a_client_reads_our_close_without_a_code() -> None:
    assert events(frames.close(CloseCode.NO_STATUS, "never sent")) == [CloseConnection(code=1005, reason="")]


sendable = st.lists(
    st.builds(TextMessage, data=st.text(max_size=200), message_finished=st.just(True))
    | st.builds(Ping, payload=st.binary(max_size=125))
    | st.builds(Pong, payload=st.binary(max_size=125)),
    max_size=6,
)


@given(st.data(), sendable)
def test_we_read_what_a_client_writes(data: st.DataObject, sent: list[TextMessage | Ping | Pong]) -> None:
    peer = client()
    stream = b"".join(peer.send(event) for event in sent)
    expected = [
        (Opcode.TEXT, event.data.encode())
        if isinstance(event, TextMessage)
        else (Opcode.PING if isinstance(event, Ping) else Opcode.PONG, bytes(event.payload))
        for event in sent
    ]
    assert read(*data.draw(chunks(stream))) == (expected, None)


def test_we_refuse_a_clients_binary_message() -> None:
    assert read(client().send(BytesMessage(data=b"a")))[1] is CloseCode.UNSUPPORTED_DATA


@given(st.data(), st.lists(st.binary(max_size=300), max_size=4))
def test_we_read_binary_messages_where_a_wire_wants_them(data: st.DataObject, sent: list[bytes]) -> None:
    peer = client()
    stream = b"".join(peer.send(BytesMessage(data=each)) for each in sent)
    expected = [(Opcode.BINARY, each) for each in sent]
    assert read(*data.draw(chunks(stream)), kind=BinaryFrameReader) == (expected, None)


def test_a_binary_message_may_come_in_fragments() -> None:
    stream = client_frame(Opcode.BINARY, b"\xff", final=False) + client_frame(Opcode.CONTINUATION, b"\xfe")
    assert read(stream, kind=BinaryFrameReader) == (
        [(Opcode.CONTINUATION, b""), (Opcode.BINARY, b"\xff\xfe")],
        None,
    )


def test_a_text_message_is_an_error_where_a_wire_wants_binary_ones() -> None:
    for final in (True, False):
        assert read(text(b"a", final=final), kind=BinaryFrameReader) == ([], CloseCode.UNSUPPORTED_DATA)


@given(st.data(), st.lists(st.text(max_size=100) | st.binary(max_size=100), max_size=6))
def test_we_read_both_where_a_wire_takes_either(data: st.DataObject, sent: list[str | bytes]) -> None:
    peer = client()
    messages = [TextMessage(data=each) if isinstance(each, str) else BytesMessage(data=each) for each in sent]
    stream = b"".join(peer.send(message) for message in messages)
    expected = [
        (Opcode.TEXT, each.encode()) if isinstance(each, str) else (Opcode.BINARY, each) for each in sent
    ]
    assert read(*data.draw(chunks(stream)), kind=EitherFrameReader) == (expected, None)


def test_fragments_are_of_the_type_of_the_first_where_a_wire_takes_either() -> None:
    euro = "€".encode()
    halves = more(euro[1:])
    in_binary = client_frame(Opcode.BINARY, euro[:1], final=False) + client_frame(
        Opcode.CONTINUATION, b"\xff"
    )
    messages = [(Opcode.CONTINUATION, b""), (Opcode.TEXT, euro), (Opcode.CONTINUATION, b"")]
    stream = text(euro[:1], final=False) + halves + in_binary
    assert read(stream, kind=EitherFrameReader) == ([*messages, (Opcode.BINARY, euro[:1] + b"\xff")], None)
    assert read(text(euro[:1], final=False) + more(b"a"), kind=EitherFrameReader)[1] is INVALID
    assert read(text(b"a", final=False) + client_frame(Opcode.BINARY), kind=EitherFrameReader)[1] is PROTOCOL


@given(st.binary(max_size=300) | st.sampled_from([b"x" * n for n in (125, 126, 127, 65_535, 65_536)]))
def test_a_client_reads_our_binary_message(message: bytes) -> None:
    told = events(frames.binary(message))
    assert b"".join(event.data for event in told if isinstance(event, BytesMessage)) == message
    assert all(isinstance(event, BytesMessage) for event in told)


@given(st.sampled_from([1000, 1001, 1008, 3000, 4999]), st.text(max_size=30))
def test_we_read_a_clients_close(code: int, reason: str) -> None:
    ((opcode, payload),), error = read(client().send(CloseConnection(code=code, reason=reason)))
    assert error is None
    assert opcode is Opcode.CLOSE
    assert frames.close_code(payload) == code
    assert payload[2:].decode() == reason


def test_no_code_in_a_close_is_1005() -> None:
    assert frames.close_code(b"") == CloseCode.NO_STATUS


def test_lengths_are_minimal_in_what_we_write() -> None:
    sizes = [len(frames.text(b"x" * n)) - n for n in (0, 125, 126, 65_535, 65_536)]
    assert sizes == [2, 2, 4, 4, 10]
    assert all(smaller <= larger for smaller, larger in pairwise(sizes))


def test_what_is_kept_of_an_incomplete_message() -> None:
    reader = FrameReader(MAX)
    assert reader.incomplete == 0
    whole = client_frame(Opcode.TEXT, b"hello")
    list(reader.feed(whole + whole[:4]))
    assert reader.incomplete == 4
    list(reader.feed(whole[4:] + client_frame(Opcode.TEXT, b"fragment", final=False)))
    assert reader.incomplete == len("fragment")
    list(reader.feed(client_frame(Opcode.CONTINUATION, b"")))
    assert reader.incomplete == 0


@pytest.mark.parametrize("kind", [FrameReader, BinaryFrameReader, EitherFrameReader])
@given(payload=st.binary(max_size=300) | st.text(max_size=300).map(str.encode), key=keys, data=st.data())
def test_a_frame_in_one_piece_is_read_as_in_two(
    kind: type[FrameReader], payload: bytes, key: bytes, data: st.DataObject
) -> None:
    """A whole short text has a way of its own."""
    first = data.draw(st.sampled_from([0x81, 0x81, 0x82, 0x01, 0x80, 0x91, 0x88]))
    length = data.draw(st.sampled_from([0, 1, -1])) + len(payload)
    extended = data.draw(st.booleans())
    payload = bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))
    size = (
        bytes([0xFE, length >> 8 & 0xFF, length & 0xFF])
        if extended or length > 125
        else bytes([0x80 | max(length, 0)])
    )
    frame = bytes([first]) + size + key + payload
    assert read(frame, max_size=200, kind=kind) == read(frame[:1], frame[1:], max_size=200, kind=kind)


@pytest.mark.parametrize("size", [125, 126, 127, 133, 254, 255])
def test_the_marks_of_a_length_are_no_lengths(size: int) -> None:
    payload = bytes(size)
    assert read(text(payload)) == ([(Opcode.TEXT, payload)], None)
    long_mark = b"\x81\xff" + bytes(4) + payload  # 64 bits of length follow, and here they are 0
    assert read(long_mark)[1] is CloseCode.PROTOCOL_ERROR
