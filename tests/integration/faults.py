"""Faults between a node and Redis that a test can cause, and safeguards that a control can disable."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator

from gateway.core.subscriptions import Slots
from gateway.node import Node
from gateway.redis.cluster.broker import ClusterBroker
from gateway.redis.server import Server
from gateway.redis.server_broker import ServerBroker
from gateway.redis.subscriber import SubscriberConnection


class Proxy:
    """A TCP proxy in front of Redis that can reject, cut, drop, hold and delay."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.rejecting = False
        """While set, new connections are closed at once."""
        self.mute = False
        """While set, new connections stay open and pass nothing on."""
        self.delay = 0.0
        """Seconds that data is delayed, in both directions."""
        self._target = target
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._silenced: set[asyncio.StreamWriter] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def before(cls, target: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[Proxy]:
        """A proxy for the server on port `target`; with `tls` it speaks TLS to its clients."""
        proxy = cls(target)
        server = await asyncio.start_server(proxy._accept, "127.0.0.1", 0, ssl=tls)
        proxy.port = server.sockets[0].getsockname()[1]
        try:
            yield proxy
        finally:
            server.close()
            for task in proxy._tasks:
                task.cancel()
            await asyncio.gather(*proxy._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def lead_to(self, target: int) -> None:
        """New connections go to the server on this port; today's stay where they are."""
        self._target = target

    def silence(self) -> None:
        """From now on today's connections carry nothing, and stay open; new ones are not affected."""
        self._silenced |= self._writers

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing gets through, and all of it does once the block ends."""
        self._flowing.clear()
        try:
            yield
        finally:
            self._flowing.set()

    def cut(self) -> None:
        """Reset today's connections."""
        for writer in self._writers:
            writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.rejecting:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)  # from its first moment, so that none is left when the proxy ends
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        both = {writer}
        try:
            with contextlib.suppress(ConnectionError):  # the server is down
                there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
                both.add(there_writer)
                self._writers |= both
                if self.mute:
                    self._silenced |= both
                await asyncio.gather(self._pass_on(reader, there_writer), self._pass_on(there_reader, writer))
        finally:
            self._writers -= both
            self._silenced -= both
            for each in both:
                each.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if self.delay:
                    await asyncio.sleep(self.delay)
                await self._flowing.wait()
                if writer not in self._silenced:
                    writer.write(data)
        if writer not in self._silenced:
            writer.transport.abort()


# The safeguards, each disabled in one node, for the controls.


def never_resubscribe(gateway: Node) -> None:
    """The node does not subscribe again after an outage of Redis."""
    connected = gateway._hub.connected

    def forget(slots: Slots | None = None) -> list[bytes]:
        connected(slots)
        return []

    gateway._hub.connected = forget  # type: ignore[method-assign]


def never_reread(gateway: Node) -> None:
    """The node reads no retained results, neither at registration nor after an outage of Redis."""
    subscribed = gateway._hub.subscribed

    def ignore(name: bytes, retained: bytes | None) -> None:
        subscribed(name, None)

    gateway._hub.subscribed = ignore  # type: ignore[method-assign]


def never_probe(gateway: Node) -> None:
    """No probe is published, and nobody checks which server is the master."""
    assert isinstance(gateway._broker, ServerBroker)

    async def believe(connection: SubscriberConnection, server: Server) -> None:
        pass

    gateway._broker.probe._probe = believe  # type: ignore[method-assign]


async def ask_once(gateway: Node) -> None:
    """The node keeps the first master that it has found."""
    assert isinstance(gateway._broker, ServerBroker)
    topology = gateway._broker._topology
    first = await topology.find()

    async def remember() -> Server:
        return first

    topology.find = remember  # type: ignore[method-assign]


def never_move(gateway: Node) -> None:
    """The node ignores everything that tells where slots are: the map, MOVED and `sunsubscribe`."""
    assert isinstance(gateway._broker, ClusterBroker)

    def ignore(*_said: object, **_more: object) -> None:
        pass

    gateway._broker.topology._adopt = ignore  # type: ignore[method-assign]
    for broker in gateway._broker.server_brokers:
        broker._events.lost = ignore  # type: ignore[method-assign]
