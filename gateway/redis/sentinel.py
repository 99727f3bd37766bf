"""Which server is the master: what the Sentinels say, in bounded time.

All Sentinels are asked at once, and the answer with the highest configuration epoch counts. So neither a dead
Sentinel nor one that missed a failover decides anything. redis-py's own Sentinel class asks one after
the other and waits 58 s for a first one that is dead.

The answer is what Sentinels believe. A deposed master may not know yet that it is deposed, so a broker also
reads the role in the reply to HELLO.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, NamedTuple

from ..errors import NoMaster
from .connection import Command, Connection, ConnectionLost, ReplyError
from .majority import Patience, gather_majority
from .server import Server
from .url import Address, RedisURL, told_address

SENTINEL_PATIENCE: Final = Patience(first=5.0, others=0.5, rest=0.1)
"""A Sentinel does nothing but answer such questions, in a millisecond; the rest is the network's.

A majority alone is not enough: right after a failover only the Sentinel that led it knows the new master,
until its next hello to the others, up to 2 s later."""


class SentinelView(NamedTuple):
    """What one Sentinel believes. The higher the epoch, the later the failover that it knows of."""

    epoch: int
    master: Address


class Sentinels:
    """The Sentinels of a redis+sentinel:// URL. Their connections are kept: a node asks once a second."""

    def __init__(self, url: RedisURL) -> None:
        self._service = url.service
        self._sentinels = [_SentinelClient(url.sentinel(address), address) for address in url.addresses]
        self._lock = asyncio.Lock()

    def use(self, url: RedisURL) -> None:
        """Connect to the same Sentinels with the credentials and the TLS of `url`."""
        for sentinel in self._sentinels:
            sentinel.use(url.sentinel(sentinel.address))

    async def master(self) -> Address:
        """The master's address, as soon as SENTINEL_PATIENCE allows. One caller at a time.

        Raises NoMaster, an OSError, with what each Sentinel said.
        """
        async with self._lock:
            answers = await gather_majority(
                [sentinel.view(self._service) for sentinel in self._sentinels], SENTINEL_PATIENCE
            )
        views = [answer for answer in answers if isinstance(answer, SentinelView)]
        if views:
            return max(views, key=lambda view: view.epoch).master
        failures = "; ".join(map(_failure, self._sentinels, answers))
        raise NoMaster(f"no Sentinel names the master of {self._service}: {failures}")

    async def close(self) -> None:
        """Close the connections."""
        for sentinel in self._sentinels:
            sentinel.close()


class SentinelConnection(Connection):
    """A connection to a Sentinel: RESP2 and no name, so that its user needs no right but to SENTINEL."""

    async def log_in(self, username: str, password: str | None, database: int, name: str) -> None:
        if username != "default":
            await self.execute("AUTH", username, password or "")
        elif password is not None:
            await self.execute("AUTH", password)


class _SentinelClient:
    """One Sentinel, and the connection to it that is kept."""

    def __init__(self, url: str, address: Address) -> None:
        self.address = address
        self._server = Server(url)
        self._connection: SentinelConnection | None = None

    def use(self, url: str) -> None:
        """Connect as `url` says from the next connection on."""
        self._server.use(url)

    async def view(self, service: str) -> SentinelView:
        """What the Sentinel believes. Raises OSError, and NoMaster if it does not know the service."""
        if self._connection is not None:
            try:
                return await self._query(self._connection, service)
            except ReplyError:
                raise
            except ConnectionLost:  # the Sentinel has restarted, or the network cuts idle connections
                pass
        self._connection = await self._server.connect(SentinelConnection, "")
        return await self._query(self._connection, service)

    async def _query(self, connection: SentinelConnection, service: str) -> SentinelView:
        """Send two questions in one write. SENTINEL MASTER has the epoch, but not always the right address.

        While the Sentinel that leads a failover reconfigures the other replicas, it shows the new epoch
        beside the old master's address there.
        """
        questions: list[Command] = [
            ("SENTINEL", "MASTER", service),
            ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service),
        ]
        try:
            fields, address = await connection.execute_all(questions)
            return _read_view(fields, address)
        except BaseException as error:  # one that hangs may be unreachable: the next lookup connects again
            self.close()
            if isinstance(error, ReplyError) and error.reply.startswith("ERR unknown command"):
                url = f"{self._server.scheme}://{self.address}"
                raise NoMaster(f"this is no Sentinel: write {url} for a single server") from None
            raise

    def close(self) -> None:
        if self._connection is not None:
            self._connection.abort("no longer needed")
            self._connection = None


def _read_view(fields: Any, address: Any) -> SentinelView:
    """What the two replies mean. Raises NoMaster, and ConnectionLost for replies that no Sentinel gives."""
    if address is None:
        raise NoMaster("it knows no such master")
    try:
        found = dict(zip(fields[::2], fields[1::2], strict=False))
        host, port = address
        return SentinelView(int(found[b"config-epoch"]), told_address(host, int(port)))
    except (TypeError, ValueError, KeyError) as error:
        raise ConnectionLost(f"its reply has an unexpected form: {type(error).__name__}") from None


def _failure(sentinel: _SentinelClient, answer: object) -> str:
    return f"{sentinel.address}: {str(answer).rstrip('.') or type(answer).__name__}"
