"""One check against a gateway and a Redis of the test's own, which do what they like."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, Self

import pytest
from aiohttp import WSCloseCode, WSMsgType, web

from gateway.canary import check as engine
from gateway.canary import connection
from gateway.canary.check import RESULT, RETAIN_SECONDS, Check, Outcome
from gateway.canary.stages import TIMED, Stage
from gateway.errors import NotAnnounced, NotPublished, Unconfirmed
from gateway.messages import AUTHORIZATION, ERROR, REGISTRATION
from gateway.publishing.api import Published

from ..fakes import turns
from ..test_client import AiohttpServer, serving

TIMEOUT = 7.5
"""Seconds. It is no other timeout in a check, and no test waits for it."""

REDIS = "redis://user:secret@redis.example"

Answer = Callable[[web.WebSocketResponse, str], Awaitable[None]]
"""What the gateway does about the registration of an id."""


async def confirm(websocket: web.WebSocketResponse, web_socket_id: str) -> None:
    answer = {"topic": REGISTRATION, "webSocketId": web_socket_id, "registrationSucceeded": True}
    await websocket.send_json(answer)


def refuse(code: str) -> Answer:
    async def answer(websocket: web.WebSocketResponse, web_socket_id: str) -> None:
        error = {"code": code, "message": "no such id"}
        body = {"topic": REGISTRATION, "webSocketId": web_socket_id, "registrationSucceeded": False}
        await websocket.send_json({**body, "error": error})

    return answer


async def complain(websocket: web.WebSocketResponse, _: str) -> None:
    error = {"code": "unknown_topic", "message": "what?"}
    await websocket.send_json({"topic": ERROR, "error": error})


async def ignore(_websocket: web.WebSocketResponse, _: str) -> None:
    pass


def close(code: int, reason: bytes = b"") -> Answer:
    async def answer(websocket: web.WebSocketResponse, _: str) -> None:
        await websocket.close(code=code, message=reason)

    return answer


class World:
    """A gateway whose sessions are answered by `answer`, and a Redis. `check` runs a check on both."""

    def __init__(self, aiohttp_server: AiohttpServer) -> None:
        self._server = aiohttp_server
        self.answer: Answer = confirm
        self.receivers = 1
        self.refusal: Exception | None = None
        """What becomes of a publication, instead of a delivery."""
        self.announced: list[tuple[str, dict[str, Any]]] = []
        self.not_announced: Exception | None = None
        """What becomes of an announcement."""
        self.silent = False
        """Whether Redis never answers."""
        self.results: list[dict[str, object]] = []
        """What the gateway sends for a publication, instead of the result."""
        self.ends_after_results = False
        self.ends_while_publishing = False
        self.ids: list[str] = []
        self.published: list[tuple[str, str, dict[str, Any]]] = []
        self.left_with: list[int | None] = []
        self.left = asyncio.Event()
        self.expires_in: Stage | None = None
        self._sockets: dict[str, web.WebSocketResponse] = {}

    async def check(self, expires_in: Stage | None = None, **options: Any) -> Outcome:
        """Run a check, whose time is up as soon as it waits in a stage."""
        self.expires_in = expires_in
        url = await serving(self._server, self._serve)
        return await engine.run(Check(url, REDIS, timeout=TIMEOUT, **options))

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        if (first := await websocket.receive()).type is not WSMsgType.TEXT:
            return websocket  # it has left without a registration
        asked = json.loads(first.data)
        name = asked["webSocketId"]
        assert [known for known, _ in self.announced] == [*self.ids, name], "before it is registered"
        assert asked == {"topic": REGISTRATION, "webSocketId": name}
        self.ids.append(name)
        self._sockets[name] = websocket
        await self.answer(websocket, name)
        while (await websocket.receive()).type is WSMsgType.TEXT:
            pass
        self.left_with.append(websocket.close_code)
        self.left.set()
        return websocket

    # The publisher

    def publisher(self, url: str, *, timeout: float) -> World:
        assert url == REDIS
        assert timeout <= 3.0, "and what is left is for the result"
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def announce(self, web_socket_id: str, **options: Any) -> bool:
        self.announced.append((web_socket_id, options))
        if self.silent:
            await asyncio.Event().wait()
        if self.not_announced is not None:
            raise self.not_announced
        return True

    async def publish(self, web_socket_id: str, auth_result: str, **options: Any) -> Published:
        self.published.append((web_socket_id, auth_result, options))
        if self.silent:
            await asyncio.Event().wait()
        if self.refusal is not None:
            raise self.refusal
        if self.ends_while_publishing:
            await self._sockets[web_socket_id].close(code=1012)
            await self.left.wait()
            await turns()
        if self.receivers:
            result = {"topic": AUTHORIZATION, "messageId": options["message_id"], "authResult": auth_result}
            for message in self.results or [result]:
                await self._sockets[web_socket_id].send_json(message)
            if self.ends_after_results:
                await self._sockets[web_socket_id].close()
        return Published(self.receivers, True, options["message_id"])


@pytest.fixture
def world(aiohttp_server: AiohttpServer, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(aiohttp_server)
    monkeypatch.setattr(engine, "Publisher", made.publisher)
    real_timeout, real_enter = asyncio.timeout, engine._Run._enter
    limits: list[asyncio.Timeout] = []

    def timeout(delay: float | None) -> asyncio.Timeout:
        limit = real_timeout(delay)
        if delay == TIMEOUT:
            limits.append(limit)
        return limit

    def enter(running: engine._Run, stage: Stage) -> None:
        real_enter(running, stage)
        if stage is made.expires_in:
            loop = asyncio.get_running_loop()
            loop.call_soon(lambda: limits[-1].reschedule(loop.time()))

    monkeypatch.setattr(asyncio, "timeout", timeout)
    monkeypatch.setattr(engine._Run, "_enter", enter)
    return made


def failure_of(outcome: Outcome, stage: Stage) -> str:
    """What has failed, which is this stage."""
    assert outcome.failure is not None
    assert outcome.failure.stage is stage
    return str(outcome.failure)


async def test_all_is_well(world: World) -> None:
    outcome = await world.check(channel_prefix="x:")
    assert outcome.failure is None
    assert tuple(outcome.seconds) == TIMED
    assert all(seconds > 0 for seconds in outcome.seconds.values())
    assert outcome.total == sum(outcome.seconds.values())
    (name,) = world.ids
    assert re.fullmatch(r"canary-[0-9a-f]{32}", name), "128 random bits"
    ((published, result, options),) = world.published
    assert (published, result) == (name, RESULT)
    assert (options["retain"], options["channel_prefix"]) == (RETAIN_SECONDS, "x:")
    assert world.announced == [(name, {"ttl": 38, "channel_prefix": "x:"})], "30 s after the end of the check"
    assert world.left_with == [WSCloseCode.OK]


async def test_each_check_has_an_id_of_its_own(world: World) -> None:
    await world.check()
    await world.check()
    assert len(set(world.ids)) == 2


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (refuse("invalid_id"), "registration: refused: no such id (invalid_id)"),
        (
            refuse("not_authorized"),
            "(not_authorized); the canary has no token: with --registration signed alone",
        ),
        (refuse("unknown_id"), "(unknown_id); are --redis and --channel-prefix those of the nodes?"),
        (complain, "registration: refused: what? (unknown_topic)"),
        (close(1012), "registration: closed with 1012; the node is stopping"),
        (close(1008, b"why"), "registration: closed with 1008 (why); a proxy or the node has ended"),
        (close(1013), "Redis at redis://user:***@redis.example answers this machine, so look at the log"),
        (ignore, "not confirmed within 7.5 s; Redis at redis://user:***@redis.example answers this machine"),
    ],
)
async def test_a_registration_that_fails(world: World, answer: Answer, said: str) -> None:
    world.answer = answer
    outcome = await world.check(Stage.REGISTRATION if answer is ignore else None)
    assert said in failure_of(outcome, Stage.REGISTRATION)
    assert list(outcome.seconds) == ["connect"]
    assert world.published == []


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("OOM command not allowed", "OOM command not allowed; does Redis answer this machine?"),
        ("redis answered HELLO with: WRONGPASS x", "check user and password"),
        ("NOPERM no permissions", "the rights of a publisher: docs/redis-access.md"),
    ],
)
async def test_an_announcement_that_redis_refuses(world: World, reason: str, said: str) -> None:
    world.not_announced = NotAnnounced(reason)
    outcome = await world.check()
    told = failure_of(outcome, Stage.ANNOUNCE)
    assert told.startswith("announce: Redis at redis://user:***@redis.example: ")
    assert said in told
    assert list(outcome.seconds) == ["connect"]
    assert world.ids == []


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (NotPublished("OOM command not allowed", "m"), "OOM command not allowed; does Redis answer"),
        (Unconfirmed("no answer in 3 s", "m"), "no answer in 3 s; does Redis answer this machine?"),
        (NotPublished("redis answered HELLO with: WRONGPASS x", "m"), "check user and password"),
        (NotPublished("NOPERM no permissions", "m"), "the rights of a publisher: docs/redis-access.md"),
    ],
)
async def test_a_publication_that_redis_refuses(world: World, refusal: Exception, said: str) -> None:
    world.refusal = refusal
    told = failure_of(await world.check(), Stage.PUBLISH)
    assert told.startswith("publish: Redis at redis://user:***@redis.example: ")
    assert said in told


async def test_a_redis_that_does_not_answer(world: World) -> None:
    world.silent = True
    said = failure_of(await world.check(Stage.ANNOUNCE), Stage.ANNOUNCE)
    assert said == "announce: not announced within 7.5 s; does Redis answer this machine?"


async def test_a_redis_that_stops_answering(world: World) -> None:
    async def fall_silent(websocket: web.WebSocketResponse, name: str) -> None:
        world.silent = True
        await confirm(websocket, name)

    world.answer = fall_silent
    said = failure_of(await world.check(Stage.PUBLISH), Stage.PUBLISH)
    assert said == "publish: not published within 7.5 s; does Redis answer this machine?"


@pytest.mark.parametrize(
    ("receivers", "hint"),
    [
        (0, "are --redis and --channel-prefix those of the nodes?"),
        (1, "a node holds the id, so look at its log"),
    ],
)
async def test_a_result_that_does_not_come_back(world: World, receivers: int, hint: str) -> None:
    world.receivers = receivers
    world.results = [{"topic": AUTHORIZATION, "messageId": "another", "authResult": "DONE"}]
    outcome = await world.check(Stage.DELIVERY)
    said = failure_of(outcome, Stage.DELIVERY)
    assert said.startswith("delivery: the result is not back within 7.5 s; ")
    assert hint in said
    assert list(outcome.seconds) == ["connect", "registration"]


async def test_a_connection_that_ends_before_the_result_is_back(world: World) -> None:
    world.receivers = 0

    async def leave(websocket: web.WebSocketResponse, name: str) -> None:
        await confirm(websocket, name)
        await websocket.close(code=1001)

    world.answer = leave
    assert "closed with 1001" in failure_of(await world.check(), Stage.DELIVERY)


async def test_a_connection_that_ends_while_the_result_is_published(world: World) -> None:
    """Redis has taken the result, so publishing has not failed."""
    world.receivers = 0
    world.ends_while_publishing = True
    said = failure_of(await world.check(), Stage.DELIVERY)
    assert said == "delivery: closed with 1012; the node is stopping"


async def test_another_result_is_not_the_one(world: World) -> None:
    world.results = [{"topic": AUTHORIZATION, "messageId": "another", "authResult": "DONE"}]
    world.ends_after_results = True
    assert "closed with 1000" in failure_of(await world.check(), Stage.DELIVERY)


async def test_a_silent_proxy(world: World) -> None:
    outcome = await world.check(Stage.UPGRADE)
    said = failure_of(outcome, Stage.UPGRADE)
    assert said == "upgrade: no answer within 7.5 s; does the proxy reach a node?"
    assert outcome.seconds == {}


async def test_a_bug_is_a_failure_and_no_traceback(world: World) -> None:
    world.refusal = RuntimeError("oops")
    said = failure_of(await world.check(), Stage.PUBLISH)
    assert said == "publish: unexpected RuntimeError: oops; this is a bug: report it"


async def test_a_gateway_that_does_not_close_holds_nobody_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CLOSE_SECONDS", 0.01)
    checked = asyncio.Event()

    async def hang(websocket: web.WebSocketResponse, name: str) -> None:
        await confirm(websocket, name)
        await checked.wait()  # it does not read

    world.answer = hang
    started = time.monotonic()
    assert (await world.check()).failure is None
    assert time.monotonic() - started < 8, "aiohttp would wait for 10 s"
    checked.set()


async def test_it_can_be_stopped(world: World) -> None:
    registering = asyncio.Event()

    async def hang(_websocket: web.WebSocketResponse, _name: str) -> None:
        registering.set()

    world.answer = hang
    checking = asyncio.create_task(world.check())
    await registering.wait()
    checking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await checking
    await world.left.wait()
    assert world.left_with == [WSCloseCode.OK]
