"""Listening sockets, for one process and for several workers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import pytest

from gateway.config import build
from gateway.errors import ConfigError
from gateway.server import listeners as listeners_module
from gateway.server.listeners import Serving, listen, open_listeners, port_of


def test_all_listen_on_one_port() -> None:
    groups = listen("port", ("127.0.0.1",), 0, 10, 3)
    names = {listener.getsockname() for group in groups for listener in group}
    assert [len(group) for group in groups] == [1, 1, 1]
    assert len(names) == 1
    taken = names.pop()[1]
    for count in (1, 2):
        with pytest.raises(ConfigError, match=f"port {taken} on 127.0.0.1 is taken; .* --port"):
            listen("port", ("127.0.0.1",), taken, 10, count)
    for group in groups:
        group[0].close()


def test_all_addresses_of_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(socket.AF_INET, address) for address in (("127.0.0.1", 0), ("127.0.0.2", 0))]
    infos = [(family, socket.SOCK_STREAM, 6, "", address) for family, address in both]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: infos)
    groups = listen("port", ("a-host",), 0, 10, 2)
    names = [[listener.getsockname() for listener in group] for group in groups]
    assert names[0] == names[1]
    assert [address for address, _ in names[0]] == ["127.0.0.1", "127.0.0.2"]
    assert len({port for _, port in names[0]}) == 1
    for listener in (listener for group in groups for listener in group):
        listener.close()


def test_an_address_of_a_family_that_the_kernel_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a kernel without IPv6, where /etc/hosts still has ::1 for localhost."""
    missing = (socket.AF_APPLETALK, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0))
    present = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))
    for count in (1, 2):
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: [missing, present])
        groups = listen("port", ("localhost",), 0, 10, count)
        assert [len(group) for group in groups] == [1] * count
        for group in groups:
            assert group[0].getsockname()[0] == "127.0.0.1"
            group[0].close()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: [missing])
        with pytest.raises(ConfigError, match="cannot be used: Address family not supported"):
            listen("port", ("localhost",), 0, 10, count)


def test_a_node_whose_admin_port_is_taken_leaves_its_public_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        where = {"host": "127.0.0.1", "port": port, "admin_port": taken.getsockname()[1]}
        with pytest.raises(ConfigError, match="--admin-port"):
            open_listeners(build(where))
        socket.create_server(("127.0.0.1", port)).close()


def test_an_address_that_the_machine_does_not_have() -> None:
    with pytest.raises(ConfigError, match="cannot be used: Cannot assign requested address"):
        listen("port", ("192.0.2.1",), 0, 10)


def names_of(hosts: tuple[str, ...], groups: int = 1, port: int = 0) -> set[tuple[str, int]]:
    """The addresses and ports of the sockets that listen; all groups have the same."""
    opened = listen("port", hosts, port, 10, groups)
    names = [{listener.getsockname()[:2] for listener in group} for group in opened]
    for listener in (listener for group in opened for listener in group):
        listener.close()
    assert all(each == names[0] for each in names)
    return names[0]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("hosts", "addresses"),
    [
        (("::",), {"::", "0.0.0.0"}),
        (("127.0.0.1", "::1"), {"127.0.0.1", "::1"}),
        (("127.0.0.1", "127.0.0.2", "127.0.0.1"), {"127.0.0.1", "127.0.0.2"}),
        (("127.0.0.1", "0.0.0.0", "::1"), {"0.0.0.0", "::1"}),
        (("::1", "::", "0.0.0.0"), {"::", "0.0.0.0"}),
    ],
)
def test_lists_of_addresses_and_both_families(
    hosts: tuple[str, ...], addresses: set[str], groups: int
) -> None:
    names = names_of(hosts, groups)
    assert {address for address, _ in names} == addresses
    (port,) = {port for _, port in names}
    assert names_of(hosts, groups, port) == names


def test_the_one_of_several_addresses_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.2 is taken"):
            names_of(("127.0.0.1", "127.0.0.2"), port=port)
        names_of(("127.0.0.1",), port=port)


@pytest.mark.parametrize(("races", "found"), [(3, True), (listeners_module.FREE_PORT_ATTEMPTS, False)])
def test_a_free_port_is_free_on_every_address(
    monkeypatch: pytest.MonkeyPatch, races: int, found: bool
) -> None:
    """The kernel picks one that is free on the first address; the second may have it in use."""
    bind = listeners_module._bind
    with contextlib.ExitStack() as others:
        taken: list[socket.socket] = []
        attempts = 0

        def racing(
            bound: socket.socket, family: int, address: tuple[Any, ...], *, share: bool
        ) -> socket.socket:
            nonlocal attempts
            if address[0] == "127.0.0.2" and attempts < races:
                attempts += 1
                with contextlib.suppress(OSError):  # another program was faster
                    taken.append(others.enter_context(socket.create_server(address)))
            return bind(bound, family, address, share=share)

        monkeypatch.setattr(listeners_module, "_bind", racing)
        if found:
            (port,) = {port for _, port in names_of(("127.0.0.1", "127.0.0.2"))}
            assert port not in {each.getsockname()[1] for each in taken}
        else:
            with pytest.raises(ConfigError, match=r"port 0 on 127\.0\.0\.2 is taken"):
                names_of(("127.0.0.1", "127.0.0.2"))
        assert attempts == races


def test_a_name_without_addresses() -> None:
    with pytest.raises(ConfigError, match=r"port 1 on 127\.0\.0\.1,no\.such\.name\.invalid cannot be used: "):
        names_of(("127.0.0.1", "no.such.name.invalid"), port=1)


def test_an_address_that_is_switched_off_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers, where localhost has ::1 although the interface has no IPv6."""
    infos = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("192.0.2.1", "127.0.0.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: infos)
    assert {address for address, _ in names_of(("localhost",), 2)} == {"127.0.0.1"}


async def test_connections_are_accepted_from_start_to_stop() -> None:
    listeners = [
        listener
        for (group,) in (listen("port", ("127.0.0.1",), 0, 10) for _ in range(2))
        for listener in group
    ]
    ports = [port_of([listener]) for listener in listeners]
    accepted: asyncio.Queue[asyncio.Transport] = asyncio.Queue()

    class Noting(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            accepted.put_nowait(transport)

    serving = Serving(listeners, 10)
    await serving.start(Noting)
    for port in ports:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        (await accepted.get()).close()
        writer.close()
        await writer.wait_closed()
    for _ in range(2):
        serving.stop()
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


def test_a_port_is_known_by_its_sockets() -> None:
    listeners = open_listeners(build({"host": "127.0.0.1", "port": 0, "admin_port": 0}))
    assert port_of(listeners.public) == listeners.public[0].getsockname()[1] != port_of(listeners.admin)
    listeners.close()
    assert listeners.public[0].fileno() == listeners.admin[0].fileno() == -1
    assert port_of([]) == 0
