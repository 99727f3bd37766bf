"""Listening sockets for several workers."""

from __future__ import annotations

import socket

import pytest

from gateway.workers.listeners import listen


def test_all_listen_on_one_port() -> None:
    groups = listen("127.0.0.1", 0, 3, 10)
    names = {listener.getsockname() for group in groups for listener in group}
    assert [len(group) for group in groups] == [1, 1, 1]
    assert len(names) == 1
    with pytest.raises(OSError, match="in use"):
        listen("127.0.0.1", names.pop()[1], 2, 10)
    for group in groups:
        group[0].close()


def test_all_addresses_of_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(socket.AF_INET, address) for address in (("127.0.0.1", 0), ("127.0.0.2", 0))]
    infos = [(family, socket.SOCK_STREAM, 6, "", address) for family, address in both]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: infos)
    groups = listen("a-host", 0, 2, 10)
    names = [[listener.getsockname() for listener in group] for group in groups]
    assert names[0] == names[1]
    assert [address for address, _ in names[0]] == ["127.0.0.1", "127.0.0.2"]
    assert len({port for _, port in names[0]}) == 1
    for listener in (listener for group in groups for listener in group):
        listener.close()
