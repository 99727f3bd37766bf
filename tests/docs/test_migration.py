"""The class that docs/migration.md adds to Web Flow: compiled against its Spring Boot, and run.

`tests/docs/webflow` has the parts of Web Flow that the class uses: their signatures, without their work.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from typing import IO

import pytest

from gateway.drill.fleet import ValkeyCluster, ValkeyProcess
from gateway.messages import parse_result

from ..paths import DOCS, ROOT
from ..publishing.test_api import rights

pytestmark = [
    pytest.mark.timeout(300),  # Maven fetches libraries
    pytest.mark.needs("java", "javac", "mvn"),
]

MIGRATION = (DOCS / "migration.md").read_text()
WEBFLOW = ROOT / "tests" / "docs" / "webflow"
SPRING_BOOT = "3.4.7"  # of Web Flow 1.10
APPLICATION = "io.getlime.security.powerauth.app.webflow.Application"

POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <parent>
    <groupId>org.springframework.boot</groupId>
    <artifactId>spring-boot-starter-parent</artifactId>
    <version>{SPRING_BOOT}</version>
  </parent>
  <groupId>webflow</groupId><artifactId>webflow</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.springframework.boot</groupId><artifactId>spring-boot-starter-actuator</artifactId>
    </dependency>
    DEPENDENCY
  </dependencies>
</project>
"""

BOUND = 5_000
"""Milliseconds: two tries of 300 ms to connect and 300 ms to hear; the rest is for a busy machine. Lettuce's
own default is 60 s."""


def block(before: str) -> str:
    found = re.search(before + r"\n+```\w+\n(.*?)```", MIGRATION, re.DOTALL)
    assert found is not None, before
    return found[1]


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The class path of an application with the class."""
    folder = tmp_path_factory.mktemp("webflow")
    (folder / "pom.xml").write_text(POM.replace("DEPENDENCY", block(r"`powerauth-webflow/pom\.xml`:")))
    (folder / "PublishingMessageService.java").write_text(block("<!-- snippet: spring-class -->"))
    fetch: tuple[str, ...] = ("mvn", "--batch-mode", "--quiet", "dependency:copy-dependencies")
    fetch += ("-DoutputDirectory=lib", "-DincludeScope=runtime")
    javac = ("javac", "-parameters", "-Xlint:all,-processing", "-Werror", "--release", "17")
    sources = sorted(map(str, [*folder.glob("*.java"), *WEBFLOW.glob("*.java")]))
    for command in (fetch, (*javac, "-cp", "lib/*", "-d", "classes", *sources)):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return f"{folder / 'lib'}/*{os.pathsep}{folder / 'classes'}"


class WebFlow:
    """The application; it has said that it is ready."""

    def __init__(self, classes: str, properties: str) -> None:
        given = [f"--{line}" for line in properties.splitlines() if line and not line.startswith("#")]
        given += ["--powerauth.webflow.websockets.enabled=true", "--logging.level.root=error"]
        given += ["--spring.main.banner-mode=off"]
        command = ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", classes, APPLICATION, *given]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._said: IO[str] = self._process.stdout
        self._told: IO[str] = self._process.stdin
        self.ready = self._next("ready")

    def approve(self, operation: str, result: str) -> tuple[str, int]:
        """What the phone's request ends with, and after how many milliseconds."""
        self._told.write(f"{operation} {result}\n")
        self._told.flush()
        assert self._next("old") == ["old", operation, result], "the old endpoint is told first"
        outcome, milliseconds = self._next("done", "failed")
        return outcome, int(milliseconds)

    def _next(self, *kinds: str) -> list[str]:
        for line in self._said:
            if line.startswith(kinds):
                return line.split()
        raise AssertionError(f"it ended with {self._process.wait()}")

    def stop(self) -> None:
        self._told.close()
        self._process.wait(20)
        self._said.close()


@contextlib.contextmanager
def webflow(classes: str, properties: str) -> Iterator[WebFlow]:
    running = WebFlow(classes, properties)
    try:
        yield running
    finally:
        running.stop()


def properties(url: str) -> str:
    """Those of the page, with the address of a server that has its user."""
    documented = block("<!-- snippet: spring-properties -->")
    example = "redis://backend:PASSWORD@redis.example:6379"
    assert example in documented
    return documented.replace(example, url.replace("//", "//backend:x@"))


def channel(operation: str) -> str:
    return "websocket:" + hashlib.sha512(operation.encode()).hexdigest()


def test_it_publishes_after_the_old_endpoint_and_bears_what_happens_to_redis(classes: str) -> None:
    """With the documented rights, on one server: well, killed, frozen, and well again."""
    with ValkeyProcess("--appendonly", "yes") as server:
        server.ask("ACL", "SETUSER", "backend", *rights("publish"))
        with webflow(classes, properties(server.url)) as application:
            assert application.ready == ["ready", "PublishingMessageService", "health", "false"]
            with server.client() as client, client.pubsub(ignore_subscribe_messages=True) as node:
                name = channel("op-1")
                node.subscribe(name)
                node.get_message(timeout=5)
                assert application.approve("op-1", "DONE")[0] == "done"
                message = node.get_message(timeout=5)
                assert message is not None
                payload = message["data"]
                assert client.get(name) == payload
                assert 50 < int(str(client.ttl(name))) <= 60
                result = parse_result(payload, name.removeprefix("websocket:").encode(), 1024)
                assert (result.auth_result, len(result.message_id or "")) == ("DONE", 36)
                assert "data" not in json.loads(payload)

                assert application.approve("broken", "FAILED")[0] == "failed", "as without the class"
                assert client.get(channel("broken")) is not None, "and the browser hears all the same"

            with server.frozen():
                outcome, milliseconds = application.approve("op-2", "CONTINUE")
                assert outcome == "done", "the phone sees no error"
                assert 500 <= milliseconds < BOUND, "two tries of 300 ms"
            server.kill()
            outcome, milliseconds = application.approve("op-3", "CONTINUE")
            assert outcome == "done"
            assert milliseconds < BOUND
            server.start()
            server.ask("ACL", "SETUSER", "backend", *rights("publish"))
            with server.client() as client:
                for attempt in range(20):  # Lettuce reconnects by itself, with growing delays
                    application.approve(f"back-{attempt}", "DONE")
                    if client.get(channel(f"back-{attempt}")) is not None:
                        break
                else:
                    raise AssertionError("it publishes again")


def test_it_starts_while_redis_is_away(classes: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        with webflow(classes, properties(url)) as application:
            application.approve("first", "DONE")  # loads classes
            outcome, milliseconds = application.approve("op", "DONE")
            assert outcome == "done"
            assert 500 <= milliseconds < BOUND, "two tries of 300 ms"


def test_it_publishes_in_a_cluster(classes: str) -> None:
    """With the documented rights, of which Lettuce needs one of its own."""
    with ValkeyCluster(replicas=0) as cluster:
        for server in cluster.nodes:
            server.ask("ACL", "SETUSER", "backend", *rights("spublish"))
        nodes = ",".join(server.address for server in cluster.nodes)
        lines = [line for line in properties("").splitlines() if not line.startswith("spring.data.redis.url")]
        lines += [f"spring.data.redis.cluster.nodes={nodes}", "bank.gateway.publish-command=SPUBLISH"]
        lines += ["spring.data.redis.username=backend", "spring.data.redis.password=x"]
        with webflow(classes, "\n".join(lines)) as application, cluster.client() as client:
            node = client.pubsub(ignore_subscribe_messages=True)
            node.ssubscribe(channel("op-0"))
            node.get_sharded_message(timeout=5)
            for number in range(6):
                assert application.approve(f"op-{number}", "DONE")[0] == "done"
                assert client.get(channel(f"op-{number}")) is not None
            message = node.get_sharded_message(timeout=5)
            node.close()
            assert json.loads(message["data"])["authResult"] == "DONE"
