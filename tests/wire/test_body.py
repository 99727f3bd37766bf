"""Where a body ends, compared with a parser of another make (h11)."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.body import (
    MAX_CHUNKS,
    MAX_LINE,
    MAX_TRAILERS,
    BodyReader,
    ChunkedBody,
    FixedBody,
    MalformedBody,
)

from . import strategies  # noqa: F401 - sets hypothesis up

NEXT = b"GET / HTTP/1.1\r\n"
HELLO = b"5\r\nhello\r\n0\r\n\r\n"


def read(reader: BodyReader, data: bytes, step: int) -> tuple[bytes, bytes | None]:
    """The body, and what follows it, of `data` in pieces of `step` bytes."""
    for at in range(0, len(data), step):
        rest = reader.feed(data[at : at + step])
        if rest is not None:
            return bytes(reader.data), rest + data[at + step :]
    return bytes(reader.data), None


@given(st.binary(max_size=50), st.integers(1, 60))
def test_a_body_of_known_length(body: bytes, step: int) -> None:
    if body:
        assert read(FixedBody(len(body)), body + NEXT, step) == (body, NEXT)
        assert read(FixedBody(len(body) + 1), body, step) == (body, None)
    assert FixedBody(0).feed(NEXT) == NEXT


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=5), st.integers(1, 90), st.booleans())
def test_chunks_become_the_body(chunks: list[bytes], step: int, fancy: bool) -> None:
    client = h11.Connection(h11.CLIENT)
    client.send(
        h11.Request(method="POST", target="/", headers=[("Host", "x"), ("Transfer-Encoding", "chunked")])
    )
    written = b"".join(client.send(h11.Data(data=chunk)) or b"" for chunk in chunks)
    written += client.send(h11.EndOfMessage(headers=[("A", "b")] if fancy else [])) or b""
    reader = ChunkedBody()
    assert read(reader, written + NEXT, step) == (b"".join(chunks), NEXT)
    assert reader.size == len(reader.data)


@pytest.mark.parametrize("size", [b"5", b"05", b"5 ", b"5;a=b", b'5 ;a;b="c"', b"00000005"])
def test_sizes(size: bytes) -> None:
    assert read(ChunkedBody(), size + HELLO[1:] + NEXT, 4) == (b"hello", NEXT)


def test_the_size_is_known_before_the_chunk_has_come() -> None:
    reader = ChunkedBody()
    assert reader.feed(b"ffffffff\r\nab") is None
    assert (reader.size, bytes(reader.data)) == (0xFFFFFFFF, b"ab")


MALFORMED = {
    "no size": b"\r\nhello\r\n",
    "a size that is no number": b"g\r\n",
    "a sign": b"+5\r\nhello\r\n",
    "a prefix": b"0x5\r\nhello\r\n",
    "an underscore": b"1_0\r\n",
    "a size without end": b"000000005\r\n",
    "a bare LF after the size": b"5\nhello\r\n",
    "a bare LF in an extension": b"5;a\n0\r\n",
    "a bare CR in an extension": b"5;a\r0\r\n",
    "a long chunk": b"5\r\nhello!\r\n",
    "an endless line": b"5;" + b"a" * MAX_LINE,
    "a trailer without a name": b"0\r\nhello\r\n",
    "a trailer with a space in its name": b"0\r\na b: c\r\n",
    "endless trailers": b"0\r\n" + b"a: b\r\n" * (MAX_TRAILERS // 4 + 1),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_malformed_chunks(body: bytes) -> None:
    for step in (1, len(body)):
        with pytest.raises(MalformedBody) as raised:
            read(ChunkedBody(), body, step)
        assert b"hello" not in str(raised.value).encode()


def test_many_small_chunks_cost_no_more_memory_than_their_bytes() -> None:
    reader = ChunkedBody()
    reader.feed(b"1\r\na\r\n" * MAX_CHUNKS)
    assert reader.data.__sizeof__() < 2 * MAX_CHUNKS
    with pytest.raises(MalformedBody):
        reader.feed(b"1\r\na\r\n")
