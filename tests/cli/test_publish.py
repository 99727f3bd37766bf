"""The command publish."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import Result

from gateway.drill.fleet import ValkeyProcess, free_port

from ..paths import ROOT
from ..publishing.test_redis_py import fake_redis
from .conftest import Run
from .printing import environment


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


def test_publish_to_the_redis_that_a_file_names(run: Run, valkey: ValkeyProcess, tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text(valkey.url + "\r\n")
    result = run("publish", "nobody", "DONE", "--redis-file", str(file), "--retain", "0")
    assert result.exit_code == 3, result.output


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
        (["a", "DONE", "--from", "-"], "into the file"),
        (["--message-id", "m", "--from", "-"], "into the file"),
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
    assert result.exit_code == 4
    assert result.stderr.startswith("Error: Redis at redis://:***@127.0.0.1:")
    assert result.stderr.count("\n") == 1
    assert result.stderr.endswith("; the result was not published\n")


@pytest.mark.real
def test_publish_says_why_redis_refuses(run: Run) -> None:
    with ValkeyProcess() as server:
        server.ask("CONFIG", "SET", "maxmemory", "1")
        result = run("publish", "a", "DONE", "--redis", server.url)
    assert result.exit_code == 4
    assert "OOM command not allowed" in result.stderr
    assert "unknown" not in result.stderr


@pytest.mark.real
def test_publish_to_a_redis_that_is_lost_meanwhile_is_unknown(run: Run) -> None:
    with fake_redis(None) as port:
        result = run("publish", "a", "DONE", "--redis", f"redis://127.0.0.1:{port}")
    assert result.exit_code == 1
    assert re.search(r"unknown whether .*: retry with --message-id [0-9a-f]{32}$", result.stderr.rstrip())


def test_publish_to_a_redis_that_hangs_ends_in_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.cli.publish.REDIS_SECONDS", 0.1)
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
    assert result.exit_code == 4, "it has not let the publisher in"
    assert "no answer in 0.1 s; the result was not published" in result.stderr


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
    assert done.returncode == 4
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


@pytest.mark.real
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
    assert dead.exit_code == 4
    assert "messageId" in lines(dead)[2]
    assert lines(dead)[2]["error"]["code"] == "not_published"  # type: ignore[index]
    with fake_redis(None) as port:
        lost = run("publish", "--from", str(file), "--redis", f"redis://127.0.0.1:{port}")
    assert lost.exit_code == 1


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
