"""What the README shows is true: its snippets run, its tables come from the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from gateway.publishing import SCRIPT

from .processes import Valkey

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CHANNEL = "websocket:12345678"

JEDIS = "8.0.2"
POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>snippet</groupId><artifactId>snippet</artifactId><version>1</version>
  <properties>
    <maven.compiler.release>17</maven.compiler.release>
    <project.build.sourceEncoding>UTF-8</project.build.sourceEncoding>
  </properties>
  <dependencies>
    <dependency><groupId>redis.clients</groupId><artifactId>jedis</artifactId><version>{JEDIS}</version></dependency>
  </dependencies>
</project>
"""


def snippet(name: str) -> str:
    """The code block behind `<!-- snippet: name -->`."""
    found = re.search(rf"<!-- snippet: {name} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found is not None, f"README.md has no snippet {name}"
    return found.group(1)


def between(mark: str) -> str:
    found = re.search(rf"<!-- {mark} -->\n(.*?)<!-- /{mark} -->", README, re.DOTALL)
    assert found is not None, f"README.md has no part {mark}"
    return found.group(1)


def run(*command: str, cwd: Path, seconds: float = 60) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


class Phone:
    """A subscriber in a node's place; says what one publish with retention has done."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._pubsub = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self._pubsub.subscribe(CHANNEL)
        self._pubsub.get_message(timeout=5)

    def heard(self) -> bytes:
        """The payload published, which must be retained too."""
        end = time.monotonic() + 5
        while time.monotonic() < end:
            if message := self._pubsub.get_message(timeout=1):
                assert self._client.get(CHANNEL) == message["data"]
                assert 290 <= int(self._client.ttl(CHANNEL)) <= 300
                return bytes(message["data"])
        raise AssertionError("nothing was published")

    def close(self) -> None:
        self._pubsub.close()


@pytest.fixture
def phone(valkey: Valkey) -> Iterator[Phone]:
    with valkey.client() as client:
        client.delete(CHANNEL)
        phone = Phone(client)
        yield phone
        phone.close()
        client.delete(CHANNEL)


@pytest.mark.needs("redis-cli")
def test_redis_cli(valkey: Valkey, phone: Phone, tmp_path: Path) -> None:
    command = snippet("retained-redis-cli").replace("redis-cli", f"redis-cli -p {valkey.port}", 1)
    assert SCRIPT in command
    assert run("sh", "-c", command, cwd=tmp_path).strip() == "1"
    assert phone.heard() == b"CONFIRMED"


def test_python(valkey: Valkey, phone: Phone, tmp_path: Path) -> None:
    code = snippet("python").replace("port=6379", f"port={valkey.port}")
    assert run(sys.executable, "-c", code, cwd=ROOT) == "1 nodes hold the id\n"
    assert phone.heard().startswith(b'{"authResult":"CONFIRMED","messageId":"')


@pytest.mark.needs("node", "npm")
def test_node(valkey: Valkey, phone: Phone, tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('{"type": "module", "private": true}')
    run("npm", "install", "--no-audit", "--no-fund", "--silent", "redis@5", cwd=tmp_path, seconds=180)
    code = snippet("node").replace("localhost:6379", f"127.0.0.1:{valkey.port}")
    (tmp_path / "publish.js").write_text(code)
    assert run("node", "publish.js", cwd=tmp_path) == "1 nodes hold the id\n"
    assert phone.heard() == b"CONFIRMED"


@pytest.mark.needs("java", "javac", "mvn")
def test_java(valkey: Valkey, phone: Phone, tmp_path: Path) -> None:
    (tmp_path / "pom.xml").write_text(POM)
    maven = ("mvn", "--batch-mode", "--quiet")
    copy = ("dependency:copy-dependencies", "-DoutputDirectory=lib", "-DincludeScope=runtime")
    run(*maven, *copy, cwd=tmp_path, seconds=300)
    code = snippet("java").replace("localhost:6379", f"127.0.0.1:{valkey.port}")
    (tmp_path / "Publish.java").write_text(code)
    classes = f"lib/*{os.pathsep}."
    run("javac", "-cp", classes, "Publish.java", cwd=tmp_path)
    assert run("java", "-cp", classes, "Publish", cwd=tmp_path) == "1 nodes hold the id\n"
    assert phone.heard() == b"CONFIRMED"


def test_settings_table_is_the_one_that_the_code_makes() -> None:
    made = run(sys.executable, "-m", "gateway", "config", "--markdown", cwd=ROOT)
    assert between("settings").strip() == made.strip(), "put in what `gateway config --markdown` prints"


def test_the_figures_are_there() -> None:
    for figure in ("registration", "delivery", "disconnect", "memory"):
        assert figure in between("figures")


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
