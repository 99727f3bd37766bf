"""HTTP: the dashboard on the admin port, which shows the state of all nodes.

The page shows the report of every node, once a second, and looks up one id. While no page is open, no node
asks another. The dashboard requires no authentication and changes nothing.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
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
    InfoSource,
    parse_holder_info,
    parse_node_info,
)
from ..nodes.survey import NOT_CONNECTED, SURVEY_TIMEOUT, Survey
from ..redis.broker import Broker
from ..redis.connection import ConnectionLost
from ..telemetry.logs import short_id
from ..transports.sockets import reset
from .caller import caller_of
from .responses import STREAM_HEADERS, error_response, private_json
from .static import file_response

UPDATE_INTERVAL: Final = 1.0
"""Seconds between two events."""

MAX_PAGES: Final = 20
"""Pages that may be open on a node; each gets an event of some KB every second."""

WRITE_TIMEOUT: Final = 5.0
"""Seconds for a page to read an event; a slower one is dropped, and its browser reconnects."""

EVENT_SOURCE_RETRY: Final = b"retry: 1000\n\n"
"""Tells browsers to reconnect after 1,000 ms."""

log = structlog.get_logger()


JsonObject = dict[str, Any]


class DashboardSource(Protocol):
    """Where the page's data come from: the process itself, or, for a parent, any of its workers."""

    async def snapshot(self) -> JsonObject | None:
        """The state of all nodes; None if no worker answers."""

    async def look_up(self, web_socket_id: str) -> JsonObject | None:
        """The sessions of an id; None if no worker answers."""


class EventFeed:
    """The event stream of the open pages: one event a second for all of them, and none without a page."""

    def __init__(self, source: DashboardSource, about: Mapping[str, object]) -> None:
        """`about` is added to each event."""
        self._source = source
        self._about = about
        self._pages = 0
        self._event = b""
        self._updated = asyncio.Event()
        self._updating: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def full(self) -> bool:
        return self._pages >= MAX_PAGES

    async def follow(self) -> AsyncGenerator[bytes, None]:
        """Each event from now on until the node stops; a slow page skips events."""
        self._pages += 1
        if self._updating is None:
            self._updating = asyncio.create_task(self._update(), name="dashboard")
        try:
            while not self._closed:
                await self._updated.wait()
                if not self._closed:
                    yield self._event
        finally:
            self._pages -= 1
            if not self._pages and self._updating is not None:
                self._updating.cancel()
                self._updating = None

    def close(self) -> None:
        """End all streams."""
        self._closed = True
        self._updated.set()

    async def _update(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            start = clock()
            try:
                snapshot = await self._source.snapshot()
            except Exception:
                log.exception("dashboard failed")
                snapshot = None
            if snapshot is not None:
                self._event = b"data: %b\n\n" % orjson.dumps({**snapshot, **self._about})
                updated, self._updated = self._updated, asyncio.Event()
                updated.set()
            await asyncio.sleep(max(0.0, start + UPDATE_INTERVAL - clock()))


class LocalSource:
    """The `DashboardSource` of a process with sessions: it asks all others."""

    def __init__(self, survey: Survey, info: InfoSource, broker: Broker, hub: Hub[Any]) -> None:
        self._survey = survey
        self._info = info
        self._broker = broker
        self._hub = hub

    async def snapshot(self) -> JsonObject:
        """The state of all nodes, this one first."""
        asked = await self._survey.ask({"ask": NODE_QUESTION})
        own = {**self._info.node_info(), "from": self._survey.name}
        reports = [
            report for answer in (own, *asked.answers) if (report := parse_node_info(answer)) is not None
        ]
        return {
            "id": self._survey.name,
            "silent": asked.silent,
            "reason": asked.reason,
            "nodes": [report.model_dump() for report in reports],
        }

    async def look_up(self, web_socket_id: str) -> JsonObject:
        """The sessions of an id, and whether Redis retains a result for it."""
        asked, retained = await asyncio.gather(
            self._survey.ask({"ask": SESSION_QUESTION, "webSocketId": web_socket_id}),
            self._retained(web_socket_id),
        )
        answers = (self._info.holder_info(web_socket_id), *asked.answers)
        held = [found for answer in answers if (found := parse_holder_info(answer)) is not None]
        return {
            "sessions": [session.model_dump() for node in held for session in node.sessions],
            "more": sum(node.more for node in held),
            "nodes": len(held),
            "silent": asked.silent,
            "reason": asked.reason,
            "retained": retained,
        }

    async def _retained(self, web_socket_id: str) -> dict[str, object]:
        """Whether Redis retains a result for the id or an announcement, and for how many seconds; None for
        unknown."""
        channel = self._hub.channel(web_socket_id.encode())
        connection = self._broker.connection_for(channel)
        if connection is None:
            return _unknown(NOT_CONNECTED)
        try:
            async with asyncio.timeout(SURVEY_TIMEOUT):
                left = await connection.execute("PTTL", channel)
                announced = left != -2 and await connection.is_empty(channel)
        except TimeoutError:
            return _unknown(f"Redis gave no answer in {SURVEY_TIMEOUT:g} s")
        except ConnectionLost as lost:
            return _unknown(str(lost))
        # -2: there is none; -1: no expiry, which no publisher of this package sets.
        return {
            "present": left != -2 and not announced,
            "announced": announced,
            "seconds": left / 1000 if left >= 0 else None,
            "reason": "",
        }


class Dashboard:
    """The page, its event stream, and the look-up."""

    def __init__(self, source: DashboardSource, name: str, hosts: Sequence[str]) -> None:
        """`name` is the node's; the admin port listens on `hosts`."""
        self._source = source
        self.feed = EventFeed(source, {"node": name, "version": __version__, "port": _access_note(hosts)})

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/", self.page),
            web.get(r"/dashboard/{file:dashboard(?:\.chart)?\.(?:css|js)}", self.asset),
            web.get("/dashboard/events", self.events, allow_head=False),
            web.get("/dashboard/session", self.session),
        ]

    async def page(self, _request: web.Request) -> web.StreamResponse:
        """GET /: the page."""
        return file_response("dashboard.html")

    async def asset(self, request: web.Request) -> web.StreamResponse:
        return file_response(request.match_info["file"])

    async def events(self, request: web.Request) -> web.StreamResponse:
        """GET /dashboard/events: server-sent events, each with all that the page shows."""
        if self.feed.full:
            return error_response(
                HTTPStatus.SERVICE_UNAVAILABLE, "busy", f"{MAX_PAGES} pages are open on this node already"
            )
        response = web.StreamResponse(headers=STREAM_HEADERS)
        with suppress(ConnectionError, TimeoutError):
            await response.prepare(request)
            await response.write(EVENT_SOURCE_RETRY)
            async with aclosing(self.feed.follow()) as events:
                async for event in events:
                    async with asyncio.timeout(WRITE_TIMEOUT):
                        await response.write(event)
            return response
        if request.transport is not None:  # or the node would wait for it when it stops
            reset(request.transport)
        return response

    async def session(self, request: web.Request) -> web.Response:
        """GET /dashboard/session?webSocketId=…: the sessions of an id."""
        wanted = request.query.get("webSocketId", "")
        if not WEB_SOCKET_ID.fullmatch(wanted):
            form = "webSocketId must be 1 to 200 characters of A-Z a-z 0-9 . _ ~ -"
            return error_response(HTTPStatus.BAD_REQUEST, "invalid_id", form)
        body = await self._source.look_up(wanted)
        if body is None:
            return error_response(
                HTTPStatus.SERVICE_UNAVAILABLE, "no_worker", "no worker of this node answers"
            )
        sessions = len(body["sessions"]) + body["more"]
        log.info(
            "id looked up", id=short_id(wanted), sessions=sessions, nodes=body["nodes"], **caller_of(request)
        )
        return private_json(body)


def _unknown(reason: str) -> dict[str, object]:
    return {"present": None, "announced": None, "seconds": None, "reason": reason}


def _access_note(hosts: Sequence[str]) -> str:
    """What the page says about who can open it."""
    local = all(re.fullmatch(r"127\.[0-9.]+|::1|localhost", host) for host in hosts)
    reach = "only this machine can open this page" if local else "everybody who can connect sees this page"
    return f"This page requires no authentication. The admin port listens on {', '.join(hosts)}: {reach}."
