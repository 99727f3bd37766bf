"""A session over a WebSocket: one small protocol object is all that a waiting browser costs.

aiohttp's WebSocketResponse keeps a request, a task, parsers and buffers for as long as the WebSocket
lives, 15 KB each. None of them has anything left to do once the 101 is written. Most handshakes never
reach aiohttp's handlers (see `door`); those that come on a connection which has carried other requests
before do, and `take_over` gets the transport from there.
"""

from __future__ import annotations

import asyncio

from ..core.session import CLOSING, Session, SessionContext
from ..errors import WireError
from ..messages import CloseCode
from ..wire import Wire, frames
from ..wire.frames import FrameReader, Opcode
from ..wire.handshake import Handshake, acceptance

REASON_BY_CLIENT = "closed by the client"


class WebSocketSession(Session, asyncio.Protocol):
    """The transport's protocol and the hub's member in one object."""

    __slots__ = ("_heard", "_reader", "_transport")

    transport = "websocket"

    def __init__(self, node: SessionContext, wire: Wire, address: str, transport: asyncio.Transport) -> None:
        super().__init__(node, wire, address)
        self._transport = transport
        self._reader: FrameReader | None = FrameReader(node.config.max_message_size)
        self._heard = True
        transport.set_write_buffer_limits(high=node.config.write_buffer)

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        if self._reader is None:  # it broke the protocol, or has said goodbye: nothing counts any more
            return
        try:
            for opcode, payload in self._reader.feed(data):
                self._heard = True  # a frame that never ends is no sign of life
                self._frame_received(opcode, payload)
                if self._deaf:
                    return
        except WireError as error:
            self._say(error.last_words)
            self._fail(error.code, error.reason)

    def _frame_received(self, opcode: Opcode, payload: bytes) -> None:
        if opcode is frames.CLOSE:
            self._closed_by_client(frames.close_code(payload))
            return
        self.count_message()
        if self.state is CLOSING:
            pass  # only the client's own CLOSE is waited for
        elif opcode is frames.TEXT:
            self.message_received(payload)
        elif opcode is frames.PING:
            self._send(frames.pong(payload))

    def eof_received(self) -> None:
        """Half-closed by the client; returning None lets the transport close the other half."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._reader = None
        self.ended()

    def pause_writing(self) -> None:
        """The transport holds more unsent bytes than `write_buffer`: the client does not read."""
        self._fail(CloseCode.POLICY, "slow consumer")

    def resume_writing(self) -> None:
        """Nothing waits for it: a session that was too slow is closing already."""

    # Session

    def _write(self, message: bytes) -> None:
        try:  # noqa: SIM105 - as in _send, whose call would be a fiftieth of a delivery
            self._transport.write(frames.text(message))
        except RuntimeError:
            pass

    def _say_goodbye(self, code: CloseCode, reason: str) -> None:
        self._send(frames.close(code, reason))

    def _probe(self) -> bool:
        heard, self._heard = self._heard, False
        if heard:
            self._send(frames.PING_FRAME)
        return heard

    def _send(self, frame: bytes) -> None:
        # uvloop raises when a connection is written to that broke a moment ago, in the time until it
        # reports the loss; a result on its way to this client must not harm whoever brings it.
        try:  # noqa: SIM105 - suppress() would be a twentieth of a delivery
            self._transport.write(frame)
        except RuntimeError:
            pass

    def abort(self) -> None:
        self._transport.abort()

    # How it ends

    @property
    def _deaf(self) -> bool:
        return self._reader is None

    def _closed_by_client(self, code: int) -> None:
        """Answer the client's CLOSE, or take it as the answer to ours; then TCP ends (section 7.1.1)."""
        self._reader = None
        if self._leave(code, REASON_BY_CLIENT):
            self._send(frames.close(code, ""))
        self._transport.close()

    def _fail(self, code: CloseCode, reason: str) -> None:
        """Fail the connection (section 7.1.7): our CLOSE, the end of our half, then deaf.

        Closing at once would reset the connection while the client's bytes are still unread, and the
        reset could overtake the CLOSE that tells the client why.
        """
        self._reader = None
        self.close(code, reason)
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()


def open_session(
    node: SessionContext,
    wire: Wire,
    address: str,
    handshake: Handshake,
    transport: asyncio.Transport,
    rest: bytes,
    protocol: str | None = None,
    kind: type[WebSocketSession] = WebSocketSession,
) -> None:
    """Answer `handshake` with 101 and make its connection a session of `address`, which is admitted.

    `rest` is what followed the handshake; `protocol` is the subprotocol chosen, if any; `kind` is the class
    of the session.
    """
    transport.write(acceptance(handshake, protocol))
    session = kind(node, wire, address, transport)
    transport.set_protocol(session)
    if rest:
        session.data_received(rest)
