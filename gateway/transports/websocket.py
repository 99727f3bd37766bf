"""A session over a WebSocket: one small protocol object is all that a waiting browser costs.

aiohttp's WebSocketResponse keeps a request, a task, parsers and buffers for the life of each WebSocket: 15
KB. None of them has anything left to do once the 101 is written. So handshakes never reach aiohttp's handlers
(see `server.dispatcher`).
"""

from __future__ import annotations

import asyncio

from ..core.session import CLOSING, TOO_MUCH_INCOMPLETE, Session, SessionContext
from ..errors import WireError
from ..messages import SLOW_CONSUMER, CloseCode, known_code
from ..wire import Wire, frames
from ..wire.frames import BinaryFrameReader, EitherFrameReader, FrameReader, Opcode
from ..wire.handshake import Handshake, acceptance
from . import http
from .slow_reader import prompt, slow
from .sockets import reset

REASON_BY_CLIENT = "closed by the client"


class WebSocketSession(Session, asyncio.Protocol):
    """The transport's protocol and the hub's member in one object."""

    __slots__ = ("_alive", "_reader", "_transport")

    transport = "websocket"

    # A wire's messages are text or binary. The class holds that, because two slots would cost each session 60
    # bytes.
    _frame = staticmethod(frames.text)
    _new_reader: type[FrameReader] = FrameReader
    _new_reader_of_either: type[FrameReader] = EitherFrameReader

    def __init__(
        self, context: SessionContext, wire: Wire, address: str, transport: asyncio.Transport
    ) -> None:
        super().__init__(context, wire, address)
        self._transport = transport
        new_reader = self._new_reader_of_either if wire.either else self._new_reader
        self._reader: FrameReader | None = new_reader(context.config.max_message_size)
        self._alive = True  # the client has sent a frame since the last ping
        transport.set_write_buffer_limits(high=0)

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        if reader is None:  # the client broke the protocol or has sent its close frame: ignore the rest
            return
        complete = False
        try:
            for opcode, payload in reader.feed(data):
                complete = self._alive = True  # only a complete frame is a sign of life
                self._frame_received(opcode, payload)
                if self._ignores_input:
                    return
            if not complete and (delay := self.pay_fragment()):
                self._pause(delay)
            if reader.incomplete:
                self._context.ledger.incoming.add(self, len(data))
        except WireError as error:
            self._reply(error.last_message)
            self._fail(error.code, error.reason)

    def _frame_received(self, opcode: Opcode, payload: bytes) -> None:
        if opcode is frames.CLOSE:
            self._closed_by_client(frames.close_code(payload))
            return
        fragment = opcode is frames.CONTINUATION
        delay = self.pay_fragment() if fragment else self.pay_message(len(payload))
        if delay:
            self._pause(delay)
        if self.state is CLOSING:
            pass  # only the client's close frame is waited for
        elif opcode is frames.TEXT or opcode is frames.BINARY:
            self.message_received(payload)
        elif opcode is frames.PING:
            self._send(frames.pong(payload))

    def _pause(self, delay: float) -> None:
        """Read nothing for `delay` seconds: the client's address has used up its budget.

        What has been read already is handled. The session's own allowance limits that.
        """
        if self._transport.is_reading():
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(delay, self._resume)

    def _resume(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def eof_received(self) -> None:
        """The client has closed its half. Returning None lets the transport close the other half."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._reader = None
        self.resume_writing()
        self._context.ledger.session_lost(self._transport)
        self.ended()

    def pause_writing(self) -> None:
        self._transport = slow(self._context, self._transport, self)

    def resume_writing(self) -> None:
        self._transport = prompt(self._context, self._transport, self)

    # Sender

    @property
    def incomplete(self) -> int:
        return self._wire.incomplete + (self._reader.incomplete if self._reader else 0)

    def drop_incomplete(self) -> None:
        self._fail(CloseCode.TRY_AGAIN_LATER, TOO_MUCH_INCOMPLETE)

    # SlowReader

    @property
    def unread(self) -> int:
        return self._transport.get_write_buffer_size()

    def too_slow(self) -> None:
        self._fail(CloseCode.POLICY, SLOW_CONSUMER)

    def drop(self) -> None:
        self._end = (CloseCode.ABNORMAL, SLOW_CONSUMER)
        self.abort()

    # Session

    def _write(self, message: bytes) -> None:
        try:  # noqa: SIM105 - as in _send, whose call would cost 2 % of a delivery
            self._transport.write(self._frame(message))
        except RuntimeError:
            pass

    def _send_close(self, code: CloseCode, reason: str) -> None:
        self._send(frames.close(code, reason))

    def _ping(self) -> bool:
        alive, self._alive = self._alive, False
        if alive:
            self._send(frames.PING_FRAME)
        return alive

    def _send(self, frame: bytes) -> None:
        # uvloop raises for a write to a connection that broke a moment ago, until it reports the loss. A
        # result for this client must not harm the hub's other members.
        try:  # noqa: SIM105 - suppress() would cost 5 % of a delivery
            self._transport.write(frame)
        except RuntimeError:
            pass

    def abort(self) -> None:
        reset(self._transport)

    # How it ends

    @property
    def _ignores_input(self) -> bool:
        return self._reader is None

    def _closed_by_client(self, code: int) -> None:
        """Answer the client's close frame, unless it is the answer to ours. Then TCP ends (section 7.1.1)."""
        self._reader = None
        if self._begin_closing(known_code(code), REASON_BY_CLIENT, code):
            self._send(frames.close(code, ""))
        self._transport.close()

    def _fail(self, code: CloseCode, reason: str) -> None:
        """Fail the connection (section 7.1.7): send a close frame, close our half, and read no more.

        Closing both halves would reset the connection while the client's bytes are unread. The reset could
        overtake the close frame, which tells the client why.
        """
        self._reader = None
        self.close(code, reason)
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()


class BinaryWebSocketSession(WebSocketSession):
    """A session of a wire with binary messages."""

    __slots__ = ()

    _frame = staticmethod(frames.binary)
    _new_reader = BinaryFrameReader


def open_session(
    context: SessionContext,
    wire: Wire,
    address: str,
    handshake: Handshake,
    transport: asyncio.Transport,
    rest: bytes,
    protocol: str | None = None,
    kind: type[WebSocketSession] = WebSocketSession,
) -> None:
    """Answer `handshake` with 101, and make its connection a session of `address`, which is admitted.

    `rest` is what followed the handshake. `protocol` is the chosen subprotocol, if any. `kind` is the class
    of a session with text messages.
    """
    context.ledger.became_session(handshake.peer)
    session = (BinaryWebSocketSession if wire.binary else kind)(context, wire, address, transport)
    if context.events is not None:
        session.requested_with(handshake.headers)
    # First the protocol: a transport says only once that its client does not read, and this client may have
    # left an older response unread.
    transport.set_protocol(session)
    http.write(transport, acceptance(handshake, protocol))
    session.opened()
    if rest:
        session.data_received(rest)
