"""The table of wires: each protocol that clients may speak, how its codec is made, and where it is served.

To add a wire, write its codec in `gateway/wire/` and add its line to `WIRES`. The endpoints of the public
port, the labels of `gateway_sessions` and the table in docs/protocols.md follow from this table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from ..config import Config
from ..transports.sockjs import SOCKJS_TRANSPORTS
from ..transports.sse import SSESession
from ..transports.websocket import WebSocketSession
from ..wire import WireFactory
from ..wire.json import JSON_WIRE
from ..wire.sse import SSE_WIRE
from ..wire.stomp import SUBPROTOCOLS, StompWire
from .websocket import SpokenWires


class WireRow(NamedTuple):
    """One wire. It may be served over several transports, at one path each; empty for not at all."""

    name: str
    """The wire's own name, which is its label in metrics."""
    title: str
    """The protocol's name in the documentation."""
    factory: Callable[[Config], WireFactory]
    """Returns what makes the codec of each session. A wire without state may return the same codec always."""
    websocket: str = ""
    """The path of its WebSocket endpoint, which several wires may share."""
    subprotocols: Sequence[str] = ()
    """WebSocket subprotocols by which a client chooses this wire, the preferred one first. At a shared path,
    the one wire without subprotocols serves all clients that name none."""
    sockjs: str = ""
    """The prefix of its SockJS endpoints. SockJS can carry text only."""
    sse: str = ""
    """The path of its server-sent events. Each of its messages must be one or more events."""

    @property
    def kinds(self) -> Iterator[tuple[str, str]]:
        """The kinds of sessions that may speak it: its name, and each transport's name in metrics."""
        if self.websocket:
            yield self.name, WebSocketSession.transport
        if self.sockjs:
            yield from ((self.name, transport) for transport in SOCKJS_TRANSPORTS)
        if self.sse:
            yield self.name, SSESession.transport


def _stomp(config: Config) -> WireFactory:
    interval = int(config.heartbeat * 1000)
    return lambda: StompWire(config.max_message_size, (interval, interval))


WIRES: Final = (
    WireRow("json", "JSON", lambda _config: lambda: JSON_WIRE, websocket="/ws"),
    WireRow("stomp", "STOMP 1.0, 1.1, 1.2", _stomp, "/ws", subprotocols=SUBPROTOCOLS, sockjs="/websocket"),
    WireRow("sse", "server-sent events", lambda _config: lambda: SSE_WIRE, sse="/events"),
)


def session_kinds(rows: Iterable[WireRow] = WIRES) -> tuple[tuple[str, str], ...]:
    """Every kind of session that there can be: the wire's name and the transport's."""
    return tuple(dict.fromkeys(kind for row in rows for kind in row.kinds))


class WireTable:
    """The wires of one node, by transport and path."""

    def __init__(self, config: Config, rows: Sequence[WireRow] = WIRES) -> None:
        """Raises ValueError, which names the row, for a table that cannot be served."""
        factories = {row.name: row.factory(config) for row in rows}
        _check(rows, factories)
        self.websocket: Mapping[str, SpokenWires] = {
            path: _spoken(path, [row for row in rows if row.websocket == path], factories)
            for path in _paths(row.websocket for row in rows)
        }
        self.sockjs: Mapping[str, SpokenWires] = {
            row.sockjs: _wires(factories[row.name], dict.fromkeys(row.subprotocols, factories[row.name]))
            for row in rows
            if row.sockjs
        }
        self.sse: Mapping[str, WireFactory] = {row.sse: factories[row.name] for row in rows if row.sse}


def _paths(paths: Iterable[str]) -> Sequence[str]:
    return tuple(dict.fromkeys(path for path in paths if path))


def _spoken(path: str, rows: Sequence[WireRow], factories: Mapping[str, WireFactory]) -> SpokenWires:
    defaults = [row.name for row in rows if not row.subprotocols]
    if len(defaults) != 1:
        raise ValueError(f"{path}: one wire must have no subprotocols, not {len(defaults)}: {defaults}")
    chosen = [(protocol, factories[row.name]) for row in rows for protocol in row.subprotocols]
    if len(dict(chosen)) < len(chosen):
        raise ValueError(f"{path}: two wires have the same subprotocol")
    return _wires(factories[defaults[0]], dict(chosen))


def _wires(default: WireFactory, by_subprotocol: Mapping[str, WireFactory]) -> SpokenWires:
    return SpokenWires(default, by_subprotocol, tuple(by_subprotocol))


def _check(rows: Sequence[WireRow], factories: Mapping[str, WireFactory]) -> None:
    if len(factories) < len(rows):
        raise ValueError("two wires have the same name")
    exclusive = [path for row in rows for path in (row.sockjs, row.sse) if path]
    shared = _paths(row.websocket for row in rows)
    if len({*exclusive, *shared}) < len(exclusive) + len(shared):
        raise ValueError("only WebSocket endpoints can share a path: SockJS and SSE carry one wire at each")
    for row in rows:
        wire = factories[row.name]()
        if wire.name != row.name:
            raise ValueError(f"wire {row.name}: its codec has the name {wire.name}")
        if not (row.websocket or row.sockjs or row.sse):
            raise ValueError(f"wire {row.name}: it needs a path: websocket, sockjs or sse")
        if wire.binary and (row.sockjs or row.sse):
            raise ValueError(f"wire {row.name}: it is binary, but SockJS and SSE can carry text only")
