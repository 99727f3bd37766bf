"""What the README and the page on publishing show is true: their snippets run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from gateway.drill.fleet import NodeProcess, ValkeyCluster, ValkeyProcess
from gateway.publishing.api import SCRIPT
from gateway.redis.cluster.slots import key_slot

from ..paths import ROOT

pytestmark = pytest.mark.timeout(180)  # npm and Maven fetch libraries

README = (ROOT / "README.md").read_text()
PUBLISHING = (ROOT / "docs" / "publishing.md").read_text()
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


def snippet(name: str, kind: str = "snippet") -> str:
    """The code block behind `<!-- snippet: name -->`, in the README or the page on publishing."""
    found = re.search(rf"<!-- {kind}: {name} -->\n```\w+\n(.*?)```", README + PUBLISHING, re.DOTALL)
    assert found is not None, f"there is no {kind} {name}"
    return found.group(1)


def run(*command: str, cwd: Path, seconds: float = 60) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


class Phone:
    """A subscriber in a node's place; says what one publish with retention has done."""

    def __init__(self, client: redis.Redis | redis.RedisCluster) -> None:
        self._client = client
        self._pubsub = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        if isinstance(client, redis.RedisCluster):
            self._pubsub.ssubscribe(CHANNEL)
            self._get = self._pubsub.get_sharded_message
        else:
            self._pubsub.subscribe(CHANNEL)
            self._get = self._pubsub.get_message
        self._get(timeout=5)

    def heard(self) -> bytes:
        """The payload published, which must be retained too."""
        end = time.monotonic() + 5
        while time.monotonic() < end:
            if message := self._get(timeout=1):
                assert self._client.get(CHANNEL) == message["data"]
                assert 290 <= int(self._client.ttl(CHANNEL)) <= 300
                return bytes(message["data"])
        raise AssertionError("nothing was published")

    def close(self) -> None:
        self._pubsub.close()
        self._client.delete(CHANNEL)


@pytest.fixture
def phone(valkey: ValkeyProcess) -> Iterator[Phone]:
    with valkey.client() as client:
        client.delete(CHANNEL)
        phone = Phone(client)
        yield phone
        phone.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with ValkeyCluster(replicas=0) as running:
        yield running


@pytest.fixture
def phone_in_cluster(cluster: ValkeyCluster) -> Iterator[Phone]:
    with cluster.client() as client:
        phone = Phone(client)
        yield phone
        phone.close()


def other_port(cluster: ValkeyCluster) -> int:
    """Of a server that has to point to another."""
    owner = cluster.owner(key_slot(CHANNEL.encode()))
    return next(node.port for node in cluster.nodes if node is not owner)


@pytest.mark.needs("redis-cli")
def test_redis_cli(valkey: ValkeyProcess, phone: Phone, tmp_path: Path) -> None:
    command = snippet("retained-redis-cli").replace("redis-cli", f"redis-cli -p {valkey.port}", 1)
    assert SCRIPT in command
    assert run("sh", "-c", command, cwd=tmp_path).strip() == "1"
    assert phone.heard() == b"CONFIRMED"


@pytest.mark.needs("redis-cli")
def test_redis_cli_in_a_cluster(cluster: ValkeyCluster, phone_in_cluster: Phone, tmp_path: Path) -> None:
    port = other_port(cluster)
    command = snippet("retained-redis-cli-cluster").replace("redis-cli", f"redis-cli -p {port}", 1)
    assert SCRIPT in command
    assert run("sh", "-c", command, cwd=tmp_path).split()[-1] == "1"
    assert phone_in_cluster.heard() == b"CONFIRMED"
    plain = f"redis-cli -p {port} -c SPUBLISH {CHANNEL} CONFIRMED"
    assert plain.replace(f" -p {port}", "") in PUBLISHING
    assert run("sh", "-c", plain, cwd=tmp_path).split()[-1] == "1"


def test_python(valkey: ValkeyProcess, phone: Phone, tmp_path: Path) -> None:
    code = snippet("python").replace("port=6379", f"port={valkey.port}")
    assert run(sys.executable, "-c", code, cwd=ROOT) == "nodes that hold the id: 1\n"
    assert phone.heard().startswith(b'{"authResult":"CONFIRMED","messageId":"')


def run_node(name: str, port: int, folder: Path) -> str:
    (folder / "package.json").write_text('{"type": "module", "private": true}')
    run("npm", "install", "--no-audit", "--no-fund", "--silent", "redis@5", cwd=folder, seconds=180)
    (folder / "publish.js").write_text(snippet(name).replace("localhost:6379", f"127.0.0.1:{port}"))
    return run("node", "publish.js", cwd=folder)


def run_java(code: str, folder: Path) -> str:
    (folder / "pom.xml").write_text(POM)
    maven = ("mvn", "--batch-mode", "--quiet")
    copy = ("dependency:copy-dependencies", "-DoutputDirectory=lib", "-DincludeScope=runtime")
    run(*maven, *copy, cwd=folder, seconds=300)
    (folder / "Publish.java").write_text(code)
    classes = f"lib/*{os.pathsep}."
    run("javac", "-cp", classes, "Publish.java", cwd=folder)
    return run("java", "-cp", classes, "Publish", cwd=folder)


@pytest.mark.needs("node", "npm")
def test_node(valkey: ValkeyProcess, phone: Phone, tmp_path: Path) -> None:
    assert run_node("node", valkey.port, tmp_path) == "nodes that hold the id: 1\n"
    assert phone.heard() == b"CONFIRMED"


@pytest.mark.needs("node", "npm")
def test_node_in_a_cluster(cluster: ValkeyCluster, phone_in_cluster: Phone, tmp_path: Path) -> None:
    assert run_node("node-cluster", other_port(cluster), tmp_path) == "nodes that hold the id: 1\n"
    assert phone_in_cluster.heard() == b"CONFIRMED"


@pytest.mark.needs("java", "javac", "mvn")
def test_java(valkey: ValkeyProcess, phone: Phone, tmp_path: Path) -> None:
    code = snippet("java").replace("localhost:6379", f"127.0.0.1:{valkey.port}")
    assert run_java(code, tmp_path) == "nodes that hold the id: 1\n"
    assert phone.heard() == b"CONFIRMED"


@pytest.mark.needs("java", "javac", "mvn")
def test_java_in_a_cluster(cluster: ValkeyCluster, phone_in_cluster: Phone, tmp_path: Path) -> None:
    code = snippet("java-cluster").replace('"localhost", 6379', f'"127.0.0.1", {other_port(cluster)}')
    assert run_java(code, tmp_path) == "nodes that hold the id: 1\n"
    assert phone_in_cluster.heard() == b"CONFIRMED"


@pytest.mark.needs("curl")
def test_curl(valkey: ValkeyProcess, phone: Phone, tmp_path: Path) -> None:
    token = "a-token-of-sixteen"
    with NodeProcess(valkey.url, "--publish-token", token) as node:
        command = f"TOKEN={token}\n" + snippet("curl").replace(":8081", f":{node.admin_port}")
        answer = run("sh", "-c", command, cwd=tmp_path)
        assert json.loads(answer) == json.loads(snippet("curl", "answer"))
    assert phone.heard().startswith(b'{"authResult":"CONFIRMED","messageId":"m-1","publishedAt":')
    short = re.search(r"```sh\n(curl .*?)```", README, re.DOTALL)
    assert short is not None
    assert "localhost:8081/publish" in short[1]


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len(README.split()) <= 1250
