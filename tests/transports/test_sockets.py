"""Socket options where there are none, and sockets that are gone. What the kernel does with them is in
test_connections.py."""

from __future__ import annotations

import socket

import pytest

from gateway.transports import sockets

from ..fakes import Transport


class OnSocket(Transport):
    """A transport of this socket."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connection = connection

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self._connection if name == "socket" else default


@pytest.mark.parametrize("linux", [True, False])
def test_options_that_only_linux_has(monkeypatch: pytest.MonkeyPatch, linux: bool) -> None:
    if not linux:
        monkeypatch.delattr(socket, "TCP_USER_TIMEOUT")
    with socket.socket() as listener:
        sockets.bound_send_buffer(listener)
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * sockets.SEND_BUFFER
        waits = listener.getsockopt(socket.IPPROTO_TCP, sockets.TCP_NOTSENT_LOWAT)
        assert (waits == 1) is linux


def test_a_transport_without_a_socket_is_aborted() -> None:
    transport = Transport()
    sockets.reset(transport)
    assert transport.aborted


@pytest.mark.parametrize("read", [True, False])
def test_a_socket_that_is_gone_is_no_obstacle(read: bool) -> None:
    with socket.socket() as gone:
        pass
    transport = OnSocket(gone)
    sockets.reset(transport, read=read)
    assert transport.aborted
    assert not sockets.is_unread(gone)


def test_a_client_that_has_had_the_time_to_read_is_reset() -> None:
    with socket.socket() as connection:
        sockets.reset(OnSocket(connection), read=True)
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == sockets.RESET


def test_the_address_of_the_peer() -> None:
    with socket.socket(socket.AF_UNIX) as local:
        assert sockets.peer_address(OnSocket(local)) == ""
