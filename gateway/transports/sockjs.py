"""Sessions over SockJS, each by one of its transports. SockJS can carry text only, no binary wires.

Over a WebSocket, a session is a `WebSocketSession` with SockJS's envelope around its messages.

Over HTTP, it is a `SockJSSession`. The client listens with one request after another. A `PollReceiver`
completes its response with the next frame. A `StreamReceiver` sends frames until it has sent its limit of
bytes. Between two requests the session keeps its messages. The client sends messages in separate requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from math import inf
from typing import Final, Protocol

from ..core.events import Delivery
from ..core.session import CLOSED, CLOSING, Session, SessionContext
from ..errors import WireError
from ..messages import SLOW_CONSUMER, CloseCode
from ..wire import Wire, frames, sockjs
from ..wire.frames import FrameReader
from . import http
from .hijack import MAX_READ_AHEAD
from .http import HttpConnection
from .slow_reader import prompt, slow
from .sockets import reset
from .websocket import WebSocketSession

DISCONNECT_DELAY: Final = 5.0
"""Seconds that a session waits for its client to listen again, and that the close frame of a closed session
is kept. The SockJS protocol's figure, on which its clients and its test suite rely."""

MAX_CLOSE_FRAMES: Final = 10_000
"""Close frames that are kept: 4 MB at most. The limit matters only if 2,000 sessions end in each second."""

RESPONSE_LIMIT: Final = 131_072
"""Bytes of frames in one stream. The browser keeps them until the stream ends. The SockJS protocol's
figure."""

SOCKJS_TRANSPORTS: Final = (
    WebSocketSession.transport,
    "sockjs_websocket",
    *(f"sockjs_{kind}" for kind in (sockjs.XHR, sockjs.XHR_STREAMING, sockjs.EVENTSOURCE)),
)
"""The transports of SockJS, as metrics call them. The first is its raw WebSocket, without the envelope."""


class SockJSWebSocket(WebSocketSession):
    """A session over SockJS's WebSocket transport. The envelope is text, whatever the wire inside accepts."""

    __slots__ = ()

    transport = "sockjs_websocket"
    _new_reader_of_either = FrameReader

    def opened(self) -> None:
        self._send(frames.text(sockjs.OPEN_FRAME))
        super().opened()

    def message_received(self, message: bytes) -> None:
        try:
            messages = sockjs.parse_messages(message)
        except sockjs.InvalidPayload as error:
            raise WireError(CloseCode.INVALID_DATA, str(error)) from None
        for number, each in enumerate(messages):
            if number:  # the first was paid for as a WebSocket message
                self.pay_message()
            super().message_received(each.encode())
            if self.state is CLOSING:
                return

    def _write(self, message: bytes) -> None:
        self._send(frames.text(sockjs.message_frame([sockjs.quote(message)])))

    def _send_close(self, code: CloseCode, reason: str) -> None:
        if not self._ignores_input:  # a client that broke the protocol gets the WebSocket close frame only
            self._send(frames.text(sockjs.close_frame(code, reason)))
        super()._send_close(code, reason)

    def _ping(self) -> bool:
        self._send(frames.text(sockjs.HEARTBEAT_FRAME))
        return super()._ping()


class ResponseSink(Protocol):
    """Takes each connection whose response is complete: see `server.acceptor.Acceptor`."""

    def lost(self, transport: asyncio.BaseTransport) -> None: ...
    def keep_alive(self, transport: asyncio.Transport, rest: bytes) -> None: ...
    def close_gracefully(self, transport: asyncio.Transport) -> None: ...


class HttpReceiver(asyncio.Protocol):
    """A request with which a client listens, until its response is complete or its connection is lost."""

    __slots__ = ("_connection", "_frame", "_rest", "_session", "_sink", "_stuck")

    def __init__(
        self, connection: HttpConnection, sink: ResponseSink, frame: Callable[[bytes], bytes]
    ) -> None:
        """`frame` formats a frame for this transport. `sink` takes the connection afterwards."""
        self._connection = connection
        self._sink = sink
        self._frame = frame
        self._rest = connection.rest
        self._session: SockJSSession | None = None
        self._stuck = False
        connection.transport.set_protocol(self)

    # For the session

    def attach(self, session: SockJSSession) -> None:
        """Tell `session` if the connection is lost before the response is complete."""
        self._session = session
        self._connection.transport.set_write_buffer_limits(high=0)
        if self.unread:  # the head of a stream: the transport may have said so before there was a session
            self.pause_writing()

    def send(self, frame: bytes) -> bool:
        """Send a frame. Returns False if the response is complete with it."""
        raise NotImplementedError

    def end(self, frame: bytes) -> None:
        """Send the last frame, and complete the response."""
        raise NotImplementedError

    def abort(self) -> None:
        """Drop the connection."""
        self._release()
        reset(self._connection.transport)

    def _release(self) -> None:
        """The session has nothing to do with the connection any more."""
        self.resume_writing()
        self._session = None

    def _complete(self) -> None:
        self._release()
        transport = self._connection.transport
        if self._connection.lasting and not self._stuck:
            self._sink.keep_alive(transport, self._rest)
        else:
            self._sink.close_gracefully(transport)

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        self._rest += data
        if len(self._rest) > MAX_READ_AHEAD:
            reset(self._connection.transport)

    def eof_received(self) -> None:
        """The client has closed its half. Returning None lets the transport close the other half."""

    def connection_lost(self, exc: Exception | None) -> None:
        session = self._session
        self._release()
        self._sink.lost(self._connection.transport)
        if session is not None:
            session.receiver_lost()

    def pause_writing(self) -> None:
        if self._session is not None:  # else the response is complete, and the sink counts what is unread
            transport = self._session.slow(self._connection.transport, self)
            self._connection = self._connection._replace(transport=transport)

    def resume_writing(self) -> None:
        if self._session is not None:
            transport = self._session.prompt(self._connection.transport, self)
            self._connection = self._connection._replace(transport=transport)

    # SlowReader

    @property
    def unread(self) -> int:
        return self._connection.transport.get_write_buffer_size()

    def too_slow(self) -> None:
        self._stuck = True
        if self._session is not None:
            self._session.receiver_stuck()

    def drop(self) -> None:
        reset(self._connection.transport)


class PollReceiver(HttpReceiver):
    """The transport xhr: one frame in each response."""

    __slots__ = ("_headers",)

    def __init__(self, connection: HttpConnection, sink: ResponseSink, headers: Mapping[str, str]) -> None:
        super().__init__(connection, sink, sockjs.line)
        self._headers = headers

    def send(self, frame: bytes) -> bool:
        self.end(frame)
        return False

    def end(self, frame: bytes) -> None:
        body = self._frame(frame)
        self._release()  # complete, even if the client reads it slowly
        head = http.response_head(self._connection, self._headers, len(body))
        http.write(self._connection.transport, head + body)
        self._complete()


class StreamReceiver(HttpReceiver):
    """The transports xhr_streaming and eventsource: frames, until they have `limit` bytes."""

    __slots__ = ("_left",)

    def __init__(
        self,
        connection: HttpConnection,
        sink: ResponseSink,
        headers: Mapping[str, str],
        frame: Callable[[bytes], bytes],
        prelude: bytes,
        limit: int,
    ) -> None:
        super().__init__(connection, sink, frame)
        self._left = limit
        head = http.response_head(connection, headers) + http.chunk(connection, prelude)
        http.write(connection.transport, head)

    def send(self, frame: bytes) -> bool:
        body = self._frame(frame)
        self._left -= len(body)
        http.write(self._connection.transport, http.chunk(self._connection, body))
        if self._left > 0:
            return True
        self._finish()
        return False

    def end(self, frame: bytes) -> None:
        http.write(self._connection.transport, http.chunk(self._connection, self._frame(frame)))
        self._finish()

    def _finish(self) -> None:
        if self._connection.chunked:
            http.write(self._connection.transport, http.CHUNKS_END)
        self._complete()


class SockJSSessions:
    """The sessions of a node over HTTP, by the names that their clients have chosen.

    A session has ended, and is not counted any more, when only its close frame is left to send. The frame is
    kept for `DISCONNECT_DELAY`, for a client that asks.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds."""
        self._clock = clock
        self._sessions: dict[str, SockJSSession] = {}
        self._close_frames: dict[str, tuple[float, bytes]] = {}  # kept until; the oldest first
        self._unsent: set[str] = set()

    def __len__(self) -> int:
        """The sessions that have not ended."""
        return len(self._sessions)

    def get(self, name: str) -> SockJSSession | None:
        """The session with this name, unless it has ended."""
        return self._sessions.get(name)

    def close_frame(self, name: str) -> bytes:
        """The frame that closed the session with this name a moment ago. Empty if there was none."""
        until, frame = self._close_frames.get(name, (0.0, b""))
        return frame if self._clock() < until else b""

    def close_frame_sent(self, name: str) -> None:
        """The client of this session has fetched the close frame."""
        self._unsent.discard(name)

    def add(self, name: str, session: SockJSSession) -> None:
        """`session` has this name until it is removed."""
        self._sessions[name] = session

    @property
    def unsent_close_frames(self) -> int:
        """Kept close frames that their clients have not fetched."""
        return len(self._unsent)

    def remove(self, name: str, session: SockJSSession, close_frame: bytes, *, sent: bool = True) -> None:
        """`session` has ended, with this frame unless it is empty. Another session may have taken the name.

        `sent`: the client has had the frame.
        """
        if self._sessions.get(name) is session:
            del self._sessions[name]
            if close_frame:
                self._keep_close_frame(name, close_frame)
                if not sent:
                    self._unsent.add(name)

    def _keep_close_frame(self, name: str, frame: bytes) -> None:
        now = self._clock()
        self._close_frames.pop(name, None)
        self._close_frames[name] = (now + DISCONNECT_DELAY, frame)
        while len(self._close_frames) > MAX_CLOSE_FRAMES or self._oldest < now:
            name = next(iter(self._close_frames))
            del self._close_frames[name]
            self._unsent.discard(name)

    @property
    def _oldest(self) -> float:
        return next(iter(self._close_frames.values()))[0]


class SockJSSession(Session):
    """A session over SockJS's HTTP transports. It ends with its close frame, or `DISCONNECT_DELAY` after its
    last request."""

    __slots__ = (
        "_close_frame",
        "_listen_by",
        "_name",
        "_open_sent",
        "_outbox",
        "_receiver",
        "_sessions",
        "_unsent",
        "transport",
    )

    def __init__(
        self,
        context: SessionContext,
        wire: Wire,
        address: str,
        name: str,
        sessions: SockJSSessions,
        kind: str = sockjs.XHR,
    ) -> None:
        """`sessions` holds the session by its `name` until its end.

        `kind` is the transport with which its client begins to listen. Clients rarely change it later.
        """
        self.transport = f"sockjs_{kind}"
        super().__init__(context, wire, address)
        self._name = name
        self._sessions = sessions
        self._receiver: HttpReceiver | None = None
        self._open_sent = False
        self._outbox: tuple[bytes, ...] = ()
        self._unsent = 0  # bytes in the outbox
        self._close_frame = b""  # the frame that closes the session; empty until then
        self._listen_by = inf  # when the client must listen again
        sessions.add(name, self)

    # Messages from the client

    def receive(self, body: bytes) -> None:
        """Handle the messages of one request, as long as the session is open.

        Raises InvalidPayload if the body is malformed, which counts as an unknown message.
        """
        try:
            self.pay_message(len(body))
            for number, message in enumerate(self._parse(body)):
                if self.state is CLOSING or self.state is CLOSED:
                    return
                if number:
                    self.pay_message()
                self.message_received(message.encode())
        except WireError as error:
            self.fail(error)

    def _parse(self, body: bytes) -> list[str]:
        try:
            return sockjs.parse_request_body(body)
        except sockjs.InvalidPayload:
            self.count_unknown_message()
            raise

    def fail(self, error: WireError) -> None:
        """The client broke the protocol: tell it why, and close."""
        self._reply(error.last_message)
        self.close(error.code, error.reason)

    # How the client listens

    def attach(self, receiver: HttpReceiver) -> None:
        """The client listens with `receiver`. The session must not have ended."""
        if self._receiver is not None:
            receiver.end(sockjs.ANOTHER_CONNECTION_FRAME)
            return
        self._receiver = receiver
        self._listen_by = inf
        receiver.attach(self)
        if not self._open_sent:
            self._open_sent = True
            self._push(sockjs.OPEN_FRAME)
        self._flush()
        if self._close_frame:
            self._finish_closing()
        else:
            self._schedule()

    def receiver_lost(self) -> None:
        """The client disconnected while it listened. What it has received is unknown: the session ends."""
        self._receiver = None
        self.ended()

    def receiver_stuck(self) -> None:
        """The client does not read."""
        if self._receiver is not None:
            receiver, self._receiver = self._receiver, None
            receiver.abort()
        self._empty_outbox()
        self.close(CloseCode.POLICY, SLOW_CONSUMER)

    def slow(self, transport: asyncio.Transport, receiver: HttpReceiver) -> asyncio.Transport:
        """As `slow_reader.slow`."""
        return slow(self._context, transport, receiver)

    def prompt(self, transport: asyncio.Transport, receiver: HttpReceiver) -> asyncio.Transport:
        """As `slow_reader.prompt`."""
        return prompt(self._context, transport, receiver)

    # SlowReader, while nobody listens

    @property
    def unread(self) -> int:
        return self._unsent

    def drop(self) -> None:
        # Not at once: the hub may be telling this session and others the same thing.
        asyncio.get_running_loop().call_soon(self.receiver_stuck)

    def _empty_outbox(self) -> tuple[bytes, ...]:
        outbox, self._outbox, self._unsent = self._outbox, (), 0
        self._context.ledger.backlog.discard(self)
        return outbox

    def _push(self, frame: bytes) -> None:
        """Send a frame to the client, which must be listening."""
        receiver = self._receiver
        assert receiver is not None
        if not receiver.send(frame) and self._receiver is receiver:
            self._receiver = None
            self._listen_by = self._context.clock() + DISCONNECT_DELAY
            self._schedule()

    def _flush(self) -> None:
        if self._outbox and self._receiver is not None:
            self._push(sockjs.message_frame(self._empty_outbox()))
            if self._events is not None:
                self._events.sent()

    def _finish_closing(self) -> None:
        """Send the close frame, unless messages must be sent before it."""
        if self._outbox:
            return
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.end(self._close_frame)
        self._finish(self._close_frame, sent=receiver is not None)

    # Session

    def _write(self, message: bytes) -> None:
        quoted = sockjs.quote(message)
        self._outbox += (quoted,)
        self._unsent += len(quoted)
        if self._receiver is not None:
            self._flush()
        elif self._unsent > self._context.config.write_buffer and len(self._outbox) > 1:
            self.receiver_stuck()
        else:
            self._context.ledger.backlog.add(self, len(quoted))

    def _record_delivery(self, delivery: Delivery) -> None:
        assert self._events is not None
        if self._outbox:
            self._events.unsent(delivery)
        else:  # written; or it was one too many, and nothing is recorded of a session that has ended
            super()._record_delivery(delivery)

    def _send_close(self, code: CloseCode, reason: str) -> None:
        self._close_frame = sockjs.close_frame(code, reason)
        self._state_ends = self._context.clock() + DISCONNECT_DELAY  # for the client to fetch the rest
        self._schedule()
        self._finish_closing()

    def _ping(self) -> bool:
        if self._receiver is not None:
            self._push(sockjs.HEARTBEAT_FRAME)
        return True  # a client that is gone does not listen again, and the loss of a stream is noticed

    def _next_deadline(self) -> float:
        return self._state_ends if self.state is CLOSING else min(super()._next_deadline(), self._listen_by)

    def deadline_passed(self) -> None:
        if self.state is not CLOSING and self._context.clock() >= self._listen_by:
            self._end = (CloseCode.ABNORMAL, "client did not come back")
            self.abort()
        else:
            super().deadline_passed()

    def abort(self) -> None:
        if self._receiver is not None:
            receiver, self._receiver = self._receiver, None
            receiver.abort()
        self.ended()

    def ended(self) -> None:
        self._finish(b"")

    def _finish(self, close_frame: bytes, *, sent: bool = True) -> None:
        self._sessions.remove(self._name, self, close_frame, sent=sent)
        self._empty_outbox()
        super().ended()
