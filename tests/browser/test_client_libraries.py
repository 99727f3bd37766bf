"""Real client libraries against real nodes: pages in Chromium, and Python's STOMP clients.

The pages come from another site than the nodes: what Web Flow's page does on its own origin works then as
well, and what only other origins need (CORS, SockJS's iframe, the list of origins) is used, too.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode
from urllib.request import urlopen

import pytest
import redis
import stomp
import stompman
from selenium.webdriver.support.expected_conditions import alert_is_present
from selenium.webdriver.support.ui import WebDriverWait
from stompman.connection_ws import WebSocketConnection

from gateway.drill.fleet import NodeProcess, ValkeyProcess, wait_until
from gateway.publishing.api import publish

from ..integration.conftest import complaints
from ..integration.in_process import until_status
from ..integration.raw import Raw
from ..paths import DOCS
from . import clientlib
from .chromium import WAIT_SECONDS, Browser, chromium

pytestmark = [
    pytest.mark.timeout(180),  # the first test waits until npm has installed the libraries
    pytest.mark.adds_to("stage"),  # tests replace its node, and selenium connects to its browser now and then
]
IN_BROWSER = pytest.mark.needs("chromium", "chromedriver", "npm")
DOCUMENT = DOCS / "clients.md"

GIVEN_UP = "1006 client did not come back"  # what SockJS's HTTP transports find out after five seconds
SOCKETS = "/websocket/websocket"  # stomp.py and stompman can offer no subprotocol, which /ws needs
REGISTER_AT = "/app/registration"
REGISTRATION, AUTHORIZATION = "/user/topic/registration", "/user/topic/authorization"

# What the console may say: that a node was killed, and is not there yet.
LOST = re.compile(
    r"net::ERR_(CONNECTION_\w+|SOCKET_NOT_CONNECTED|EMPTY_RESPONSE|INCOMPLETE_CHUNKED_ENCODING)$"
)
LOST_WEBSOCKET = re.compile(r"WebSocket connection to '[^']*' failed: $")
# What sockjs-client says last can cross the end of its session.
TOO_LATE = re.compile(r"/xhr_send\?t=\d+ - Failed to load resource: [^:]* 404 \(Not Found\)")

SOCKJS = {
    "websocket": "websocket",
    "xhr-streaming": "xhr_streaming",
    "eventsource": "eventsource",
    "xhr-polling": "xhr",
    "iframe-eventsource": "eventsource",
    "iframe-xhr-polling": "xhr",
}
"""The transports of sockjs-client that this gateway has and a living browser can use; where each listens.

The others: jsonp-polling and the two of htmlfile are left out, xdr-streaming and xdr-polling are of Internet
Explorer's. The iframe's are for browsers without CORS, and have to be asked for in any other.
"""

SUBPROTOCOLS = {"1.2": "v12.stomp", "1.1": "v11.stomp", "1.0": "v10.stomp"}


class Case(NamedTuple):
    """A page, and how it connects."""

    libraries: str
    """As docs/clients.md names them, without their versions."""
    endpoint: str
    transport: str
    """Both as docs/clients.md names them."""
    page: str
    parameters: dict[str, str]
    connection: dict[str, str]
    """What the page says of its connection."""
    path: str
    """What the address ends with at which it listens."""

    def __str__(self) -> str:
        return "-".join(filter(None, [self.page, *self.parameters.values()])).replace("/", "")


def _over_sockjs(library: str, page: str, version: str, /, **parameters: str) -> Iterator[Case]:
    for transport, path in SOCKJS.items():
        connection = {"transport": transport, "subprotocol": "", "version": version}
        yield Case(
            f"sockjs-client with {library}",
            "/websocket",
            transport,
            page,
            {**parameters, "transport": transport},
            connection,
            f"/{path}",
        )


def _over_websocket(
    library: str, page: str, endpoint: str, offered: str, version: str, /, **parameters: str
) -> Case:
    """`offered` are the versions whose subprotocols the page offers, in its own order."""
    names = " and ".join(f"`{SUBPROTOCOLS[each]}`" for each in offered.split(","))
    return Case(
        library,
        endpoint,
        names,
        page,
        {**parameters, "endpoint": endpoint},
        {"transport": "", "subprotocol": SUBPROTOCOLS[version], "version": version},
        endpoint,
    )


STOMP_7 = "@stomp/stompjs"
CASES = (
    *_over_sockjs("stompjs", "callbacks", "1.1", library="stompjs"),
    *_over_sockjs("webstomp-client", "callbacks", "1.2", library="webstomp"),
    *_over_sockjs(STOMP_7, "stompjs7", "1.2"),
    _over_websocket("stompjs", "callbacks", "/ws", "1.0,1.1", "1.1", library="stompjs"),
    _over_websocket("webstomp-client", "callbacks", "/ws", "1.0,1.1,1.2", "1.2", library="webstomp"),
    *(
        _over_websocket(STOMP_7, "stompjs7", endpoint, versions, versions[:3], versions=versions)
        for endpoint in ("/ws", "/websocket/websocket")
        for versions in ("1.2", "1.1", "1.0", "1.2,1.1,1.0")
    ),
    Case("the browser's own EventSource", "/events", "server-sent events", "events", {}, {}, "/events"),
)


class Stage:
    """Where pages are opened: a browser, the site with the pages, and a node that can be lost."""

    def __init__(self, browser: Browser, origin: str, valkey: ValkeyProcess) -> None:
        self.browser = browser
        self._origin = origin
        self._valkey = valkey
        self.node = self._start()

    def _start(self, port: int = 0, *options: str) -> NodeProcess:
        # The page in SockJS's iframe is of the node's own origin.
        options = ("--allowed-origins", f"same-origin,{self._origin}", *options)
        script = f"{self._origin}/node_modules/sockjs-client/dist/sockjs.min.js"
        return NodeProcess(self._valkey.url, *options, "--sockjs-url", script, port=port)

    def replace(self, *options: str) -> None:
        """End the node, and start one in its place."""
        self.node.stop()
        self.node = self._start(self.node.port, *options)

    def url(self, page: str, web_socket_id: str, **parameters: str) -> str:
        """The address of a page that is to connect to the node."""
        endpoint = parameters.pop("endpoint", "")
        there = f"127.0.0.1:{self.node.port}"
        query = {"gateway": f"http://{there}", "websocket": f"ws://{there}{endpoint}", "id": web_socket_id}
        return f"{self._origin}/{page}.html?{urlencode(query | parameters)}"

    def seen(self) -> dict[str, Any]:
        """What the page has seen so far."""
        found: dict[str, Any] = self.browser.run("return window.seen")
        return found

    def await_seen(self, what: str, expected: object) -> None:
        """Wait until the page has seen exactly this."""
        try:
            self.browser.wait(lambda: self.seen()[what] == expected, f"{what} are {expected}")
        except Exception as error:
            error.add_note(f"seen: {self.seen()}; console: {self.browser.errors()}")
            raise


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("site")
    clientlib.install(folder)
    with clientlib.served(folder) as origin:
        yield origin


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def stage(chrome: Browser, site: str, valkey: ValkeyProcess) -> Iterator[Stage]:
    prepared = Stage(chrome, site, valkey)
    yield prepared
    prepared.node.stop()


@pytest.fixture
def backend(valkey: ValkeyProcess) -> Iterator[redis.Redis]:
    with valkey.client() as client:
        yield client


def new_id() -> str:
    return f"client-{secrets.token_hex(8)}"


def state(node: NodeProcess) -> dict[str, Any]:
    with urlopen(f"http://127.0.0.1:{node.admin_port}/readyz") as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def left(node: NodeProcess) -> None:
    """Wait until the node has nobody any more, and has been told so by the client."""
    wait_until(lambda: state(node)["channels"] == 0, "the client has left")
    wait_until(lambda: state(node)["sessions"] == 0, "the session has ended")
    closed = state(node)["closed"]
    # An attempt to connect that failed on a busy machine is given up, too.
    assert set(closed) - {GIVEN_UP}, closed


def untroubled(node: NodeProcess) -> None:
    """The node has nothing to complain of, and nothing to warn of."""
    assert not complaints(node.logs)
    assert not [line for line in node.logs if line["level"] == "warning"]


def registered(web_socket_id: str) -> dict[str, object]:
    return {"webSocketId": web_socket_id, "registrationSucceeded": True}


def results(web_socket_id: str, *outcomes: str) -> list[dict[str, str]]:
    return [{"webSocketId": web_socket_id, "authResult": outcome} for outcome in outcomes]


def table() -> list[str]:
    """The rows of the table in docs/clients.md."""
    tested: dict[tuple[str, str], list[str]] = {}
    for case in CASES:
        tested.setdefault((case.libraries, case.endpoint), []).append(case.transport)
    for library in ("stomp.py", "stompman"):
        tested[library, SOCKETS] = ["none"]
    rows = []
    for (libraries, endpoint), transports in tested.items():
        names = [
            f"{name} {clientlib.versions()[name]}" if name in clientlib.versions() else name
            for name in libraries.split(" with ")
        ]
        rows.append(f"| {' with '.join(names)} | `{endpoint}` | {'; '.join(transports)} |")
    return rows


def test_the_document_names_what_is_tested() -> None:
    rows = [line for line in DOCUMENT.read_text().splitlines() if re.match(r"\|.*`/", line)]
    assert rows == table()


@IN_BROWSER
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_page_registers_gets_results_survives_its_node_and_leaves(
    stage: Stage, backend: redis.Redis, case: Case
) -> None:
    name = new_id()
    channel, browser = f"websocket:{name}", stage.browser
    answer = registered(name)
    browser.open(stage.url(case.page, name, **case.parameters))
    stage.await_seen("registrations", [answer])
    assert stage.seen()["connection"] == case.connection
    # SockJS gives an attempt a few times what its first request took, so one may fail on a busy machine.
    losses = stage.seen()["losses"]
    assert backend.publish(channel, "CONTINUE") == 1  # for STOMP it waits for the page's next screen
    browser.run("openNextScreen()")
    stage.await_seen("results", results(name, "CONTINUE"))
    assert backend.publish(channel, json.dumps({"authResult": "FAILED"})) == 1
    stage.await_seen("results", results(name, "CONTINUE", "FAILED"))
    assert stage.seen()["losses"] == losses
    assert browser.errors() == []
    asked = [url.partition("?")[0] for url in browser.requests()]
    in_iframe = case.connection.get("transport", "").startswith("iframe")
    assert in_iframe or any(url.endswith(case.path) for url in asked), asked

    stage.node.kill()
    untroubled(stage.node)
    wait_until(lambda: backend.publish(channel, "FAILED") == 0, "Redis notices")
    publish(backend, name, "CONFIRMED", retain=60)
    stage.replace()
    stage.await_seen("results", results(name, "CONTINUE", "FAILED", "CONFIRMED"))
    assert stage.seen()["losses"] > losses
    stage.await_seen("registrations", [answer] * 2)
    assert backend.publish(channel, "DONE") == 1
    stage.await_seen("results", results(name, "CONTINUE", "FAILED", "CONFIRMED", "DONE"))
    complained = browser.errors()
    assert [each for each in complained if not (LOST.search(each) or LOST_WEBSOCKET.search(each))] == []

    browser.run("leave()")
    left(stage.node)
    assert [each for each in browser.errors() if not TOO_LATE.search(each)] == []
    untroubled(stage.node)


@pytest.mark.alone
@IN_BROWSER
def test_heart_beats_keep_every_library_connected(stage: Stage) -> None:
    """Each library closes once none has come for two intervals, so three must have come in time."""
    transports = ("", "websocket", "xhr-polling")  # a browser has six HTTP connections to a host
    stage.replace("--heartbeat", "1")
    urls = [
        stage.url(case.page, new_id(), beat="1000", **case.parameters)
        for case in CASES
        if case.connection.get("transport") in transports and case.connection["version"] != "1.0"
    ]
    overview = stage.url("side-by-side", "").partition("?")[0]
    browser = stage.browser
    browser.open(overview + "?" + ",".join(quote(url, safe="") for url in urls))

    def seen_by_all() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = browser.run("return window.seenByAll()")
        return found

    browser.wait(lambda: all(seen and seen["beats"] >= 3 for seen in seen_by_all()), "three heart-beats each")
    assert [seen["losses"] for seen in seen_by_all()] == [0] * len(urls)
    assert browser.errors() == []
    browser.driver.get("about:blank")
    untroubled(stage.node)


@IN_BROWSER
async def test_a_page_that_stands_still_keeps_its_session(stage: Stage, backend: redis.Redis) -> None:
    """Its library sends no heart-beats then, whatever it has promised; the browser answers pings for it."""
    stage.replace("--heartbeat", "0.5")
    name, browser = new_id(), stage.browser
    browser.open(stage.url("callbacks", name, library="stompjs", transport="websocket", beat="5000"))
    stage.await_seen("registrations", [registered(name)])
    browser.run("openNextScreen(); setTimeout(alert)")  # no timer and no script runs behind a dialog
    dialog = WebDriverWait(browser.driver, WAIT_SECONDS).until(alert_is_present())
    async with Raw.registered(stage.node.port, new_id()) as mute:
        await mute.rest()  # it answers no ping and is dropped; by then the page has had two
    assert backend.publish(f"websocket:{name}", "CONFIRMED") == 1
    dialog.accept()
    stage.await_seen("results", results(name, "CONFIRMED"))
    assert stage.seen()["losses"] == 0
    browser.run("leave()")
    left(stage.node)
    untroubled(stage.node)


@IN_BROWSER
def test_an_event_source_whose_id_redis_denies_waits_until_it_is_allowed(
    stage: Stage, valkey: ValkeyProcess
) -> None:
    """A rejection would be the end of it: EventSource is told to let it be."""
    rights = ["on", ">secret", "+@all", "allkeys", "resetchannels", "&websocket:allowed*"]
    valkey.ask("ACL", "SETUSER", "restricted", *rights)
    stage.replace("--redis", f"redis://restricted:secret@127.0.0.1:{valkey.port}")
    name, browser = new_id(), stage.browser
    browser.open(stage.url("events", name))
    wait_until(lambda: denied_channels(stage.node) == 1, "Redis denies it")
    valkey.ask("ACL", "SETUSER", "restricted", "&*")
    stage.await_seen("registrations", [registered(name)])
    assert len([url for url in browser.requests() if "/events?" in url]) == 1
    stage.replace()


def denied_channels(node: NodeProcess) -> int:
    body = node.readyz()
    assert body is not None
    return int(body["redis"]["denied_channels"])


class Listener(stomp.ConnectionListener):  # type: ignore[misc]
    """What a client of stomp.py hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []
        self.lost = False

    def on_message(self, frame: Any) -> None:
        self.heard.append((frame.headers["destination"], json.loads(frame.body)))

    def on_disconnected(self) -> None:
        self.lost = True


def stomp_py(node: NodeProcess, name: str) -> tuple[stomp.WSStompConnection, Listener]:
    """A client of stomp.py that has registered `name`."""
    connection = stomp.WSStompConnection([("127.0.0.1", node.port)], ws_path=SOCKETS, heartbeats=(5000, 5000))
    listener = Listener()
    connection.set_listener("test", listener)
    connection.connect(wait=True)
    connection.subscribe(REGISTRATION, "r")
    connection.subscribe(AUTHORIZATION, "a")
    connection.send(REGISTER_AT, json.dumps({"webSocketId": name}))
    wait_until(lambda: listener.heard, "stomp.py registers")
    assert listener.heard[0] == (REGISTRATION, registered(name))
    return connection, listener


def test_stomp_py(valkey: ValkeyProcess, backend: redis.Redis) -> None:
    name = new_id()
    with NodeProcess(valkey.url) as node:
        connection, listener = stomp_py(node, name)
        assert backend.publish(f"websocket:{name}", "CONTINUE") == 1
        wait_until(lambda: len(listener.heard) == 2, "the result arrives")
        assert listener.heard[1] == (AUTHORIZATION, results(name, "CONTINUE")[0])
        node.kill()
        wait_until(lambda: listener.lost, "stomp.py notices")
    publish(backend, name, "CONFIRMED", message_id="m", retain=60)
    with NodeProcess(valkey.url, port=node.port) as other:
        connection, listener = stomp_py(other, name)
        wait_until(lambda: len(listener.heard) == 2, "the retained result arrives")
        assert listener.heard[1] == (AUTHORIZATION, results(name, "CONFIRMED")[0] | {"messageId": "m"})
        connection.disconnect()
        left(other)
        untroubled(other)


async def test_stompman(valkey: ValkeyProcess, backend: redis.Redis) -> None:
    """It reconnects and subscribes again by itself; registering again is left to who uses it."""
    name, heard = new_id(), asyncio.Queue[Any]()
    said = json.dumps({"webSocketId": name}).encode()

    async def hear(frame: stompman.MessageFrame) -> None:
        heard.put_nowait(json.loads(frame.body))

    def fail(error: Exception, frame: stompman.MessageFrame) -> None:
        raise error

    with NodeProcess(valkey.url) as node:
        where = stompman.ConnectionParameters(
            host="127.0.0.1", port=node.port, login="any", passcode="any", ws_uri_path=SOCKETS
        )
        async with (
            asyncio.timeout(30),
            stompman.Client(
                [where], connection_class=WebSocketConnection, connect_retry_attempts=20
            ) as client,
        ):
            subscriptions = [
                await client.subscribe(topic, hear, ack="auto", on_suppressed_exception=fail)
                for topic in (REGISTRATION, AUTHORIZATION)
            ]
            await client.send(said, REGISTER_AT)
            assert await heard.get() == registered(name)
            assert backend.publish(f"websocket:{name}", "CONTINUE") == 1
            assert await heard.get() == results(name, "CONTINUE")[0]
            node.kill()
            publish(backend, name, "CONFIRMED", message_id="m", retain=60)
            with NodeProcess(valkey.url, port=node.port) as other:
                await until_status(other.admin_port, "stompman reconnects", sessions=1)
                await client.send(said, REGISTER_AT)
                assert await heard.get() == registered(name)
                assert await heard.get() == results(name, "CONFIRMED")[0] | {"messageId": "m"}
                for subscription in subscriptions:  # with the last one the client leaves
                    await subscription.unsubscribe()
                untroubled(other)
