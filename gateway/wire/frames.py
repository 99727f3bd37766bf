"""RFC 6455 frames, server side, without I/O: bytes in, messages out; messages in, bytes out.

Strict where the RFC says MUST: client frames are masked, reserved bits and opcodes are errors (no extension
is ever negotiated), control frames are whole and short, lengths are minimal, close codes are valid, text is
UTF-8. An idle reader holds no buffer.

Why not a library: an idle reader here has 150 bytes. Those of aiohttp, wsproto and websockets have 1.8 to 2.4
KB, the budget of a whole session, and two of the three accept what the RFC forbids (docs/benchmark.md).
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from enum import IntEnum
from functools import lru_cache
from struct import Struct

from ..errors import WireError
from ..messages import CloseCode

_U16 = Struct("!H")
_U64 = Struct("!Q")
_MAX_CONTROL = 125  # section 5.5


class Opcode(IntEnum):
    """Section 5.2."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


# Python 3.11 needs 200 ns to look up an enum's member, and 10 ns for a global.
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = Opcode

_WHOLE_TEXT = 0x80 | TEXT  # the first byte of nearly every frame

_OPCODES = {int(opcode): opcode for opcode in Opcode}


class FrameReader:
    """Turns a client's bytes into messages: `(Opcode, payload)` of TEXT or BINARY, PING, PONG or CLOSE.

    A fragment that completes no message is yielded as an empty CONTINUATION, so that limits on the number of
    messages count it too.
    """

    __slots__ = ("_buffer", "_decoder", "_fragments", "_max_size")

    _refused: Opcode | None = BINARY
    """Messages of this type are an error (1003)."""

    def __init__(self, max_size: int) -> None:
        """`max_size` limits a message in bytes, over all its fragments."""
        self._max_size = max_size
        self._buffer = b""
        self._fragments: bytes | None = None
        self._decoder: codecs.IncrementalDecoder | None = None

    @property
    def incomplete(self) -> int:
        """Bytes that are kept of a message that is not complete."""
        return len(self._buffer) + (len(self._fragments) if self._fragments else 0)

    def feed(self, data: bytes) -> Iterable[tuple[Opcode, bytes]]:
        """Each message that `data` completes, in order.

        Raises WireError, with the close code of RFC 6455, when the client breaks the protocol. The messages
        before have been yielded. The reader must not be used afterwards.
        """
        payload = self._only_text(data)
        return self._feed(data) if payload is None else ((TEXT, payload),)

    def _only_text(self, data: bytes) -> bytes | None:
        """The payload, if `data` is one short text message and nothing else, as nearly always. Else None.

        `_feed` would find the same, in twice the time. Raises WireError if the text is not UTF-8.
        """
        if self._buffer or self._fragments is not None or self._refused is TEXT:
            return None
        size = len(data)
        if size < 6 or data[0] != _WHOLE_TEXT:
            return None
        length, begin = data[1] - 0x80, 6
        if length >= 126:
            if length > 126 or size < 8 + 126:
                return None
            length, begin = data[2] << 8 | data[3], 8
        if length != size - begin or length > self._max_size:
            return None
        payload = _unmask(data[begin:], data[begin - 4 : begin])
        _check_text(payload)
        return payload

    def _feed(self, data: bytes) -> Iterator[tuple[Opcode, bytes]]:
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        position = 0
        while frame := self._frame(data, position):
            final, opcode, payload, position = frame
            if opcode >= CLOSE:
                if opcode is CLOSE:
                    _check_close(payload)
                yield opcode, payload
            elif final and opcode is TEXT:  # nearly always: a whole message in one frame
                _check_text(payload)
                yield opcode, payload
            elif final and opcode is BINARY:
                yield opcode, payload
            elif (message := self._collect(final, opcode, payload)) is not None:
                yield message
            else:
                yield CONTINUATION, b""
            if position == len(data):  # nearly always: clients send one frame in a packet
                return
        self._buffer = data[position:]

    def _frame(self, data: bytes, start: int) -> tuple[bool, Opcode, bytes, int] | None:
        """The frame at `start`: final, opcode, unmasked payload, end. None while it is incomplete."""
        if len(data) < start + 2:
            return None
        first, second = data[start], data[start + 1]
        whole_text = first == _WHOLE_TEXT and self._fragments is None and self._refused is not TEXT
        opcode = TEXT if whole_text else self._checked_opcode(first)
        if not second & 0x80:
            raise WireError(CloseCode.PROTOCOL_ERROR, "client frames must be masked")
        length = second & 0x7F
        if opcode >= CLOSE and (length > _MAX_CONTROL or not first & 0x80):
            raise WireError(CloseCode.PROTOCOL_ERROR, "control frames must be short and whole")
        mask = start + 2
        if length >= 126:
            extended = _U16 if length == 126 else _U64
            if len(data) < mask + extended.size:
                return None
            (length,) = extended.unpack_from(data, mask)
            if length < (126 if extended is _U16 else 65536) or length >> 63:
                raise WireError(CloseCode.PROTOCOL_ERROR, "frame length not in its shortest form")
            mask += extended.size
        if opcode < CLOSE and len(self._fragments or b"") + length > self._max_size:
            raise WireError(CloseCode.TOO_BIG, f"messages may have {self._max_size} bytes")
        begin = mask + 4
        end = begin + length
        if len(data) < end:
            return None
        return first & 0x80 != 0, opcode, _unmask(data[begin:end], data[mask:begin]), end

    def _checked_opcode(self, first: int) -> Opcode:
        if first & 0x70:
            raise WireError(CloseCode.PROTOCOL_ERROR, "reserved bit set")
        opcode = _OPCODES.get(first & 0x0F)
        if opcode is None:
            raise WireError(CloseCode.PROTOCOL_ERROR, "reserved opcode")
        if opcode is self._refused:
            accepted = "binary" if opcode is TEXT else "text"
            raise WireError(CloseCode.UNSUPPORTED_DATA, f"{accepted} messages only")
        if opcode < CLOSE and (opcode is CONTINUATION) != (self._fragments is not None):
            raise WireError(CloseCode.PROTOCOL_ERROR, "fragments out of order")
        return opcode

    def _collect(self, final: bool, opcode: Opcode, payload: bytes) -> tuple[Opcode, bytes] | None:
        """Add a fragment. Returns the whole message when it was the last one."""
        if opcode is TEXT:
            self._decoder = codecs.getincrementaldecoder("utf-8")()
        decoder = self._decoder
        if decoder is not None:  # invalid UTF-8 fails at its fragment
            try:
                decoder.decode(payload, final)
            except UnicodeDecodeError:
                raise WireError(CloseCode.INVALID_DATA, "text is not UTF-8") from None
        message = (self._fragments or b"") + payload
        if not final:
            self._fragments = message
            return None
        self._fragments = self._decoder = None
        return (BINARY if decoder is None else TEXT), message


class BinaryFrameReader(FrameReader):
    """The reader for wires with binary messages. A class of its own costs a text session no memory."""

    __slots__ = ()

    _refused = TEXT


class EitherFrameReader(FrameReader):
    """The reader for wires whose clients may send text and binary messages alike."""

    __slots__ = ()

    _refused = None


def _unmask(payload: bytes, key: bytes) -> bytes:
    """Section 5.3. One XOR of two long integers: the fastest way without a C extension."""
    length = len(payload)
    keys = (key * (length // 4 + 1))[:length]
    masked = int.from_bytes(payload, "little") ^ int.from_bytes(keys, "little")
    return masked.to_bytes(length, "little")


def _check_text(payload: bytes) -> None:
    if not payload.isascii():
        try:
            payload.decode()
        except UnicodeDecodeError:
            raise WireError(CloseCode.INVALID_DATA, "text is not UTF-8") from None


def _check_close(payload: bytes) -> None:
    """Sections 5.5.1 and 7.4: no body, or a code that may be sent and a reason in UTF-8."""
    if payload:
        code = int.from_bytes(payload[:2], "big")
        if len(payload) == 1 or not _may_be_sent(code):
            raise WireError(CloseCode.PROTOCOL_ERROR, "invalid close code")
        _check_text(payload[2:])


def _may_be_sent(code: int) -> bool:
    # 1004 is reserved; 1005, 1006 and 1015 only ever describe a close without a code.
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def close_code(payload: bytes) -> int:
    """The code in a CLOSE message from `FrameReader`."""
    return int.from_bytes(payload[:2], "big") if payload else CloseCode.NO_STATUS


def text(payload: bytes) -> bytes:
    """A whole text message in one frame."""
    length = len(payload)
    if length < 126:
        return b"\x81%c%b" % (length, payload)
    if length < 65536:
        return b"\x81\x7e" + _U16.pack(length) + payload
    return b"\x81\x7f" + _U64.pack(length) + payload


def binary(payload: bytes) -> bytes:
    """A whole binary message in one frame."""
    return b"\x82" + text(payload)[1:]


def pong(payload: bytes) -> bytes:
    """The answer to a PING with this payload (section 5.5.3)."""
    return b"\x8a%c%b" % (len(payload), payload)


PING_FRAME = b"\x89\x00"
"""A PING. It needs no payload: any answer is a sign of life."""


@lru_cache(64)  # most sessions end with one of a few reasons
def close(code: int, reason: str) -> bytes:
    """A CLOSE frame. The reason is cut to the size that a control frame may have."""
    if code == CloseCode.NO_STATUS:
        return b"\x88\x00"
    text = reason.encode()[: _MAX_CONTROL - 2].decode(errors="ignore").encode()
    return b"\x88%c%b%b" % (2 + len(text), _U16.pack(code), text)
