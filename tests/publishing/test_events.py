"""Reading events as members of a group, sync and async, on every topology."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis
import redis.asyncio

import gateway
from gateway.drill.fleet import ValkeyCluster, ValkeyProcess
from gateway.publishing import events as reading
from gateway.publishing.events import Event, events

STREAM = "websocket::events"

Client = redis.Redis | redis.RedisCluster


@pytest.fixture
def client(valkey: ValkeyProcess) -> Iterator[redis.Redis]:
    with valkey.client() as client:
        client.delete(STREAM)
        yield client
        client.delete(STREAM)


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis answers soon that there is nothing."""
    monkeypatch.setattr(reading, "BLOCK", 0.01)


def add(client: Client, *numbers: int, stream: str = STREAM) -> None:
    for number in numbers:
        client.xadd(
            stream, {"event": "closed", "webSocketId": f"id-{number}", "session": "s-1", "code": "1000"}
        )


def names(found: Iterator[Event], count: int) -> list[str]:
    """Take so many events, and go on to the next one, as a loop does that is left there."""
    taken = [event.web_socket_id for event in itertools.islice(found, count)]
    found.close()  # type: ignore[attr-defined]
    return taken


def ids(*numbers: int) -> list[str]:
    return [f"id-{number}" for number in numbers]


def pending(client: redis.Redis) -> int:
    return int(client.xpending(STREAM, "group")["pending"])


def test_a_new_group_begins_with_what_is_kept(client: redis.Redis) -> None:
    add(client, 1, 2)
    found = gateway.events(client, "group", "one")
    first = next(found)
    assert isinstance(first, gateway.Event)
    assert (first.kind, first.web_socket_id, first.session, first.stream) == (
        "closed",
        "id-1",
        "s-1",
        STREAM,
    )
    assert first.fields["code"] == "1000"
    assert first.id.endswith("-0")
    assert pending(client) == 2, "the loop has not gone on"
    assert next(found).web_socket_id == "id-2"
    assert pending(client) == 1
    add(client, 3)
    assert next(found).web_socket_id == "id-3"


def test_a_new_group_may_begin_with_what_comes(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    execute: Callable[..., Any] = client.execute_command

    def comes_after_the_group(*command: Any, **options: Any) -> Any:
        reply = execute(*command, **options)
        if command[0] == "XGROUP":
            add(client, 2)
        return reply

    add(client, 1)
    monkeypatch.setattr(client, "execute_command", comes_after_the_group)
    assert next(events(client, "group", "one", start="$")).web_socket_id == "id-2"


def test_a_new_group_is_made_where_it_is_to_begin() -> None:
    reader = reading._Reader("group", "one", [STREAM], "$", 60, apart=False, clock=lambda: 0.0)
    first = next(reader.steps())
    assert first == (STREAM, ("XGROUP", "CREATE", STREAM, "group", "$", "MKSTREAM"))


def test_a_loop_that_was_left_goes_on_with_the_same_event(client: redis.Redis) -> None:
    add(client, 1, 2, 3)
    assert names(events(client, "group", "one"), 2) == ids(1, 2)
    add(client, 4)
    assert names(events(client, "group", "one"), 3) == ids(2, 3, 4)


def test_consumers_share_the_events(client: redis.Redis) -> None:
    one, two = events(client, "group", "one"), events(client, "group", "two")
    add(client, *range(reading.BATCH + 2))
    assert next(one).web_socket_id == "id-0"
    assert [next(two).web_socket_id for _ in range(2)] == ids(reading.BATCH, reading.BATCH + 1)


def test_what_a_dead_consumer_has_left_is_claimed(client: redis.Redis) -> None:
    add(client, *range(50))
    assert names(events(client, "group", "dead"), 1) == ids(0)
    add(client, 50)
    found = events(client, "group", "alive", claim_after=0)
    claimed = [next(found).web_socket_id for _ in range(51)]
    assert sorted(claimed) == sorted(ids(*range(51)))


def test_what_others_are_working_on_is_not_claimed(client: redis.Redis) -> None:
    add(client, 1)
    assert names(events(client, "group", "busy"), 1) == ids(1)
    found = events(client, "group", "other")
    add(client, 2)
    assert next(found).web_socket_id == "id-2"


def test_an_event_whose_reply_was_lost_comes_at_the_next_turn(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """redis-py asks again, and is given the next events: those before are this consumer's, and nobody
    else's."""
    now = [0.0]
    monkeypatch.setattr(reading, "time", SimpleNamespace(monotonic=lambda: now[0]))
    found = events(client, "group", "one")
    add(client, 1)
    assert next(found).web_socket_id == "id-1"
    add(client, 2)
    client.xreadgroup("group", "one", {STREAM: ">"})
    add(client, 3)
    assert next(found).web_socket_id == "id-3"
    add(client, 4)
    now[0] += reading.CLAIM_AFTER / 2
    assert [next(found).web_socket_id for _ in range(2)] == ids(2, 4)


def test_an_event_that_was_trimmed_before_it_was_handled_is_passed_over(
    client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    add(client, 1, 2, 3)
    assert names(events(client, "group", "one"), 1) == ids(1)
    assert caplog.messages == []
    client.xtrim(STREAM, maxlen=1, approximate=False)
    assert names(events(client, "group", "one"), 1) == ids(3)
    assert caplog.messages == [f"events of {STREAM} were trimmed before group group handled them"]
    assert caplog.records[0].levelno == logging.WARNING


def test_what_was_trimmed_is_claimed_from_nobody(
    client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    add(client, 1, 2, 3)
    assert names(events(client, "group", "dead"), 1) == ids(1)
    client.xtrim(STREAM, maxlen=1, approximate=False)
    assert names(events(client, "group", "alive", claim_after=0), 1) == ids(3)
    assert len(caplog.messages) == 1


def test_what_redis_6_2_claims_without_an_id_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    """redis-py has (None, None) for an entry that is gone, which is pending for this consumer then."""
    reader = reading._Reader("group", "one", [STREAM], "0", 60, apart=False, clock=lambda: 0.0)
    steps = reader._claim(STREAM)
    assert isinstance(next(steps), reading._Ask)
    event = steps.send([b"0-0", [(None, None), (b"2-0", {b"event": b"closed"})]])
    assert isinstance(event, Event)
    assert event.id == "2-0"
    assert next(steps) == (STREAM, ("XACK", STREAM, "group", "2-0"))
    with pytest.raises(StopIteration):
        steps.send(1)
    assert len(caplog.messages) == 1


def test_streams_that_were_deleted_are_new(client: redis.Redis) -> None:
    found = events(client, "group", "one", start="$")
    client.xgroup_create(STREAM, "group", "$", mkstream=True)
    add(client, 1)
    assert next(found).web_socket_id == "id-1"
    client.delete(STREAM)
    add(client, 2)
    assert next(found).web_socket_id == "id-2"


def test_several_streams_and_another_prefix(client: redis.Redis) -> None:
    streams = ("x::events:0", "x::events:1")
    try:
        found = events(client, "group", "one", channel_prefix="x:", streams=2)
        add(client, 1, stream=streams[0])
        add(client, 2, stream=streams[1])
        assert {next(found).web_socket_id for _ in range(2)} == set(ids(1, 2))
        add(client, 3, stream=streams[1])
        assert next(found).stream == streams[1]
    finally:
        client.delete(*streams)


def test_the_errors_of_redis_reach_the_loop(client: redis.Redis) -> None:
    client.set(STREAM, "no stream")
    with pytest.raises(redis.ResponseError, match=r"WRONGTYPE|wrong kind"):
        next(events(client, "group", "one"))
    client.delete(STREAM)
    found = events(client, "group", "one")
    add(client, 1)
    next(found)
    client.delete(STREAM)
    client.set(STREAM, "no stream")
    with pytest.raises(redis.ResponseError, match=r"WRONGTYPE|wrong kind"):
        next(found)


@pytest.mark.parametrize(("group", "consumer"), [("", "one"), ("group", "")])
def test_names_are_needed(group: str, consumer: str) -> None:
    with pytest.raises(ValueError, match="need names"):
        events(redis.Redis(), group, consumer)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("decode", [False, True])
def test_whatever_the_client_makes_of_replies(client: redis.Redis, protocol: int, decode: bool) -> None:
    port = client.get_connection_kwargs()["port"]
    with redis.Redis(port=port, protocol=protocol, decode_responses=decode) as other:
        add(client, 1, 2)
        assert names(events(other, "group", "dead"), 1) == ids(1)
        found = events(other, "group", "one", claim_after=0)
        assert [next(found).web_socket_id for _ in range(2)] == ids(1, 2)


@pytest.mark.parametrize("protocol", [2, 3])
async def test_async_clients(client: redis.Redis, protocol: int) -> None:
    port = client.get_connection_kwargs()["port"]
    add(client, 1, 2)
    async with redis.asyncio.Redis(port=port, protocol=protocol) as other:
        found = events(other, "group", "one")
        assert [(await anext(found)).web_socket_id for _ in range(2)] == ids(1, 2)
        assert pending(client) == 1
        await found.aclose()  # type: ignore[attr-defined]
        add(client, 3)
        again = events(other, "group", "one")
        assert [(await anext(again)).web_socket_id for _ in range(2)] == ids(2, 3)
        client.delete(STREAM)
        add(client, 4)
        assert (await anext(again)).web_socket_id == "id-4"


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with ValkeyCluster(replicas=0) as running:
        yield running


def test_a_cluster(cluster: ValkeyCluster) -> None:
    streams = [f"sync::events:{number}" for number in range(3)]
    with cluster.client() as client:
        for number, stream in enumerate(streams):
            add(client, number, stream=stream)
        found = events(client, "group", "one", channel_prefix="sync:", streams=3)
        assert {next(found).stream for _ in range(3)} == set(streams)
        add(client, 7, stream=streams[2])
        assert next(found).web_socket_id == "id-7"


async def test_a_cluster_async(cluster: ValkeyCluster) -> None:
    streams = [f"async::events:{number}" for number in range(3)]
    with cluster.client() as client:
        for number, stream in enumerate(streams):
            add(client, number, stream=stream)
    async with redis.asyncio.RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port) as other:
        found = events(other, "group", "one", channel_prefix="async:", streams=3)
        assert {(await anext(found)).stream for _ in range(3)} == set(streams)


def test_the_rights_of_a_reader_are_enough(client: redis.Redis, valkey: ValkeyProcess) -> None:
    from ..paths import DOCS

    text = (DOCS / "redis-access.md").read_text()
    (line,) = [line for line in text.splitlines() if "SETUSER reader" in line]
    rights = line.partition(">… ")[2].split()
    add(client, 1, 2)
    needed = [right for right in rights if right.startswith(("+", "~"))]
    for left_out in (None, *needed):
        client.execute_command("ACL", "DELUSER", "reader")  # type: ignore[no-untyped-call]
        given = [right for right in rights if right != left_out]
        client.execute_command("ACL", "SETUSER", "reader", "on", ">x", *given)  # type: ignore[no-untyped-call]
        client.delete(STREAM)
        add(client, 1, 2)
        with redis.Redis(port=valkey.port, username="reader", password="x") as reader:
            found = events(reader, "group", "one")
            if left_out is None:
                assert [next(found).web_socket_id for _ in range(2)] == ids(1, 2)
            elif left_out != "+ping":
                with pytest.raises(redis.exceptions.NoPermissionError):
                    list(itertools.islice(found, 2))
    client.execute_command("ACL", "DELUSER", "reader")  # type: ignore[no-untyped-call]
