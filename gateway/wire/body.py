"""The body of an HTTP request: where it ends (RFC 9112 sections 6 and 7). Pure.

A reader takes the bytes that follow a request's head. It keeps the body as it was sent (nothing is inflated),
and returns what follows the body: the start of the connection's next request.
"""

from __future__ import annotations

import re
from typing import Final

MAX_LINE: Final = 4_096
"""Bytes of a chunk's size with its extensions, or of a trailer. Nobody is known to send either."""

MAX_TRAILERS: Final = 16_384
"""Bytes of all trailers. They are read and ignored (section 7.1.2)."""

MAX_CHUNKS: Final = 4_096
"""Chunks of one body. Each costs a microsecond, however small it is."""

# Section 7.1. A bare CR or LF in an extension ends the line for some parsers, which smuggles requests.
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")


class MalformedBody(ValueError):
    """The body breaks RFC 9112, so nobody knows where the next request begins. It holds none of the bytes."""


class FixedBody:
    """A body whose length is known: Content-Length (section 6.2)."""

    __slots__ = ("data", "size")

    def __init__(self, length: int) -> None:
        self.data = bytearray()
        """What has come so far."""
        self.size = length
        """Bytes that the body has at least."""

    def feed(self, data: bytes) -> bytes | None:
        """Take the next bytes. Returns what follows the body; None while it is incomplete."""
        missing = self.size - len(self.data)
        self.data += data[:missing]
        return data[missing:] if len(data) >= missing else None


class ChunkedBody:
    """A body in chunks: Transfer-Encoding: chunked (section 7.1).

    size line ---> chunk ---> empty line ---> size line ...
        |
        +--0--> trailers ---> empty line: complete
    """

    __slots__ = ("_chunks", "_line", "_missing", "_next", "_trailers", "data", "size")

    def __init__(self) -> None:
        self.data = bytearray()
        """What has come so far."""
        self.size = 0
        """Bytes that the body has at least: those of all chunks that have begun."""
        self._line = b""  # the start of a line whose end has not come yet
        self._missing = 0  # bytes of the present chunk
        self._chunks = 0
        self._trailers = 0  # bytes
        self._next = self._size_line

    def feed(self, data: bytes) -> bytes | None:
        """Take the next bytes. Returns what follows the body; None while it is incomplete.

        Raises MalformedBody.
        """
        data, at = self._line + data, 0
        while True:
            if self._missing:
                chunk = data[at : at + self._missing]
                self.data += chunk
                self._missing -= len(chunk)
                at += len(chunk)
            end = data.find(b"\r\n", at)
            if end < 0:
                self._line = data[at:]
                if len(self._line) > MAX_LINE:
                    raise MalformedBody("a line is too long")
                return None
            line, at = data[at:end], end + 2
            if self._next(line):
                return data[at:]

    # What a line means. Each returns True if it is the body's last.

    def _size_line(self, line: bytes) -> bool:
        match = _CHUNK.fullmatch(line)
        self._chunks += 1
        if match is None or self._chunks > MAX_CHUNKS:
            raise MalformedBody("a chunk has no size, or there are too many")
        self._missing = int(match[1], 16)
        self.size += self._missing
        self._next = self._chunk_end if self._missing else self._trailer
        return False

    def _chunk_end(self, line: bytes) -> bool:
        if line:
            raise MalformedBody("a chunk is longer than its size")
        self._next = self._size_line
        return False

    def _trailer(self, line: bytes) -> bool:
        self._trailers += len(line)
        if self._trailers > MAX_TRAILERS or (line and not _TRAILER.fullmatch(line)):
            raise MalformedBody("a trailer is malformed")
        return not line


BodyReader = FixedBody | ChunkedBody
