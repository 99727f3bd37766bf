"""The health check of the image: where it asks, and what it makes of the answers."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gateway import healthcheck
from gateway.config import Config, build

from .paths import DEPLOY, ROOT


@contextmanager
def answering(*answers: bytes, host: str = "127.0.0.1") -> Iterator[str]:
    """The port of a server that gives one of the answers to each connection, in their order."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    assert connection.recv(100).startswith(b"GET /healthz HTTP/1.0\r\n")
                    connection.sendall(answer)

        server = threading.Thread(target=serve)
        server.start()
        try:
            yield str(listener.getsockname()[1])
        finally:
            listener.settimeout(0)  # the thread ends, whether or not somebody has come
            server.join(10)


OK = b"HTTP/1.0 200 OK\r\n\r\n"


@pytest.mark.parametrize(
    ("setting", "hosts"),
    [
        ("", ["127.0.0.1"]),
        ("0.0.0.0", ["127.0.0.1"]),
        ("::", ["127.0.0.1", "::1"]),
        ("[::1]", ["::1"]),
        ("10.0.0.5, ::1", ["10.0.0.5", "::1"]),
        ("gateway", ["gateway"]),
    ],
)
def test_it_asks_where_the_node_listens(setting: str, hosts: list[str]) -> None:
    assert list(healthcheck.addresses({"GATEWAY_ADMIN_HOST": setting})) == [(host, "8081") for host in hosts]
    assert list(healthcheck.addresses({"GATEWAY_ADMIN_PORT": "9"})) == [("127.0.0.1", "9")]


def test_its_defaults_are_the_settings() -> None:
    ((host, port),) = healthcheck.addresses({})
    assert ((host,), int(port)) == (Config().admin_host, Config().admin_port)
    assert build({"admin_host": "[::1], 10.0.0.5"}).admin_host == ("::1", "10.0.0.5")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_node_that_is_alive(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(OK, host=host) as port:
        assert healthcheck.main({"GATEWAY_ADMIN_HOST": host, "GATEWAY_ADMIN_PORT": port}) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("answer", "told"),
    [(b"HTTP/1.0 503 Busy\r\n\r\n", "503"), (b"", "no answer"), (b"\xff \xff\r\n", "\ufffd")],
)
def test_a_node_that_is_not(answer: bytes, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(answer) as port:
        assert healthcheck.main({"GATEWAY_ADMIN_PORT": port}) == 1
    assert capsys.readouterr().err == f"127.0.0.1 port {port}: {told}\n"


def test_one_address_that_answers_is_enough() -> None:
    with answering(b"", OK) as port:
        assert (
            healthcheck.main({"GATEWAY_ADMIN_HOST": "127.0.0.1,127.0.0.1", "GATEWAY_ADMIN_PORT": port}) == 0
        )


@pytest.mark.parametrize("port", ["x", "1"])
def test_nobody_there(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert healthcheck.main({"GATEWAY_ADMIN_PORT": port}) == 1
    assert capsys.readouterr().err.startswith(f"127.0.0.1 port {port}: ")


def test_a_node_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(healthcheck, "SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        assert healthcheck.main({"GATEWAY_ADMIN_PORT": str(silent.getsockname()[1])}) == 1
        assert time.monotonic() - started < 5


@pytest.mark.real
def test_the_image_uses_it() -> None:
    """With the interpreter that runs the tests instead of the image's."""
    text = (DEPLOY / "Dockerfile").read_text()
    (command,) = re.findall(r"HEALTHCHECK .*\\\n  CMD (\[.*\])", text)
    with answering(OK, host="::1") as port:
        words = [sys.executable, *json.loads(command)[1:]]
        where = {"GATEWAY_ADMIN_HOST": "::1", "GATEWAY_ADMIN_PORT": port}
        done = subprocess.run(words, cwd=ROOT, env=where, timeout=30, check=False)
    assert done.returncode == 0
