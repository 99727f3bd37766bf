"""Builds a node from its parts, bottom-up. Which part knows which other part stands here alone."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..admin.dashboard import LocalSource
from ..admin.demo import DemoPages
from ..admin.health import LocalHealth
from ..admin.metrics import LAG_BOUNDS, NodeMetrics
from ..admin.port import AdminPort
from ..config import ANNOUNCED, Config
from ..core.admission import Admission, Backlog, Connections, FairPool
from ..core.events import Event, EventLog
from ..core.hub import Hub
from ..core.session import SessionContext
from ..errors import ConfigError
from ..nodes.info import InfoSource
from ..nodes.sources import Readiness, Sources
from ..nodes.survey import Survey
from ..redis.broker import Broker
from ..redis.event_streams import event_streams
from ..redis.event_writer import EventWriter
from ..redis.factory import new_broker, new_router, slot_function
from ..redis.url import parse_redis_url, redact
from ..server.client_address import source_address
from ..server.handoff import Inbox, Siblings
from ..server.listeners import ListenAddresses, Listeners, open_listeners, port_of
from ..server.port import PublicPort
from ..server.wires import WIRES, WireRow, session_kinds
from ..system import Capacity, capacity, raise_nofile_limit, unread_limit
from ..telemetry.latency import Histogram, Latency
from ..transports.connections import ConnectionLedger
from .node import Node

if TYPE_CHECKING:
    import socket

    from ..telemetry.tracing import Tracing
    from ..tokens.verifier import Verifier

DemoInfo = Mapping[str, object]
"""What the demo page shows besides what the node knows of itself: commands that publish to it."""


@dataclass(frozen=True, slots=True)
class WorkerShare:
    """What makes a process one of a node's workers: its part of what its parent has opened for all."""

    number: int
    """From 1."""
    listeners: Sequence[socket.socket]
    inboxes: Sequence[Inbox]
    """Of all the workers."""


async def build(
    config: Config,
    *,
    demo: DemoInfo | None = None,
    share: WorkerShare | None = None,
    wires: Sequence[WireRow] = WIRES,
) -> Node:
    """Make a node, which listens from now on and serves after `start`; `stop` releases what it holds.

    With `demo` the public port serves the demo page too; with `share` the node has no admin port.
    Raises ConfigError if a port is taken, or tracing needs a package that is not installed.
    """
    listeners = open_listeners(config) if share is None else Listeners(share.listeners, ())
    try:
        return await _compose(config, listeners, demo, share, wires)
    except BaseException:
        listeners.close()
        raise


async def _compose(
    config: Config,
    listeners: Listeners,
    demo: DemoInfo | None,
    share: WorkerShare | None,
    wires: Sequence[WireRow],
) -> Node:
    addresses = ListenAddresses(
        config.host, port_of(listeners.public), config.admin_host, port_of(listeners.admin)
    )
    name = config.node_name(addresses.port)
    loop = asyncio.get_running_loop()
    tracing = _tracing(name) if config.tracing != "off" else None
    # uvloop's own clock has milliseconds; and it writes to sockets at the end of the loop's turn.
    latency = Latency(loop.call_soon, time.monotonic, time.time, tracing)
    client_name = f"gateway-{name}" + (f"-{share.number}" if share else "")
    hub = _hub(config, client_name, latency)
    broker = hub.broker

    room = capacity(raise_nofile_limit(), config.max_sessions, config.max_handshakes)
    admission = Admission(room.sessions, config.max_sessions_per_ip)
    ledger = _ledger(config, room, admission)
    verifier = _verifier(config)
    events = EventLog(name, secrets.token_hex(6), time.time) if config.events == "redis" else None
    context = SessionContext(config, hub, admission, loop.time, ledger, verifier=verifier, events=events)
    public_port = await PublicPort.build(
        context,
        ledger,
        listeners.public,
        wires=wires,
        routes=DemoPages(_demo_info(config, name, demo)).routes() if demo is not None else (),
        siblings=Siblings(share.number, share.inboxes) if share else None,
    )
    sources = Sources(
        name=name,
        max_sessions=room.sessions,
        context=context,
        broker=broker,
        acceptor=public_port.acceptor,
        access=public_port.access,
        readiness=Readiness(broker),
        latency=latency,
        lag=Histogram(LAG_BOUNDS),
        session_kinds=session_kinds(wires),
        published=Counter(),
        event_writer=None if events is None else _event_writer(config, events, f"{client_name}-events"),
    )
    metrics = NodeMetrics(sources)
    info = InfoSource(f"{name} worker {share.number}" if share else name, sources)
    survey = Survey(broker, config.channel_prefix, info.answer, context.clock)
    dashboard = LocalSource(survey, info, broker, hub)
    admin_port = None
    if share is None:
        health = LocalHealth(sources, metrics)
        admin_port = await AdminPort.build(
            config,
            name,
            listeners.admin,
            health,
            dashboard,
            sources.published,
            sources.announced,
            public_port.access.rejected,
            room.admin_connections,
        )
    return Node(
        config, addresses, sources, metrics, survey, dashboard, public_port, admin_port, tracing, verifier
    )


def _hub(config: Config, client_name: str, latency: Latency) -> Hub[Broker]:
    url = parse_redis_url(config.redis)
    # No webSocketId has a colon, so no browser can register the probe's channel.
    probe_channel = f"{config.channel_prefix}:probe:{secrets.token_hex(8)}".encode()
    announced = ANNOUNCED in config.registration
    clock = asyncio.get_running_loop().time
    return Hub(
        config.channel_prefix,
        config.max_result_size,
        lambda hub: new_broker(
            url, hub, client_name, clock, config.max_result_size, probe_channel, announced=announced
        ),
        max_members=config.max_sessions_per_id,
        slot_of=slot_function(url),
        latency=latency,
        announced=announced,
    )


def _ledger(config: Config, room: Capacity, admission: Admission) -> ConnectionLedger:
    return ConnectionLedger(
        Connections(
            room.connections,
            config.max_sessions_per_ip,
            admission,
            partial(source_address, trusted=config.trusted_proxies),
        ),
        FairPool(room.handshakes, fair=config.max_sessions_per_ip > 0),
        Backlog(unread_limit(config.max_unread, config.workers)),
        config.close_timeout,
    )


def _event_writer(config: Config, events: EventLog, client_name: str) -> EventWriter[Event]:
    return EventWriter(
        events,
        new_router(parse_redis_url(config.redis), client_name),
        event_streams(config.channel_prefix, config.event_streams),
        config.events_kept,
        asyncio.get_running_loop().time,
    )


def _demo_info(config: Config, name: str, demo: DemoInfo) -> dict[str, Any]:
    return {
        "node": name,
        "version": __version__,
        "channelPrefix": config.channel_prefix,
        "redisUrl": redact(config.redis),
        **demo,
    }


def _verifier(config: Config) -> Verifier | None:
    keys = config.verification_keys()
    if keys is None:
        return None
    from ..tokens.verifier import Verifier  # with packages that most nodes do not have

    return Verifier(config.registration_keys, keys)


def _tracing(node: str) -> Tracing:
    """Tracing needs a library that most nodes do not have. Raises ConfigError."""
    try:
        from ..telemetry.tracing import Tracing
    except ImportError as error:
        raise ConfigError(
            f"--tracing (GATEWAY_TRACING) needs more packages: pip install 'webflow-gateway[otel]' ({error})"
        ) from error
    return Tracing(node)
