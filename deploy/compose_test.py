"""The shipped docker-compose.yml, brought up, used, broken and taken down: `make compose-test`.

Needs a Docker engine, and either the Compose plugin or docker-compose. What a machine may need otherwise is
taken from the environment, as docker-compose.yml names it: PUBLIC_PORT, FRONT_SUBNET, OPEN_FILES, the images.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.drill.fleet import wait_until
from gateway.publishing.api import SCRIPT
from tests.clients import Clients, clients_at

ROOT = Path(__file__).parent.parent

# Building the image and starting the containers is part of the first test's time.
pytestmark = pytest.mark.timeout(600)
PROJECT = "webflow-gateway-test"
CLIENTS = 60
REPLICAS = 3
BUILD_SECONDS = 900.0  # the dependencies come over the network
COMMAND_SECONDS = 180.0
BACK_SECONDS = 20.0  # within which a client that comes back at intervals must have found a living node

READYZ = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8081/readyz').read().decode())"
# Ends when HAProxy's own checks have found this many nodes up. Docker looks at a container's health every two
# seconds, so right after an outage of Redis the two differ.
BALANCED = """
import csv, sys, time, urllib.request

def up():
    with urllib.request.urlopen("http://127.0.0.1:8404/stats;csv", timeout=5) as response:
        rows = csv.DictReader(response.read().decode().splitlines())
    nodes = [row for row in rows if row["# pxname"] == "gateway" and row["svname"] != "BACKEND"]
    return sum(node["status"] == "UP" for node in nodes)

end = time.monotonic() + 60
while up() != int(sys.argv[1]):
    if time.monotonic() > end:
        sys.exit(f"HAProxy has {up()} nodes up")
    time.sleep(0.1)
"""


def run(*command: str, seconds: float = COMMAND_SECONDS, **options: Any) -> str:
    """What the command prints; fails the test, with all that the command said, when it fails."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False, **options
    )
    if done.returncode:
        pytest.fail(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def works(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0
    except FileNotFoundError:
        return False


class Stack:
    """The containers of docker-compose.yml under a project name of the test's own."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        plugin = works("docker", "compose", "version")
        self._compose = ["docker", "compose"] if plugin else ["docker-compose"]
        self.url = f"ws://127.0.0.1:{environment['PUBLIC_PORT']}/ws"

    def compose(self, *words: str, seconds: float = COMMAND_SECONDS, **options: Any) -> str:
        command = [*self._compose, "-p", PROJECT, *words]
        return run(*command, seconds=seconds, env=self._environment, **options)

    def containers(self, service: str) -> list[str]:
        """The ids of the service's running containers."""
        return self.compose("ps", "-q", service).split()

    def sessions(self) -> dict[str, int]:
        """How many sessions each replica holds, by its own account."""
        return {
            container: json.loads(run("docker", "exec", container, "python", "-c", READYZ))["sessions"]
            for container in self.containers("gateway")
        }

    def redis(self, commands: Sequence[str]) -> list[str]:
        """The replies of the Redis container's own redis-cli to these lines, as the user `backend`."""
        return self.compose("exec", "-T", "redis", "redis-cli", input="\n".join(commands) + "\n").split()

    def wait_until_balanced(self, nodes: int) -> None:
        """Wait until HAProxy sends new clients to so many nodes."""
        (haproxy,) = self.containers("haproxy")
        image = inspect(self.containers("gateway")[0])["Image"]
        run(
            *(
                "docker",
                "run",
                "--rm",
                "--network",
                f"container:{haproxy}",
                "--entrypoint",
                "/opt/gateway/bin/python",
            ),
            *(image, "-c", BALANCED, str(nodes)),
        )

    def healthy(self, container: str) -> bool:
        status: str = inspect(container)["State"]["Health"]["Status"]
        return status == "healthy"


def inspect(container: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("docker", "inspect", container))[0]
    return found


def show(request: pytest.FixtureRequest, text: str) -> None:
    """Print past pytest's capture, which keeps what a module's fixture prints to itself."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n{text}")


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    if not works("docker", "info"):
        pytest.fail("a Docker engine is needed, and `docker info` finds none", pytrace=False)
    files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 131_072)
    # Stopping takes 25 s as shipped; the order of things is the same in five.
    environment = {"PUBLIC_PORT": "8080", "OPEN_FILES": str(files), "GATEWAY_DRAIN_DELAY": "3"}
    up = Stack({**environment, "GATEWAY_DRAIN_SECONDS": "2", **os.environ})
    failed = request.session.testsfailed
    try:
        up.compose("build", seconds=BUILD_SECONDS)
        up.compose("up", "-d")
        (haproxy,) = up.containers("haproxy")
        wait_until(lambda: up.healthy(haproxy), "HAProxy finds a ready node", 60)
        yield up
    finally:
        if request.session.testsfailed > failed:
            show(request, up.compose("logs", "--no-color", "--tail=100"))
        up.compose("down", "-v", "--remove-orphans", "-t", "5")


@pytest.fixture
async def clients() -> AsyncIterator[Clients]:
    async with clients_at("127.0.0.1") as opened:
        yield opened


@pytest.fixture
def replicas(stack: Stack) -> list[str]:
    """All replicas, running, healthy and found by HAProxy, whatever the test before did to them."""
    stack.compose("up", "-d")
    found = stack.containers("gateway")
    assert len(found) == REPLICAS
    wait_until(lambda: all(map(stack.healthy, found)), "all replicas are healthy", 60)
    stack.wait_until_balanced(REPLICAS)
    return found


async def come_back(clients: Clients, url: str, name: str) -> aiohttp.ClientWebSocketResponse:
    """Register again, at intervals, as a page does whose connection broke."""
    async with asyncio.timeout(BACK_SECONDS):
        while True:
            try:
                return await clients.register(url, name)
            except aiohttp.ClientError:
                await asyncio.sleep(0.5)


async def connect(clients: Clients, stack: Stack, prefix: str) -> dict[str, aiohttp.ClientWebSocketResponse]:
    names = [f"{prefix}-{number}" for number in range(CLIENTS)]
    sockets = await asyncio.gather(*(clients.register(stack.url, name) for name in names))
    return dict(zip(names, sockets, strict=True))


async def test_the_containers_can_do_nothing_but_their_work(stack: Stack, replicas: list[str]) -> None:
    (redis,), (haproxy,) = stack.containers("redis"), stack.containers("haproxy")
    for container in [*replicas, redis, haproxy]:
        host = inspect(container)["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        user_ids = run("docker", "top", container, "-eo", "pid,uid").split()[3::2]
        assert user_ids
        assert "0" not in user_ids
        published = [port for port in inspect(container)["NetworkSettings"]["Ports"].values() if port]
        assert len(published) == (container == haproxy), "only HAProxy is reached from outside"
    image = inspect(replicas[0])["Config"]
    assert image["User"].split(":")[0].isdecimal()
    assert image["Entrypoint"][0].endswith("/python"), "no shell is needed to start"
    assert image["Healthcheck"]["Test"][0] == "CMD", "nor for the health check"


@pytest.mark.usefixtures("replicas")
def test_redis_lets_nobody_in_without_a_password(stack: Stack) -> None:
    command = ("exec", "-T", "redis", "sh", "-c", "PATH=${PATH#*:} redis-cli PUBLISH websocket:a CONFIRMED")
    assert "NOAUTH" in stack.compose(*command)
    (redis,) = stack.containers("redis")
    password = stack.compose("exec", "-T", "redis", "cat", "/run/secrets/backend/password")
    assert len(password) >= 43
    assert password not in json.dumps(inspect(redis))
    assert password not in run("docker", "top", redis, "-eo", "pid,args")


async def test_a_retained_result_survives_a_restart_of_redis(
    stack: Stack, replicas: list[str], clients: Clients
) -> None:
    assert await asyncio.to_thread(stack.redis, [retaining("durable", "CONFIRMED")]) == ["0"]
    await asyncio.sleep(1.1)  # the append-only file is on disk within a second
    (redis,) = stack.containers("redis")
    await asyncio.to_thread(run, "docker", "kill", redis)
    await asyncio.to_thread(stack.compose, "up", "-d")
    websocket = await come_back(clients, stack.url, "durable")
    assert (await websocket.receive_json())["authResult"] == "CONFIRMED"
    await asyncio.to_thread(
        wait_until, lambda: all(map(stack.healthy, replicas)), "all replicas are healthy", 60
    )


@pytest.mark.usefixtures("replicas")
async def test_every_client_on_every_replica_gets_its_own_result(stack: Stack, clients: Clients) -> None:
    connected = await connect(clients, stack, "spread")
    held = await asyncio.to_thread(stack.sessions)
    assert sum(held.values()) == CLIENTS
    assert min(held.values()) >= CLIENTS // REPLICAS - 5, held

    plain = [f"PUBLISH websocket:{name} RESULT_{name[7:]}" for name in connected]
    assert await asyncio.to_thread(stack.redis, plain) == ["1"] * CLIENTS
    retained = [retaining(name, f"AGAIN_{name[7:]}") for name in connected]
    assert await asyncio.to_thread(stack.redis, retained) == ["1"] * CLIENTS
    for name, websocket in connected.items():
        assert (await websocket.receive_json())["authResult"] == f"RESULT_{name[7:]}"
        assert (await websocket.receive_json())["authResult"] == f"AGAIN_{name[7:]}"


async def test_clients_of_a_killed_replica_come_back_and_get_their_results(
    stack: Stack, replicas: list[str], clients: Clients
) -> None:
    connected = await connect(clients, stack, "kill")
    held = (await asyncio.to_thread(stack.sessions))[replicas[0]]
    messages = {name: asyncio.create_task(websocket.receive()) for name, websocket in connected.items()}
    await asyncio.to_thread(run, "docker", "kill", replicas[0])
    await asyncio.to_thread(
        wait_until, lambda: sum(task.done() for task in messages.values()) >= held, "its clients notice"
    )
    lost = [name for name, task in messages.items() if task.done()]
    assert len(lost) == held

    commands = [retaining(name, f"RESULT_{name[5:]}") for name in connected]
    receivers = await asyncio.to_thread(stack.redis, commands)
    assert sorted(receivers) == ["0"] * held + ["1"] * (CLIENTS - held)
    back = await asyncio.gather(*(come_back(clients, stack.url, name) for name in lost))
    messages |= {
        name: asyncio.create_task(websocket.receive()) for name, websocket in zip(lost, back, strict=True)
    }
    for name, message in messages.items():
        async with asyncio.timeout(10):
            assert (await message).json()["authResult"] == f"RESULT_{name[5:]}"


async def test_a_stopped_replica_says_goodbye_to_its_clients(
    stack: Stack, replicas: list[str], clients: Clients
) -> None:
    connected = await connect(clients, stack, "stop")
    held = (await asyncio.to_thread(stack.sessions))[replicas[1]]
    closes = [asyncio.create_task(websocket.receive()) for websocket in connected.values()]
    await asyncio.to_thread(run, "docker", "stop", "-t", "40", replicas[1])
    await asyncio.to_thread(
        wait_until, lambda: sum(closed.done() for closed in closes) >= held, "its clients are closed"
    )
    codes = [closed.result().data for closed in closes if closed.done()]
    for closed in closes:
        closed.cancel()
    assert codes == [aiohttp.WSCloseCode.SERVICE_RESTART] * held
    assert inspect(replicas[1])["State"]["ExitCode"] == 0
    await come_back(clients, stack.url, "stop-0")


@pytest.mark.usefixtures("replicas")
async def test_more_replicas_are_found(stack: Stack, clients: Clients) -> None:
    stack.compose("up", "-d", "--scale", f"gateway={REPLICAS + 1}")
    found = stack.containers("gateway")
    assert len(found) == REPLICAS + 1
    wait_until(lambda: all(map(stack.healthy, found)), "the new replica is healthy", 60)
    async with asyncio.timeout(BACK_SECONDS):
        while not all((await asyncio.to_thread(stack.sessions)).values()):
            await connect(clients, stack, "scale")


def retaining(name: str, result: str) -> str:
    """The line for redis-cli that publishes a result and retains it for a minute."""
    return f'EVAL "{SCRIPT}" 1 websocket:{name} {result} 60'
