"""Listening sockets. They are opened first: a node's name may contain the port that the kernel picked."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ..config import Config
from ..errors import ConfigError
from ..transports.sockets import bound_send_buffer

FREE_PORT_ATTEMPTS: Final = 10
"""The kernel picks a free port on the first address. On another address the same port may be taken."""

WILDCARDS: Final = ("0.0.0.0", "::")  # noqa: S104 - only compared

SocketAddress = tuple[int, tuple[Any, ...]]
"""A family, and an address as the socket module has it: host, port, and more for IPv6."""


@dataclass(frozen=True, slots=True)
class ListenAddresses:
    """Where a node listens, with the ports that the kernel picked for 0."""

    host: tuple[str, ...]
    port: int
    admin_host: tuple[str, ...]
    admin_port: int


class Listeners(NamedTuple):
    """The listening sockets of one process, one for each address of a host."""

    public: Sequence[socket.socket]
    admin: Sequence[socket.socket]

    def close(self) -> None:
        for listener in (*self.public, *self.admin):
            listener.close()


def open_listeners(config: Config) -> Listeners:
    """Listen on both ports of a node with one process. Raises ConfigError."""
    (public,) = listen("port", config.host, config.port, config.backlog)
    try:
        (admin,) = listen("admin_port", config.admin_host, config.admin_port, config.backlog)
    except ConfigError:
        Listeners(public, ()).close()
        raise
    return Listeners(public, admin)


class Serving:
    """Sockets that listen, and the servers that accept on them once `start` was called."""

    def __init__(self, listeners: Sequence[socket.socket], backlog: int) -> None:
        self._listeners = listeners
        self._backlog = backlog
        self._servers: list[asyncio.Server] = []

    async def start(self, new_protocol: Callable[[], asyncio.BaseProtocol]) -> None:
        """Accept connections, with a protocol for each."""
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            server = await loop.create_server(new_protocol, sock=listener, backlog=self._backlog)
            self._servers.append(server)

    def stop(self) -> None:
        """Accept no more connections. It may be called again."""
        for server in self._servers:
            server.close()
        for listener in self._listeners:
            listener.close()


def port_of(listeners: Sequence[socket.socket]) -> int:
    """The port that these sockets have in common; 0 if there are none."""
    return int(listeners[0].getsockname()[1]) if listeners else 0


def listen(
    setting: str, hosts: tuple[str, ...], port: int, backlog: int, groups: int = 1
) -> list[list[socket.socket]]:
    """Listen on `port`, on each address of each of `hosts`, once for each of `groups` processes.

    Several processes share a port by SO_REUSEPORT: the kernel spreads connections evenly over their sockets.
    For port 0 the kernel picks a port. Raises ConfigError, which names `setting`.
    """
    try:
        return open_sockets(hosts, port, backlog, groups)
    except OSError as error:
        flag = setting.replace("_", "-")
        raise ConfigError(
            f"{cannot_listen(error, hosts, port)}; choose another with --{flag} (GATEWAY_{setting.upper()})"
        ) from error


def open_sockets(
    hosts: tuple[str, ...], port: int, backlog: int, groups: int = 1
) -> list[list[socket.socket]]:
    """`listen`, for a port that no setting names. Raises OSError, which `cannot_listen` describes."""
    attempts = 1 if port else FREE_PORT_ATTEMPTS
    while True:
        attempts -= 1
        try:
            return _listen(_addresses(hosts), port, groups, backlog)
        except OSError as error:
            if not attempts or error.errno != errno.EADDRINUSE:
                raise


def _listen(
    addresses: Sequence[SocketAddress], port: int, count: int, backlog: int
) -> list[list[socket.socket]]:
    groups: list[list[socket.socket]] = [[] for _ in range(count)]
    try:
        for family, (address, _, *scope) in addresses:
            if count > 1:
                # With SO_REUSEPORT alone, a second gateway on the same port would not be noticed.
                _bound(family, (address, port, *scope), share=False).close()
            for group in groups:
                listener = _bound(family, (address, port, *scope), share=count > 1)
                group.append(listener)
                port = listener.getsockname()[1]
                listener.listen(backlog)
    except BaseException:
        for listener in (listener for group in groups for listener in group):
            listener.close()
        raise
    return groups


def _addresses(hosts: Sequence[str]) -> list[SocketAddress]:
    """The addresses of `hosts`, each once. One that all addresses of its family include is left out."""
    found = list(dict.fromkeys(address for host in hosts for address in _addresses_of(host)))
    everywhere = {family for family, (address, *_) in found if address in WILDCARDS}
    return [each for each in found if each[0] not in everywhere or each[1][0] in WILDCARDS]


def _addresses_of(host: str) -> list[SocketAddress]:
    """The addresses of `host` that this machine has; all of them if it has none.

    A name such as localhost may have an IPv6 address where the kernel has no IPv6, or has switched it off.
    """
    names = ("::", "0.0.0.0") if host == "::" else (host,)  # noqa: S104 - what :: stands for
    infos: list[SocketAddress] = [
        (info[0], info[4])
        for name in names
        for info in socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    ]
    return [address for address in infos if _is_usable(*address)] or infos


def _is_usable(family: int, address: tuple[Any, ...]) -> bool:
    try:
        with socket.socket(family) as probe:
            probe.bind(address)
    except OSError as error:
        return error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
    return True


def _bound(family: int, address: tuple[Any, ...], *, share: bool) -> socket.socket:
    """A socket that is bound. The OSError that this raises names the address."""
    try:
        return _bind(socket.socket(family), family, address, share=share)
    except OSError as error:
        raise OSError(error.errno, error.strerror, address[0]) from None


def _bind(bound: socket.socket, family: int, address: tuple[Any, ...], *, share: bool) -> socket.socket:
    try:
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:  # as asyncio does: IPv4 has a socket of its own
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound_send_buffer(bound)
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound


def cannot_listen(error: OSError, hosts: Sequence[str], port: int) -> str:
    """Which port cannot be listened on, and why."""
    reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror or error}"
    where = error.filename or ",".join(hosts)
    return f"port {port} on {where} {reason}"
