"""nginx with the shipped configuration in front of real nodes, asked for what HAProxy is asked for, and more:
what it cannot do is tested too, so that docs/proxies.md stays true.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import NamedTuple

import aiohttp
import pytest

from gateway.drill.fleet import NginxProcess, wait_until
from gateway.drill.fleet.nginx import replaced

from .. import running_nodes as behind
from ..clients import SECONDS, Clients, clients_at
from ..paths import DEPLOY
from ..running_nodes import BalancedNodes
from ..sockjs_pages import pages, publish, register, result
from . import balanced

pytestmark = [
    pytest.mark.needs("nginx"),
    pytest.mark.adds_to("shared"),  # the fixture `nodes` starts nodes again that the test before has killed
]

CONFIGURATION = (DEPLOY / "nginx.conf").read_text()
NODES = (DEPLOY / "nginx-nodes.conf").read_text()

INFO = b"GET /websocket/info HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"


def in_front_of(nodes: BalancedNodes, configuration: str = CONFIGURATION) -> NginxProcess:
    """nginx in front of these nodes, as shipped or with another configuration."""
    return NginxProcess(configuration, NODES, nodes.addresses, nodes.port)


@contextlib.contextmanager
def started(*options_by_node: Sequence[str]) -> Iterator[tuple[BalancedNodes, NginxProcess]]:
    """A node for each of the lists of options, behind nginx."""
    with behind.started(*options_by_node) as nodes, in_front_of(nodes) as nginx:
        yield nodes, nginx


class Stack(NamedTuple):
    nodes: BalancedNodes
    nginx: NginxProcess


@pytest.fixture(scope="module")
def shared() -> Iterator[BalancedNodes]:
    with behind.started([], [], []) as nodes:
        yield nodes


@pytest.fixture
async def nodes(shared: BalancedNodes) -> BalancedNodes:
    """Three running nodes without sessions, whatever the test before did to them."""
    shared.restart_ended()
    shared.await_idle()
    return shared


@pytest.fixture
async def stack(nodes: BalancedNodes) -> AsyncIterator[Stack]:
    """They are behind an nginx that has not seen any fail."""
    with in_front_of(nodes) as nginx:
        yield Stack(nodes, nginx)


@pytest.fixture
async def clients() -> AsyncIterator[Clients]:
    async with clients_at("127.0.0.1") as opened:
        yield opened


def test_nginx_finds_nothing_wrong_with_it() -> None:
    with NginxProcess(CONFIGURATION, NODES, ["127.0.0.1"], 1) as nginx:
        (nginx.folder / "nginx-nodes.conf").write_text(NODES)
        check = subprocess.run(nginx.command("-t"), capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stderr
    assert "[warn]" not in check.stderr


# What HAProxy is asked for as well


async def test_the_clients_of_a_killed_node_still_get_their_results(stack: Stack, clients: Clients) -> None:
    await balanced.clients_of_a_killed_node_get_their_results(*stack, clients)


async def test_a_client_that_a_full_node_refuses_is_taken_to_another(clients: Clients) -> None:
    with started(["--max-sessions", "1"], []) as (nodes, nginx):
        await balanced.a_client_refused_by_a_full_node_is_taken_to_another(nodes, nginx, clients)


async def test_a_client_cannot_say_where_it_comes_from(clients: Clients) -> None:
    with started(["--max-sessions-per-ip", "2"]) as (_, nginx):
        await balanced.a_client_cannot_say_where_it_comes_from(nginx, clients)


async def test_every_sockjs_transport_survives_a_killed_node(stack: Stack) -> None:
    await balanced.every_sockjs_transport_survives_a_killed_node(*stack)


async def test_the_node_hears_of_clients_that_leave_while_they_listen(stack: Stack) -> None:
    await balanced.the_node_hears_of_pages_that_leave_while_they_listen(*stack)


async def test_sessions_with_a_websocket_go_to_the_node_with_the_fewest(stack: Stack) -> None:
    await balanced.sockjs_websockets_go_to_the_node_with_the_fewest(*stack)


async def test_without_the_hash_sessions_are_lost_at_once(nodes: BalancedNodes) -> None:
    """The control: each request goes to the node that is next."""
    configuration = replaced(CONFIGURATION, "hash $sockjs_session consistent;", "")
    with in_front_of(nodes, configuration) as control:
        await balanced.most_sockjs_sessions_are_lost_at_once(control)


# A node that is cut off from Redis


async def until_strictly_ready(nodes: BalancedNodes, expected: list[bool]) -> None:
    def found() -> bool:
        states = [node.readyz() for node in nodes.nodes]
        return [state is not None and state["strict"]["ready"] for state in states] == expected

    await asyncio.to_thread(wait_until, found, f"strictly ready: {expected}")


async def test_new_clients_go_to_nodes_that_receive_results_and_wait_anywhere_if_none_does(
    clients: Clients,
) -> None:
    async with balanced.nodes_that_can_be_cut_off() as (nodes, proxies):
        with in_front_of(nodes) as nginx:
            with proxies[0].paused():
                await until_strictly_ready(nodes, [False, True, True])
                for number in range(6):
                    await clients.register(nginx.ws_url, f"first-{number}")
                assert await asyncio.to_thread(nodes.sessions) == [0, 3, 3]
                with proxies[1].paused(), proxies[2].paused():
                    await until_strictly_ready(nodes, [False] * 3)
                    waiting = [await clients.connect(nginx.ws_url) for _ in range(3)]
                    for number, websocket in enumerate(waiting):
                        await websocket.send_json({"webSocketId": f"waits-{number}"})
            for websocket in waiting:
                assert (await websocket.receive_json(timeout=SECONDS))["registrationSucceeded"] is True


# What is nginx's own


async def test_a_node_that_stops_gets_new_clients_until_it_no_longer_listens_and_none_is_refused(
    clients: Clients,
) -> None:
    drain = ["--drain-delay", "3", "--drain-seconds", "4"]
    with started(drain, drain) as (nodes, nginx):
        stopping = nodes.nodes[0]
        first = [await clients.register(nginx.ws_url, f"first-{number}") for number in range(8)]
        stopping.signal(signal.SIGTERM)
        await asyncio.to_thread(wait_until, lambda: stopping.logged("draining"), "it drains")
        second = [await clients.register(nginx.ws_url, f"second-{number}") for number in range(8)]
        closes = [asyncio.create_task(websocket.receive(SECONDS)) for websocket in [*first, *second]]
        assert nodes.nodes[1].sessions() == 8, "half of the new ones went to the node that stops"

        await asyncio.to_thread(wait_until, lambda: refuses(nodes), "it no longer listens")
        assert stopping.process.poll() is None, "and closes its clients evenly meanwhile"
        for number in range(12):  # of which nginx tries some on it
            await clients.register(nginx.ws_url, f"third-{number}")
        assert nodes.nodes[1].sessions() == 20

        await asyncio.to_thread(stopping.process.wait, SECONDS)
        await asyncio.to_thread(
            wait_until, lambda: sum(map(asyncio.Task.done, closes)) == 8, "all are closed"
        )
        codes = [closed.result().data for closed in closes if closed.done()]
        for closed in closes:
            closed.cancel()
        nodes.nodes[1].kill()  # or it would take its time to stop, too
    assert codes == [aiohttp.WSCloseCode.SERVICE_RESTART] * 8


def refuses(nodes: BalancedNodes) -> bool:
    """Whether the first node refuses connections."""
    with socket.socket() as probe:
        return bool(probe.connect_ex((nodes.addresses[0], nodes.port)))


async def test_without_a_second_try_clients_of_a_dead_node_are_refused(
    nodes: BalancedNodes, clients: Clients
) -> None:
    """The control."""
    configuration = replaced(
        CONFIGURATION, "proxy_next_upstream error timeout http_503;", "proxy_next_upstream off;"
    )
    configuration = replaced(configuration, "error_page 502 503 504 = @any;", "")
    nodes.nodes[0].kill()
    with in_front_of(nodes, configuration) as control:
        tries = (clients.register(control.ws_url, f"client-{number}") for number in range(3))
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
        refused = [one for one in outcomes if isinstance(one, aiohttp.WSServerHandshakeError)]
        assert [one.status for one in refused] == [502]


async def test_a_node_that_comes_back_takes_its_share_of_the_sockjs_sessions(stack: Stack) -> None:
    """The hash alone decides: there is no table, as HAProxy has it, which keeps sessions where they are."""
    nodes, nginx = stack
    nodes.nodes[1].kill()
    async with pages(nginx.port, 60) as opened:
        assert await register(opened) == []
        await asyncio.to_thread(nodes.nodes[1].start)
        # Once it is no longer passed over.
        statuses = [await page.send("\n") for page in opened.values()]
        async with asyncio.timeout(SECONDS):
            while 404 not in statuses:
                statuses = [await page.send("\n") for page in opened.values()]
        lost = statuses.count(404)
        assert statuses.count(204) == 60 - lost
        assert lost < 40, "the others stay"


async def test_a_reload_takes_other_nodes_and_leaves_sockets_open(
    nodes: BalancedNodes, clients: Clients
) -> None:
    with NginxProcess(CONFIGURATION, NODES, nodes.addresses[:1], nodes.port) as nginx:
        old = await clients.register(nginx.ws_url, "old-1")
        nginx.set_nodes(nodes.addresses[1:2], nodes.port)
        await asyncio.to_thread(nginx.reload)
        new = await clients.register(nginx.ws_url, "new-2")
        assert nodes.sessions() == [1, 1, 0]
        assert publish(nodes.valkey, ["old-1", "new-2"], "RESULT") == [1, 1]
        for number, websocket in (1, old), (2, new):
            assert (await websocket.receive_json(timeout=SECONDS))["authResult"] == f"RESULT_{number}"


async def events(http: aiohttp.ClientSession, nginx: NginxProcess, name: str) -> aiohttp.ClientResponse:
    """The stream of events of `name`, up to its registration."""
    answer = await http.get(f"http://127.0.0.1:{nginx.port}/events?webSocketId={name}")
    async for line in answer.content:
        if b"registrationSucceeded" in line:
            return answer
    raise AssertionError("the stream has ended")


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(sock_read=SECONDS)) as session:
        yield session


async def test_streams_are_not_kept_back(stack: Stack, http: aiohttp.ClientSession) -> None:
    nodes, nginx = stack
    async with asyncio.timeout(balanced.AT_ONCE), pages(nginx.port, 3, "stream") as opened:
        stream = await events(http, nginx, "event-9")
        assert await register(opened) == []
        assert publish(nodes.valkey, ["event-9", *opened], "RESULT") == [1] * 4
        while b"RESULT_9" not in await stream.content.readline():
            pass
        assert await asyncio.gather(*map(result, opened.values())) == [f"RESULT_{n}" for n in range(3)]
        stream.close()


async def test_with_what_nginx_does_by_default_streams_would_be_kept_back(
    nodes: BalancedNodes, http: aiohttp.ClientSession
) -> None:
    """The control. Without chunks, that is; and the gateway's own header asks for no buffer as well."""
    default = replaced(CONFIGURATION, "proxy_buffering off;", "proxy_ignore_headers X-Accel-Buffering;")
    default = replaced(default, "proxy_http_version 1.1;", "proxy_http_version 1.0;")
    with in_front_of(nodes, default) as control, pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await events(http, control, "kept-back")


async def test_what_stands_in_front_is_believed_once_it_is_named(clients: Clients) -> None:
    named = replaced(CONFIGURATION, "#set_real_ip_from 192.0.2.0/24;", "set_real_ip_from 127.0.0.1;")
    named = replaced(replaced(named, "#real_ip_header", "real_ip_header"), "#real_ip_rec", "real_ip_rec")
    with behind.started(["--max-sessions-per-ip", "1"]) as nodes, in_front_of(nodes, named) as nginx:
        for number in range(3):  # the last hop is the one that the front has seen
            await clients.connect(nginx.ws_url, X_Forwarded_For=f"198.51.100.7, 203.0.113.{number}")
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await clients.connect(nginx.ws_url, X_Forwarded_For="198.51.100.8, 203.0.113.1")
        assert refused.value.status == 429


async def test_no_web_socket_id_and_no_session_is_logged(http: aiohttp.ClientSession) -> None:
    with behind.started([]) as nodes, in_front_of(nodes) as nginx:
        stream = await events(http, nginx, "secret-1")
        stream.close()
        session = f"http://127.0.0.1:{nginx.port}/websocket/000/secret-3"
        assert await (await http.post(f"{session}/xhr")).text() == "o\n"
        nodes.nodes[0].kill()
        answer = await http.get(f"http://127.0.0.1:{nginx.port}/events?webSocketId=secret-2&token=secret-4")
        assert answer.status == 502
        assert (await http.post(f"{session}/xhr_send")).status == 502
        url = f"http://127.0.0.1:{nginx.port}/websocket/info"
        assert (await http.get(url)).status == 502
        logs = nginx.logs()
    assert "POST /websocket/-/-/xhr HTTP/1.1" in logs
    assert "POST /websocket/-/-/xhr_send HTTP/1.1" in logs
    assert "GET /websocket/info HTTP/1.1" in logs
    assert "GET /events HTTP/1.1" in logs
    assert "Connection refused" in logs, "errors are logged"
    assert "secret" not in logs


async def test_one_address_does_not_take_all_connections(shared: BalancedNodes, clients: Clients) -> None:
    few = replaced(CONFIGURATION, "limit_conn connections 3000;", "limit_conn connections 5;")
    few = replaced(few, "rate=300r/s;", "rate=1r/s;")
    few = replaced(few, "burst=3000 nodelay;", "burst=8 nodelay;")
    request = b"GET /events?webSocketId=held HTTP/1.1\r\nHost: gw\r\n\r\n"
    with (
        in_front_of(shared, few) as nginx,
        balanced.connections_from("127.0.7.1", nginx.port, 6, request) as held,
    ):
        assert sorted(each.recv(12) for each in held) == [b"HTTP/1.1 200"] * 5 + [b"HTTP/1.1 429"]
        await clients.register(nginx.ws_url, "another-address")
        for each in held:
            each.close()
        with balanced.connections_from("127.0.7.1", nginx.port, 9, INFO) as asked:
            answers = [each.recv(12) for each in asked]
        assert b"HTTP/1.1 429" in answers, "too many requests at once"
