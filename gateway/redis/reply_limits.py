"""Bounds for what Redis, or whatever is at its address, may say on a connection. Pure.

hiredis allocates an array as soon as it has read how many elements follow: `*4294967295` takes 34 GB and 10 s
of the event loop, before the first of them. It has no setting for that, so such lengths are found before.
"""

from __future__ import annotations

import re
from typing import Final

from ..errors import GatewayError

MAX_LENGTH_DIGITS: Final = 5
"""Digits of the number of elements in an array, map, set or push. The largest reply that is asked for,
CLUSTER SLOTS, has 16,384 of them."""

MAX_REPLY: Final = 32 << 20
"""Bytes of one reply. Redis drops a subscriber that is 32 MB behind, so a larger message is not received
from there either."""

MAX_LINE: Final = 64 << 10
"""Bytes of an error, a number or another reply of one line."""

MAX_ERROR_TEXT: Final = 300
"""Characters of an error that are kept: they go into logs, metrics and answers."""

MAX_HELD: Final = 1 << 20
"""Bytes that are kept in case a later chunk has to be understood from the start."""

OVERLAP: Final = 16
"""Bytes of the previous chunk that are searched again: a length may begin there."""

# In RESP a length follows the end of a line, so an LF is before it. With this literal at its start the search
# is five times as fast: 0.2 us for a message of 250 bytes.
_LONG_LENGTH: Final = re.compile(rb"\n[*%%~>|][0-9]{%d}" % (MAX_LENGTH_DIGITS + 1))
_AGGREGATES: Final = b"*%~>|"
_STRINGS: Final = b"$="


class UnexpectedReply(GatewayError):
    """A reply that fits no command: what this connection says can no longer be trusted."""


def printable(text: str) -> str:
    """`text` without control characters, and not too long: a peer's words for logs and answers."""
    shown = text[:MAX_ERROR_TEXT]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
    return shown if len(text) <= MAX_ERROR_TEXT else f"{shown}…"


class ReplyLimits:
    """Looks at the bytes of one connection, chunk by chunk, before the parser gets them."""

    def __init__(self) -> None:
        self._size = 0  # bytes since the last complete reply
        self._held: list[bytes] = []  # the chunks that the walker has not seen
        self._held_size = 0
        self._tail = b"\n"
        self._walker = _Walker()
        self._walking = False
        self.unusual = False
        """Whether the last chunk ended within a reply, or looked as if it had too many elements. Otherwise a
        chunk that ends with a reply needs no call of `complete`."""

    def check(self, data: bytes) -> None:
        """Raises UnexpectedReply if a reply in `data` announces too many elements."""
        if self.unusual or data[1 : MAX_LENGTH_DIGITS + 2].isdigit() or _LONG_LENGTH.search(data):
            self._check_closely(data)

    def _check_closely(self, data: bytes) -> None:
        across = _LONG_LENGTH.search(self._tail + data[:OVERLAP])
        if self._walking or across or _LONG_LENGTH.search(data):
            # The same characters may be part of a result, so it takes a walk from the start of the reply.
            self.unusual = self._walking = True
            self._walk_held()
            self._walker.walk(data)

    def complete(self) -> None:
        """The chunk ended together with a reply."""
        self.unusual = self._walking = False
        self._size = self._held_size = 0
        self._held.clear()
        self._tail = b"\n"
        self._walker = _Walker()

    def incomplete(self, data: bytes, *, answered: bool) -> None:
        """The chunk ended within a reply; `answered` tells whether it also had the end of another.

        Raises UnexpectedReply when the reply is too long.
        """
        self.unusual = True
        self._tail = (self._tail + data[-OVERLAP:])[-OVERLAP:]
        self._size = len(data) if answered else self._size + len(data)
        if self._size > MAX_REPLY:
            raise UnexpectedReply(f"a reply of more than {MAX_REPLY >> 20} MB")
        if self._walking:
            return
        self._held.append(data)
        self._held_size += len(data)
        if self._held_size > MAX_HELD:
            self._walk_held()

    def _walk_held(self) -> None:
        for chunk in self._held:
            self._walker.walk(chunk)
        self._held.clear()
        self._held_size = 0


class _Walker:
    """Steps from one element to the next, and passes over the strings. Begins at the start of a reply."""

    def __init__(self) -> None:
        self._skip = 0  # bytes of a string that are still to come
        self._line = b""  # the start of a line whose end is still to come

    def walk(self, data: bytes) -> None:
        """Go on through the next chunk. Raises UnexpectedReply for a length or a line that is too long."""
        data, self._line = self._line + data, b""
        position, self._skip = self._skip, 0
        while position < len(data):
            end = data.find(b"\r\n", position)
            if (len(data) if end < 0 else end) - position > MAX_LINE:
                raise UnexpectedReply(f"a line of more than {MAX_LINE} bytes")
            if end < 0:
                self._line = data[position:]
                return
            position = end + 2 + self._string_size(data[position:end])
        self._skip = position - len(data)

    def _string_size(self, line: bytes) -> int:
        """The bytes of the string that follows this line; 0 for none."""
        length = line[1:]
        if line[:1] in _AGGREGATES and len(length) > MAX_LENGTH_DIGITS:
            raise UnexpectedReply(f"a reply of {printable(length.decode(errors='replace'))} elements")
        is_string = line[:1] in _STRINGS and length.isdigit()
        return int(length[:20]) + 2 if is_string else 0
