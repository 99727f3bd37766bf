"""The users of Redis that docker-compose.yml makes, on a real server."""

from __future__ import annotations

import os
import re
import runpy
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from gateway.drill.fleet import NodeProcess, ValkeyProcess
from gateway.publishing.api import SCRIPT

from ..paths import DEPLOY, DOCS, ROOT

PROGRAM = DEPLOY / "make-secrets.py"
VOLUMES = ("rules", "data", "node", "backend")
DOCUMENT = (DOCS / "redis-access.md").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def make(folder: Path, **variables: str) -> None:
    """What the service `secrets` does; the files belong to this process's user."""
    me = str(os.getuid())
    environment = {**os.environ, "SECRETS": str(folder), "REDIS_UID": me, "GATEWAY_UID": me, **variables}
    subprocess.run([sys.executable, str(PROGRAM)], env=environment, check=True, timeout=20)


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    for name in VOLUMES:
        (folder / name).mkdir()
    make(folder)
    return folder


@pytest.fixture(scope="module")
def server(secrets: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    """A server with these users. Until it has started, it also lets in whoever asks whether it has."""
    off = "user default off\n"
    rules = (secrets / "rules" / "users.acl").read_text()
    assert rules.startswith(off)
    path = tmp_path_factory.mktemp("rules") / "users.acl"
    path.write_text(rules.replace(off, "user default on nopass +@all\n"))
    with ValkeyProcess("--aclfile", str(path)) as running:
        running.ask("ACL", "SETUSER", "default", "off")
        yield running


def url_for(user: str, secrets: Path, server: ValkeyProcess) -> str:
    """The URL that `user` finds in its file, for this server."""
    return (secrets / user / "url").read_text().strip().replace("@redis:6379/0", f"@{server.address}")


@pytest.mark.real
def test_passwords_are_made_once_and_only_their_owners_read_them(secrets: Path) -> None:
    files = [path for path in secrets.rglob("*") if path.is_file()]
    assert {str(path.relative_to(secrets)) for path in files} == {
        "rules/users.acl",
        "node/url",
        "backend/url",
        "backend/password",
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o400}
    before = {path: path.read_text() for path in files}
    make(secrets)
    assert {path: path.read_text() for path in files} == before
    password = before[secrets / "backend" / "password"]
    assert len(password) >= 43
    assert f"backend:{password}@" in before[secrets / "backend" / "url"]
    rules = before[secrets / "rules" / "users.acl"]
    assert password not in rules, "Redis has hashes"


def test_the_rights_are_those_of_the_documents() -> None:
    documented = dict(
        re.findall(r"^ +ACL SETUSER (\w+) on >… resetchannels (.*)$", DOCUMENT, re.MULTILINE)[:1]
    )
    rights = runpy.run_path(str(PROGRAM), {"__name__": "read"})["RIGHTS"]
    assert rights["node"].replace("+pttl ", "") == documented["node"]
    assert f"ACL SETUSER backend on >… resetchannels {rights['backend']}\n" in DOCUMENT


def test_events_need_more_rights_and_get_them_only_when_they_are_on(tmp_path: Path) -> None:
    for name in VOLUMES:
        (tmp_path / name).mkdir()
    make(tmp_path, GATEWAY_EVENTS="redis")
    found = (tmp_path / "rules" / "users.acl").read_text().splitlines()
    program = runpy.run_path(str(PROGRAM), {"__name__": "read"})
    for user, line in zip(("node", "backend"), found[1:], strict=True):
        assert line.endswith(f"{program['RIGHTS'][user]}{program['WITH_EVENTS'][user]}")
    assert f"`{program['WITH_EVENTS']['node'].strip()}`" in DOCUMENT
    (reader,) = re.findall(r"ACL SETUSER reader on >… (.*)\n", DOCUMENT)
    assert reader.endswith(program["WITH_EVENTS"]["backend"])
    services = COMPOSE["services"]
    assert {services[name]["environment"]["GATEWAY_EVENTS"] for name in ("gateway", "secrets")} == {
        "${GATEWAY_EVENTS:-off}"
    }


def test_nobody_comes_in_without_a_password(server: ValkeyProcess) -> None:
    with pytest.raises(redis.AuthenticationError):
        server.ask("PING")


def test_a_node_serves_and_cannot_publish(secrets: Path, server: ValkeyProcess) -> None:
    url = url_for("node", secrets, server)
    with NodeProcess(url) as node:
        assert node.logged("redis connected")
        assert not [line for line in node.logs if line["level"] in ("warning", "error")]
    with redis.Redis.from_url(url) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.publish("websocket:12345678", "CONFIRMED")


def test_a_backend_publishes_and_cannot_listen(secrets: Path, server: ValkeyProcess) -> None:
    with redis.Redis.from_url(url_for("backend", secrets, server)) as client:
        assert client.publish("websocket:12345678", "CONFIRMED") == 0
        assert client.eval(SCRIPT, 1, "websocket:12345678", "CONFIRMED", 60) == 0
        for forbidden in (
            ("SUBSCRIBE", "websocket:12345678"),
            ("GET", "websocket:12345678"),
            ("CONFIG", "GET", "*"),
            ("FLUSHALL",),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*forbidden)


def test_only_who_needs_a_secret_has_it() -> None:
    mounted = {
        volume: {name for name, service in COMPOSE["services"].items() if mounts(service, volume)}
        for volume in ("node-secret", "backend-secret", "redis-rules", "redis-data")
    }
    assert mounted == {
        "node-secret": {"secrets", "gateway"},
        "backend-secret": {"secrets", "redis"},
        "redis-rules": {"secrets", "redis"},
        "redis-data": {"secrets", "redis"},
    }


def mounts(service: dict[str, Any], volume: str) -> bool:
    return any(mount.startswith(f"{volume}:") for mount in service.get("volumes", ()))
