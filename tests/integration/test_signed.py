"""`--registration signed` on real nodes: every wire, a rotation, and where no token may be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio

from gateway.drill.fleet import NodeProcess, ValkeyProcess

from ..cli.printing import Printing
from ..tokens.signers import SECRET, Signer, jwks, signer
from . import stomp
from .conftest import complaints
from .load import SECONDS, text, until
from .raw import Raw
from .test_events import listen
from .test_sockjs import Page, messages

NewId = Callable[[], str]
Http = aiohttp.ClientSession

BACKEND = signer("ES256")
REFUSED = {"code": "not_authorized", "message": "the token does not allow this webSocketId"}
SUBPROTOCOL = "Sec-WebSocket-Protocol: v12.stomp\r\n"


def token_for(name: str, by: Signer = BACKEND, seconds: float = 600, **claims: Any) -> str:
    return by.token(sub=name, exp=int(time.time() + seconds), **claims)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("signed") / "keys"
    file.write_bytes(jwks(BACKEND.jwk(kid="1")))
    return file


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two workers"])
def node(request: pytest.FixtureRequest, valkey: ValkeyProcess, keys: Path) -> Iterator[NodeProcess]:
    options = ["--registration", "signed", "--registration-keys", str(keys), "--log-level", "debug"]
    with NodeProcess(valkey.url, *options, "--workers", str(request.param)) as node:
        yield node
    assert not complaints(node.logs)


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(SECONDS)) as session:
        yield session


Register = Callable[[Http, int, str, str | None], Any]
"""Registers an id with a token on one wire; returns the body of the answer."""


async def by_json(_http: Http, port: int, name: str, token: str | None) -> dict[str, Any]:
    async with Raw.upgraded(port) as page:
        page.send(text({"webSocketId": name} | ({} if token is None else {"token": token})))
        answer = await page.message()
        answer.pop("topic")
        return answer


def frames(name: str, token: str | None, where: str) -> list[str]:
    """The page's frames; the token is in the body or in a header."""
    members = {"token": token} if where == "body" and token is not None else {}
    send = stomp.send(name, **members)
    if where == "header" and token is not None:
        send = send.replace("\ncontent-length", f"\ntoken:{token}\ncontent-length")
    return [stomp.CONNECT, stomp.TO_REGISTRATION, send]


async def by_stomp(port: int, name: str, token: str | None, where: str) -> dict[str, Any]:
    async with Raw.upgraded(port, SUBPROTOCOL) as page:
        for frame in frames(name, token, where):
            page.send(text(frame))
        _, connected = await page.frame()
        assert connected.startswith(b"CONNECTED")
        _, answer = await page.frame()
        return stomp.parse(answer.decode()).said


async def by_stomp_body(_http: Http, port: int, name: str, token: str | None) -> dict[str, Any]:
    return await by_stomp(port, name, token, "body")


async def by_stomp_header(_http: Http, port: int, name: str, token: str | None) -> dict[str, Any]:
    return await by_stomp(port, name, token, "header")


async def by_sockjs(http: Http, port: int, name: str, token: str | None, where: str) -> dict[str, Any]:
    page = Page(http, port, f"s-{os.urandom(8).hex()}")
    assert await page.poll() == "o"
    await page.say(*frames(name, token, where))
    heard: list[str] = []
    while len(heard) < 2:
        heard += messages(await page.poll())
    return stomp.parse(heard[1]).said


async def by_sockjs_body(http: Http, port: int, name: str, token: str | None) -> dict[str, Any]:
    return await by_sockjs(http, port, name, token, "body")


async def by_sockjs_header(http: Http, port: int, name: str, token: str | None) -> dict[str, Any]:
    return await by_sockjs(http, port, name, token, "header")


async def by_events(http: Http, port: int, name: str, token: str | None) -> dict[str, Any]:
    source = await listen(http, port, name, "" if token is None else f"&token={token}")
    event, body = await source.event()
    await source.close()
    assert event == "registration"
    assert isinstance(body, dict)
    return body


WIRES = [by_json, by_stomp_body, by_stomp_header, by_sockjs_body, by_sockjs_header, by_events]


@pytest.mark.parametrize("register", WIRES)
async def test_a_token_admits_and_anything_else_does_not(
    node: NodeProcess, http: Http, new_id: NewId, register: Register, backend: redis.asyncio.Redis
) -> None:
    before = len(node.logged("token refused"))
    name = new_id()
    answer = await register(http, node.port, name, token_for(name))
    assert answer == {"webSocketId": name, "registrationSucceeded": True}
    name = new_id()
    wrong = [
        None,
        "x.y.z",
        token_for("another"),
        token_for(name, seconds=-60),
        token_for(name, signer("ES256", 1)),
        token_for(name, signer("HS256")),
    ]
    for token in wrong:
        answer = await register(http, node.port, name, token)
        assert answer == {"webSocketId": name, "registrationSucceeded": False, "error": REFUSED}
    assert not any(name in str(channel) for channel in await backend.pubsub_channels())
    await until(lambda: len(node.logged("token refused")) > before, "the log says why")


async def test_no_token_is_told_to_anybody(node: NodeProcess, http: Http, new_id: NewId) -> None:
    """Not to the log, with debug lines, nor by a page of the admin port, nor to another client."""
    name = new_id()
    good, bad = token_for(name), token_for(name, signer("ES256", 1))
    for register in WIRES:
        for token in (good, bad):
            assert token not in json.dumps(await register(http, node.port, name, token))
    async with Raw.upgraded(node.port) as page:  # what a node complains of may be quoted
        page.send(text({"topic": "/nowhere", "webSocketId": "a b", "token": good}))
        assert good not in json.dumps(await page.message())
    async with Raw.upgraded(node.port, SUBPROTOCOL) as page:
        page.send(text(f"{stomp.CONNECT}SEND\ndestination:/x\ntoken:{good}\ntransaction:1\n\n\0"))
        assert good.encode() not in await page.rest()
    async with http.get(f"http://127.0.0.1:{node.port}/nowhere?token={good}") as answer:
        assert answer.status == 404
        assert good not in await answer.text()
    shown = []
    for path in ("/", "/metrics", "/readyz", f"/api/session?id={name}"):
        async with http.get(f"http://127.0.0.1:{node.admin_port}{path}") as answer:
            shown.append(await answer.text())
    log = json.dumps(node.logs)
    for token in (good, bad):
        for secret in (token, *token.split(".")[1:]):
            assert not [page for page in shown if secret in page]
            assert secret not in log
    assert "bad_signature" in log
    assert 'reason="bad_signature"' in shown[1]


@pytest.mark.parametrize("workers", [1, 2], ids=["one process", "two workers"])
async def test_a_rotation_while_the_node_serves(
    valkey: ValkeyProcess, tmp_path: Path, http: Http, new_id: NewId, workers: int
) -> None:
    """Old key, both keys, new key: by SIGHUP, and by itself some seconds after the file has changed."""
    old, new = signer("RS256"), signer("RS256", 1)
    file = tmp_path / "keys"
    name = new_id()

    def write(content: bytes) -> None:
        (tmp_path / "next").write_bytes(content)
        (tmp_path / "next").rename(file)

    async def admits(node: NodeProcess) -> tuple[bool, bool]:
        """Whether every process admits what the old key has signed, and the new one."""
        found = []
        for key, kid in ((old, "1"), (new, "2")):
            token = token_for(name, key, headers={"kid": kid})
            # New connections go to all workers.
            answers = [await by_json(http, node.port, name, token) for _ in range(4)]
            found.append(all(answer["registrationSucceeded"] for answer in answers))
        return found[0], found[1]

    write(jwks(old.jwk(kid="1")))
    options = ["--registration", "signed", "--registration-keys", str(file), "--workers", str(workers)]
    with NodeProcess(valkey.url, *options) as node:
        assert await admits(node) == (True, False)
        write(jwks(old.jwk(kid="1"), new.jwk(kid="2")))
        node.signal(signal.SIGHUP)
        await until(lambda: len(node.logged("registration keys read again")) == workers, "they are read")
        assert await admits(node) == (True, True)
        write(jwks(new.jwk(kid="2")))
        await until(lambda: len(node.logged("registration keys read again")) == 2 * workers, "they are seen")
        assert await admits(node) == (False, True)
        write(b"{")
        node.signal(signal.SIGHUP)
        await until(lambda: node.logged("files not read again"), "the node complains")
        await until(
            lambda: len(node.logged("registration keys not read again")) == workers,
            "and so it does by itself",
        )
        assert await admits(node) == (False, True)
        if workers > 1:  # a worker that begins now has what its parent has read
            pid = node.logged("worker started")[0]["pid"]
            os.kill(pid, signal.SIGKILL)
            await until(
                lambda: len(node.logged("registration keys not read again")) > workers, "the new one looks"
            )
            assert (await admits(node))[1]


@pytest.mark.real
def test_watch_sends_a_token(valkey: ValkeyProcess, keys: Path) -> None:
    options = ["--registration", "signed", "--registration-keys", str(keys)]
    with NodeProcess(valkey.url, *options) as node:
        with Printing("watch", "seen", "--url", node.ws_url, "--token", token_for("seen")) as watching:
            watching.wait_for("registered seen")
            assert watching.interrupt() == 0
        with Printing("watch", "seen", "--url", node.ws_url) as watching:
            assert watching.ended() == 4
            assert "not_authorized" in watching.err[0]


@pytest.mark.real
def test_a_node_without_the_library_says_what_to_install(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(SECRET)
    code = (
        "import sys; sys.modules['jwt'] = None\n"
        "from gateway.__main__ import main; sys.argv[1:] = ['serve', '--redis', 'redis://127.0.0.1:1', "
        "'--port', '0', '--admin-port', '0', '--registration', 'signed', '--registration-keys', "
        f"{str(file)!r}]; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "pip install 'webflow-gateway[jwt]'" in done.stderr


@pytest.mark.real
def test_a_node_with_the_setting_off_does_not_load_the_library() -> None:
    code = (
        "import sys; sys.modules['jwt'] = None; sys.modules['cryptography'] = None\n"
        "import gateway.node, gateway.admin.metrics, gateway.tokens.verification"
    )
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
