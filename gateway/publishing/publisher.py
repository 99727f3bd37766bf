"""Publishes what the command line and the HTTP API are given, on any Redis topology, in bounded time.

A publication ends in one of three ways: Redis has confirmed it; Redis has refused it or was not reached, so
nothing was published; or it is unknown, because an attempt was sent and not answered. Until the deadline it
is retried, on another server if there is one by then. A retry is harmless: a node sends a messageId once on a
connection.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self, Unpack

import hiredis

from ..backoff import Backoff
from ..errors import NotPublished, PublishError, Unconfirmed
from ..redis.cluster.slots import Redirection, parse_redirection
from ..redis.connection import Command
from ..redis.factory import new_router
from ..redis.server import Server
from ..redis.url import Address, RedisURL, parse_redis_url
from .api import Outgoing, Published, PublishOptions, from_json, outgoing
from .refusals import is_refusal

PUBLISH_TIMEOUT: Final = 3.0
"""Seconds for everything, then the publisher gives up."""

ATTEMPT_TIMEOUT: Final = 1.4
"""Seconds to find the server, and the same again for its reply: one that hangs leaves time for another. A
network that needs longer for a round trip is too slow to publish over."""

FIRST_PAUSE: Final = 0.05
LAST_PAUSE: Final = 0.8
"""Seconds between attempts, doubling."""

PUBLISH_BATCH: Final = 100
"""Results handled in one go, in 1 to 2 ms: a node that publishes has browsers to serve in between."""

LONGEST_ID: Final = 200
"""Characters. A longer webSocketId is not valid, and answers do not repeat it."""

NO_SERVER: Final = "no node of the Cluster serves the slot of this id"

_RETRYABLE: Final = re.compile(
    # Redis 6.2 puts its own words before an error within a script.
    r"(?:^|-)(?:LOADING|READONLY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|NOREPLICAS|BUSY|MOVED|ASK)\b"
)

Sent = Published | NotPublished | Unconfirmed
"""What became of a result that was sent."""

Outcome = Sent | PublishError
"""What became of a result that came as JSON."""


class Publisher:
    """Publishes on the Redis of a URL, whichever topology it has; keeps its connections.

    Many tasks may use it at once. Use it as an asynchronous context manager, or `close` it.
    """

    def __init__(self, url: str, *, timeout: float = PUBLISH_TIMEOUT) -> None:
        """Connects on first use. Raises ValueError if `url` is no Redis URL (see gateway/redis/url.py)."""
        self._router = new_router(parse_redis_url(url))
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._router.close()

    def use(self, url: RedisURL) -> None:
        """Connect as `url` says from the next connection on. It leads to the same place."""
        self._router.use(url)

    async def connect(self, channel: str) -> None:
        """Connect to the server of `channel` now, so that the first publication there need not.

        Raises OSError if that fails, or is not possible within the timeout. It may be called for a diagnosis
        alone: `publish` connects by itself.
        """
        async with asyncio.timeout(self._timeout):
            (server,) = await self._router.servers([channel.encode()])
            if server is None:
                raise OSError(NO_SERVER)
            await self._router.pool.get(server)

    async def publish(
        self, web_socket_id: str, auth_result: str, **options: Unpack[PublishOptions]
    ) -> Published:
        """Publish one result; `options` are those of `gateway.publish`.

        Raises PublishError for a result that no node would forward, NotPublished when Redis has refused it
        or was not reached in time, and Unconfirmed when it is unknown whether it was published.
        """
        (end,) = await self.send([outgoing(web_socket_id, auth_result, **options)])
        if not isinstance(end, Published):
            raise end
        return end

    async def send(self, results: Sequence[Outgoing]) -> list[Sent]:
        """Publish several results, in batches to each server. Returns what became of each, in their order.

        It takes no longer than the timeout.
        """
        publications = [self._publication(result) for result in results]
        await self._send_in_time(publications)
        return [publication.outcome() for publication in publications]

    async def send_json(self, items: Sequence[object], channel_prefix: str, max_size: int) -> list[Outcome]:
        """`send` what JSON objects describe, as `from_json` reads them; wrong ones are not sent."""
        read: list[Outgoing | PublishError] = []
        for start in range(0, len(items), PUBLISH_BATCH):
            read += [_read(item, channel_prefix, max_size) for item in items[start : start + PUBLISH_BATCH]]
            await asyncio.sleep(0)
        sent = iter(await self.send([one for one in read if isinstance(one, Outgoing)]))
        return [next(sent) if isinstance(one, Outgoing) else one for one in read]

    def _publication(self, result: Outgoing) -> _Publication:
        return _Publication(result, f"no answer in {self._timeout:g} s")

    async def _send_in_time(self, publications: list[_Publication]) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                await self._send(publications)

    async def _send(self, publications: list[_Publication]) -> None:
        backoff = Backoff(FIRST_PAUSE, LAST_PAUSE, jitter=0)
        while publications:
            await self._attempt(publications)
            publications = [publication for publication in publications if not publication.finished]
            if publications:
                await asyncio.sleep(backoff.next())

    async def _attempt(self, publications: list[_Publication]) -> None:
        groups: dict[Server, list[_Publication]] = {}
        try:
            async with asyncio.timeout(ATTEMPT_TIMEOUT):
                servers = await self._router.servers([p.result.channel.encode() for p in publications])
        except OSError as error:
            _note_failure(publications, error, sent=False)
            return
        for publication, server in zip(publications, servers, strict=True):
            if server is None:
                publication.reason = NO_SERVER
                self._router.forget()
            else:
                groups.setdefault(server, []).append(publication)
        await asyncio.gather(*(self._attempt_at(server, group) for server, group in groups.items()))

    async def _attempt_at(self, server: Server, publications: list[_Publication]) -> None:
        """Send publications to their server. Those that are not finished afterwards are retried."""
        for start in range(0, len(publications), PUBLISH_BATCH):
            batch = publications[start : start + PUBLISH_BATCH]
            replies = await self._execute(server, batch, [self._eval(publication) for publication in batch])
            if not replies:
                return
            for publication, reply in zip(batch, replies, strict=True):
                if isinstance(reply, int):
                    publication.confirmed(reply)
                else:
                    await self._error_received(server, publication, str(reply))

    async def _execute(
        self, server: Server, publications: list[_Publication], commands: list[Command]
    ) -> list[Any]:
        """The replies to the commands of `publications`; none when the server is unreachable."""
        sent = False
        try:
            async with asyncio.timeout(ATTEMPT_TIMEOUT):
                connection = await self._router.pool.get(server)
                sent = True
                return await connection.pipeline(commands)
        except OSError as error:
            self._drop(server)
            _note_failure(publications, error, server.display_url, sent=sent)
            return []
        except asyncio.CancelledError:  # the deadline has passed, and this server has not answered
            self._drop(server)
            _note_failure(publications, None, sent=sent)
            raise

    async def _error_received(self, server: Server, publication: _Publication, error: str) -> None:
        publication.refused(error)
        if (redirection := parse_redirection(error)) is not None:
            await self._follow(redirection, server, publication)
        elif _RETRYABLE.search(error):
            self._drop(server)
        else:
            publication.failed = True

    async def _follow(self, redirection: Redirection, server: Server, publication: _Publication) -> None:
        """Follow a Cluster's redirection.

        ASK means that the slot migrates: its keys are at the new node, or will be, and its subscribers stay
        at the old one until the slot has moved. So the result is retained there and published here as well.
        """
        target = self._router.server_at(Address(redirection.host or server.host, redirection.port))
        if target is None:
            publication.reason += " (a node of a Cluster: write redis+cluster://)"
            publication.failed = True
            return
        commands = [self._eval(publication)]
        if redirection.kind == "MOVED":
            self._router.forget()
        else:
            commands.insert(0, ("ASKING",))
        replies = await self._execute(target, [publication], commands)
        if redirection.kind == "ASK" and replies:
            result = publication.result
            replies += await self._execute(
                server, [publication], [("SPUBLISH", result.channel, result.payload)]
            )
        counts = [reply for reply in replies if isinstance(reply, int)]
        if len(counts) == (1 if redirection.kind == "MOVED" else 2):
            publication.confirmed(sum(counts))
            return
        publication.may_be_out |= bool(counts)  # retained, but not published to those who are here
        for reply in replies:
            if isinstance(reply, hiredis.ReplyError):
                publication.refused(str(reply))

    def _eval(self, publication: _Publication) -> Command:
        return publication.result.eval(self._router.command)

    def _drop(self, server: Server) -> None:
        """Stop using this connection, and look the servers up again."""
        self._router.pool.drop(server)
        self._router.forget()


def outcome_as_json(item: object, outcome: Outcome) -> dict[str, object]:
    """The answer about the result that came as `item`, as JSON."""
    web_socket_id = item.get("webSocketId") if isinstance(item, dict) else None
    if not isinstance(web_socket_id, str) or len(web_socket_id) > LONGEST_ID:
        web_socket_id = None
    answer: dict[str, object] = {"webSocketId": web_socket_id}
    match outcome:
        case Published(receivers, retained, message_id):
            return answer | {"messageId": message_id, "receivers": receivers, "retained": retained}
        case NotPublished() | Unconfirmed():
            code = "unconfirmed" if isinstance(outcome, Unconfirmed) else "not_published"
            error = {"code": code, "message": str(outcome)}
            return answer | {"messageId": outcome.message_id, "error": error}
        case PublishError():
            return answer | {"error": {"code": "invalid", "message": str(outcome)}}


def _read(item: object, channel_prefix: str, max_size: int) -> Outgoing | PublishError:
    try:
        return from_json(item, channel_prefix, max_size)
    except PublishError as error:
        return error


class _Publication:
    """A result on its way."""

    __slots__ = ("failed", "may_be_out", "published", "reason", "result")

    def __init__(self, result: Outgoing, reason: str) -> None:
        """`reason` is told when no attempt has had any result at the deadline."""
        self.result = result
        self.published: Published | None = None
        self.failed = False
        """Whether a retry would not help."""
        self.may_be_out = False
        """Whether an attempt was sent and not answered, or executed in part."""
        self.reason = reason
        """Why the latest attempt failed."""

    @property
    def finished(self) -> bool:
        return self.failed or self.published is not None

    def confirmed(self, receivers: int) -> None:
        self.published = self.result.published(receivers)

    def refused(self, error: str) -> None:
        """Redis has answered an attempt with this error."""
        self.reason = error
        self.may_be_out |= not is_refusal(error, self.result.retain)

    def outcome(self) -> Sent:
        if self.published is not None:
            return self.published
        kind = Unconfirmed if self.may_be_out else NotPublished
        return kind(self.reason, self.result.message_id)


def _note_failure(
    publications: list[_Publication], error: OSError | None, url: str = "Redis", *, sent: bool
) -> None:
    """Remember an attempt that was not answered, and whether it was `sent`.

    Without an `error` the reason of the attempt before stays. After a rejected login, a wrong password say, a
    retry does not help.
    """
    for publication in publications:
        publication.may_be_out |= sent
        if error is not None:
            publication.reason = str(error) or f"{url} gave no answer"
            publication.failed = isinstance(error, PermissionError)
