"""The admin port: health, metrics, POST /publish, POST /announce, dashboard.

With several workers, their parent has it.
"""

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
from .announce import AnnounceEndpoint
from .backend import MAX_PUBLISH_BODY
from .dashboard import Dashboard, DashboardSource
from .health import HealthEndpoints, HealthSource
from .hosts import KnownHosts, known_names
from .publish import PublishEndpoint


class AdminPort:
    """What operators, load balancers, Prometheus and backends connect to."""

    def __init__(
        self,
        port: HTTPPort,
        dashboard: Dashboard,
        publisher: Publisher,
        publishing: PublishEndpoint,
        announcing: AnnounceEndpoint,
    ) -> None:
        """`build` makes the parts, which `close` releases."""
        self._port = port
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
        """`node` is the node's name. The port has at most so many `connections`. `published` and `announced`
        count what becomes of results and ids that are posted, `rejected` counts requests that this port
        rejects, by reason."""
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
        app = web_app(routes, MAX_PUBLISH_BODY, [KnownHosts(known_names(config, node), rejected).check])
        port = await HTTPPort.build(config, app, listeners, connections, MAX_PUBLISH_BODY, rejected)
        return cls(port, dashboard, publisher, publishing, announcing)

    async def open(self) -> None:
        """Serve the connections that come."""
        await self._port.open()

    def use(self, config: Config, redis: RedisURL | None) -> None:
        """POST /publish and /announce require the token of `config` from now on, and connect as `redis` says
        if given."""
        self._publishing.use_token(config.token())
        self._announcing.use_token(config.token())
        if redis is not None:
            self._publisher.use(redis)

    async def close(self) -> None:
        """Stop listening, end the dashboard's streams, and wait for the responses that are in progress."""
        self._port.stop_listening()
        self._dashboard.feed.close()
        await self._port.close()
        await self._publisher.close()
