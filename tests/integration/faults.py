"""What goes wrong between a gateway and Redis, at the test's will."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

from gateway.app import Gateway
from gateway.subscriptions import Slots


class Proxy:
    """Stands between gateways and Redis: can refuse, cut, and fall silent as a dead network does."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.barred = False
        """While set, new connections are closed at once."""
        self.mute = False
        """While set, new connections carry nothing, and stay open."""
        self._target = target
        self._silenced: set[asyncio.StreamWriter] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def before(cls, target: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[Proxy]:
        """A proxy for the server on port `target`; with `tls` it speaks TLS to its clients."""
        proxy = cls(target)
        server = await asyncio.start_server(proxy._serve, "127.0.0.1", 0, ssl=tls)
        proxy.port = server.sockets[0].getsockname()[1]
        try:
            yield proxy
        finally:
            server.close()
            proxy.cut()
            await asyncio.gather(*proxy._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def silence(self) -> None:
        """From now on today's connections carry nothing, and stay open; new ones are not affected."""
        self._silenced |= self._writers

    def cut(self) -> None:
        """Reset today's connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.barred:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        both = {writer, there_writer}
        self._writers |= both
        if self.mute:
            self._silenced |= both
        try:
            await asyncio.gather(self._pass_on(reader, there_writer), self._pass_on(there_reader, writer))
        finally:
            self._writers -= both
            self._silenced -= both

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if writer not in self._silenced:
                    writer.write(data)
        if writer not in self._silenced:
            writer.transport.abort()


# The cures, each taken out of one gateway, for the controls.


def never_resubscribe(gateway: Gateway) -> None:
    """After a loss of Redis nothing is subscribed again."""
    connected = gateway._hub.connected

    def forget(slots: Slots | None = None) -> list[bytes]:
        connected(slots)
        return []

    gateway._hub.connected = forget  # type: ignore[method-assign]


def never_reread(gateway: Gateway) -> None:
    """Retained results are not read, neither at registration nor after a loss of Redis."""
    subscribed = gateway._hub.subscribed

    def ignore(name: bytes, retained: bytes | None) -> None:
        subscribed(name, None)

    gateway._hub.subscribed = ignore  # type: ignore[method-assign]
