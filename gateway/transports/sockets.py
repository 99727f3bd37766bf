"""What the kernel holds for the clients: socket options, and how a connection is reset.

`set_write_buffer_limits` bounds what asyncio holds. Behind it, the kernel would take up to 4 MB for each
client that does not read (net.ipv4.tcp_wmem), and keep it after `close`, for as long as that client
acknowledges.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import sys
import termios
from typing import Any, Final

SEND_BUFFER: Final = 32_768
"""Bytes that the kernel may hold that are sent and not acknowledged; it doubles the number, for its own
records. A result has some hundred bytes, and the largest allowed by default 64 KB."""

UNACKNOWLEDGED: Final = 60_000
"""Milliseconds after which the kernel ends a connection whose client neither acknowledges nor makes room for
what is sent: longer than two heartbeats, which find silent clients first."""

TCP_NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
"""tcp(7); Python names it from 3.12 on."""

TCP_CLOSE: Final = 7
"""The state of a socket whose connection is gone, in struct tcp_info."""

SIOCOUTQNSD: Final = 0x894B
"""ioctl: bytes that the kernel holds and has not sent, because the client leaves it no room
(linux/sockios.h)."""

NOTHING: Final = bytes(4)
"""An int of 0, as ioctl takes and returns it."""

RESET: Final = struct.pack("ii", 1, 0)
"""For SO_LINGER: close sends RST, and drops what is unsent (socket(7))."""


def bound_send_buffer(listener: socket.socket) -> None:
    """Limit what the kernel holds for each client of `listener`: accepted sockets inherit these options.

    Measured with a client that does not read, on loopback: 2.8 to 3 MB without the options, 30 KB with an
    SO_SNDBUF of 16 KB, 2 KB with TCP_NOTSENT_LOWAT of 1: then the kernel takes bytes only if it has sent all
    that it has, and the rest waits in asyncio's buffer, where it is counted.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        listener.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED)


def peer_address(transport: asyncio.BaseTransport) -> str:
    """The address of the TCP peer. Empty if there is none: no TCP, or a peer that was gone before the
    connection was accepted."""
    name = transport.get_extra_info("peername")
    return name[0] if name else ""


def reset(transport: asyncio.BaseTransport, *, read: bool = False) -> None:
    """Drop the connection, with everything that is unsent.

    `abort` alone would leave the kernel's part to a client that does not read, in FIN-WAIT-1. If the kernel
    has no part, there is no RST, because it could overtake what the client has not read yet. With `read`, the
    client has had the time to read, and there is one: or a client that never closes its half would leave the
    socket in FIN-WAIT-2.
    """
    connection = transport.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError, ValueError):  # it is gone already
            if read:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            else:
                reset_on_close(connection)
    transport.abort()  # type: ignore[attr-defined]  # of a transport that writes


def reset_on_close(connection: Any) -> None:
    """Have `close` send RST if the kernel has bytes that the client has not acknowledged. Raises OSError."""
    if outgoing(connection.fileno()):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def is_unread(connection: Any) -> bool:
    """Whether the kernel holds bytes that the client leaves no room for, and nobody has ordered a reset."""
    try:
        if fcntl.ioctl(connection.fileno(), SIOCOUTQNSD, NOTHING) == NOTHING:  # nearly always
            return False
        gone = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE
        return not gone and connection.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) != RESET
    except (OSError, ValueError):  # not Linux, no TCP, or gone
        return False


def outgoing(descriptor: int, request: int = termios.TIOCOUTQ) -> int:
    """Bytes that the kernel holds for a client: unacknowledged, or those of another `request`."""
    return int.from_bytes(fcntl.ioctl(descriptor, request, NOTHING), sys.byteorder)
