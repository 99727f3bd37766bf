"""The admin port: health, metrics, POST /publish, dashboard. With several workers, their parent has it."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Sequence
from typing import Self

from aiohttp import web

from ..config import Config
from ..publishing.publisher import Publisher
from ..server.app import start_runner, web_app
from ..server.listeners import Serving
from .dashboard import Dashboard, DashboardSource
from .health import HealthEndpoints, HealthSource
from .hosts import KnownHosts, known_names
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
        self._serving = Serving(listeners, backlog)
        self._runner = runner
        self._dashboard = dashboard
        self._publisher = publisher

    @classmethod
    async def build(
        cls,
        config: Config,
        node: str,
        listeners: Sequence[socket.socket],
        health: HealthSource,
        source: DashboardSource,
        published: Counter[str],
        rejected: Counter[str],
    ) -> Self:
        """`node` is the node's name. `published` counts what becomes of results that are posted, `rejected`
        counts requests that this port rejects, by reason."""
        publisher = Publisher(config.redis)
        publishing = PublishEndpoint(
            publisher, config.token(), config.channel_prefix, config.max_result_size, published
        )
        dashboard = Dashboard(source, node, config.admin_host)
        routes = [*HealthEndpoints(health).routes(), *publishing.routes(), *dashboard.routes()]
        hosts = KnownHosts(known_names(config, node), rejected)
        runner = await start_runner(web_app(routes, MAX_PUBLISH_BODY, [hosts.check]))
        return cls(listeners, config.backlog, runner, dashboard, publisher)

    async def open(self) -> None:
        """Serve the connections that come."""
        assert self._runner.server is not None
        await self._serving.start(self._runner.server)

    async def close(self) -> None:
        """Stop listening, end the dashboard's streams, and wait for the responses that are in progress."""
        self._serving.stop()
        self._dashboard.feed.close()
        await self._runner.cleanup()
        await self._publisher.close()
