"""The connections of a port from their first to their last byte, each counted until the kernel is done with
it.

A closed socket with unsent bytes lives on in the kernel, in FIN-WAIT-1, for as long as its client
acknowledges and does not read; no limit would count it. So the descriptor of such a connection is kept for a
moment. A client that reads gets the last bytes in this time, a close frame for example; any other is reset.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

from ..core.admission import Backlog, Connections, FairPool, Incoming
from .sockets import is_unread, peer_address, reset_on_close


class ConnectionLedger:
    """What the connections of one port hold. The protocols of their transports report the changes."""

    def __init__(
        self, connections: Connections, handshakes: FairPool, backlog: Backlog, close_timeout: float
    ) -> None:
        """`close_timeout` is in seconds: how long a client may take to read what is left."""
        self.connections = connections
        """All of them; `lost` and `session_lost` count them off."""
        self.became_session: Callable[[str], None] = connections.become_session
        """A connection from a peer is counted as its session's from now on, until `session_lost`."""
        self.handshakes = handshakes
        """Those that have not sent a request yet."""
        self.backlog = backlog
        """The bytes that clients leave unread."""
        self.incoming = Incoming()
        """The bytes of what clients have begun to send."""
        self._close_timeout = close_timeout
        self._closing: dict[socket.socket, tuple[str, asyncio.TimerHandle]] = {}

    def lost(self, transport: asyncio.BaseTransport) -> None:
        """For `asyncio.Protocol.connection_lost`, where the connection is no session."""
        self.connections.close(self.source(transport))
        self._await_reader(transport)

    def session_lost(self, transport: asyncio.BaseTransport) -> None:
        """For `asyncio.Protocol.connection_lost` of a session."""
        self.connections.close_session()
        self._await_reader(transport)

    def close(self) -> None:
        """Reset the connections whose clients have not read what is left: the node stops."""
        for connection in list(self._closing):
            self._end(connection)

    def source(self, transport: asyncio.BaseTransport) -> str:
        """The address by which a connection is counted. Empty for a proxy's."""
        return self.connections.source(peer_address(transport))

    def _await_reader(self, transport: asyncio.BaseTransport) -> None:
        """Keep the descriptor if the kernel has bytes that the client has left no room for."""
        connection = transport.get_extra_info("socket")
        if connection is None or not is_unread(connection):
            return
        try:
            kept = connection.dup()
        except OSError:  # the system has no descriptor left
            with suppress(OSError):
                reset_on_close(connection)
            return
        source = self.source(transport)
        with suppress(OSError):  # the client has just reset the connection
            kept.shutdown(socket.SHUT_WR)
        self.connections.begin_closing(source)
        timer = asyncio.get_running_loop().call_later(self._close_timeout, self._end, kept)
        self._closing[kept] = source, timer

    def _end(self, connection: socket.socket) -> None:
        source, timer = self._closing.pop(connection)
        timer.cancel()
        with connection, suppress(OSError):
            reset_on_close(connection)
        self.connections.end_closing(source)
