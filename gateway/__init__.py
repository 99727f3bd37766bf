"""Webflow Gateway: tells a waiting browser at once that its login or payment was approved.

Reading order, from what is decided to what carries it out:

    messages, errors   what is said, in no wire's form; what can go wrong
    wire/              how each protocol says it: bytes in, requests out; answers in, bytes out
    frames             RFC 6455 frames: bytes in, messages out
    handshake          what is wrong with a WebSocket handshake, and the answers
    latency            how long a result takes, counted in buckets
    redis_url, slots   where Redis is, as its URL says; what a Cluster says of who serves what
    subscriptions      the table: who waits for which id, and what Redis has confirmed
    limits             whom to admit; which deadline comes next
    ownership          which worker a request belongs to, where several serve one port
    restarts, health   when a worker is replaced; what workers are together
    processors         how many there are to use
    config             the settings, each defined once
    invocation, logs   command lines to show; one line an event
    hub                carries out the table's decisions and fans results out
    session            one client, whatever it speaks
    websocket          a session over a WebSocket's transport
    stream             HTTP responses that last, without aiohttp
    sockjs             sessions over SockJS: by WebSocket, by polls, by streams
    quorum, sentinels  one question to several servers; which server is the master
    topology           where Redis is
    connection, link   one connection to Redis; what it has subscribed
    probe, audit       the proof that a link hears; the table held against Redis
    notice             the word to whoever waits that results cannot be heard
    broker             the keeper of a link, that builds the next one
    shard_link         a link to a node of a Cluster
    cluster            a keeper for each master of a Cluster, and the map of who serves what
    roster, report     nodes that ask each other; what they answer
    publishing         the script that publishes and retains in one step; `publish`
    line, routes       connections for publishing; which server a result is published on
    publisher          publishes in bounded time, whatever kind of Redis it is
    descriptors        how many connections there is room for
    handover           connections that go from one worker to another
    door               the public port, while a connection waits for a request
    gate               who is let in, and where WebSockets open
    sockjs_views       HTTP: the paths of SockJS
    events             server-sent events: the session and its path
    publish_views      HTTP: results from backends
    metrics            what a node counts, in Prometheus's words
    tracing            spans of OpenTelemetry, where they are asked for
    views              HTTP: which path leads where, health, metrics, demo page
    live               HTTP: the live page, for all nodes at a glance
    app                what is built from what; start, drain, stop
    control            the line between a worker and its parent
    worker             one of several processes that serve a port, from fork to exit
    posts              a worker's place: what outlives it, and who stands in
    workers_views      HTTP: health and metrics of all workers
    supervisor         the parent that keeps workers alive
    embedded           the Valkey that `dev` starts
    watching           the client behind `watch`
    drill/             faults under load, against nodes and Redis servers of its own
    cli                the commands

The modules down to `health` do no I/O and know neither asyncio nor the clock: time is an argument.
Imports go one way, downwards to the top of that list; tests/test_architecture.py holds both rules.

Registering: `door` reads the handshake, `views` lets it in, a `WebSocketSession` takes the transport ->
`wire.receive` -> `Register` -> `hub.register` -> `subscriptions.join` -> `broker.subscribe` (one
SUBSCRIBE and one read for all ids of the same turn of the loop). Redis answers -> `hub.subscribed` ->
`subscriptions.confirmed` -> `session.acknowledge` -> socket.

Delivering: Redis push -> `hub.received` -> for each member `session.deliver` -> socket. No await on
either path.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import PublishError
    from .publishing.api import Published, publish

__version__ = "0.1.0"
__all__ = ["publish", "Published", "PublishError"]


def __getattr__(name: str) -> Any:
    """The package's public names, with redis-py imported only for who publishes (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import errors
    from .publishing import api as publishing

    return getattr(errors if name == "PublishError" else publishing, name)
