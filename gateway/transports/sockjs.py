"""Sessions over SockJS, each by one of its transports.

Over a WebSocket a session is what every `WebSocketSession` is, with SockJS's envelope around its messages.

Over HTTP it is a `SockJSSession`. The client listens with one request after another. A `PollReceiver`
completes its response with the next frame. A `StreamReceiver` takes frames until it has sent its limit of
bytes. Between two requests the session keeps what it has to send. Messages from the client come in requests
of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from math import inf
from typing import Final, Protocol

from ..core.session import CLOSED, CLOSING, Session, SessionContext
from ..errors import WireError
from ..messages import CloseCode
from ..wire import Wire, frames, sockjs
from . import http as stream
from .http import HttpConnection
from .websocket import WebSocketSession

DISCONNECT_DELAY: Final = 5.0
"""Seconds that a session waits for its client to listen again, and that a closed one says so: the protocol's
own figure, by which its clients and its test suite go."""

MAX_CLOSE_FRAMES: Final = 10_000
"""Goodbyes that are remembered for that long; 4 MB at the most. 2,000 sessions a second would have to end."""

RESPONSE_LIMIT: Final = 131_072
"""Bytes of frames in one stream; the browser keeps them all until it ends. The protocol's own figure."""

MAX_PIPELINED: Final = 16_384
"""Bytes of a next request that may come before the response; browsers send none."""


class SockJSWebSocket(WebSocketSession):
    """A session by SockJS's own WebSocket transport."""

    __slots__ = ()

    transport = "sockjs_websocket"

    def __init__(self, node: SessionContext, wire: Wire, address: str, transport: asyncio.Transport) -> None:
        super().__init__(node, wire, address, transport)
        self._send(frames.text(sockjs.OPEN_FRAME))

    def message_received(self, message: bytes) -> None:
        try:
            messages = sockjs.parse_messages(message)
        except sockjs.InvalidPayload as error:
            raise WireError(CloseCode.INVALID_DATA, str(error)) from None
        for number, each in enumerate(messages):
            if number:  # the first has been counted as a WebSocket message
                self.count_message()
            super().message_received(each)
            if self.state is CLOSING:
                return

    def _write(self, message: bytes) -> None:
        self._send(frames.text(sockjs.message_frame([sockjs.quote(message)])))

    def _say_goodbye(self, code: CloseCode, reason: str) -> None:
        if not self._deaf:  # a client that broke the protocol has its connection closed and nothing else
            self._send(frames.text(sockjs.close_frame(code, reason)))
        super()._say_goodbye(code, reason)

    def _probe(self) -> bool:
        self._send(frames.text(sockjs.HEARTBEAT_FRAME))
        return super()._probe()


class ResponseSink(Protocol):
    """Where a connection goes that has had its response; see `door.Door`."""

    def readmit(self, transport: asyncio.Transport, rest: bytes) -> None: ...
    def see_out(self, transport: asyncio.Transport) -> None: ...


class HttpReceiver(asyncio.Protocol):
    """A request by which a client listens, until its response is complete or its connection lost."""

    __slots__ = ("_connection", "_exit", "_frame", "_rest", "_session", "_stuck")

    def __init__(
        self, connection: HttpConnection, door: ResponseSink, frame: Callable[[bytes], bytes]
    ) -> None:
        """`frame` writes a frame as this transport does; `door` has the connection afterwards."""
        self._connection = connection
        self._exit = door
        self._frame = frame
        self._rest = b""
        self._session: SockJSSession | None = None
        self._stuck = False
        connection.transport.set_protocol(self)

    # What the session asks

    def attach(self, session: SockJSSession) -> None:
        """Tell `session` when the connection is lost before the response is complete."""
        self._session = session

    def send(self, frame: bytes) -> bool:
        """Send a frame; False if the response is complete with it."""
        raise NotImplementedError

    def end(self, frame: bytes) -> None:
        """Send the last frame, and complete the response."""
        raise NotImplementedError

    def abort(self) -> None:
        """Drop the connection."""
        self._session = None
        self._connection.transport.abort()

    def _complete(self) -> None:
        self._session = None
        transport, _, lasting = self._connection
        if lasting and not self._stuck:
            self._exit.readmit(transport, self._rest)
        else:
            self._exit.see_out(transport)

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        self._rest += data
        if len(self._rest) > MAX_PIPELINED:
            self._connection.transport.abort()

    def eof_received(self) -> None:
        """Half-closed by the client; returning None lets the transport close the other half."""

    def connection_lost(self, exc: Exception | None) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.receiver_lost()

    def pause_writing(self) -> None:
        """The transport holds more unsent bytes than it should: the client does not read."""
        self._stuck = True
        if self._session is not None:
            self._session.receiver_stuck()

    def resume_writing(self) -> None:
        """Nothing waits for it."""


class PollReceiver(HttpReceiver):
    """The transport xhr: each response has one frame."""

    __slots__ = ("_headers",)

    def __init__(self, connection: HttpConnection, door: ResponseSink, headers: Mapping[str, str]) -> None:
        super().__init__(connection, door, sockjs.line)
        self._headers = headers

    def send(self, frame: bytes) -> bool:
        self.end(frame)
        return False

    def end(self, frame: bytes) -> None:
        body = self._frame(frame)
        self._session = None  # it is complete, however the client reads it
        head = stream.response_head(self._connection, self._headers, len(body))
        stream.write(self._connection.transport, head + body)
        self._complete()


class StreamReceiver(HttpReceiver):
    """The transports xhr_streaming and eventsource: frames, until there have been `limit` bytes of them."""

    __slots__ = ("_left",)

    def __init__(
        self,
        connection: HttpConnection,
        door: ResponseSink,
        headers: Mapping[str, str],
        frame: Callable[[bytes], bytes],
        prelude: bytes,
        limit: int,
    ) -> None:
        super().__init__(connection, door, frame)
        self._left = limit
        head = stream.response_head(connection, headers) + stream.chunk(connection, prelude)
        stream.write(connection.transport, head)

    def send(self, frame: bytes) -> bool:
        body = self._frame(frame)
        self._left -= len(body)
        stream.write(self._connection.transport, stream.chunk(self._connection, body))
        if self._left > 0:
            return True
        self._finish()
        return False

    def end(self, frame: bytes) -> None:
        stream.write(self._connection.transport, stream.chunk(self._connection, self._frame(frame)))
        self._finish()

    def _finish(self) -> None:
        if self._connection.chunked:
            stream.write(self._connection.transport, stream.CHUNKS_END)
        self._complete()


class SockJSSessions:
    """The sessions of a node over HTTP, by the names that their clients have chosen.

    A session that closes has ended, and takes nobody's place, once it has nothing left to say but goodbye.
    That is kept for `DISCONNECT_DELAY` more, for whoever asks.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds."""
        self._clock = clock
        self._sessions: dict[str, SockJSSession] = {}
        self._farewells: dict[str, tuple[float, bytes]] = {}  # until when, and the frame; the oldest first
        self._untold: set[str] = set()

    def __len__(self) -> int:
        """Those that have not ended."""
        return len(self._sessions)

    def get(self, name: str) -> SockJSSession | None:
        """The session of that name, unless it has ended."""
        return self._sessions.get(name)

    def farewell(self, name: str) -> bytes:
        """The frame that closed the session of that name a moment ago; empty if there was none."""
        until, frame = self._farewells.get(name, (0.0, b""))
        return frame if self._clock() < until else b""

    def heard(self, name: str) -> None:
        """The client of that session has had the farewell."""
        self._untold.discard(name)

    def add(self, name: str, session: SockJSSession) -> None:
        """`session` has this name until it is removed."""
        self._sessions[name] = session

    @property
    def untold(self) -> int:
        """Sessions of late that were closed while their clients did not listen, and have not asked since."""
        return len(self._untold)

    def remove(self, name: str, session: SockJSSession, farewell: bytes, *, told: bool = True) -> None:
        """`session` has ended, with this frame if it is not empty; no harm if another has taken the name.

        `told` says whether the client has had the frame.
        """
        if self._sessions.get(name) is session:
            del self._sessions[name]
            if farewell:
                self._remember(name, farewell)
                if not told:
                    self._untold.add(name)

    def _remember(self, name: str, farewell: bytes) -> None:
        now = self._clock()
        self._farewells.pop(name, None)
        self._farewells[name] = (now + DISCONNECT_DELAY, farewell)
        while len(self._farewells) > MAX_CLOSE_FRAMES or self._oldest < now:
            name = next(iter(self._farewells))
            del self._farewells[name]
            self._untold.discard(name)

    @property
    def _oldest(self) -> float:
        return next(iter(self._farewells.values()))[0]


class SockJSSession(Session):
    """A session by SockJS's HTTP transports, from its first request to its goodbye, or to its last request
    and `DISCONNECT_DELAY`."""

    __slots__ = (
        "_back_by",
        "_farewell",
        "_name",
        "_opened",
        "_outbox",
        "_receiver",
        "_sessions",
        "_unsent",
        "transport",
    )

    def __init__(
        self,
        node: SessionContext,
        wire: Wire,
        address: str,
        name: str,
        sessions: SockJSSessions,
        kind: str = sockjs.XHR,
    ) -> None:
        """It stands in `sessions` by its `name` until its end.

        `kind` is the transport by which its client has begun to listen; it seldom takes another later.
        """
        self.transport = f"sockjs_{kind}"
        super().__init__(node, wire, address)
        self._name = name
        self._sessions = sessions
        self._receiver: HttpReceiver | None = None
        self._opened = False
        self._outbox: tuple[bytes, ...] = ()
        self._unsent = 0  # bytes in the outbox
        self._farewell = b""  # the frame that closes
        self._back_by = inf  # until when the client may leave it at that
        sessions.add(name, self)

    # What the client says

    def receive(self, messages: list[bytes]) -> None:
        """Handle what came in one request."""
        try:
            if not messages:
                self.count_message()
            for message in messages:
                if self.state is CLOSING or self.state is CLOSED:
                    return
                self.count_message()
                self.message_received(message)
        except WireError as error:
            self.fail(error)

    def fail(self, error: WireError) -> None:
        """The client cannot be talked to: say why, and close."""
        self._say(error.last_words)
        self.close(error.code, error.reason)

    # How the client listens

    def attach(self, receiver: HttpReceiver) -> None:
        """The client listens by `receiver`. Not once the session has ended."""
        if self._receiver is not None:
            receiver.end(sockjs.ANOTHER_CONNECTION_FRAME)
            return
        self._receiver = receiver
        self._back_by = inf
        receiver.attach(self)
        if not self._opened:
            self._opened = True
            self._push(sockjs.OPEN_FRAME)
        self._flush()
        if self._farewell:
            self._part()
        else:
            self._schedule()

    def receiver_lost(self) -> None:
        """The client has gone while it listened. What it has had is unknown, so the session is over."""
        self._receiver = None
        self.ended()

    def receiver_stuck(self) -> None:
        """The client does not read what it is sent."""
        if self._receiver is not None:
            receiver, self._receiver = self._receiver, None
            receiver.abort()
        self._outbox = ()
        self.close(CloseCode.POLICY, "slow consumer")

    def _push(self, frame: bytes) -> None:
        """Send a frame to the client, which listens."""
        receiver = self._receiver
        assert receiver is not None
        if not receiver.send(frame) and self._receiver is receiver:
            self._receiver = None
            self._back_by = self._node.clock() + DISCONNECT_DELAY
            self._schedule()

    def _flush(self) -> None:
        if self._outbox and self._receiver is not None:
            outbox, self._outbox, self._unsent = self._outbox, (), 0
            self._push(sockjs.message_frame(outbox))

    def _part(self) -> None:
        """Say goodbye, unless there is something else to say first."""
        if self._outbox:
            return
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.end(self._farewell)
        self._finish(self._farewell, told=receiver is not None)

    # Session

    def _write(self, message: bytes) -> None:
        quoted = sockjs.quote(message)
        self._outbox += (quoted,)
        self._unsent += len(quoted)
        if self._receiver is not None:
            self._flush()
        elif self._unsent > self._node.config.write_buffer and len(self._outbox) > 1:
            self.receiver_stuck()

    def _say_goodbye(self, code: CloseCode, reason: str) -> None:
        self._farewell = sockjs.close_frame(code, reason)
        self._limit = self._node.clock() + DISCONNECT_DELAY  # so long the client may take to fetch the rest
        self._schedule()
        self._part()

    def _probe(self) -> bool:
        if self._receiver is not None:
            self._push(sockjs.HEARTBEAT_FRAME)
        return True  # a client that has gone does not listen again, and a stream's loss is noticed

    def _next_deadline(self) -> float:
        return self._limit if self.state is CLOSING else min(super()._next_deadline(), self._back_by)

    def deadline_passed(self) -> None:
        if self.state is not CLOSING and self._node.clock() >= self._back_by:
            self._why = (CloseCode.ABNORMAL, "client did not come back")
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

    def _finish(self, farewell: bytes, *, told: bool = True) -> None:
        self._sessions.remove(self._name, self, farewell, told=told)
        super().ended()
