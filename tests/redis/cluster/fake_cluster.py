"""A Redis Cluster that a test plays: nodes that need not agree, and connections on which nothing is instant.

A node does what Redis does, by what it knows at that moment: MOVED, ASK, CLUSTERDOWN, and `sunsubscribe` for
the channels of a slot that it gives away. It executes one command after the other, so that anything may
happen between any two of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from gateway.redis.cluster import slots
from gateway.redis.cluster.slots import key_slot
from gateway.redis.url import Address

from ...fakes import Transport, parse_commands, push, resp

WAY: Final = 0.001
"""Seconds that anything takes from one end of a connection to the other."""

WORK: Final = 0.0002
"""Seconds of a node's time for a command."""


class Connection:
    """A node's end of a connection: what is on its way in both directions, and what is subscribed."""

    def __init__(self, node: Node, transport: Transport) -> None:
        self.node = node
        self.transport = transport
        self.subscribed: set[bytes] = set()
        self.open = True
        self._asking = False
        self._coming: deque[bytes] = deque()
        self._inbox: deque[list[bytes]] = deque()
        self._leaving: deque[bytes] = deque()
        self._loop = asyncio.get_running_loop()
        transport.on_write = self._written

    def _written(self, data: bytes) -> None:
        self._coming.append(data)
        self._loop.call_later(WAY, self._arrived)

    def _arrived(self) -> None:
        idle = not self._inbox
        self._inbox += parse_commands(self._coming.popleft())
        if idle:
            self._loop.call_later(WORK, self.work)

    def work(self) -> None:
        """Execute one command."""
        if self.node.frozen or not self._inbox or not self.alive:
            return
        command = self._inbox.popleft()
        asking, self._asking = self._asking, command == [b"ASKING"]
        self.say(self.node.execute(self, command, asking=asking))
        if self._inbox:
            self._loop.call_later(WORK, self.work)

    @property
    def alive(self) -> bool:
        if self.transport.closing:
            self.open = False
        return self.open

    def say(self, data: bytes) -> None:
        if self.alive:
            self._leaving.append(data)
            self._loop.call_later(WAY, self._deliver)

    def _deliver(self) -> None:
        data = self._leaving.popleft()
        if not self.transport.closing and not self.transport.lost:
            self.transport.protocol.data_received(data)

    def lose(self) -> None:
        """The node is gone; what is on its way is lost."""
        self.open = False
        if not self.transport.closing:
            self.transport.lose(ConnectionResetError("reset by peer"))


class Node:
    """One node: the slots it serves are those that it believes to be its own."""

    def __init__(self, address: Address, epoch: int, owners: dict[int, Address], *, master: bool) -> None:
        self.address = address
        self.epoch = epoch
        self.owners = dict(owners)
        self.master = master
        self.alive = True
        self.frozen = False
        self.down = False  # it believes that the Cluster is
        self.migrating: dict[int, Address] = {}
        self.importing: set[int] = set()
        self.keys: dict[bytes, bytes] = {}
        self.connections: list[Connection] = []
        self.published: dict[bytes, list[bytes]] = {}  # channel: whom it has been sent to

    # What a test does to it

    def accept(self, transport: Transport) -> None:
        self.connections = [connection for connection in self.connections if connection.alive]
        self.connections.append(Connection(self, transport))
        transport.protocol.connection_made(transport)

    def learn(self, epoch: int, owners: dict[int, Address]) -> None:
        """Learn from the other nodes who serves which slots."""
        lost = [number for number, owner in self.owners.items() if owner == self.address != owners[number]]
        self.epoch, self.owners = epoch, dict(owners)
        for number in lost:
            self.migrating.pop(number, None)
            self.give_up(number)
        self.importing = {number for number in self.importing if owners[number] != self.address}

    def give_up(self, number: int) -> None:
        """The channels of a slot are taken from whoever has subscribed them, and its keys are dropped."""
        for connection in self.connections:
            for name in sorted(connection.subscribed):
                if key_slot(name) == number:
                    connection.subscribed.discard(name)
                    connection.say(push(b"sunsubscribe", name, len(connection.subscribed)))
        for key in [key for key in self.keys if key_slot(key) == number]:
            del self.keys[key]

    def die(self) -> None:
        self.alive = False
        for connection in self.connections:
            connection.lose()
        self.connections = []

    def go_down(self) -> None:
        self.down = True

    def come_up(self) -> None:
        self.down = False

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False
        for connection in self.connections:
            connection.work()

    def serves(self, number: int) -> bool:
        return self.master and self.owners[number] == self.address

    def publish(self, name: bytes, payload: bytes) -> int:
        """Send it to all subscribers of this node; returns their number."""
        heard = [connection for connection in self.connections if name in connection.subscribed]
        for connection in heard:
            connection.say(push(b"smessage", name, payload))
        return len(heard)

    @property
    def subscribed(self) -> list[bytes]:
        """The channels of all connections, but those of probes."""
        return [name for name in self._channels() if b":probe:" not in name]

    def _channels(self) -> list[bytes]:
        return sorted(
            name for connection in self.connections if connection.alive for name in connection.subscribed
        )

    # What it answers

    def execute(self, connection: Connection, command: list[bytes], *, asking: bool) -> bytes:
        name, arguments = command[0].decode(), command[1:]
        answers: dict[str, Callable[..., bytes]] = {
            "HELLO": self._hello,
            "PING": lambda *_: resp("PONG"),
            "ASKING": lambda *_: resp("OK"),
            "CLIENT": lambda *_: resp(b"id=3 sub=0 psub=0 ssub=%d multi=-1" % len(connection.subscribed)),
            "CLUSTER": self._cluster,
            "PUBSUB": lambda _word, *names: resp(self._numbers(names)),
        }
        if name in answers:
            return answers[name](*arguments)
        return self._keyed(connection, name, arguments, asking=asking)

    def _hello(self, *_arguments: bytes) -> bytes:
        role = b"master" if self.master else b"replica"
        return b"%2\r\n" + b"".join(map(resp, [b"version", b"7.2.0", b"role", role]))

    def _cluster(self, word: bytes) -> bytes:
        if word == b"INFO":
            return resp(b"cluster_state:ok\r\ncluster_current_epoch:%d\r\n" % self.epoch)
        return resp(
            [
                [number, number, [owner.host.encode(), owner.port, b"%040d" % owner.port, []]]
                for number, owner in sorted(self.owners.items())
            ]
        )

    def _numbers(self, names: Iterable[bytes]) -> list[Any]:
        everything = self._channels()
        return [part for name in names for part in (name, everything.count(name))]

    def _keyed(self, connection: Connection, name: str, arguments: list[bytes], *, asking: bool) -> bytes:
        channel = arguments[0]
        number = key_slot(channel)
        if (error := self._redirection(name, channel, number, asking=asking)) is not None:
            return resp(Exception(error))
        if name == "SSUBSCRIBE":
            connection.subscribed.add(channel)
            return push(b"ssubscribe", channel, len(connection.subscribed))
        if name == "SUNSUBSCRIBE":
            connection.subscribed.discard(channel)
            return push(b"sunsubscribe", channel, len(connection.subscribed))
        if name == "SPUBLISH":
            return resp(self.publish(channel, arguments[1]))
        if name == "EXISTS":
            return resp(int(channel in self.keys))
        assert name == "GETRANGE"
        return resp(self.keys.get(channel, b"")[: int(arguments[2]) + 1])

    def _redirection(self, name: str, channel: bytes, number: int, *, asking: bool) -> str | None:
        """As getNodeByQuery in Redis's cluster.c: no ASK for pub/sub, which is served while nobody moves."""
        keyed = name in ("EXISTS", "GETRANGE")
        if self.down and keyed:
            return "CLUSTERDOWN The cluster is down"
        if asking and number in self.importing:
            return None
        if not self.serves(number):
            owner = self.owners[number]
            return f"MOVED {number} {owner.host}:{owner.port}"
        if keyed and number in self.migrating and channel not in self.keys:
            target = self.migrating[number]
            return f"ASK {number} {target.host}:{target.port}"
        return None


class FakeCluster:
    """Its nodes, and what is true of its slots, whoever knows it."""

    def __init__(self, masters: int, others: int = 0, *, count: int = slots.SLOT_COUNT) -> None:
        """`masters` have all the slots in turn; the `others` have none: one empty master, then replicas."""
        addresses = [Address(f"n{number}", 7_000 + number) for number in range(masters + others)]
        self.count = count
        self.epoch = 1
        self.owners = {number: addresses[number % masters] for number in range(count)}
        self.nodes = {
            address: Node(address, self.epoch, self.owners, master=number <= masters)
            for number, address in enumerate(addresses)
        }
        self.transports: list[Transport] = []

    def node(self, number: int) -> Node:
        return list(self.nodes.values())[number % len(self.nodes)]

    def owner(self, number: int) -> Node:
        return self.nodes[self.owners[number]]

    async def open(self, host: str, port: int, protocol: asyncio.Protocol) -> None:
        """As `Server.open`."""
        await asyncio.sleep(WAY)
        node = self.nodes.get(Address(host, port))
        if node is None or not node.alive:
            raise ConnectionRefusedError(f"Connect call failed {host}:{port}")
        transport = Transport(prompt=True)
        transport.protocol = protocol
        self.transports.append(transport)
        node.accept(transport)

    def move(self, number: int, target: Node) -> None:
        """The slot is `target`'s from now on; nobody has heard of it yet."""
        self.epoch += 1
        self.owners[number] = target.address
        target.migrating.pop(number, None)

    def migrate_key(self, key: bytes, source: Node, target: Node) -> None:
        if key in source.keys:
            target.keys[key] = source.keys.pop(key)

    def gossip(self, node: Node) -> None:
        """`node` learns the truth."""
        if node.alive:
            node.learn(self.epoch, self.owners)
