"""The command dev."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys

import pytest

from gateway.cli.dev import DEV_DEFAULTS, on_free_port, welcome
from gateway.config import Config
from gateway.server.listeners import ListenAddresses

from ..paths import ROOT
from .conftest import Run
from .printing import Printing, environment, shown_id, valkey_at


@pytest.mark.real
def test_dev_prints_commands_that_work_and_stops_on_ctrl_c() -> None:
    with Printing("dev", "--port", "0", "--admin-port", "0") as dev:
        url = dev.wait_for(" --url ws://").rpartition("--url ")[2]
        page = dev.wait_for("Demo page").split()[-1]
        assert re.fullmatch(r"http://localhost:\d+/\?id=demo-[0-9a-f]{6}", page)
        valkey = f"redis://127.0.0.1:{dev.wait_for('redis-cli').split()[2]}"
        publish = dev.wait_for(" publish ").strip()
        pid = valkey_at(valkey)
        with Printing("watch", shown_id(dev), "--url", url) as watching:
            watching.wait_for("registered")
            program = [
                sys.executable,
                "-m",
                "gateway",
            ]  # what the line begins with depends on how dev was started
            arguments = shlex.split(publish[publish.index(" publish ") :])
            done = subprocess.run(
                [*program, *arguments],
                capture_output=True,
                text=True,
                cwd=ROOT,
                env=environment(),
                timeout=20,
            )
            assert done.returncode == 0, done.stderr
            watching.wait_for("result CONFIRMED")
        assert dev.interrupt() == 0
    assert not any("Traceback" in line for line in dev.err)
    assert not any("\x1b" in line for line in dev.out)
    assert valkey_at(valkey) != pid


@pytest.mark.needs("redis-cli")
@pytest.mark.real
def test_devs_redis_cli_line_reaches_the_browser() -> None:
    with Printing("dev", "--port", "0", "--admin-port", "0", "--channel-prefix", "a'b:") as dev:
        url = dev.wait_for(" --url ws://").rpartition("--url ")[2]
        line = dev.wait_for("redis-cli")
        with Printing("watch", shown_id(dev), "--url", url) as watching:
            watching.wait_for("registered")
            done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=20)
            assert done.stdout == "1\n"
            watching.wait_for("result CONFIRMED")
        assert dev.interrupt() == 0


@pytest.mark.parametrize(("host", "warned"), [(None, False), ("0.0.0.0", True), ("::", True)])
def test_dev_is_open_to_the_network_only_when_asked(host: str | None, warned: bool) -> None:
    config = Config(host=host or DEV_DEFAULTS["host"])
    text = welcome(config, ListenAddresses(config.host, 8080, config.admin_host, 8081), "demo-1", [])
    assert "http://localhost:8080/?id=demo-1" in text
    assert ("without authentication" in text) is warned
    assert config.host == (host or "127.0.0.1",)


def test_devs_help_has_its_own_defaults(run: Run) -> None:
    words = " ".join(run("dev", "--help").stdout.split())
    assert "[GATEWAY_HOST; default: 127.0.0.1]" in words
    assert "[GATEWAY_DRAIN_SECONDS; default: 0]" in words


@pytest.mark.real
def test_dev_ends_when_its_valkey_does() -> None:
    with Printing("dev", "--port", "0", "--admin-port", "0") as dev:
        url = dev.wait_for(" publish ").partition("--redis ")[2]
        pid = valkey_at(url)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert dev.ended() == 1
    assert dev.err[-1] == f"Error: the embedded Valkey (pid {pid}) ended with -9"


def test_dev_takes_the_next_free_port_and_says_so() -> None:
    notes: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = Config(host="127.0.0.1", port=port, admin_port=port + 1 if port < 65_000 else port - 1)
        found = on_free_port(config, "port", notes)
        assert found.port not in (port, config.admin_port)
        assert notes == [f"Port {port} is taken; using {found.port} (choose with --port)."]
    assert on_free_port(config, "port", notes).port == port
    assert len(notes) == 1


@pytest.mark.real
def test_dev_on_a_port_that_was_asked_for_complains_when_it_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with Printing("dev", "--host", "127.0.0.1", "--port", port, "--admin-port", "0") as dev:
            assert dev.ended() == 1
    assert any(port in line and "--port" in line for line in dev.err)


@pytest.mark.parametrize(
    ("hosts", "shown"),
    [(("0.0.0.0",), "localhost"), (("192.0.2.1",), "192.0.2.1"), (("2001:db8::1",), "[2001:db8::1]")],
)
def test_dev_names_the_address_that_was_chosen(hosts: tuple[str, ...], shown: str) -> None:
    listening = ListenAddresses(hosts, 8080, ("127.0.0.1",), 8081)
    assert f"http://{shown}:8080/?id=demo-1" in welcome(Config(host=hosts), listening, "demo-1", [])
