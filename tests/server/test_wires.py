"""The table of wires: what a row gives, which tables are rejected, and a wire that a test adds by one row."""

from __future__ import annotations

import re

import pytest

from gateway.config import Config
from gateway.messages import Problem, Request, Result, parse_registration
from gateway.server.wires import WIRES, WireRow, WireTable, session_kinds

from ..paths import DOCS
from .served import ID, served


class TinyWire:
    """A message is an id to register. The gateway speaks first, and confirms with an empty message."""

    name = "tiny"
    binary = False
    either = False
    incomplete = 0
    greeting = b"hello"
    outgoing = 0.0
    heartbeat = b""

    def receive(self, message: bytes) -> tuple[Request, ...]:
        return (parse_registration(message.decode()),)

    def registered(self, web_socket_id: bytes) -> bytes:
        return b""

    def rejected(self, web_socket_id: object, problem: Problem) -> bytes:
        return problem.code.encode()

    def error(self, problem: Problem) -> None:
        return None

    def result(self, web_socket_id: bytes, result: Result) -> bytes:
        return result.auth_result.encode()

    def status(self, push: str) -> None:
        return None


class BinaryWire(TinyWire):
    binary = True


TEXT = WireRow("tiny", "Tiny", lambda _config: TinyWire, websocket="/tiny", sockjs="/sockjs/tiny")
BINARY = WireRow("tiny", "Tiny", lambda _config: BinaryWire, websocket="/tiny")


# A wire that one row adds


async def test_over_a_websocket() -> None:
    async with served(TEXT) as at, at.websocket("/tiny") as socket:
        assert await socket.receive_str() == "hello"
        await socket.send_str(ID)
        assert await socket.receive_str() == ""
        at.publish(b"DONE")
        assert await socket.receive_str() == "DONE"


async def test_over_a_websocket_in_binary() -> None:
    async with served(BINARY) as at:
        async with at.websocket("/tiny") as socket:
            assert await socket.receive_bytes() == b"hello"
            await socket.send_bytes(ID.encode())
            assert await socket.receive_bytes() == b""
            at.publish(b"DONE")
            assert await socket.receive_bytes() == b"DONE"
        async with at.websocket("/tiny") as socket:
            assert await socket.receive_bytes() == b"hello"
            await socket.send_str(ID)
            assert (await socket.receive()).data == 1003


async def test_over_sockjs_by_websocket() -> None:
    async with served(TEXT) as at:
        async with at.websocket("/sockjs/tiny/000/one/websocket") as socket:
            assert [await socket.receive_str() for _ in "12"] == ["o", 'a["hello"]']
            await socket.send_str(f'["{ID}"]')
            assert await socket.receive_str() == 'a[""]'
            at.publish(b"DONE")
            assert await socket.receive_str() == 'a["DONE"]'
        async with at.websocket("/sockjs/tiny/websocket") as raw:
            assert await raw.receive_str() == "hello"


async def test_over_sockjs_by_polls() -> None:
    async with served(TEXT) as at:
        session = "/sockjs/tiny/000/one"
        assert await at.post(f"{session}/xhr") == "o\n"
        assert await at.post(f"{session}/xhr") == 'a["hello"]\n'
        assert await at.post(f"{session}/xhr_send", f'["{ID}"]') == ""
        assert await at.post(f"{session}/xhr") == 'a[""]\n'
        at.publish(b"DONE")
        assert await at.post(f"{session}/xhr") == 'a["DONE"]\n'


def test_in_metrics() -> None:
    transports = [transport for name, transport in session_kinds([*WIRES, TEXT]) if name == "tiny"]
    assert transports == [
        "websocket",
        "sockjs_websocket",
        "sockjs_xhr",
        "sockjs_xhr_streaming",
        "sockjs_eventsource",
    ]


# The table


def test_the_kinds_of_sessions() -> None:
    assert session_kinds() == (
        ("json", "websocket"),
        ("stomp", "websocket"),
        ("stomp", "sockjs_websocket"),
        ("stomp", "sockjs_xhr"),
        ("stomp", "sockjs_xhr_streaming"),
        ("stomp", "sockjs_eventsource"),
        ("sse", "eventsource"),
    )


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([TEXT, BINARY], "two wires have the same name"),
        ([TEXT._replace(websocket="", sockjs="")], "wire tiny: it needs a path"),
        ([TEXT._replace(name="other")], "wire other: its codec has the name tiny"),
        (
            [BINARY._replace(sockjs="/binary")],
            "wire tiny: it is binary, but SockJS",
        ),
        ([BINARY._replace(sse="/binary")], "wire tiny: it is binary, but SockJS"),
        ([*WIRES, TEXT._replace(websocket="/ws")], "/ws: one wire must have no subprotocols, not 2"),
        ([WIRES[1]], "/ws: one wire must have no subprotocols, not 0"),
        (
            [*WIRES, TEXT._replace(websocket="/ws", subprotocols=["v12.stomp"])],
            "/ws: two wires",
        ),
        ([*WIRES, TEXT._replace(sockjs="/websocket")], "only WebSocket endpoints can share a path"),
        ([*WIRES, TEXT._replace(websocket="/events")], "only WebSocket endpoints can share a path"),
    ],
)
def test_tables_that_cannot_be_served(rows: list[WireRow], error: str) -> None:
    with pytest.raises(ValueError, match=f"^{error}"):
        WireTable(Config(), rows)


def documented(row: WireRow) -> list[list[str]]:
    """The first cells of the row's lines in the documentation."""
    subprotocols = ", ".join(f"`{each}`" for each in row.subprotocols)
    cells = [
        ("WebSocket", row.websocket, subprotocols),
        ("SockJS", row.sockjs, ""),
        ("HTTP", row.sse, ""),
    ]
    return [[row.title, transport, f"`{path}`", chosen] for transport, path, chosen in cells if path]


def test_the_table_in_the_documentation() -> None:
    lines = (DOCS / "protocols.md").read_text().splitlines()
    start = lines.index("| protocol | transport | path | subprotocols | use it for |") + 2
    table = [line for line in lines[start : start + 20] if line.startswith("|")]
    end = lines.index("", start) - start
    plain = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", line) for line in table[:end]]
    assert [[cell.strip() for cell in line.split("|")[1:5]] for line in plain] == [
        cells for row in WIRES for cells in documented(row)
    ]
