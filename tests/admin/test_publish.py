"""Who may publish over HTTP, what is refused, and what the answers say."""

from __future__ import annotations

import asyncio
import io
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from structlog.testing import capture_logs

from gateway.admin.backend import MAX_PUBLISH_BODY
from gateway.admin.publish import MAX_RESULTS, PublishEndpoint, _audit
from gateway.errors import NotPublished, Unconfirmed
from gateway.publishing.api import Outgoing, Published
from gateway.publishing.publisher import Publisher, Sent
from gateway.telemetry import logs

TOKEN = "0123456789abcdef"
KNOWN = {"Authorization": f"Bearer {TOKEN}"}

Client = TestClient[web.Request, web.Application]


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class FakePublisher(Publisher):
    """Says that Redis has confirmed everything but results whose messageId begins with `lost` or `no`."""

    def __init__(self) -> None:
        super().__init__("redis://nowhere")
        self.batches: list[list[Outgoing]] = []
        self.answers = asyncio.Event()
        self.answers.set()

    async def send(self, results: Sequence[Outgoing]) -> list[Sent]:
        self.batches.append(list(results))
        await self.answers.wait()
        return [self._end(result) for result in results]

    def _end(self, result: Outgoing) -> Sent:
        if result.message_id.startswith("no"):
            return NotPublished("OOM", result.message_id)
        if result.message_id.startswith("lost"):
            return Unconfirmed("Redis is away", result.message_id)
        return result.published(1)


async def client_of(views: PublishEndpoint) -> Client:
    app = web.Application(client_max_size=MAX_PUBLISH_BODY)
    app.add_routes(views.routes())
    client = TestClient(TestServer(app))
    await client.start_server()
    return client


@pytest.fixture
def publisher() -> FakePublisher:
    return FakePublisher()


@pytest.fixture
async def client(publisher: FakePublisher) -> AsyncIterator[Client]:
    client = await client_of(PublishEndpoint(publisher, TOKEN, "ws:", 1024, Counter()))
    yield client
    await client.close()


def result(message_id: str = "m", **members: object) -> dict[str, object]:
    return {"webSocketId": "12345678", "authResult": "CONFIRMED", "messageId": message_id, **members}


async def post(client: Client, body: object) -> tuple[int, Any]:
    headers = {**KNOWN, "Content-Type": "application/json"}
    async with client.post("/publish", data=orjson.dumps(body), headers=headers) as answer:
        assert answer.content_type == "application/json"
        assert ("Retry-After" in answer.headers) == (answer.status == 503)
        return answer.status, await answer.json()


# What goes out


async def test_one_result(client: Client, publisher: FakePublisher) -> None:
    status, answer = await post(client, result(data={"a": None}, retain=60, traceparent="00-1-2-01"))
    assert status == 200
    assert answer == {"webSocketId": "12345678", "messageId": "m", "receivers": 1, "retained": True}
    ((sent,),) = publisher.batches
    assert sent == Outgoing("ws:12345678", sent.payload, 60, "m")
    body = orjson.loads(sent.payload)
    assert body.pop("publishedAt") > 0
    assert body == {"authResult": "CONFIRMED", "messageId": "m", "data": {"a": None}}


async def test_half_of_a_surrogate_pair_is_replaced(client: Client, publisher: FakePublisher) -> None:
    body = rb'{"webSocketId":"a","authResult":"DONE","data":"\ud83d"}'
    headers = {**KNOWN, "Content-Type": "application/json"}
    async with client.post("/publish", data=body, headers=headers) as answer:
        assert answer.status == 200
    ((sent,),) = publisher.batches
    assert orjson.loads(sent.payload)["data"] == "\ufffd"


async def test_a_trace_goes_with_the_result(client: Client, publisher: FakePublisher) -> None:
    await post(client, result(traceparent=TRACE))
    ((sent,),) = publisher.batches
    assert orjson.loads(sent.payload)["traceparent"] == TRACE


async def test_the_least_that_a_result_has(client: Client, publisher: FakePublisher) -> None:
    status, answer = await post(client, {"webSocketId": "a", "authResult": "DONE"})
    assert status == 200
    ((sent,),) = publisher.batches
    assert sent.retain == 300
    assert answer["messageId"] == sent.message_id != ""


async def test_a_batch_is_sent_and_answered_in_its_order(client: Client, publisher: FakePublisher) -> None:
    ids = [f"m{number}" for number in range(MAX_RESULTS)]
    status, answer = await post(client, {"results": [result(message_id) for message_id in ids]})
    assert status == 200
    assert [one["messageId"] for one in answer["results"]] == ids
    (batch,) = publisher.batches
    assert [sent.message_id for sent in batch] == ids


async def test_a_mix(client: Client, publisher: FakePublisher) -> None:
    mix = [result("m1"), result("lost"), result("m2", authResult="done"), 17, result("m3")]
    with capture_logs() as logged:
        status, answer = await post(client, {"results": mix})
    assert status == 207
    sent, lost, wrong, none, last = answer["results"]
    assert (sent["messageId"], last["messageId"]) == ("m1", "m3")
    assert lost["messageId"] == "lost"
    assert lost["error"]["code"] == "unconfirmed"
    assert "unknown whether the result was published: retry with messageId lost" in lost["error"]["message"]
    assert wrong["webSocketId"] == "12345678"
    assert wrong["error"]["code"] == none["error"]["code"] == "invalid"
    assert "not 'done'" in wrong["error"]["message"]
    assert none["webSocketId"] is None
    assert len(publisher.batches[0]) == 3
    assert [line["event"] for line in logged] == ["result posted"] * 5 + ["results unconfirmed"]
    assert (logged[5]["count"], logged[5]["of"], logged[5]["reason"]) == (1, 5, "Redis is away")


async def test_redis_out_of_reach(client: Client) -> None:
    status, answer = await post(client, result("lost"))
    assert (status, answer["messageId"], answer["error"]["code"]) == (503, "lost", "unconfirmed")
    status, answer = await post(client, {"results": [result("lost-1"), result("m", retain=-1)]})
    assert status == 503
    assert [one["error"]["code"] for one in answer["results"]] == ["unconfirmed", "invalid"]


async def test_what_redis_refuses_is_known_not_to_be_published(client: Client) -> None:
    with capture_logs() as logged:
        status, answer = await post(client, result("no"))
        assert (status, answer["messageId"]) == (503, "no")
        assert answer["error"] == {"code": "not_published", "message": "OOM; the result was not published"}
        status, answer = await post(
            client, {"results": [result("no"), result("lost"), result("m", retain=-1)]}
        )
        assert status == 503
        assert (await post(client, {"results": [result("no"), result("m")]}))[0] == 207
    codes = [one["error"]["code"] for one in answer["results"]]
    assert codes == ["not_published", "unconfirmed", "invalid"]
    assert [line["event"] for line in logged].count("results not published") == 3
    assert logged[0]["reason"] == "OOM"


# What no node would forward


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({}, "webSocketId is missing"),
        ({"webSocketId": "a"}, "authResult is missing"),
        (result(webSocketId=None), "not None"),
        (result(webSocketId=["a"]), "1 to 200 of"),
        (result(webSocketId="a" * 100_000), "1 to 200 of"),
        (result(authResult=1), "such as CONFIRMED"),
        (result(messageId=7), "visible ASCII"),
        (result(messageId=None, retain="1"), "whole seconds, not '1'"),
        (result(retain=True), "whole seconds, not True"),
        (result(retain=1.5), "whole seconds, not 1.5"),
        (result(retian=60), "unknown member 'retian'; use webSocketId, authResult, messageId, data, retain"),
        (result(data="x" * 1024), "at most 1024"),
        ([result()], "must be a JSON object"),
        ("CONFIRMED", "must be a JSON object"),
        (None, "must be a JSON object"),
    ],
)
async def test_what_is_no_result(client: Client, publisher: FakePublisher, body: object, why: str) -> None:
    status, answer = await post(client, body)
    assert status == 400
    assert why in answer["error"]["message"]
    assert len(orjson.dumps(answer)) < 500
    status, answer = await post(client, {"results": [body]})
    assert status == 400
    assert why in answer["results"][0]["error"]["message"]
    assert publisher.batches == [[], []]


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b'"\xff"', 400, "not JSON"),
        (b'{"results": []}', 400, "at least one"),
        (b'{"results": {}}', 400, "at least one"),
        (b'{"results": [{}], "retain": 1}', 400, "must have one member"),
        (orjson.dumps({"results": [{}] * (MAX_RESULTS + 1)}), 413, "at most 1000 results; this one has 1001"),
        (b" " * (MAX_PUBLISH_BODY + 1), 413, "at most 2097152 bytes"),
    ],
)
async def test_a_body_that_is_none(
    client: Client, publisher: FakePublisher, body: bytes, status: int, why: str
) -> None:
    headers = {**KNOWN, "Content-Type": "application/json"}
    async with client.post("/publish", data=io.BytesIO(body), headers=headers) as answer:
        assert answer.status == status
        assert why in (await answer.json())["error"]["message"]
    assert publisher.batches == []


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
async def test_a_body_of_another_type(client: Client, kind: str) -> None:
    body = json.dumps(result())
    async with client.post("/publish", data=body, headers={**KNOWN, "Content-Type": kind}) as answer:
        assert answer.status == 415
        assert "application/json" in (await answer.json())["error"]["message"]
    json_with_more = {**KNOWN, "Content-Type": "Application/JSON; charset=utf-8"}
    async with client.post("/publish", data=body, headers=json_with_more) as answer:
        assert answer.status == 200


# Who may


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer x{TOKEN}",
        "Bearer ütf",
    ],
)
async def test_without_the_token_nobody_may(
    client: Client, publisher: FakePublisher, given: str | None
) -> None:
    headers = {} if given is None else {"Authorization": given}
    async with client.post("/publish", json=result(), headers=headers) as answer:
        assert answer.status == 401
        challenge = answer.headers["WWW-Authenticate"]
        assert challenge.startswith('Bearer realm="webflow-gateway"')
        assert ("invalid_token" in challenge) == bool(given)
        assert TOKEN not in await answer.text()
    assert publisher.batches == []


async def test_the_schemes_case_does_not_matter(client: Client) -> None:
    async with client.post(
        "/publish", json=result(), headers={"Authorization": f"bearer  {TOKEN}"}
    ) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("headers", [{}, KNOWN, {"Authorization": "Bearer "}])
async def test_without_a_token_of_the_node_it_is_off(
    publisher: FakePublisher, headers: dict[str, str]
) -> None:
    client = await client_of(PublishEndpoint(publisher, "", "ws:", 1024, Counter()))
    async with client.post("/publish", json=result(), headers=headers) as answer:
        assert answer.status == 403
        assert "--publish-token-file" in (await answer.json())["error"]["message"]
    await client.close()
    assert publisher.batches == []


async def test_only_post(client: Client) -> None:
    async with client.get("/publish", headers=KNOWN) as answer:
        assert answer.status == 405


# What auditors read


async def audited(client: Client, body: object, **headers: str) -> list[dict[str, Any]]:
    """What is logged of a request with the token, whose result is `body`."""
    with capture_logs() as logged:
        content = {"Content-Type": "application/json", **KNOWN, **headers}
        async with client.post("/publish", data=orjson.dumps(body), headers=content):
            pass
    return [dict(line) for line in logged]


async def test_who_published_what_and_what_became_of_it(client: Client) -> None:
    (line,) = await audited(client, result(data={"account": "secret"}))
    assert line == {
        "event": "result posted",
        "log_level": "info",
        "audit": True,
        "outcome": "received",
        "id": "1234…",
        "result": "CONFIRMED",
        "message_id": "m",
        "receivers": 1,
        "retained": True,
        "peer": "127.0.0.1",
        "token": "9f9f5111",
    }


async def test_a_proxy_says_for_whom(client: Client) -> None:
    (line,) = await audited(client, result(), **{"X-Forwarded-For": "192.0.2.1, 10.0.0.1"})
    assert (line["peer"], line["forwarded_for"]) == ("127.0.0.1", "192.0.2.1, 10.0.0.1")


async def test_each_result_of_a_batch_has_a_line(client: Client) -> None:
    batch = [result(str(number)) for number in range(250)]
    mix = [result("lost"), result(authResult="done"), {"webSocketId": ["a"], "messageId": 7}, 17]
    *lines, _unconfirmed = await audited(client, {"results": [*batch, *mix]})
    assert [line["message_id"] for line in lines[:251]] == [*map(str, range(250)), "lost"]
    assert [line["outcome"] for line in lines[249:]] == ["received", "unconfirmed", *["invalid"] * 3]
    assert lines[250]["reason"] == "Redis is away"
    assert "receivers" not in lines[250]
    assert (lines[251]["id"], lines[251]["result"]) == ("1234…", "done")
    assert "id" not in lines[252]
    assert all(line["audit"] is True for line in lines)


async def test_what_is_posted_while_the_node_stops_has_its_lines(publisher: FakePublisher) -> None:
    outcomes: Counter[str] = Counter()
    endpoint = PublishEndpoint(publisher, TOKEN, "ws:", 1024, outcomes)
    publisher.answers.clear()
    with capture_logs() as logged:
        sending = asyncio.create_task(endpoint._send([result(), result()], {"peer": "a"}))
        for _ in range(3):
            await asyncio.sleep(0)
        assert publisher.batches
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
    assert [(line["outcome"], line["reason"]) for line in logged] == [("unconfirmed", "the node stopped")] * 2
    assert outcomes == {"unconfirmed": 2}


async def test_an_audit_is_complete_when_it_is_interrupted() -> None:
    posted = [(result(str(number)), Published(1, True, str(number))) for number in range(250)]
    with capture_logs() as logged:
        auditing = asyncio.create_task(_audit(posted, {}))
        await asyncio.sleep(0)
        assert 0 < len(logged) < 250, "others get the loop in between"
        auditing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await auditing
    assert [line["message_id"] for line in logged] == [*map(str, range(250))]


@pytest.mark.parametrize(
    ("headers", "kind", "status"),
    [
        ({"Authorization": ""}, "unauthorized", 401),
        ({"Authorization": f"Bearer {TOKEN}x"}, "unauthorized", 401),
        ({"Content-Type": "text/plain"}, "not_json", 415),
    ],
)
async def test_who_was_denied(client: Client, headers: dict[str, str], kind: str, status: int) -> None:
    (line,) = await audited(client, result(), **headers)
    assert line == {
        "event": "publish denied",
        "log_level": "warning",
        "kind": kind,
        "status": status,
        "peer": "127.0.0.1",
    }


async def test_denials_do_not_flood_the_log_and_audit_lines_are_all_there(client: Client) -> None:
    folding = logs.Folding(lambda: 0.0)
    with capture_logs(processors=[folding]) as lines:
        for _ in range(30):
            await post(client, result())
            async with client.post("/publish", json=result()) as answer:
                assert answer.status == 401
    assert [line["event"] for line in lines].count("result posted") == 30
    (denied,) = [line for line in lines if line["event"] == "publish denied"]
    ((_level, left_out),) = folding.due(at_once=True)
    assert (denied["kind"], left_out["kind"], left_out["folded"]) == ("unauthorized", "unauthorized", 28)
    assert TOKEN not in str(lines)
    assert "12345678" not in str(lines)
