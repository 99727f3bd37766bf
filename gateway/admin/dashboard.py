"""HTTP: the live page on the admin port, for somebody who wants to know at a glance how all the nodes are.

The page shows what every node reports, once a second, and looks up one id. While no page is open, no node
asks another. The port has no authentication, and nothing here changes anything.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from http import HTTPStatus
from typing import Any, Final, Protocol

import orjson
import structlog
from aiohttp import web

from .. import __version__
from ..core.hub import Hub
from ..messages import WEB_SOCKET_ID
from ..nodes.info import (
    NODE_QUESTION,
    SESSION_QUESTION,
    HolderInfo,
    InfoSource,
    parse_holder_info,
    parse_node_info,
)
from ..nodes.survey import NOT_CONNECTED, SURVEY_TIMEOUT, Survey
from ..redis.broker import Broker
from ..redis.connection import ConnectionLost
from ..telemetry.logs import short_id
from .responses import SSE_HEADERS, error_response, json_response
from .static import file_response

UPDATE_INTERVAL: Final = 1.0
"""Seconds between two events."""

MAX_PAGES: Final = 20
"""Pages that may be open on a node; for each an event of some KB is written every second."""

WRITE_TIMEOUT: Final = 5.0
"""Seconds for a page to take an event; one that does not is dropped, and comes back when it can."""

EVENT_SOURCE_RETRY: Final = b"retry: 1000\n\n"
"""Milliseconds until a browser asks for the stream again, once it has lost it."""

log = structlog.get_logger()


JsonObject = dict[str, Any]


class DashboardSource(Protocol):
    """Who knows what the page shows: the node itself, or for a parent any of its workers."""

    async def snapshot(self) -> JsonObject | None:
        """All nodes as they are now; None if it cannot be had."""

    async def look_up(self, web_socket_id: str) -> JsonObject | None:
        """Who holds an id; None if it cannot be had."""


class EventFeed:
    """What the open pages are told: made once a second for all of them, and only while there are any."""

    def __init__(self, source: DashboardSource, about: Mapping[str, object]) -> None:
        """`about` is told along with what `source` knows."""
        self._source = source
        self._about = about
        self._pages = 0
        self._event = b""
        self._news = asyncio.Event()
        self._making: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def full(self) -> bool:
        return self._pages >= MAX_PAGES

    async def follow(self) -> AsyncGenerator[bytes, None]:
        """Each event from now on, or the latest where one is slow; until the node stops."""
        self._pages += 1
        if self._making is None:
            self._making = asyncio.create_task(self._make(), name="live page")
        try:
            while not self._closed:
                await self._news.wait()
                if not self._closed:
                    yield self._event
        finally:
            self._pages -= 1
            if not self._pages and self._making is not None:
                self._making.cancel()
                self._making = None

    def close(self) -> None:
        """The node stops: so do the streams."""
        self._closed = True
        self._news.set()

    async def _make(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            start = clock()
            try:
                snapshot = await self._source.snapshot()
            except Exception:
                log.exception("live page failed")
                snapshot = None
            if snapshot is not None:
                self._event = b"data: %b\n\n" % orjson.dumps({**snapshot, **self._about})
                news, self._news = self._news, asyncio.Event()
                news.set()
            await asyncio.sleep(max(0.0, start + UPDATE_INTERVAL - clock()))


class LocalSource:
    """A `DashboardSource`: this process, which asks all others."""

    def __init__(self, roster: Survey, reporter: InfoSource, broker: Broker, hub: Hub[Any]) -> None:
        self._roster = roster
        self._reporter = reporter
        self._broker = broker
        self._hub = hub

    async def snapshot(self) -> JsonObject:
        """All nodes as they are now, this one first."""
        asked = await self._roster.ask({"ask": NODE_QUESTION})
        own = {**self._reporter.report(), "from": self._roster.name}
        reports = [
            report for answer in (own, *asked.answers) if (report := parse_node_info(answer)) is not None
        ]
        return {
            "id": self._roster.name,
            "silent": asked.silent,
            "why": asked.why,
            "nodes": [report.model_dump() for report in reports],
        }

    async def look_up(self, web_socket_id: str) -> JsonObject:
        """Who holds this id, since when, and what it was sent."""
        asked, retained = await asyncio.gather(
            self._roster.ask({"ask": SESSION_QUESTION, "webSocketId": web_socket_id}),
            self._retained(web_socket_id),
        )
        answers = (self._reporter.held(web_socket_id), *asked.answers)
        held = [found for answer in answers if (found := parse_holder_info(answer)) is not None]
        log.info("looked up", id=short_id(web_socket_id), sessions=_count(held), nodes=len(held))
        return {
            "sessions": [session.model_dump() for node in held for session in node.sessions],
            "more": sum(node.more for node in held),
            "nodes": len(held),
            "silent": asked.silent,
            "why": asked.why,
            "retained": retained,
        }

    async def _retained(self, web_socket_id: str) -> dict[str, object]:
        """Whether Redis has a retained result for the id, and for how many seconds; None for unknown."""
        channel = self._hub.channel(web_socket_id.encode())
        link = self._broker.connection_for(channel)
        if link is None:
            return _unknown(NOT_CONNECTED)
        try:
            async with asyncio.timeout(SURVEY_TIMEOUT):
                left = await link.execute("PTTL", channel)
        except TimeoutError:
            return _unknown(f"Redis gave no answer in {SURVEY_TIMEOUT:g} s")
        except ConnectionLost as why:
            return _unknown(str(why))
        # -2: there is none; -1: for ever, which none of our publishers does.
        return {"present": left != -2, "seconds": left / 1000 if left >= 0 else None, "why": ""}


class Dashboard:
    """The page, what it is told, and the look-up."""

    def __init__(self, source: DashboardSource, name: str, host: str) -> None:
        """`name` is the node's; the admin port listens on `host`."""
        self._source = source
        self.feed = EventFeed(source, {"node": name, "version": __version__, "port": _port(host)})

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/", self.page),
            web.get(r"/dashboard/{file:dashboard(?:\.chart)?\.(?:css|js)}", self.asset),
            web.get("/dashboard/events", self.events, allow_head=False),
            web.get("/dashboard/session", self.session),
        ]

    async def page(self, _request: web.Request) -> web.StreamResponse:
        """GET /: the page itself."""
        return file_response("dashboard.html")

    async def asset(self, request: web.Request) -> web.StreamResponse:
        return file_response(request.match_info["file"])

    async def events(self, request: web.Request) -> web.StreamResponse:
        """GET /dashboard/events: server-sent events, each of them all that the page shows."""
        if self.feed.full:
            return error_response(
                HTTPStatus.SERVICE_UNAVAILABLE, "busy", f"{MAX_PAGES} pages are open already"
            )
        response = web.StreamResponse(headers=SSE_HEADERS)
        with suppress(ConnectionError, TimeoutError):
            await response.prepare(request)
            await response.write(EVENT_SOURCE_RETRY)
            async with aclosing(self.feed.follow()) as events:
                async for event in events:
                    async with asyncio.timeout(WRITE_TIMEOUT):
                        await response.write(event)
            return response
        if request.transport is not None:  # it would be waited for
            request.transport.abort()
        return response

    async def session(self, request: web.Request) -> web.Response:
        """GET /dashboard/session?webSocketId=…: who holds this id, since when, and what it was sent."""
        wanted = request.query.get("webSocketId", "")
        if not WEB_SOCKET_ID.fullmatch(wanted):
            form = "webSocketId is 1 to 200 characters of A-Z a-z 0-9 . _ ~ -"
            return error_response(HTTPStatus.BAD_REQUEST, "invalid_id", form)
        body = await self._source.look_up(wanted)
        if body is None:
            return error_response(
                HTTPStatus.SERVICE_UNAVAILABLE, "no_worker", "no worker of this node answers"
            )
        return json_response(body)


def _count(held: list[HolderInfo]) -> int:
    return sum(len(node.sessions) + node.more for node in held)


def _unknown(why: str) -> dict[str, object]:
    return {"present": None, "seconds": None, "why": why}


def _port(host: str) -> str:
    """What the page says of the port that it came from."""
    local = re.fullmatch(r"127\.[0-9.]+|::1|localhost", host) is not None
    reach = "only this machine reaches it" if local else "whoever reaches it sees this page"
    return f"This port has no authentication. It listens on {host}: {reach}."
