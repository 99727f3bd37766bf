"""Publishes and announces for the command line and the HTTP API, on any Redis topology, in bounded time.

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
from ..errors import NotAnnounced, NotPublished, PublishError, Unconfirmed
from ..redis.cluster.slots import Redirection, parse_redirection
from ..redis.connection import Command
from ..redis.factory import new_router
from ..redis.server import Server
from ..redis.url import Address, RedisURL, parse_redis_url
from .announcing import Announcement, AnnounceOptions, announcement
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
        publications = [_Publication(result, self._reason) for result in results]
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

    async def announce(self, web_socket_id: str, **options: Unpack[AnnounceOptions]) -> bool:
        """Announce an id; `options` are those of `gateway.announce`. Returns whether the id is new.

        Raises PublishError for an id that no node would register, and NotAnnounced when Redis has refused it
        or was not reached in time.
        """
        return await self.send_announcement(announcement(web_socket_id, **options))

    async def send_announcement(self, wanted: Announcement) -> bool:
        """`announce` what is valid already."""
        announcing = _Announcing(wanted, self._reason)
        await self._send_in_time([announcing])
        if announcing.is_new is None:
            raise NotAnnounced(announcing.reason)
        return announcing.is_new

    @property
    def _reason(self) -> str:
        """Why a request has failed that no attempt has had any result for."""
        return f"no answer in {self._timeout:g} s"

    async def _send_in_time(self, requests: Sequence[_Request]) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                await self._send(requests)

    async def _send(self, requests: Sequence[_Request]) -> None:
        backoff = Backoff(FIRST_PAUSE, LAST_PAUSE, jitter=0)
        while requests:
            await self._attempt(requests)
            requests = [request for request in requests if not request.finished]
            if requests:
                await asyncio.sleep(backoff.next())

    async def _attempt(self, requests: Sequence[_Request]) -> None:
        groups: dict[Server, list[_Request]] = {}
        try:
            async with asyncio.timeout(ATTEMPT_TIMEOUT):
                servers = await self._router.servers([request.channel.encode() for request in requests])
        except OSError as error:
            _note_failure(requests, error, sent=False)
            return
        for request, server in zip(requests, servers, strict=True):
            if server is None:
                request.reason = NO_SERVER
                self._router.forget()
            else:
                groups.setdefault(server, []).append(request)
        await asyncio.gather(*(self._attempt_at(server, group) for server, group in groups.items()))

    async def _attempt_at(self, server: Server, requests: list[_Request]) -> None:
        """Send requests to their server. Those that are not finished afterwards are retried."""
        for start in range(0, len(requests), PUBLISH_BATCH):
            batch = requests[start : start + PUBLISH_BATCH]
            replies = await self._execute(server, batch, [self._command(request) for request in batch])
            if not replies:
                return
            for request, reply in zip(batch, replies, strict=True):
                if isinstance(reply, hiredis.ReplyError):
                    await self._error_received(server, request, str(reply))
                else:
                    request.confirmed([reply])

    async def _execute(self, server: Server, requests: list[_Request], commands: list[Command]) -> list[Any]:
        """The replies to the commands of `requests`; none when the server is unreachable."""
        sent = False
        try:
            async with asyncio.timeout(ATTEMPT_TIMEOUT):
                connection = await self._router.pool.get(server)
                sent = True
                return await connection.pipeline(commands)
        except OSError as error:
            self._drop(server)
            _note_failure(requests, error, server.display_url, sent=sent)
            return []
        except asyncio.CancelledError:  # the deadline has passed, and this server has not answered
            self._drop(server)
            _note_failure(requests, None, sent=sent)
            raise

    async def _error_received(self, server: Server, request: _Request, error: str) -> None:
        request.refused(error)
        if (redirection := parse_redirection(error)) is not None:
            await self._follow(redirection, server, request)
        elif _RETRYABLE.search(error):
            self._drop(server)
        else:
            request.failed = True

    async def _follow(self, redirection: Redirection, server: Server, request: _Request) -> None:
        """Follow a Cluster's redirection.

        ASK means that the slot migrates: its keys are at the new node, or will be, and its subscribers stay
        at the old one until the slot has moved. So a result is retained there and published here as well.
        """
        target = self._router.server_at(Address(redirection.host or server.host, redirection.port))
        if target is None:
            request.reason += " (a node of a Cluster: write redis+cluster://)"
            request.failed = True
            return
        if redirection.kind == "MOVED":
            self._router.forget()
            replies = await self._execute(target, [request], [self._command(request)])
            expected = 1
        else:
            replies = await self._execute(target, [request], [("ASKING",), self._command(request)])
            here = request.at_source()
            if replies and here:
                replies += await self._execute(server, [request], here)
            replies, expected = replies[1:], 1 + len(here)
        errors = [reply for reply in replies if isinstance(reply, hiredis.ReplyError)]
        if len(replies) == expected and not errors:
            request.confirmed(replies)
            return
        request.may_be_out |= len(replies) > len(errors)  # retained, but not published to those who are here
        for error in errors:
            request.refused(str(error))

    def _command(self, request: _Request) -> Command:
        return request.command(self._router.command)

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


class _Request:
    """What is on its way to the server of one channel."""

    __slots__ = ("channel", "failed", "may_be_out", "reason")

    def __init__(self, channel: str, reason: str) -> None:
        """`reason` is told when no attempt has had any result at the deadline."""
        self.channel = channel
        self.failed = False
        """Whether a retry would not help."""
        self.may_be_out = False
        """Whether an attempt was sent and not answered, or executed in part."""
        self.reason = reason
        """Why the latest attempt failed."""

    def command(self, publish: str) -> Command:
        """The command to send. `publish` is PUBLISH or SPUBLISH."""
        raise NotImplementedError

    def at_source(self) -> list[Command]:
        """What the node that the slot migrates from is sent as well."""
        return []

    @property
    def finished(self) -> bool:
        return self.failed or self.done

    @property
    def done(self) -> bool:
        """Whether Redis has confirmed it."""
        raise NotImplementedError

    def confirmed(self, replies: Sequence[Any]) -> None:
        """Redis has executed `command`, and `at_source` if that was sent."""
        raise NotImplementedError

    def refused(self, error: str) -> None:
        """Redis has answered an attempt with this error."""
        self.reason = error


class _Publication(_Request):
    """A result on its way."""

    __slots__ = ("published", "result")

    def __init__(self, result: Outgoing, reason: str) -> None:
        super().__init__(result.channel, reason)
        self.result = result
        self.published: Published | None = None

    def command(self, publish: str) -> Command:
        return self.result.eval(publish)

    def at_source(self) -> list[Command]:
        return [("SPUBLISH", self.channel, self.result.payload)]

    @property
    def done(self) -> bool:
        return self.published is not None

    def confirmed(self, replies: Sequence[Any]) -> None:
        self.published = self.result.published(sum(replies))

    def refused(self, error: str) -> None:
        super().refused(error)
        self.may_be_out |= not is_refusal(error, self.result.retain)

    def outcome(self) -> Sent:
        if self.published is not None:
            return self.published
        kind = Unconfirmed if self.may_be_out else NotPublished
        return kind(self.reason, self.result.message_id)


class _Announcing(_Request):
    """An announcement on its way."""

    __slots__ = ("is_new", "wanted")

    def __init__(self, wanted: Announcement, reason: str) -> None:
        super().__init__(wanted.channel, reason)
        self.wanted = wanted
        self.is_new: bool | None = None

    def command(self, publish: str) -> Command:
        return self.wanted.command

    @property
    def done(self) -> bool:
        return self.is_new is not None

    def confirmed(self, replies: Sequence[Any]) -> None:
        self.is_new = replies[0] is not None


def _note_failure(
    requests: Sequence[_Request], error: OSError | None, url: str = "Redis", *, sent: bool
) -> None:
    """Remember an attempt that was not answered, and whether it was `sent`.

    Without an `error` the reason of the attempt before stays. After a rejected login, a wrong password say, a
    retry does not help.
    """
    for request in requests:
        request.may_be_out |= sent
        if error is not None:
            request.reason = str(error) or f"{url} gave no answer"
            request.failed = isinstance(error, PermissionError)
