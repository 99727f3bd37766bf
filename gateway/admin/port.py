"""The admin port: health, metrics, POST /publish, dashboard. With several workers, their parent has it."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Sequence
from typing import Self

from ..config import Config
from ..publishing.publisher import Publisher
from ..redis.url import RedisURL
from ..server.app import web_app
from ..server.http_port import HTTPPort
from .dashboard import Dashboard, DashboardSource
from .health import HealthEndpoints, HealthSource
from .hosts import KnownHosts, known_names
from .publish import MAX_PUBLISH_BODY, PublishEndpoint


class AdminPort:
    """What operators, load balancers, Prometheus and backends connect to."""

    def __init__(
        self, port: HTTPPort, dashboard: Dashboard, publisher: Publisher, publishing: PublishEndpoint
    ) -> None:
        """`build` makes the parts, which `close` releases."""
        self._port = port
        self._dashboard = dashboard
        self._publisher = publisher
        self._publishing = publishing

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
        connections: int,
    ) -> Self:
        """`node` is the node's name. The port has at most so many `connections`. `published` counts what
        becomes of results that are posted, `rejected` counts requests that this port rejects, by reason."""
        publisher = Publisher(config.redis)
        publishing = PublishEndpoint(
            publisher, config.token(), config.channel_prefix, config.max_result_size, published
        )
        dashboard = Dashboard(source, node, config.admin_host)
        routes = [*HealthEndpoints(health).routes(), *publishing.routes(), *dashboard.routes()]
        app = web_app(routes, MAX_PUBLISH_BODY, [KnownHosts(known_names(config, node), rejected).check])
        port = await HTTPPort.build(config, app, listeners, connections, MAX_PUBLISH_BODY, rejected)
        return cls(port, dashboard, publisher, publishing)

    async def open(self) -> None:
        """Serve the connections that come."""
        await self._port.open()

    def use(self, config: Config, redis: RedisURL | None) -> None:
        """POST /publish requires the token of `config` from now on, and connects as `redis` says if given."""
        self._publishing.use_token(config.token())
        if redis is not None:
            self._publisher.use(redis)

    async def close(self) -> None:
        """Stop listening, end the dashboard's streams, and wait for the responses that are in progress."""
        self._port.stop_listening()
        self._dashboard.feed.close()
        await self._port.close()
        await self._publisher.close()
