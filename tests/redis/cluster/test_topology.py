"""The slot map: who is asked, whose answer counts, and when. Time is virtual; the test plays the nodes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from gateway.redis.cluster import slots
from gateway.redis.cluster.slots import ClusterView, SlotMap
from gateway.redis.cluster.topology import (
    CLAIM_DELAY,
    REFRESH_INTERVAL,
    URGENT_REFRESH_INTERVAL,
    ClusterTopology,
    latest_views,
    read_view,
)
from gateway.redis.connection import ConnectionLost, ReplyError
from gateway.redis.url import Address, parse_redis_url

from ...fakes import virtual

ONE, TWO, THREE = (Address(f"n{number}", 7_000) for number in (1, 2, 3))
COUNT = 4


def view(epoch: int, *owners: Address) -> ClusterView:
    return ClusterView(epoch, tuple((slot, slot, owner) for slot, owner in enumerate(owners)))


@pytest.fixture(autouse=True)
def _small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "SLOT_COUNT", COUNT)
    monkeypatch.setattr(slots, "UNKNOWN_MAP", SlotMap((None,) * COUNT))
    structlog.reset_defaults()


class Scene:
    """A topology whose nodes answer with what `views` has; a node without a view is down."""

    def __init__(self, **views: ClusterView) -> None:
        self.views = views
        self.asked: list[Address] = []
        self.moved: list[set[int]] = []
        self.topology = ClusterTopology(
            parse_redis_url("redis+cluster://n1:7000,n2:7000"),
            "gateway-x",
            asyncio.get_running_loop().time,
            lambda _address: None,
            lambda moved: self.moved.append(set(moved)),
        )
        self.topology._view_of = self.view_of  # type: ignore[method-assign]

    async def view_of(self, address: Address) -> ClusterView:
        self.asked.append(address)
        if address.host not in self.views:
            raise ConnectionRefusedError("refused")
        return self.views[address.host]


@virtual
async def test_the_views_with_the_latest_epoch_count() -> None:
    old, new = view(1, ONE), view(2, TWO)
    scene = Scene(n1=old, n2=new, n3=new)
    assert await latest_views([ONE, TWO, THREE], scene.view_of) == [new, new]


@virtual
async def test_without_an_answer_the_error_names_each_node() -> None:
    with pytest.raises(ConnectionError, match="n1:7000: refused; n2:7000: refused"):
        await latest_views([TWO, ONE], Scene().view_of)


@virtual
async def test_the_first_refresh_asks_the_nodes_of_the_url_and_later_ones_the_masters() -> None:
    scene = Scene(n1=view(1, TWO, TWO, THREE, THREE))
    await scene.topology.refresh()
    assert scene.asked == [ONE, TWO]
    assert scene.topology.map.owners == (TWO, TWO, THREE, THREE)
    assert (scene.moved, scene.topology.slots_moved) == ([{0, 1, 2, 3}], 0), "the first map moves nothing"
    scene.asked.clear()
    scene.views = {"n3": view(2, TWO, THREE, THREE, THREE)}
    await scene.topology.refresh()
    assert sorted(scene.asked) == [TWO, THREE]
    assert (scene.moved[1:], scene.topology.slots_moved) == ([{1}], 1)


@virtual
async def test_when_no_master_answers_the_nodes_of_the_url_are_asked_too() -> None:
    scene = Scene(n1=view(1, THREE, THREE, THREE, THREE))
    await scene.topology.refresh()
    scene.views, scene.asked = {}, []
    with capture_logs() as logs:
        for _ in range(2):
            await scene.topology.refresh()
    assert scene.asked == [THREE, THREE, ONE, TWO]
    assert [line["event"] for line in logs] == ["redis cluster unreachable"], (
        "once, whichever nodes are asked"
    )
    assert scene.topology.last_error == "n1:7000: refused; n2:7000: refused; n3:7000: refused"
    assert scene.topology.map.owners == (THREE,) * COUNT, "the map stays"
    scene.views = {"n1": view(1, THREE, THREE, THREE, THREE)}
    await scene.topology.refresh()
    assert scene.topology.last_error == ""


@virtual
async def test_the_map_stays_while_one_of_the_latest_views_agrees() -> None:
    same, other = view(1, ONE, ONE, TWO, TWO), view(1, TWO, TWO, ONE, ONE)
    scene = Scene(n1=same, n2=same)
    await scene.topology.refresh()
    scene.views = {"n1": same, "n2": other}
    await scene.topology.refresh()
    assert scene.topology.map.owners == (ONE, ONE, TWO, TWO)
    scene.views = {"n1": other, "n2": other}
    await scene.topology.refresh()
    assert scene.topology.map.owners == (TWO, TWO, ONE, ONE)


@virtual
async def test_claims_change_the_map_together_and_request_a_refresh() -> None:
    scene = Scene(n1=view(1, ONE, ONE, ONE, ONE))
    await scene.topology.refresh()
    scene.topology.claim(0, TWO)
    scene.topology.claim(1, TWO)
    assert len(scene.moved) == 1
    start = asyncio.get_running_loop().time()
    await scene.topology.wait_for_refresh(urgent=False)
    assert scene.moved[1:] == [{0, 1}]
    assert asyncio.get_running_loop().time() - start == pytest.approx(URGENT_REFRESH_INTERVAL)


@virtual
async def test_a_closed_topology_applies_no_claims() -> None:
    scene = Scene()
    scene.topology.close()
    scene.topology.claim(0, TWO)
    scene.topology.close()
    await asyncio.sleep(2 * CLAIM_DELAY)
    assert scene.moved == []


@pytest.mark.parametrize(("urgent", "seconds"), [(False, REFRESH_INTERVAL), (True, URGENT_REFRESH_INTERVAL)])
def test_refreshes_come_sooner_when_they_are_urgent(urgent: bool, seconds: float) -> None:
    @virtual
    async def waited() -> None:
        scene = Scene(n1=view(1, ONE, ONE, ONE, ONE))
        await scene.topology.refresh()
        start = asyncio.get_running_loop().time()
        await scene.topology.wait_for_refresh(urgent=urgent)
        assert asyncio.get_running_loop().time() - start == pytest.approx(seconds)

    waited()


class Answering:
    """A connection that gives these replies to all commands."""

    def __init__(self, *replies: Any) -> None:
        self.replies = list(replies)
        self.aborted = ""

    async def execute_all(self, _commands: object) -> list[Any]:
        if isinstance(self.replies[0], Exception):
            raise self.replies[0]
        return self.replies

    def abort(self, reason: str) -> None:
        self.aborted = reason


INFORMATION = b"cluster_current_epoch:7\r\n"


@pytest.mark.parametrize(
    "replies",
    [
        (7, []),
        (b"", []),
        (b"cluster_current_epoch:many\r\n", []),
        (INFORMATION, 7),
        (INFORMATION, [7]),
        (INFORMATION, [[0, 5]]),
        (INFORMATION, [[0, 1 << 40, [b"n1", 7_000]]]),
        (INFORMATION, [[0, 5, [b"n1/?", 7_000]]]),
        (None, None),
    ],
    ids=str,
)
async def test_what_no_node_says_of_its_slots_ends_the_connection(replies: tuple[Any, Any]) -> None:
    connection: Any = Answering(*replies)
    with pytest.raises(ConnectionLost, match="unexpected form"):
        await read_view(connection, ONE)
    assert "about its slots" in connection.aborted


async def test_a_server_that_is_no_node_of_a_cluster() -> None:
    for error in ("ERR This instance has cluster support disabled", "ERR unknown command 'CLUSTER'"):
        connection: Any = Answering(ReplyError("CLUSTER", error))
        with pytest.raises(ConnectionLost, match="this is no node of a Cluster: write redis://n1:7000"):
            await read_view(connection, ONE)
    connection = Answering(ReplyError("CLUSTER", "NOPERM no"))
    with pytest.raises(ReplyError, match="NOPERM no"):
        await read_view(connection, ONE)
