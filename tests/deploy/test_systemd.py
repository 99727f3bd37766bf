"""The systemd unit: read by systemd's own checks, and held against what the program really does.

No test starts it, because a test machine's first process is seldom systemd. So what the unit forbids is
compared with the system calls of a node that runs without it.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import aiohttp
import pytest

from gateway.config import Config, build, unknown_variables
from gateway.core.timer_wheel import TimerWheel
from gateway.drill.fleet import NodeProcess, ValkeyProcess, wait_until
from gateway.server.requests import HTTP_SHUTDOWN
from gateway.system import ADMIN_CONNECTIONS, RESERVED

from ..clients import clients_at
from ..paths import DEPLOY, DOCS

FOLDER = DEPLOY / "systemd"
UNIT = (FOLDER / "webflow-gateway@.service").read_text()
PROGRAM = "/opt/webflow-gateway/bin/webflow-gateway"
CREDENTIALS = "/run/credentials/webflow-gateway@01.service"
EXPOSURE = 15
"""In tenths of what `systemd-analyze security` says (1.1 with systemd 252); what is left is the network."""


def directives() -> dict[str, list[str]]:
    """The unit's settings; one may be there more than once."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in UNIT.splitlines():
        if re.match(r"[A-Z]\w*=", line):
            name, _, value = line.partition("=")
            found[name].append(value)
    return found


def setting(name: str) -> str:
    (value,) = directives()[name]
    return value


def variables(instance: str) -> dict[str, str]:
    """What the program finds in its environment as this instance."""
    text = " ".join(directives()["Environment"])
    words = text.replace("%i", instance).replace("%H", "host").replace("%d", CREDENTIALS).split()
    lines = (FOLDER / "gateway.env").read_text().splitlines()
    pairs = [*words, *(line for line in lines if line and not line.startswith("#"))]
    return dict(pair.split("=", 1) for pair in pairs)


def config(instance: str = "01") -> Config:
    """The settings, without the file that only a running unit has."""
    given = {name.removeprefix("GATEWAY_").lower(): value for name, value in variables(instance).items()}
    return build({name: value for name, value in given.items() if name != "redis_file"})


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit as an instance, starting the program that is installed here."""
    path = tmp_path / "webflow-gateway@01.service"
    path.write_text(UNIT.replace(PROGRAM, str(Path(sys.executable).with_name("webflow-gateway"))))
    return path


def analyze(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, words)], capture_output=True, text=True, check=False, timeout=30
    )


@pytest.mark.needs("systemd-analyze")
def test_systemd_finds_nothing_wrong_with_it(unit: Path) -> None:
    check = analyze("verify", unit)
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")


@pytest.mark.needs("systemd-analyze")
def test_systemd_finds_a_slip_of_the_pen(unit: Path) -> None:
    """The control."""
    unit.write_text(unit.read_text().replace("ProtectHome=", "ProtectHomes="))
    assert "ProtectHomes" in analyze("verify", unit).stderr


@pytest.mark.needs("systemd-analyze")
def test_it_is_confined(unit: Path) -> None:
    check = analyze("security", "--offline=true", f"--threshold={EXPOSURE}", unit)
    assert check.returncode == 0, check.stdout


def test_nodes_of_one_host_get_ports_of_their_own_and_settings_that_are_right() -> None:
    ports = set()
    for instance in ("01", "02", "99"):
        assert unknown_variables(variables(instance)) == []
        ports |= {config(instance).port, config(instance).admin_port}
    assert len(ports) == 6
    assert max(ports) < 32_768, "below those that the system gives to connections"
    assert config().host == ("127.0.0.1",)


def test_the_url_of_redis_is_a_credential_and_in_no_environment() -> None:
    name, _, source = setting("LoadCredential").partition(":")
    assert variables("01")["GATEWAY_REDIS_FILE"] == f"{CREDENTIALS}/{name}"
    assert "GATEWAY_REDIS" not in variables("01")
    assert source in (DOCS / "systemd.md").read_text()
    assert source in (FOLDER / "gateway.env").read_text()


def test_it_has_time_to_stop_and_descriptors_for_its_sessions() -> None:
    settings = config()
    # Behind HAProxy the delay is the gateway's own.
    delay = max(settings.drain_delay, Config().drain_delay)
    stopping = delay + settings.drain_seconds + settings.close_timeout + 2 * TimerWheel.TICK + HTTP_SHUTDOWN
    assert stopping + 10 < float(setting("TimeoutStopSec"))
    assert setting("KillSignal") == "SIGTERM"
    others = ADMIN_CONNECTIONS + RESERVED
    assert settings.max_sessions + settings.max_handshakes + others <= int(setting("LimitNOFILE"))


def test_a_wrong_setting_is_not_tried_again() -> None:
    program = Path(sys.executable).with_name("webflow-gateway")
    wrong = subprocess.run([program, "serve", "--port", "-1"], capture_output=True, check=False)
    assert wrong.returncode == int(setting("RestartPreventExitStatus"))


def allowed_calls() -> set[str]:
    """The system calls that SystemCallFilter lets pass."""
    first, second = directives()["SystemCallFilter"]
    denied = set().union(*(members(name) for name in second.removeprefix("~").split()))
    return members(first) - denied


def members(group: str) -> set[str]:
    """The system calls of one of systemd's groups, and of those within it."""
    lines = [line.strip() for line in analyze("syscall-filter", "--no-pager", group).stdout.splitlines()]
    names = [line for line in lines if line and line != group and not line.startswith("#")]
    return set().union(*(members(name) if name.startswith("@") else {name} for name in names))


class Traced(NodeProcess):
    """A node whose system calls are written down in `trace`."""

    def __init__(self, redis_url: str, trace: Path) -> None:
        self._trace = trace
        super().__init__(redis_url)

    def _command(self) -> list[str]:
        # -D: strace is not the parent, so the signals go to the node.
        return [shutil.which("strace") or "", "-D", "-f", "-o", str(self._trace), *super()._command()]


@pytest.mark.needs("systemd-analyze", "strace")
async def test_a_node_makes_no_system_call_that_is_forbidden(valkey: ValkeyProcess, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with Traced(valkey.url, trace) as node, valkey.client() as backend:
        async with clients_at("127.0.0.1") as clients, aiohttp.ClientSession() as http:
            websocket = await clients.register(node.ws_url, "traced")
            assert backend.publish("websocket:traced", "CONFIRMED") == 1
            assert (await websocket.receive_json())["authResult"] == "CONFIRMED"
            async with http.get(f"http://127.0.0.1:{node.admin_port}/readyz") as answer:
                assert answer.status == 200
        node.signal(signal.SIGTERM)
        node.process.wait(20)
        ended = re.compile(rf"^{node.process.pid} +\+\+\+ exited with 0", re.MULTILINE)
        wait_until(lambda: ended.search(trace.read_text()), "all is written")
    lines = trace.read_text().splitlines()
    calls = {found[1] for line in lines if (found := re.match(r"\d+ +(\w+)\(", line))}
    assert {"epoll_pwait", "accept4", "execve"} <= calls, "all of it was traced"
    # systemd itself calls execve, under the filter already: it is in @system-service.
    assert calls - allowed_calls() == set()
    executable = [line for line in lines if "PROT_EXEC" in line and re.search(r"mprotect|PROT_WRITE", line)]
    assert executable == [], "MemoryDenyWriteExecute"
    families = {found[1] for line in lines if (found := re.search(r"socket\((AF_\w+)", line))}
    assert families <= set(setting("RestrictAddressFamilies").split())
