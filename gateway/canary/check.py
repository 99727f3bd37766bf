"""One check: announce an id, register it through the public URL, publish, and wait for the result."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import orjson

from ..client import next_event
from ..errors import NotAnnounced, NotPublished, Unconfirmed
from ..messages import NOT_AUTHORIZED, REGISTRATION, UNKNOWN_ID, CloseCode
from ..publishing.publisher import PUBLISH_TIMEOUT, Publisher
from ..redis.hints import hint_for
from ..redis.url import redact
from .connection import WebSocketOpener
from .stages import CONNECT, CanaryFailed, Stage

ID_PREFIX: Final = "canary-"
"""Begins the webSocketId of every check; 128 random bits follow."""

RESULT: Final = "CANARY"
"""The authResult of a check, which no page takes for an approval."""

RETAIN_SECONDS: Final = 30
"""A backend may publish, but not delete: so Redis removes the key of a check this long after the result, or
after the time of a check that has failed."""

TIMEOUT: Final = 10.0
"""Seconds for a whole check, by default."""

REDIS_HINT: Final = "does Redis answer this machine?"
NODES_HINT: Final = "are --redis and --channel-prefix those of the nodes?"

LATE_HINTS: Final = {
    Stage.LOOK_UP: "does the name server answer?",
    Stage.TCP: "is the machine up, and does a firewall let this one through?",
    Stage.TLS: "without TLS the URL begins with ws://",
    Stage.UPGRADE: "does the proxy reach a node?",
    Stage.ANNOUNCE: REDIS_HINT,
    Stage.PUBLISH: REDIS_HINT,
}
"""Where to look when the time is up in a stage; two more are found out."""

REFUSAL_HINTS: Final = {
    NOT_AUTHORIZED.code: "the canary has no token: with --registration signed alone no check can succeed",
    UNKNOWN_ID.code: NODES_HINT,
}
"""Where to look when a node refuses the id, by the code."""


@dataclass(frozen=True)
class Check:
    """What is checked."""

    url: str
    """The public WebSocket: ws:// or wss://."""
    redis: str
    """The URL of the nodes' Redis."""
    channel_prefix: str = "websocket:"
    origin: str | None = None
    """The page's; None for the host of `url`."""
    ca_file: str | None = None
    """A PEM file with CAs that are trusted instead of the system's."""
    timeout: float = TIMEOUT
    """Seconds for the whole check. Closing the connection may take two seconds more."""


@dataclass(frozen=True)
class Outcome:
    """What became of a check: seconds by what is timed (see `stages.TIMED`), and what has failed, if any."""

    seconds: dict[str, float]
    failure: CanaryFailed | None = None

    @property
    def total(self) -> float:
        """Seconds of all that was timed."""
        return sum(self.seconds.values())


async def run(check: Check) -> Outcome:
    """Run one check. It raises nothing, however the check ends."""
    running = _Run(check)
    try:
        await running.run()
    except CanaryFailed as failure:
        return Outcome(running.seconds, failure)
    except Exception as error:  # whoever watches the gateway must hear of it, and not end by it
        reason = f"unexpected {type(error).__name__}: {error}"
        return Outcome(running.seconds, CanaryFailed(running.stage, reason, "this is a bug: report it"))
    return Outcome(running.seconds)


@dataclass
class _Run:
    check: Check
    stage: Stage = field(default=Stage.LOOK_UP, init=False)
    seconds: dict[str, float] = field(default_factory=dict, init=False)
    receivers: int | None = field(default=None, init=False)
    """How many nodes held the id; None until the result is published."""

    def __post_init__(self) -> None:
        self._id = ID_PREFIX + secrets.token_hex(16)

    async def run(self) -> None:
        """Raises CanaryFailed."""
        check = self.check
        opener = WebSocketOpener(check.url, check.origin, check.ca_file, self._enter)
        async with (
            Publisher(check.redis, timeout=min(PUBLISH_TIMEOUT, check.timeout)) as publisher,
            opener.session() as session,
        ):
            try:
                async with asyncio.timeout(check.timeout):
                    await self._measure(opener, session, publisher)
            except TimeoutError:
                if Stage.DELIVERY not in self.seconds:  # else only the close was left
                    raise self._too_late() from None

    def _enter(self, stage: Stage) -> None:
        self.stage = stage

    async def _measure(
        self, opener: WebSocketOpener, session: aiohttp.ClientSession, publisher: Publisher
    ) -> None:
        started = time.perf_counter()
        socket = await opener.open(session)
        self.seconds[CONNECT] = time.perf_counter() - started
        try:
            await self._announce(publisher)
            await self._register(socket)
            await self._deliver(socket, publisher)
        finally:
            # For the node it is a page that leaves. The time of the check may be over.
            await socket.close()

    async def _announce(self, publisher: Publisher) -> None:
        """As a backend does before the page learns the id. Nodes may know ids or not: a client cannot tell.

        It comes after the upgrade, so that each stage of the public URL fails by its own name.
        """
        self._enter(Stage.ANNOUNCE)
        ttl = math.ceil(self.check.timeout) + RETAIN_SECONDS
        try:
            await publisher.announce(self._id, ttl=ttl, channel_prefix=self.check.channel_prefix)
        except NotAnnounced as error:
            raise self._refused_by_redis(error.reason) from None

    async def _register(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._enter(Stage.REGISTRATION)
        started = time.perf_counter()
        with suppress(ConnectionError):  # if the connection is gone already, next_event says why
            await socket.send_str(orjson.dumps({"topic": REGISTRATION, "webSocketId": self._id}).decode())
        while (event := await self._next_event(socket, self.stage))["event"] != "registered":
            if event["event"] in ("refused", "problem"):
                refusal = f"refused: {event['message']} ({event['code']})"
                raise CanaryFailed(self.stage, refusal, REFUSAL_HINTS.get(event["code"], ""))
        self.seconds[Stage.REGISTRATION] = time.perf_counter() - started

    async def _deliver(self, socket: aiohttp.ClientWebSocketResponse, publisher: Publisher) -> None:
        self._enter(Stage.PUBLISH)
        message_id = secrets.token_hex(16)
        started = time.perf_counter()
        arriving = asyncio.create_task(self._arrival(socket, message_id))
        try:
            published = await publisher.publish(
                self._id,
                RESULT,
                message_id=message_id,
                retain=RETAIN_SECONDS,
                channel_prefix=self.check.channel_prefix,
            )
            self.receivers = published.receivers
            self._enter(Stage.DELIVERY)
            self.seconds[Stage.DELIVERY] = await arriving - started
        except (NotPublished, Unconfirmed) as error:
            raise self._refused_by_redis(error.reason) from None
        finally:
            arriving.cancel()
            await asyncio.gather(arriving, return_exceptions=True)

    async def _arrival(self, socket: aiohttp.ClientWebSocketResponse, message_id: str) -> float:
        """When the result came."""
        while True:
            match await self._next_event(socket, Stage.DELIVERY):
                case {"event": "result", "messageId": found} if found == message_id:
                    return time.perf_counter()

    async def _next_event(self, socket: aiohttp.ClientWebSocketResponse, stage: Stage) -> dict[str, Any]:
        """What comes next. If that is the end of the connection, raises CanaryFailed for `stage`."""
        event = await next_event(socket)
        if event["event"] != "closed":
            return event
        code, reason = event["code"], event["reason"]
        if code == CloseCode.TRY_AGAIN_LATER:
            hint = self._redis_hint()
        elif code == CloseCode.SERVICE_RESTART:
            hint = "the node is stopping"
        else:
            hint = "a proxy or the node has ended the connection"
        raise CanaryFailed(stage, f"closed with {code}" + (f" ({reason})" if reason else ""), hint)

    # What has failed

    def _refused_by_redis(self, reason: str) -> CanaryFailed:
        hint = hint_for(reason) or REDIS_HINT
        if "NOPERM" in reason or "can't run this command" in reason or "ACL" in reason:
            hint = "give this user of Redis the rights of a publisher: docs/redis-access.md"
        return CanaryFailed(self.stage, f"Redis at {redact(self.check.redis)}: {reason}", hint)

    def _too_late(self) -> CanaryFailed:
        waited = f"within {self.check.timeout:g} s"
        if self.stage is Stage.REGISTRATION:
            return CanaryFailed(self.stage, f"not confirmed {waited}", self._redis_hint())
        if self.stage is Stage.DELIVERY:
            return CanaryFailed(self.stage, f"the result is not back {waited}", self._delivery_hint())
        what = {Stage.ANNOUNCE: "not announced", Stage.PUBLISH: "not published"}.get(self.stage, "no answer")
        return CanaryFailed(self.stage, f"{what} {waited}", LATE_HINTS[self.stage])

    def _delivery_hint(self) -> str:
        if not self.receivers:
            return f"no node holds the id at this Redis: {NODES_HINT}"
        return "a node holds the id, so look at its log, and at the proxy"

    def _redis_hint(self) -> str:
        """A node waits for Redis, which has just accepted the announcement."""
        return f"Redis at {redact(self.check.redis)} answers this machine, so look at the log of the nodes"
