"""One node: what is built from what, how it starts, and how it stops."""

from __future__ import annotations

import asyncio
import errno
import gc
import secrets
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog
from aiohttp import web

from . import __version__
from .admin import metrics
from .admin.dashboard import Dashboard, LocalSource
from .admin.demo import DemoPages
from .admin.health import HealthEndpoints
from .admin.metrics import NodeMetrics
from .admin.publish import MAX_PUBLISH_BODY as MAX_PUBLISH_BODY
from .admin.publish import PublishEndpoint
from .cli import invocation
from .config import Config
from .core.admission import Admission
from .core.hub import Hub
from .core.session import SessionContext
from .core.timer_wheel import TimerWheel
from .errors import ConfigError
from .messages import CloseCode
from .nodes.info import InfoSource
from .nodes.survey import Survey
from .publishing.publisher import Publisher
from .redis.broker import Broker
from .redis.factory import new_broker, slot_function
from .redis.url import parse_redis_url, redact
from .server.acceptor import Acceptor
from .server.app import SOCKJS_PATH, PublicApp, start_runner, web_app
from .server.handoff import Handoff, Inbox
from .system import capacity, raise_nofile_limit
from .telemetry import logs
from .telemetry.latency import Histogram, Latency

if TYPE_CHECKING:
    from .telemetry.tracing import Tracing

DRAIN_STEP: Final = 0.05
"""Seconds between two shares of sessions that are closed."""

TIMERS_PER_TURN: Final = 200
"""Deadlines handled before others get the loop: 200 pings are some 2 ms."""


log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ListenAddresses:
    """Where a node listens, with the ports it really got."""

    host: str
    port: int
    admin_host: str
    admin_port: int


@dataclass(frozen=True, slots=True)
class WorkerShare:
    """What makes a gateway one of a node's workers; see `supervisor`, which listens for it."""

    number: int
    """From 1."""
    listeners: Sequence[socket.socket]
    inboxes: Sequence[Inbox]
    """Of all the workers."""


class StopOrder(NamedTuple):
    """An order to stop: seconds until the first session is closed, and from there to the last."""

    delay: float
    seconds: float


class Node:
    """A node that can be started, drained and stopped, in any process that runs an event loop."""

    def __init__(self, config: Config, *, demo: bool = False, share: WorkerShare | None = None) -> None:
        """With `demo` the public port serves the demo page too; with `share` it has no admin port."""
        self.config = config
        self._share = share
        self._handover: Handoff | None = None
        self.listening: ListenAddresses | None = None
        self._demo = demo
        self._clock = asyncio.get_running_loop().time
        self._redis = parse_redis_url(config.redis)
        # uvloop's own clock has milliseconds; and it writes to sockets at the end of the loop's turn.
        soon = asyncio.get_running_loop().call_soon
        self._latency = Latency(soon, time.monotonic, time.time)
        self._lag = Histogram(metrics.LAG_BOUNDS)
        slot_of = slot_function(self._redis)
        self._hub = Hub(config.channel_prefix, config.max_result_size, slot_of=slot_of, latency=self._latency)
        self._room = capacity(raise_nofile_limit(), config.max_sessions, config.max_handshakes)
        admission = Admission(self._room.sessions, config.max_sessions_per_ip)
        self._node = SessionContext(config, self._hub, admission, self._clock)
        self._public = PublicApp(self._node)
        self._listeners: list[asyncio.Server] = []
        self._runners: list[web.AppRunner] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._publisher: Publisher | None = None
        self._tracing: Tracing | None = None

    @property
    def sessions(self) -> int:
        """Sessions that are open on this node."""
        return self._node.admission.sessions

    async def start(self) -> ListenAddresses:
        """Listen, and begin to connect to Redis. Raises ConfigError if an address cannot be had."""
        config = self.config
        server = await self._run(self._public_app())
        self._door = Acceptor(
            self._public.endpoint, server, self._room.handshakes, config.handshake_timeout, self._clock
        )
        self._public.attach(self._door)
        port = await self._open_door()
        name = config.node_name(port)
        self._broker = self._new_broker(f"gateway-{name}" + (f"-{self._share.number}" if self._share else ""))
        self._hub.attach(self._broker)
        self._admin = HealthEndpoints(self._node, self._broker, self._door, self._public.gate.refused, name)
        if config.tracing != "off":
            self._tracing = self._latency.trace = _tracing(name)
        publishing = None if self._share else self._publish_views()
        self._metrics = NodeMetrics(
            name,
            self._node,
            self._room.sessions,
            self._broker,
            self._door,
            self._public.gate,
            self._admin,
            self._latency,
            self._lag,
            publishing.outcomes if publishing else Counter(),
        )
        self._admin.metrics = self.metrics
        reporter = InfoSource(
            f"{name} worker {self._share.number}" if self._share else name,
            self._node,
            self._broker,
            self._admin,
            self._room.sessions,
            self._latency,
            self._lag,
            self._clock,
        )
        roster = Survey(self._broker, config.channel_prefix, reporter.answer, self._clock)
        self.live = LocalSource(roster, reporter, self._broker, self._hub)
        self._live = Dashboard(self.live, name, config.admin_host)
        admin_port = await self._open_admin(publishing) if publishing else 0
        self.listening = ListenAddresses(config.host, port, config.admin_host, admin_port)
        if self._share is None:
            announce_in_log(self.listening, name)
        self._tasks = [
            asyncio.create_task(self._broker.run(), name="broker"),
            asyncio.create_task(roster.run(), name="roster"),
            asyncio.create_task(
                run_timers(self._node.deadlines, self._clock, self._lag), name="sessions' deadlines"
            ),
            asyncio.create_task(run_timers(self._door.deadlines, self._clock), name="handshakes' deadlines"),
        ]
        return self.listening

    async def _open_door(self) -> int:
        """Listen on the public port, or on the share of it; returns the port."""
        if self._share is None:
            return await self._listen(self._door, "port", self.config.host, self.config.port)
        handover = Handoff(self._share.number, self._share.inboxes, SOCKJS_PATH, self._door)
        self._door.pass_on = handover.pass_on
        loop = asyncio.get_running_loop()
        for listener in self._share.listeners:
            self._listeners.append(await loop.create_server(self._door, sock=listener))
        handover.open()
        self._handover = handover
        port: int = self._share.listeners[0].getsockname()[1]
        return port

    def _publish_views(self) -> PublishEndpoint:
        config = self.config
        self._publisher = Publisher(config.redis)
        return PublishEndpoint(self._publisher, config.token(), config.channel_prefix, config.max_result_size)

    async def _open_admin(self, publishing: PublishEndpoint) -> int:
        """Listen on the admin port; returns it."""
        routes = [*self._admin.routes(), *publishing.routes(), *self._live.routes()]
        admin = await self._run(web_app(routes, max_body=MAX_PUBLISH_BODY))
        return await self._listen(admin, "admin_port", self.config.admin_host, self.config.admin_port)

    def state(self) -> dict[str, Any]:
        """How the node is, as /readyz says."""
        return self._admin.state()

    def metrics(self) -> bytes:
        """What this process counts, in Prometheus's text format; `metrics.merge` joins several of them."""
        return self._metrics.render()

    async def watch(self) -> None:
        """Wait for a background task to end, which none does by itself; raises what ended it."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def drain(self, delay: float, seconds: float) -> None:
        """Turn unready, serve for `delay` seconds more, then close all sessions evenly over `seconds`."""
        self._admin.draining = True
        log.info("draining", sessions=self.sessions, delay=delay, seconds=seconds)
        await asyncio.sleep(delay)
        self._public.gate.closing = True
        for listener in self._listeners[: len(self._share.listeners) if self._share else 1]:
            listener.close()
        await self._close_sessions(seconds)

    async def _close_sessions(self, seconds: float) -> None:
        sessions = list(self._node.deadlines)
        total, start = len(sessions), self._clock()
        while sessions:
            elapsed = self._clock() - start
            keep = int(total * (1 - elapsed / seconds)) if elapsed < seconds else 0
            for session in sessions[keep:]:
                session.close(CloseCode.SERVICE_RESTART, "service restart")
            del sessions[keep:]
            if sessions:
                await asyncio.sleep(DRAIN_STEP)
        end = self._clock() + self.config.close_timeout + 2 * TimerWheel.TICK
        # Between two polls a client cannot be told; it comes again within milliseconds.
        while self._unfinished and self._clock() < end:  # noqa: ASYNC110 - sessions need not tell, but for now
            await asyncio.sleep(DRAIN_STEP)

    @property
    def _unfinished(self) -> int:
        return self.sessions + self._public.untold

    async def stop(self) -> None:
        """Drop what is still open and release everything; `drain` first for a gentle end."""
        for listener in self._listeners:
            listener.close()
        if self._handover is not None:
            self._handover.close()
        self._drop_everybody()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for runner in self._runners:
            await runner.cleanup()
        if self._publisher is not None:
            await self._publisher.close()
        if self._tracing is not None:
            await self._tracing.close()
        if self.listening is not None:
            log.info("stopped")

    def _drop_everybody(self) -> None:
        for session in list(self._node.deadlines):
            session.abort()
        if self.listening is not None:
            for visitor in list(self._door.deadlines):
                visitor.deadline_passed()
            self._live.feed.close()

    def _new_broker(self, name: str) -> Broker:
        """`name` is what CLIENT LIST shows."""
        # No webSocketId has a colon, so no browser can register it.
        probe = f"{self.config.channel_prefix}:probe:{secrets.token_hex(8)}".encode()
        return new_broker(self._redis, self._hub, name, self._clock, self.config.max_result_size, probe)

    def _public_app(self) -> web.Application:
        routes = self._public.routes()
        if self._demo:
            routes += DemoPages(self._describe).routes()
        # With siblings, a connection must not stay with aiohttp.
        return web_app(routes, middlewares=[self._public.one_at_a_time] if self._share else [])

    def _describe(self) -> Mapping[str, object]:
        """What the demo page shows of this node: its name, and commands that publish to it."""
        assert self.listening is not None
        return {
            "node": self.config.node_name(self.listening.port),
            "version": __version__,
            "channelPrefix": self.config.channel_prefix,
            "redisUrl": redact(self.config.redis),
            "redisCli": invocation.redis_cli(self.config.redis),
            "cli": invocation.program(),
        }

    async def _run(self, app: web.Application) -> web.Server:
        runner = await start_runner(app)
        self._runners.append(runner)
        assert runner.server is not None
        return runner.server

    async def _listen(
        self, factory: Callable[[], asyncio.BaseProtocol], setting: str, host: str, port: int
    ) -> int:
        """Listen with `factory`'s protocols; returns the port, which the kernel picks for 0."""
        loop = asyncio.get_running_loop()
        try:
            listener = await loop.create_server(factory, host, port, backlog=self.config.backlog)
        except OSError as error:
            raise ConfigError(cannot_listen(error, setting, host, port)) from error
        self._listeners.append(listener)
        actual: int = listener.sockets[0].getsockname()[1]
        return actual


def _tracing(node: str) -> Tracing:
    """Spans for results, by a library that most nodes do not have. Raises ConfigError."""
    try:
        from .telemetry.tracing import Tracing
    except ImportError as error:
        raise ConfigError(f"--tracing needs more: pip install 'webflow-gateway[otel]' ({error})") from error
    return Tracing(node)


def announce_in_log(listening: ListenAddresses, name: str, **about: object) -> None:
    """Tell of a node that listens."""
    log.info(
        "listening",
        host=listening.host,
        port=listening.port,
        admin_host=listening.admin_host,
        admin_port=listening.admin_port,
        node=name,
        **about,
    )


def cannot_listen(error: OSError, setting: str, host: str, port: int) -> str:
    """A sentence on why there is no listening on an address, and what to do."""
    why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror or error}"
    flag = setting.replace("_", "-")
    return f"port {port} on {host} {why}; choose another with --{flag} (GATEWAY_{setting.upper()})"


async def run_timers(
    deadlines: TimerWheel[Any], clock: Callable[[], float], lag: Histogram | None = None
) -> None:
    """Serve everybody's deadlines for ever, in shares that leave the loop to others.

    `lag` is told how late each look at them came.
    """
    while True:
        slept_at = time.monotonic()
        await asyncio.sleep(TimerWheel.TICK)
        if lag is not None:
            lag.observe(max(0.0, time.monotonic() - slept_at - TimerWheel.TICK))
        logs.flush()
        for count, item in enumerate(deadlines.expired(clock()), 1):
            try:
                item.deadline_passed()
            except Exception:
                log.exception("deadline failed")
            if not count % TIMERS_PER_TURN:
                await asyncio.sleep(0)


async def serve(
    config: Config,
    *,
    demo: bool = False,
    announce: Callable[[ListenAddresses], None] | None = None,
) -> int:
    """Run a node until SIGTERM or SIGINT; returns the exit code.

    SIGTERM drains as configured, SIGINT without delay, a second signal of either kind ends it at
    once. `announce` is called when the node listens. Raises ConfigError if it cannot.
    """
    orders: asyncio.Queue[StopOrder] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number, order in stop_orders(config).items():
        loop.add_signal_handler(number, orders.put_nowait, order)
    gateway = Node(config, demo=demo)
    try:
        try:
            listening = await gateway.start()
        except ConfigError as error:
            log.error("cannot start", why=str(error))  # noqa: TRY400 - the sentence says it all
            raise
        logs.configure(config.log_level, config.log_format, config.node_name(listening.port))
        if announce is not None:
            announce(listening)
        return await until_stopped(gateway, orders)
    finally:
        await gateway.stop()


def stop_orders(config: Config) -> dict[signal.Signals, StopOrder]:
    """What each signal orders."""
    return {
        signal.SIGTERM: StopOrder(config.drain_delay, config.drain_seconds),
        signal.SIGINT: StopOrder(0, 0),
    }


async def until_stopped(gateway: Node, orders: asyncio.Queue[StopOrder]) -> int:
    """Let a gateway that has started serve until it is ordered to stop, and drain it; returns the exit code.

    A second order ends it at once.
    """
    tune_collector()
    watching = asyncio.create_task(gateway.watch())
    stopping = asyncio.create_task(_drain_on_order(gateway, orders))
    try:
        done, _ = await asyncio.wait((watching, stopping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        watching.cancel()
        stopping.cancel()
    if watching in done:
        log.critical("a background task ended", error=repr(watching.exception()))
        return 1
    return 0


async def _drain_on_order(gateway: Node, orders: asyncio.Queue[StopOrder]) -> None:
    order = await orders.get()
    draining = asyncio.create_task(gateway.drain(order.delay, order.seconds))
    impatient = asyncio.create_task(orders.get())
    _, pending = await asyncio.wait((draining, impatient), return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()


def tune_collector() -> None:
    """Make full collections rare: over many live sessions they would double the cost of a registration.

    What exists now lives as long as the process. Sessions die by reference counting; only aiohttp's
    handshakes leave cycles, and the first generation finds those.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 50, 100)
