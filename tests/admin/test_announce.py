"""Who may announce an id over HTTP, what is refused, and what the answers say."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, Self

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from structlog.testing import capture_logs

from gateway.admin.announce import OUTCOMES, AnnounceEndpoint
from gateway.admin.backend import MAX_PUBLISH_BODY
from gateway.errors import NotAnnounced
from gateway.publishing.announcing import Announcement
from gateway.publishing.publisher import Publisher

TOKEN = "0123456789abcdef"
KNOWN = {"Authorization": f"Bearer {TOKEN}"}

Client = TestClient[web.Request, web.Application]


class FakePublisher(Publisher):
    """Knows `known` already; Redis is away for `lost`."""

    def __init__(self) -> None:
        super().__init__("redis://nowhere")
        self.sent: list[Announcement] = []
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()
        self.answers.set()

    async def send_announcement(self, wanted: Announcement) -> bool:
        self.sent.append(wanted)
        self.asked.set()
        await self.answers.wait()
        if wanted.channel.endswith("lost"):
            raise NotAnnounced("Redis is away")
        return not wanted.channel.endswith("known")


class Scene:
    def __init__(self, token: str = TOKEN) -> None:
        self.publisher = FakePublisher()
        self.outcomes: Counter[str] = Counter()
        self.endpoint = AnnounceEndpoint(self.publisher, token, "ws:", self.outcomes)

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=MAX_PUBLISH_BODY)
        app.add_routes(self.endpoint.routes())
        self.client: Client = TestClient(TestServer(app))
        await self.client.start_server()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def post(
        self, body: object, kind: str = "application/json", **headers: str
    ) -> tuple[int, dict[str, Any]]:
        data = io.BytesIO(body if isinstance(body, bytes) else orjson.dumps(body))
        headers = {**KNOWN, "Content-Type": kind, **headers}
        async with self.client.post("/announce", data=data, headers=headers) as answer:
            assert ("Retry-After" in answer.headers) == (answer.status == 503)
            return answer.status, await answer.json()


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with Scene() as scene:
        yield scene


async def test_an_id_that_is_new_and_one_that_is_known(scene: Scene) -> None:
    assert await scene.post({"webSocketId": "12345678"}) == (200, {"webSocketId": "12345678", "new": True})
    assert await scene.post({"webSocketId": "known", "ttl": 5}) == (
        200,
        {"webSocketId": "known", "new": False},
    )
    assert scene.publisher.sent == [Announcement("ws:12345678", 600), Announcement("ws:known", 5)]
    assert scene.outcomes == {"new": 1, "known": 1}


async def test_redis_out_of_reach(scene: Scene) -> None:
    with capture_logs() as logged:
        status, answer = await scene.post({"webSocketId": "lost"})
    assert status == 503
    assert answer["error"] == {
        "code": "not_announced",
        "message": "Redis is away; Redis has not confirmed the announcement",
    }
    assert ("id not announced", "Redis is away") in [(line["event"], line.get("reason")) for line in logged]
    assert scene.outcomes == {"not_announced": 1}


@pytest.mark.parametrize(
    ("body", "named", "why"),
    [
        ([], None, "must be a JSON object"),
        ({"ttl": 5}, None, "webSocketId is missing"),
        ({"webSocketId": "a b"}, "a b", "1 to 200 of"),
        ({"webSocketId": "x" * 201}, None, "1 to 200 of"),
        ({"webSocketId": "a", "ttl": 0}, "a", "ttl must be 1 to 86400"),
        ({"webSocketId": "a", "authResult": "DONE"}, "a", "unknown member 'authResult'"),
    ],
)
async def test_what_is_no_announcement(scene: Scene, body: object, named: str | None, why: str) -> None:
    status, answer = await scene.post(body)
    assert (status, answer["webSocketId"], answer["error"]["code"]) == (400, named, "invalid")
    assert why in answer["error"]["message"]
    assert scene.publisher.sent == []
    assert scene.outcomes == {"invalid": 1}


@pytest.mark.parametrize(
    ("body", "kind", "headers", "status", "code"),
    [
        ({"webSocketId": "a"}, "application/json", {"Authorization": "Bearer wrong"}, 401, "unauthorized"),
        ({"webSocketId": "a"}, "application/json", {"Authorization": ""}, 401, "unauthorized"),
        ({"webSocketId": "a"}, "text/plain", {}, 415, "not_json"),
        (b"{", "application/json", {}, 400, "not_json"),
        (b" " * (MAX_PUBLISH_BODY + 1), "application/json", {}, 413, "too_big"),
    ],
)
async def test_the_rules_are_those_of_publish(
    scene: Scene, body: object, kind: str, headers: dict[str, str], status: int, code: str
) -> None:
    with capture_logs() as logged:
        answered, answer = await scene.post(body, kind, **headers)
    assert (answered, answer["error"]["code"]) == (status, code)
    assert [line["event"] for line in logged] == ["announce denied"]
    assert scene.publisher.sent == []
    assert scene.outcomes == {"denied": 1}


async def test_without_a_token_it_is_off_until_the_node_gets_one() -> None:
    async with Scene(token="") as scene:
        status, answer = await scene.post({"webSocketId": "a"})
        assert (status, answer["error"]["code"]) == (403, "off")
        scene.endpoint.use_token(TOKEN)
        assert (await scene.post({"webSocketId": "a"}))[0] == 200


async def test_who_announced_what_and_what_became_of_it(scene: Scene) -> None:
    with capture_logs() as logged:
        await scene.post({"webSocketId": "123456789"})
        await scene.post([])
    first, second = logged
    assert (first["event"], first["audit"], first["outcome"], first["id"]) == (
        "id announced",
        True,
        "new",
        "1234…",
    )
    assert first["token"] == "9f9f5111"
    assert first["peer"]
    assert (second["outcome"], "id" in second) == ("invalid", False)


async def test_what_is_announced_while_the_node_stops_has_its_line(scene: Scene) -> None:
    scene.publisher.answers.clear()
    with capture_logs() as logged:
        posting = asyncio.create_task(scene.post({"webSocketId": "a"}))
        await scene.publisher.asked.wait()
        await scene.client.close()
        await asyncio.gather(posting, return_exceptions=True)
    assert [line["outcome"] for line in logged] == ["not_announced"]
    assert set(scene.outcomes) <= set(OUTCOMES)
