"""The admin port: health, metrics, POST /publish, POST /announce, dashboard.

With several workers, their parent has it.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Sequence
from typing import Final, Self

from ..config import Config
from ..core.admission import Admission, Backlog, Connections, FairPool
from ..publishing.publisher import Publisher
from ..redis.url import RedisURL
from ..server.acceptor import Acceptor
from ..server.app import web_app
from ..server.dispatcher import Dispatcher
from ..server.listeners import Serving
from ..server.rejections import Rejections
from ..server.requests import RequestServer
from ..server.timer_loop import run_timers
from ..transports.connections import ConnectionLedger
from .announce import AnnounceEndpoint
from .backend import MAX_PUBLISH_BODY
from .dashboard import Dashboard, DashboardSource
from .health import HealthEndpoints, HealthSource
from .hosts import KnownHosts, known_names
from .publish import PublishEndpoint

MAX_UNREAD: Final = 16 << 20
"""Bytes of responses that all clients of this port together may leave unread."""


class AdminPort:
    """What operators, load balancers, Prometheus and backends connect to."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        backlog: int,
        acceptor: Acceptor,
        server: RequestServer,
        dashboard: Dashboard,
        publisher: Publisher,
        publishing: PublishEndpoint,
        announcing: AnnounceEndpoint,
    ) -> None:
        """`build` makes the parts, which `close` releases."""
        self._serving = Serving(listeners, backlog)
        self._acceptor = acceptor
        self._server = server
        self._timers: asyncio.Task[None] | None = None
        self._dashboard = dashboard
        self._publisher = publisher
        self._publishing = publishing
        self._announcing = announcing

    @classmethod
    async def build(
        cls,
        config: Config,
        node: str,
        listeners: Sequence[socket.socket],
        health: HealthSource,
        source: DashboardSource,
        published: Counter[str],
        announced: Counter[str],
        rejected: Counter[str],
        connections: int,
    ) -> Self:
        """`node` is the node's name. The port has at most so many `connections`, so that they do not use up
        the descriptors; no address gets more than it leaves to others. `published` and `announced`
        count what becomes of results and ids that are posted, `rejected` counts requests that this port
        rejects, by reason."""

        def dispatch(transport: asyncio.Transport, data: bytes) -> None:
            dispatcher.dispatch(transport, data)

        publisher = Publisher(config.redis)
        publishing = PublishEndpoint(
            publisher, config.token(), config.channel_prefix, config.max_result_size, published
        )
        announcing = AnnounceEndpoint(publisher, config.token(), config.channel_prefix, announced)
        dashboard = Dashboard(source, node, config.admin_host)
        routes = [
            *HealthEndpoints(health).routes(),
            *publishing.routes(),
            *announcing.routes(),
            *dashboard.routes(),
        ]
        clock = asyncio.get_running_loop().time
        ledger = ConnectionLedger(
            Connections(connections, connections, Admission(0, 0), str),
            FairPool(connections),
            Backlog(MAX_UNREAD),
            config.close_timeout,
        )
        acceptor = Acceptor(dispatch, ledger, config.handshake_timeout, config.keep_alive, clock)
        app = web_app(routes, MAX_PUBLISH_BODY, [KnownHosts(known_names(config, node), rejected).check])
        server = await RequestServer.build(app, acceptor, MAX_PUBLISH_BODY)
        dispatcher = Dispatcher(acceptor, server, Rejections(rejected))
        return cls(listeners, config.backlog, acceptor, server, dashboard, publisher, publishing, announcing)

    async def open(self) -> None:
        """Serve the connections that come."""
        clock = asyncio.get_running_loop().time
        self._timers = asyncio.create_task(run_timers(self._acceptor.deadlines, clock), name="admin timers")
        await self._serving.start(self._acceptor)

    def use(self, config: Config, redis: RedisURL | None) -> None:
        """POST /publish and /announce require the token of `config` from now on, and connect as `redis` says
        if given."""
        self._publishing.use_token(config.token())
        self._announcing.use_token(config.token())
        if redis is not None:
            self._publisher.use(redis)

    async def close(self) -> None:
        """Stop listening, end the dashboard's streams, and wait for the responses that are in progress."""
        self._serving.stop()
        self._dashboard.feed.close()
        await self._server.close()
        self._acceptor.abort_all()
        self._acceptor.ledger.close()
        if self._timers is not None:
            self._timers.cancel()
            await asyncio.gather(self._timers, return_exceptions=True)
        await self._publisher.close()
