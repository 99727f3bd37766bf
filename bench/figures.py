"""What is measured: one server, through the phases of a session: register, deliver, disconnect."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import quantiles

import redis

from bench.driver import STALL_SECONDS, BatchingBrowser, Browser, Driver, StompBrowser, browsers
from bench.errors import BenchError
from bench.servers import Address, Server

WARM_UP_SESSIONS = 400
SETTLE_SECONDS = 0.5  # for the last replies and delayed callbacks, which are part of the phase's cost
IDLE_SECONDS = 3.0  # longer than the 2 s between two PINGs of a node to Redis
DELIVERIES = 3  # to each session: one each takes a tenth of a second of CPU, too short for a stable figure
DELIVERY_SLICE = 100
DELIVERY_SLICE_SECONDS = 0.005
LATENCY_PER_SECOND = 500
BROWSERS: dict[str, type[Browser]] = {"stomp": StompBrowser, "stomp-at-once": BatchingBrowser}
"""The clients of a server, by its name; clients of all others speak JSON."""


@dataclass(frozen=True)
class Load:
    """The load: sessions, concurrent handshakes, and messages whose latency is measured."""

    sessions: int
    in_flight: int
    messages: int


@dataclass(frozen=True)
class Figures:
    """The figures of one server from one run; CPU time is that of its process.

    `registration`, `subscription`, `delivery`, `disconnect`, `delivery_alone`: µs per operation, and 0 for
    `subscription` where a client only registers. `memory`: KB per session. `idle`: µs per second while all
    sessions are open and silent. `p50`, `p99`, `longest`: ms from PUBLISH to the client's socket.
    `ids_per_subscribe`: ids in one SUBSCRIBE on average.
    """

    registration: float
    subscription: float
    delivery: float
    disconnect: float
    memory: float
    p50: float
    p99: float
    longest: float
    delivery_alone: float
    idle: float
    ids_per_subscribe: float


class _Phase:
    """µs of the server's CPU time per operation, between the constructor and `end`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._before = server.cpu()

    def end(self, operations: float) -> float:
        return (self._server.cpu() - self._before) / 1000 / operations


def measure(server: Server, address: Address, load: Load) -> Figures:
    """Run one server through all phases. Raises BenchError if it answers wrongly."""
    kind = BROWSERS.get(server.name, Browser)
    driver = Driver(server.port, address, load.in_flight, kind.path)
    with redis.Redis(host=address[0], port=address[1]) as observer:
        try:
            return _phases(server, kind, driver, observer, load)
        except OSError as error:
            server.check()
            raise BenchError(f"{server.name}: {error}") from error
        finally:
            driver.close()


def _phases(
    server: Server, kind: type[Browser], driver: Driver, observer: redis.Redis, load: Load
) -> Figures:
    _warm_up(server, kind, driver)
    clients = browsers(load.sessions, kind)
    bytes_before, commands_before = server.memory(), _subscribe_commands(observer)

    phase = _Phase(server)
    driver.register(clients)
    driver.quiet(SETTLE_SECONDS)
    registration = phase.end(len(clients))

    phase = _Phase(server)
    _subscribe(driver, clients)
    subscription = phase.end(len(clients))

    # The sessions may use memory that the warm-up has freed, so its number is subtracted: errs high.
    memory = (server.memory() - bytes_before) / (len(clients) - WARM_UP_SESSIONS) / 1024
    ids_per_subscribe = len(clients) / max(1, _subscribe_commands(observer) - commands_before)

    phase = _Phase(server)
    driver.quiet(IDLE_SECONDS)
    idle = phase.end(IDLE_SECONDS)

    phase = _Phase(server)
    for _ in range(DELIVERIES):
        driver.deliver(clients, DELIVERY_SLICE, DELIVERY_SLICE_SECONDS)
    driver.quiet(SETTLE_SECONDS)
    delivery = phase.end(len(clients) * DELIVERIES)

    phase = _Phase(server)
    latencies = driver.latencies(clients, load.messages, LATENCY_PER_SECOND)
    delivery_alone = phase.end(load.messages)
    driver.quiet(SETTLE_SECONDS)

    phase = _Phase(server)
    driver.disconnect(clients)
    _wait_until_all_gone(observer)
    driver.quiet(SETTLE_SECONDS)
    disconnect = phase.end(len(clients))

    p50, p99, longest = _spread(latencies)
    return Figures(
        registration,
        subscription,
        delivery,
        disconnect,
        memory,
        p50,
        p99,
        longest,
        delivery_alone,
        idle,
        ids_per_subscribe,
    )


def _subscribe(driver: Driver, clients: list[Browser]) -> None:
    if clients[0].subscription:
        driver.subscribe(clients, DELIVERY_SLICE, DELIVERY_SLICE_SECONDS)
        driver.quiet(SETTLE_SECONDS)


def _warm_up(server: Server, kind: type[Browser], driver: Driver) -> None:
    """Run every code path, and let the allocator take its first memory, before anything is measured."""
    clients = browsers(WARM_UP_SESSIONS, kind)
    driver.register(clients)
    _subscribe(driver, clients)
    driver.deliver(clients, DELIVERY_SLICE, DELIVERY_SLICE_SECONDS)
    driver.disconnect(clients)
    driver.quiet(SETTLE_SECONDS)
    server.check()


def _subscribe_commands(observer: redis.Redis) -> int:
    statistics = observer.info("commandstats")
    return int(statistics.get("cmdstat_subscribe", {"calls": 0})["calls"])


def _wait_until_all_gone(observer: redis.Redis) -> None:
    """Wait until the server has unsubscribed every channel; it may close clients long before."""
    end = time.monotonic() + STALL_SECONDS
    while left := observer.pubsub_channels("websocket:[^:]*"):  # without the channel of the node's probe
        if time.monotonic() > end:
            raise BenchError(f"{len(left)} channels are still subscribed after the last client left")
        time.sleep(0.1)


def _spread(nanoseconds: list[int]) -> tuple[float, float, float]:
    """Median, 99th percentile and longest, in milliseconds."""
    cuts = quantiles(nanoseconds, n=100, method="inclusive")
    return cuts[49] / 1e6, cuts[98] / 1e6, max(nanoseconds) / 1e6
