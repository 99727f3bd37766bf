"""The admin port: health, metrics, POST /publish, dashboard. With several workers, their parent has it."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Sequence
from typing import Self

from aiohttp import web

from ..config import Config
from ..publishing.publisher import Publisher
from ..server.app import start_runner, web_app
from .dashboard import Dashboard, DashboardSource
from .health import HealthEndpoints, HealthSource
from .publish import MAX_PUBLISH_BODY, PublishEndpoint


class AdminPort:
    """What operators, load balancers, Prometheus and backends connect to."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        backlog: int,
        runner: web.AppRunner,
        dashboard: Dashboard,
        publisher: Publisher,
    ) -> None:
        """`build` makes the parts, which `close` releases."""
        self._listeners = listeners
        self._backlog = backlog
        self._runner = runner
        self._dashboard = dashboard
        self._publisher = publisher
        self._servers: list[asyncio.Server] = []

    @classmethod
    async def build(
        cls,
        config: Config,
        node: str,
        listeners: Sequence[socket.socket],
        health: HealthSource,
        source: DashboardSource,
        published: Counter[str],
    ) -> Self:
        """`node` is the node's name; `published` counts what becomes of results that are posted."""
        publisher = Publisher(config.redis)
        publishing = PublishEndpoint(
            publisher, config.token(), config.channel_prefix, config.max_result_size, published
        )
        dashboard = Dashboard(source, node, config.admin_host)
        routes = [*HealthEndpoints(health).routes(), *publishing.routes(), *dashboard.routes()]
        runner = await start_runner(web_app(routes, max_body=MAX_PUBLISH_BODY))
        return cls(listeners, config.backlog, runner, dashboard, publisher)

    async def open(self) -> None:
        """Serve the connections that come."""
        assert self._runner.server is not None
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            server = await loop.create_server(self._runner.server, sock=listener, backlog=self._backlog)
            self._servers.append(server)

    async def close(self) -> None:
        """Stop to listen, end the dashboard's streams, and wait for the responses that are under way."""
        for server in self._servers:
            server.close()
        for listener in self._listeners:
            listener.close()
        self._dashboard.feed.close()
        await self._runner.cleanup()
        await self._publisher.close()
