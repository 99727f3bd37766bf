"""The listening sockets that workers share."""

from __future__ import annotations

import socket
from typing import Any


def listen(host: str, port: int, count: int, backlog: int) -> list[list[socket.socket]]:
    """Sockets that listen on `host` and `port`, one on each of the host's addresses for each of `count`.

    For port 0 the kernel picks one. Raises OSError.
    """
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    groups: list[list[socket.socket]] = [[] for _ in range(count)]
    try:
        for family, _, _, _, (address, _, *scope) in dict.fromkeys(infos):
            # Alone it would fail where somebody else listens; sharing, it would share with a second gateway.
            _bound(family, (address, port, *scope), share=False).close()
            for group in groups:
                listener = _bound(family, (address, port, *scope), share=True)
                group.append(listener)
                port = listener.getsockname()[1]
                listener.listen(backlog)
    except BaseException:
        for listener in (listener for group in groups for listener in group):
            listener.close()
        raise
    return groups


def _bound(family: int, address: tuple[Any, ...], *, share: bool) -> socket.socket:
    bound = socket.socket(family)
    try:
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:  # as asyncio does: IPv4 has sockets of its own
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound
