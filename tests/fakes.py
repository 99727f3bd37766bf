"""Stand-ins at the borders of the code: the clock and the loop, a transport, hub members, Redis."""

from __future__ import annotations

import asyncio
import functools
import selectors
import socket
from collections.abc import Callable, Coroutine, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, ParamSpec

import hiredis

from gateway.config import ANNOUNCED, Config
from gateway.core.admission import Admission, Backlog, Connections, FairPool
from gateway.core.hub import Hub
from gateway.core.session import SessionContext
from gateway.messages import Result
from gateway.redis.events import Slots
from gateway.redis.subscriber import READ_SCRIPT
from gateway.transports.connections import ConnectionLedger

P = ParamSpec("P")


# Time


class Clock:
    """Time in seconds that passes when a test says so."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class _Selector(selectors.SelectSelector):
    """Instead of waiting for the next timer it lets the loop's clock jump there."""

    now = 1_000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "nothing is ready and nothing is planned: this would wait for ever"
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop on a clock of its own: sleeping takes no time, and timers come in their order."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now

    def stall(self, seconds: float) -> None:
        """Time passes while nothing runs, as when the process is stopped."""
        self._virtual.now += seconds


def virtual(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test on a VirtualLoop."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


async def turns(count: int = 10) -> None:
    """Let everything happen that waits for nothing but its turn."""
    for _ in range(count):
        await asyncio.sleep(0)


# TCP


class Transport(asyncio.Transport):
    """Keeps what is written. As strict as asyncio's and uvloop's together: writing after the end raises.

    With `stuck` the peer reads nothing, so the buffer fills, and the protocol hears of it as it would
    from asyncio: from within `write`. The end comes when the test calls `lose`; with `prompt` (in a
    loop) right after `abort` and `close`, as in life.
    """

    def __init__(
        self, *, stuck: bool = False, prompt: bool = False, family: int = socket.AF_INET, peer: str = ""
    ) -> None:
        super().__init__()
        self.protocol: Any = None
        self.written: list[bytes] = []
        self.stuck = stuck
        self.closing = self.aborted = self.eof = self.lost = False
        self.reading = True
        self.high = 65_536
        self.options: list[tuple[int, ...]] = []
        self.on_write: Callable[[bytes], None] = lambda _data: None
        self._prompt = prompt
        self._family = family
        self._peer = peer
        self._unsent = 0
        self._paused = False

    @property
    def output(self) -> bytes:
        """Everything written so far."""
        return b"".join(self.written)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "socket":
            return SimpleNamespace(
                family=self._family, setsockopt=lambda *option: self.options.append(option), fileno=lambda: -1
            )
        return (self._peer, 40_000) if name == "peername" and self._peer else default

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol  # type: ignore[no-any-return]

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high is not None
        self.high = high
        self._tell()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.closing or self.eof:
            raise RuntimeError("written to after its end")
        self.written.append(bytes(data))
        self.on_write(bytes(data))
        if self.stuck:
            self._unsent += len(data)
            self._tell()

    def _tell(self) -> None:
        if self._unsent > self.high and not self._paused:
            self._paused = True
            self.protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return self._unsent

    def drain(self) -> None:
        """The peer reads everything."""
        self._unsent, paused, self._paused = 0, self._paused, False
        if paused:
            self.protocol.resume_writing()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self._end()

    def abort(self) -> None:
        self.aborted = True
        self._end()

    def _end(self) -> None:
        if not self.closing and self._prompt:
            asyncio.get_running_loop().call_soon(self.lose)
        self.closing = True

    def lose(self, why: Exception | None = None) -> None:
        """The connection is gone."""
        if not self.lost:
            self.closing = self.lost = True
            self.protocol.connection_lost(why)


# The hub's two sides


class Member:
    """A hub's member that keeps what it is told, in order."""

    def __init__(self, name: str = "member") -> None:
        self.name = name
        self.heard: list[tuple[str, bytes | str]] = []
        self.is_degraded = False

    def confirm(self, web_socket_id: bytes) -> None:
        self.heard.append(("confirm", web_socket_id))

    def refuse_unknown(self, web_socket_id: bytes) -> bool:
        raise AssertionError("a hub that admits every id has no question")

    def deliver(self, web_socket_id: bytes, result: Result, retained: bool = False) -> None:
        self.heard.append(("deliver", result.auth_result))

    def degraded(self) -> None:
        self.is_degraded = True
        self.heard.append(("degraded", ""))

    def restored(self) -> None:
        if self.is_degraded:  # it is told in any case, and most tests are about other things
            self.is_degraded = False
            self.heard.append(("restored", ""))

    def __repr__(self) -> str:
        return self.name


class Subscriber:
    """A broker that keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes]] = []
        self.lines_down: set[bytes] = set()
        """Channels that cannot be heard, and have not been for long."""
        self.connected = True
        self.deaf = ""

    def reaches(self, _name: bytes) -> bool:
        return self.connected

    def subscribe(self, name: bytes) -> None:
        self.asked.append(("subscribe", name))

    def read(self, name: bytes) -> None:
        self.asked.append(("read", name))

    def unsubscribe(self, name: bytes) -> None:
        self.asked.append(("unsubscribe", name))

    def degraded(self, name: bytes) -> bool:
        return name in self.lines_down

    def lose(self, hub: Hub[Any]) -> None:
        """The connection is gone."""
        self.connected = False
        hub.disconnected()

    def regain(self, hub: Hub[Any]) -> list[bytes]:
        """There is a new one."""
        self.connected = True
        return list(hub.connected())

    def taken(self) -> list[tuple[str, bytes]]:
        """What was asked since the last time."""
        asked, self.asked = self.asked, []
        return asked


def node(clock: Clock | None = None, subscriber: Subscriber | None = None, **settings: Any) -> SessionContext:
    """What the sessions of a test share; its hub is connected to `subscriber`."""
    config = Config(**settings)
    broker = subscriber or Subscriber()
    hub = Hub(
        config.channel_prefix,
        config.max_result_size,
        lambda _hub: broker,
        max_members=config.max_sessions_per_id,
        announced=ANNOUNCED in config.registration,
    )
    admission = Admission(config.max_sessions, config.max_sessions_per_ip)
    return SessionContext(config, hub, admission, clock or Clock(), ledger(config, admission))


def ledger(
    config: Config | None = None,
    admission: Admission | None = None,
    *,
    total: int = 1_000_000,
    handshakes: int | None = None,
) -> ConnectionLedger:
    """Counts the connections of a test, at most `total` of them."""
    config = config or Config()
    per_address = config.max_sessions_per_ip
    admission = admission or Admission(config.max_sessions, per_address)
    return ConnectionLedger(
        Connections(total, per_address, admission, str),
        FairPool(config.max_handshakes if handshakes is None else handshakes, fair=per_address > 0),
        Backlog(config.max_unread),
        config.close_timeout,
    )


# Redis


def resp(value: object) -> bytes:
    """`value` as Redis would say it in RESP3: str is a simple string, an exception an error."""
    if value is None:
        return b"_\r\n"
    if isinstance(value, bytes):
        return b"$%d\r\n%b\r\n" % (len(value), value)
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, str):
        return b"+%b\r\n" % value.encode()
    if isinstance(value, Exception):
        return b"-%b\r\n" % str(value).encode()
    assert isinstance(value, list)
    return b"*%d\r\n" % len(value) + b"".join(map(resp, value))


def push(kind: bytes, *values: object) -> bytes:
    """A push message of RESP3, such as the confirmation of a channel."""
    return b">%d\r\n" % (1 + len(values)) + resp(kind) + b"".join(map(resp, values))


def parse_commands(data: bytes) -> list[list[bytes]]:
    """The commands in what a client wrote; the link's script as [b"READ", *keys]."""
    reader = hiredis.Reader()
    reader.feed(data)
    commands = []
    while (command := reader.gets()) is not False:
        if command[1:2] == [READ_SCRIPT.encode()]:
            command = [b"READ", *command[3 : 3 + int(command[2])]]
        commands.append(command)
    return commands


class Redis:
    """As much of a Redis server as the gateway talks to, over one connection; no I/O.

    It refuses what its access rules forbid with NOPERM, a whole SUBSCRIBE or READ at a time, as the
    real one does.
    """

    def __init__(self) -> None:
        self.subscribed: set[bytes] = set()
        self.retained: dict[bytes, bytes] = {}
        self.forbidden_channels: set[bytes] = set()
        self.forbidden_keys: set[bytes] = set()
        self.hello = {b"mode": b"standalone"}
        """Its reply to HELLO."""
        self.commands: list[list[bytes]] = []

    def execute(self, command: list[bytes]) -> bytes:
        """The bytes that answer `command`."""
        self.commands.append(command)
        name, arguments = command[0].upper(), command[1:]
        if name == b"SUBSCRIBE":
            if self.forbidden_channels.intersection(arguments):
                return resp(Exception("NOPERM this user has no permissions to access one of the channels"))
            self.subscribed.update(arguments)
            return b"".join(push(b"subscribe", channel, 1) for channel in arguments)
        if name == b"UNSUBSCRIBE":
            self.subscribed.difference_update(arguments)
            return b"".join(push(b"unsubscribe", channel, 0) for channel in arguments)
        if name == b"READ":
            if self.forbidden_keys.intersection(arguments):
                return resp(Exception("NOPERM this user has no permissions to access one of the keys"))
            return resp([self.retained.get(key) for key in arguments])
        if name == b"HELLO":
            fields = [resp(part) for field in self.hello.items() for part in field]
            return b"%%%d\r\n" % len(self.hello) + b"".join(fields)
        return resp({b"PING": "PONG", b"SELECT": "OK"}[name])

    def publish(self, channel: bytes, payload: bytes) -> bytes:
        """What the connection gets to hear of a PUBLISH."""
        return push(b"message", channel, payload) if channel in self.subscribed else b""

    def serve(self, transport: Transport) -> None:
        """Answer whatever is written to `transport`, in a later turn of the loop."""

        def answer(data: bytes) -> None:
            replies = b"".join(self.execute(command) for command in parse_commands(data))
            asyncio.get_running_loop().call_soon(deliver, replies)

        def deliver(replies: bytes) -> None:
            if not transport.closing:
                transport.protocol.data_received(replies)

        transport.on_write = answer


class Events:
    """The other side of a link: keeps what it is told, and names `wanted` channels on each connection."""

    def __init__(self, wanted: Iterable[bytes] = ()) -> None:
        self.wanted = list(wanted)
        self.given_up: set[bytes] = set()
        """Channels that nobody waits for when Redis denies them."""
        self.heard: list[tuple[Any, ...]] = []

    def connected(self, _slots: Slots | None = None) -> list[bytes]:
        self.heard.append(("connected",))
        return self.wanted

    def disconnected(self, _slots: Slots | None = None) -> None:
        self.heard.append(("disconnected",))

    def confirmed(self, _slots: Slots | None = None) -> list[bytes]:
        return self.wanted

    def count_confirmed(self, _slots: Slots | None = None) -> int:
        return len(self.wanted)

    def is_confirmed(self, name: bytes) -> bool:
        return name in self.wanted

    def lost(self, name: bytes, *, answer: bool = False) -> None:
        self.heard.append(("lost", name, answer))

    def subscribed(self, name: bytes, retained: bytes | None) -> None:
        self.heard.append(("subscribed", name, retained))

    def unsubscribed(self, name: bytes) -> None:
        self.heard.append(("unsubscribed", name))

    def received(self, name: bytes, payload: bytes) -> None:
        self.heard.append(("received", name, payload))

    def degraded(self, _slots: Slots | None = None) -> Iterator[None]:
        for name in self.wanted:
            self.heard.append(("degraded", name))
            yield

    def denied(self, name: bytes) -> bool:
        self.heard.append(("denied", name))
        return name not in self.given_up

    def retry(self, name: bytes) -> bool:
        self.heard.append(("retry", name))
        return name not in self.given_up

    def taken(self) -> list[tuple[Any, ...]]:
        """What was heard since the last time."""
        heard, self.heard = self.heard, []
        return heard
