"""What Redis may say before the parser gets it, in whatever chunks it comes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.redis import reply_limits
from gateway.redis.reply_limits import ReplyLimits, UnexpectedReply, printable

from ..fakes import resp

NOTHING = object()


class Reader:
    """Limits and parser, put together as a connection does it."""

    def __init__(self) -> None:
        self.limits = ReplyLimits()
        self._parser = hiredis.Reader(notEnoughData=NOTHING)

    def read(self, data: bytes) -> list[Any]:
        """The replies in one chunk. Raises UnexpectedReply."""
        replies: list[Any] = []
        self.limits.check(data)
        self._parser.feed(data)
        while (reply := self._parser.gets()) is not NOTHING:
            replies.append(reply)
            if not self._parser.has_data():
                if self.limits.unusual:
                    self.limits.complete()
                return replies
        self.limits.incomplete(data, answered=bool(replies))
        return replies


def read_all(pieces: Iterable[bytes]) -> list[Any]:
    """The replies in all chunks of one connection."""
    reader = Reader()
    return [reply for piece in pieces for reply in reader.read(piece)]


def chunks(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    for size in sizes:
        if data:
            yield data[:size]
            data = data[size:]
    if data:
        yield data


# Strings that look like the lengths of arrays, among others.
TRICKS = st.sampled_from(
    [b"*12345678\r\n", b"\n>999999\r\n", b"\r\n*4294967295\r\n", b"$5\r\n", b"\r\n", b"", b"%99999999"]
)
STRINGS = st.builds(bytes.__add__, TRICKS, st.binary(max_size=20)) | TRICKS
VALUES = st.recursive(
    STRINGS | st.integers(-(1 << 40), 1 << 40) | st.none() | st.sampled_from(["OK", "PONG"]),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=12,
)
SIZES = st.lists(st.integers(1, 40), max_size=60)


@given(st.lists(VALUES, min_size=1, max_size=6), SIZES)
def test_whatever_redis_may_say_passes(values: list[Any], sizes: list[int]) -> None:
    reader = Reader()
    replies = [reply for chunk in chunks(b"".join(map(resp, values)), sizes) for reply in reader.read(chunk)]
    assert len(replies) == len(values)


@given(
    st.lists(VALUES, max_size=4),
    st.sampled_from([b"*", b"%", b"~", b">"]),
    st.integers(10**reply_limits.MAX_LENGTH_DIGITS, (1 << 32) - 1),
    st.booleans(),
    SIZES,
)
def test_too_many_elements_never_reach_the_parser(
    values: list[Any], kind: bytes, count: int, within: bool, sizes: list[int]
) -> None:
    start = b"".join(map(resp, values)) + (b">3\r\n" + resp(b"message") if within else b"")
    with pytest.raises(UnexpectedReply, match=f"a reply of {count} elements"):
        read_all(chunks(start + b"%b%d\r\n:1\r\n:2\r\n" % (kind, count), sizes))


@pytest.mark.parametrize("size", [1, 2, 3, 10, 100, 1_000])
def test_long_replies_are_walked_in_parts(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply_limits, "MAX_HELD", 50)
    data = resp([b"\r\n*1234567\r\n" * 20, [b"a" * 99, 7, None, "OK"], b"", b"*7654321\r\n"]) * 3
    assert len(read_all(chunks(data, [size] * len(data)))) == 3
    with pytest.raises(UnexpectedReply, match="1234567 elements"):
        read_all(chunks(b"*2\r\n" + resp(b"a" * 200) + b"*1234567\r\n:1\r\n", [size] * 500))


def test_an_endless_reply_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply_limits, "MAX_REPLY", 5 << 20)
    megabyte = b"a" * (1 << 20)
    with pytest.raises(UnexpectedReply, match="a reply of more than 5 MB"):
        read_all([resp(1) + b"$99999999\r\n", *[megabyte] * 6])
    reader = Reader()
    for _ in range(12):  # many replies one after another are not one long reply
        assert reader.read(resp(megabyte)[:-2]) == []
        assert reader.read(b"\r\n") == [megabyte]
    for _ in range(12):  # nor are they if no chunk ends with one
        reader.read(resp(megabyte) + b":")
        reader.read(b"7\r\n")


def test_an_endless_line_ends_where_one_has_to_look() -> None:
    with pytest.raises(UnexpectedReply, match="a line of more than 65536 bytes"):
        read_all([b"+\n*1234567" + b"a" * 40_000] * 3)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("NOPERM no", "NOPERM no"),
        ("ERR \x1b[31m\x00\u202e\x9b\n", r"ERR \x1b[31m\x00\u202e\x9b\n"),
        ("ERR " + "a" * 1_000, "ERR " + "a" * 296 + "…"),
    ],
)
def test_errors_are_printable_and_short(text: str, shown: str) -> None:
    assert printable(text) == shown
