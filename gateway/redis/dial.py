"""Opens TCP connections: names are looked up in bounded time, and each address is tried (RFC 8305).

uvloop's `create_connection` tries one address after the other, and waits two minutes for one that swallows
packets. Look-ups of asyncio and uvloop run in threads that a process waits for at its end, which takes 10 s
and more while a name server is silent.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Final

import aiohappyeyeballs

NEXT_ADDRESS_AFTER: Final = 0.25
"""Seconds until the next address is tried beside the first, as RFC 8305 section 8 recommends."""

AddressInfos = Sequence[tuple[int, int, int, str, Any]]
"""As socket.getaddrinfo returns them: family, type, protocol, canonical name, address."""

_look_ups: dict[tuple[str, int], Future[AddressInfos]] = {}
"""The look-ups that run. A silent name server keeps one thread for each name, however often it is asked."""

os.register_at_fork(after_in_child=_look_ups.clear)  # the threads are the parent's


async def dial(host: str, port: int) -> socket.socket:
    """A connected, non-blocking socket; the first address that answers wins. Raises OSError.

    The caller limits the time. When it gives up, nothing of the attempt goes on but a look-up, in a thread
    that nobody waits for.
    """
    return await connect(await look_up(host, port))


async def look_up(host: str, port: int) -> AddressInfos:
    """The addresses of a name, or the address that `host` is: the first half of `dial`. Raises OSError."""
    if not 0 < port <= 65_535:
        raise OSError(f"port {port} does not exist")
    return _numeric(host, port) or await _ask_for(host, port)


async def connect(addresses: AddressInfos) -> socket.socket:
    """A connection to the first of `addresses` that answers: the second half of `dial`. Raises OSError."""
    return await aiohappyeyeballs.start_connection(
        addresses, happy_eyeballs_delay=NEXT_ADDRESS_AFTER, interleave=1
    )


def _numeric(host: str, port: int) -> AddressInfos:
    """`host` if it is an IP address, which needs no look-up; otherwise nothing."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, ValueError):  # ValueError: what cannot be a name
        return []


async def _ask_for(host: str, port: int) -> AddressInfos:
    """The addresses of a name. Raises OSError if it has none. The caller limits the time."""
    running = _look_ups.get((host, port))
    if running is None:
        running = Future()
        running.set_running_or_notify_cancel()  # it is shared, so no caller can cancel it
        thread = threading.Thread(target=_get_addresses, args=(host, port, running), daemon=True)
        _look_ups[host, port] = running
        try:
            thread.start()
        except RuntimeError as error:  # the system grants no thread now; it may for the next attempt
            del _look_ups[host, port]
            raise OSError(f"{host} cannot be looked up: {error}") from None
    return await asyncio.wrap_future(running)


def _get_addresses(host: str, port: int, found: Future[AddressInfos]) -> None:
    """Ask the C library, in a thread of its own."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:  # ValueError: what cannot be a name
        del _look_ups[host, port]
        found.set_exception(OSError(f"{host} cannot be looked up: {error}"))
    else:
        del _look_ups[host, port]
        found.set_result(addresses)
