"""Publishes what the command line and the HTTP API are given, on any kind of Redis, in bounded time.

A publication has one of two ends: Redis has confirmed it, or it is unknown whether it went out. Until the
deadline it is tried again, on another server if there is one by then. That does no harm: a node sends a
messageId once on a connection.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self, Unpack

from ..errors import PublishError, Unconfirmed
from ..redis.cluster.slots import parse_redirection
from ..redis.factory import new_router
from ..redis.pool import Command
from ..redis.topology import Server
from ..redis.url import Address, parse_redis_url
from .api import SCRIPT, Outgoing, Published, PublishOptions, from_json, outgoing

PUBLISH_TIMEOUT: Final = 3.0
"""Seconds for everything, and then it is an error."""

ATTEMPT_TIMEOUT: Final = 1.0
"""Seconds to find the server, and as many for it to answer: one that hangs leaves time for another."""

FIRST_PAUSE: Final = 0.05
LAST_PAUSE: Final = 0.8
"""Seconds between attempts, doubling."""

PUBLISH_BATCH: Final = 100
"""Results handled in one go, in 1 to 2 ms: a node that publishes has browsers to serve in between."""

LONGEST_ID: Final = 200
"""Characters; what is longer was no id and is not repeated in an answer."""

_RETRYABLE: Final = re.compile(
    # Redis 6.2 puts its own words before an error within a script.
    r"(?:^|-)(?:LOADING|READONLY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|NOREPLICAS|BUSY|MOVED|ASK)\b"
)

Outcome = Published | Unconfirmed | PublishError
"""What becomes of a result that came as JSON."""


class Publisher:
    """Publishes on the Redis of a URL, whichever kind it is; keeps its connections.

    It may be used by many tasks at once. Use it as an asynchronous context, or `close` it.
    """

    def __init__(self, url: str, *, timeout: float = PUBLISH_TIMEOUT) -> None:
        """Connects on first use. Raises ValueError if `url` is none of those in redis_url."""
        self._router = new_router(parse_redis_url(url))
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Drop the connections."""
        await self._router.close()

    async def publish(
        self, web_socket_id: str, auth_result: str, **options: Unpack[PublishOptions]
    ) -> Published:
        """Publish one result; `options` are those of `gateway.publish`.

        Raises PublishError for what no node would forward, and Unconfirmed when Redis has not confirmed it
        in time.
        """
        (end,) = await self.send([outgoing(web_socket_id, auth_result, **options)])
        if isinstance(end, Unconfirmed):
            raise end
        return end

    async def send(self, results: Sequence[Outgoing]) -> list[Published | Unconfirmed]:
        """Publish all of them, in batches to each server; what became of each, in their order.

        It takes no longer than the timeout.
        """
        if not results:
            return []
        sendings = [_Publication(result) for result in results]
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                await self._send(sendings)
        for sending in sendings:
            if sending.end is None:
                sending.give_up(sending.why or f"no answer in {self._timeout:g} s")
        return [sending.end for sending in sendings if sending.end is not None]

    async def send_json(self, items: Sequence[object], channel_prefix: str, max_size: int) -> list[Outcome]:
        """`send` what JSON objects describe, as `from_json` reads them; those that are wrong are left out."""
        read: list[Outgoing | PublishError] = []
        for start in range(0, len(items), PUBLISH_BATCH):
            read += [_read(item, channel_prefix, max_size) for item in items[start : start + PUBLISH_BATCH]]
            await asyncio.sleep(0)
        sent = iter(await self.send([one for one in read if isinstance(one, Outgoing)]))
        return [next(sent) if isinstance(one, Outgoing) else one for one in read]

    async def _send(self, sendings: list[_Publication]) -> None:
        pause = FIRST_PAUSE
        while True:
            await self._attempt([sending for sending in sendings if sending.end is None])
            if all(sending.end for sending in sendings):
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)

    async def _attempt(self, sendings: list[_Publication]) -> None:
        groups: dict[Server, list[_Publication]] = {}
        try:
            async with asyncio.timeout(ATTEMPT_TIMEOUT):
                servers = await self._router.servers([s.result.channel.encode() for s in sendings])
        except OSError as error:
            _note(sendings, error)
            return
        for sending, server in zip(sendings, servers, strict=True):
            if server is None:
                sending.why = "no node of the Cluster serves its slot"
                self._router.forget()
            else:
                groups.setdefault(server, []).append(sending)
        await asyncio.gather(*(self._attempt_at(server, group) for server, group in groups.items()))

    async def _attempt_at(self, server: Server, sendings: list[_Publication]) -> None:
        """Send them to the server that they belong on. What has no end after that is to be tried again."""
        for start in range(0, len(sendings), PUBLISH_BATCH):
            batch = sendings[start : start + PUBLISH_BATCH]
            replies = await self._ask(server, batch, [self._eval(sending) for sending in batch])
            if not replies:
                return
            for sending, reply in zip(batch, replies, strict=True):
                if isinstance(reply, int):
                    sending.end = sending.result.published(reply)
                else:
                    await self._refused(server, sending, str(reply))

    async def _ask(self, server: Server, sendings: list[_Publication], commands: list[Command]) -> list[Any]:
        """The replies to commands for the sake of `sendings`; none when the server is out of reach."""
        try:
            async with asyncio.timeout(ATTEMPT_TIMEOUT):
                line = await self._router.pool.to(server)
                return await line.ask_all(commands)
        except OSError as error:
            self._drop(server)
            _note(sendings, error, server.display_url)
            return []
        except asyncio.CancelledError:  # the deadline: this server did not keep it
            self._drop(server)
            raise

    async def _refused(self, server: Server, sending: _Publication, why: str) -> None:
        sending.why = why
        if (redirected := parse_redirection(why)) is not None:
            there = Address(redirected.host or server.host, redirected.port)
            await self._elsewhere(server, sending, redirected.kind, self._router.server_at(there))
        elif _RETRYABLE.search(why):
            self._drop(server)
        else:
            sending.give_up(why)

    async def _elsewhere(
        self, server: Server, sending: _Publication, kind: str, there: Server | None
    ) -> None:
        """Follow a Cluster's redirection.

        After ASK the slot is on its way: its keys are at the new node, or go there, and its subscribers stay
        at the old one until it has moved. So the result is retained there and published here as well.
        """
        if there is None:
            sending.give_up(f"{sending.why} (a node of a Cluster: write redis+cluster://)")
            return
        commands = [self._eval(sending)]
        if kind == "MOVED":
            self._router.forget()
        else:
            commands.insert(0, ("ASKING",))
        replies = await self._ask(there, [sending], commands)
        if kind == "ASK" and replies:
            replies += await self._ask(
                server, [sending], [("SPUBLISH", sending.result.channel, sending.result.payload)]
            )
        counts = [reply for reply in replies if isinstance(reply, int)]
        if len(counts) == (1 if kind == "MOVED" else 2):
            sending.end = sending.result.published(sum(counts))

    def _eval(self, sending: _Publication) -> Command:
        return ("EVAL", SCRIPT, 1, *sending.result.arguments(self._router.command))

    def _drop(self, server: Server) -> None:
        """Make no more of this connection, nor of what is known of who is where."""
        self._router.pool.drop(server)
        self._router.forget()


def outcome_as_json(item: object, end: Outcome) -> dict[str, object]:
    """What is told, as JSON, of what became of the result that came as `item`."""
    web_socket_id = item.get("webSocketId") if isinstance(item, dict) else None
    if not isinstance(web_socket_id, str) or len(web_socket_id) > LONGEST_ID:
        web_socket_id = None
    about: dict[str, object] = {"webSocketId": web_socket_id}
    match end:
        case Published(receivers, retained, message_id):
            return about | {"messageId": message_id, "receivers": receivers, "retained": retained}
        case Unconfirmed():
            error = {"code": "unconfirmed", "message": str(end)}
            return about | {"messageId": end.message_id, "error": error}
        case PublishError():
            return about | {"error": {"code": "invalid", "message": str(end)}}


def _read(item: object, channel_prefix: str, max_size: int) -> Outgoing | PublishError:
    try:
        return from_json(item, channel_prefix, max_size)
    except PublishError as error:
        return error


class _Publication:
    """A result on its way, its end when it has one, and what was wrong the last time."""

    __slots__ = ("end", "result", "why")

    def __init__(self, result: Outgoing) -> None:
        self.result = result
        self.end: Published | Unconfirmed | None = None
        self.why = ""

    def give_up(self, why: str) -> None:
        self.end = Unconfirmed(why, self.result.message_id)


def _note(sendings: list[_Publication], error: OSError, shown: str = "Redis") -> None:
    """Remember why they could not be sent; with a wrong password, say, to try again is of no use."""
    for sending in sendings:
        sending.why = str(error) or f"{shown} gave no answer"
        if isinstance(error, PermissionError):
            sending.give_up(sending.why)
