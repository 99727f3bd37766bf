"""The shipped client.js: its states in Node.js with a page that is played; its life in a real Chromium."""

from __future__ import annotations

import gzip
import secrets
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
import redis

from gateway import publish
from gateway.drill.fleet import NodeProcess, ValkeyProcess, free_port, wait_until

from ..paths import ROOT
from . import clientlib
from .chromium import Browser, chromium

CLIENT = ROOT / "gateway" / "static" / "client.js"
TESTS = ROOT / "tests" / "browser" / "client.test.mjs"
PAGE = ROOT / "tests" / "browser" / "client_page" / "client.html"

IN_BROWSER = pytest.mark.needs("chromium", "chromedriver")
pytestmark = pytest.mark.adds_to("chrome")  # selenium connects to the browser's driver anew now and then

COMPRESSED = 4096  # bytes: what the client may cost a page


@pytest.mark.needs("node")
def test_every_state_meets_every_event() -> None:
    done = subprocess.run(["node", "--test", TESTS], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    assert "# pass 0" not in done.stdout


def test_is_small() -> None:
    assert len(gzip.compress(CLIENT.read_bytes())) < COMPRESSED


# In Chromium


class Page:
    """The page with the client, in the browser."""

    def __init__(self, browser: Browser, origin: str, websocket: str) -> None:
        self.browser = browser
        self.websocket = websocket
        self.id = f"page-{secrets.token_hex(8)}"
        browser.open(f"{origin}/client.html?{urlencode({'id': self.id, 'websocket': websocket})}")

    def seen(self, what: str) -> Any:
        return self.browser.run("return window.seen()[arguments[0]]", what)

    @property
    def state(self) -> str:
        last: str = self.browser.run("return window.seen().states.at(-1)")
        return last

    def wait_for(self, state: str) -> None:
        self.wait(lambda: self.state == state, f"the page is {state}")

    def wait(self, condition: Callable[[], object], what: str) -> None:
        try:
            self.browser.wait(condition, what)
        except Exception as error:
            error.add_note(f"seen: {self.browser.run('return window.seen?.()')}")
            raise

    def leads_to(self, websocket: str) -> None:
        """From now on its sockets lead there."""
        self.browser.run("window.target = arguments[0]", websocket)

    def run(self, script: str) -> Any:
        return self.browser.run(script)

    def sleep_and_return(self) -> None:
        """Into the back/forward cache and out of it."""
        self.browser.driver.get("about:blank")
        self.browser.driver.back()
        self.wait(lambda: self.browser.run("return Boolean(window.seen?.().persisted)"), "it is back")

    def lifecycle(self, state: str) -> None:
        """`frozen` is what a browser does to a page in the background; `active` ends it."""
        self.browser.driver.execute_cdp_cmd("Page.setWebLifecycleState", {"state": state})

    def network(self, *, offline: bool) -> None:
        conditions = {"offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.browser.driver.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)

    def is_well(self, connections: int = 1) -> None:
        """Nothing was thrown, and it holds this many connections."""
        assert self.seen("thrown") == []
        self.wait(lambda: self.seen("live") == connections, f"{connections} connections")


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    for file in (CLIENT, PAGE):
        shutil.copy(file, folder)
    with clientlib.served(folder) as origin:
        yield origin


@pytest.fixture(scope="module")
def node(origin: str, valkey: ValkeyProcess) -> Iterator[NodeProcess]:
    with NodeProcess(valkey.url, "--allowed-origins", origin) as running:
        yield running


@pytest.fixture
def page(chrome: Browser, origin: str, node: NodeProcess) -> Iterator[Page]:
    """A page that is registered at the node."""
    page = Page(chrome, origin, node.ws_url)
    page.wait_for("registered")
    yield page
    page.network(offline=False)
    chrome.driver.get("about:blank")


@pytest.fixture
def backend(valkey: ValkeyProcess) -> Iterator[redis.Redis]:
    with valkey.client() as client:
        yield client


def nobody_listens(backend: redis.Redis, page: Page) -> bool:
    return int(backend.pubsub_numsub(f"websocket:{page.id}")[0][1]) == 0


def hears(page: Page, backend: redis.Redis, result: str) -> None:
    """A result that is not retained reaches the page."""
    assert backend.publish(f"websocket:{page.id}", result) == 1
    page.wait(lambda: page.seen("results")[-1:] == [result], f"{result} arrives")


@IN_BROWSER
def test_a_page_out_of_the_back_forward_cache_registers_again(page: Page, backend: redis.Redis) -> None:
    """Chromium says that the page is visible before it says that the page is back."""
    page.sleep_and_return()
    page.wait_for("registered")
    events = page.seen("events")
    assert events.index("visible") < events.index("pageshow", 1), "the case that raised TypeError"
    assert page.seen("states") == ["connecting", "registering", "registered"] * 2
    page.is_well()
    hears(page, backend, "CONFIRMED")


@IN_BROWSER
def test_a_page_in_the_cache_holds_nothing_and_gets_what_was_retained(
    page: Page, backend: redis.Redis
) -> None:
    page.browser.driver.get("about:blank")
    wait_until(lambda: nobody_listens(backend, page), "a page that was left holds nothing")
    publish(backend, page.id, "CONFIRMED", retain=60)
    page.browser.driver.back()
    page.wait(lambda: page.run("return window.seen?.().results.at(-1)") == "CONFIRMED", "it arrives")
    page.is_well()


@pytest.fixture(scope="module")
def deaf(origin: str) -> Iterator[NodeProcess]:
    """A node without Redis: who registers there waits."""
    url = f"redis://127.0.0.1:{free_port()}"
    with NodeProcess(url, "--allowed-origins", origin, wait_ready=False) as running:
        yield running


@pytest.fixture(scope="module")
def black_hole() -> Iterator[str]:
    """The URL of a server that takes connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"ws://127.0.0.1:{silent.getsockname()[1]}/ws"


@pytest.fixture(params=["connecting", "registering", "registered", "waiting", "closed"])
def page_in_state(request: pytest.FixtureRequest, page: Page, deaf: NodeProcess, black_hole: str) -> Page:
    """A page in each of the states, which connects to the node from now on."""
    state = str(request.param)
    leads = {
        "connecting": black_hole,
        "registering": deaf.ws_url,
        "waiting": f"ws://127.0.0.1:{free_port()}/",
    }
    if state in leads:
        page.run("Math.random = () => 1; client.close()")
        page.leads_to(leads[state])
        page.run("client.open()")
    if state == "waiting":
        page.run("window.haste = 0.1")
    if state == "closed":
        page.run("client.close()")
    page.wait_for(state)
    page.leads_to(page.websocket)
    return page


@IN_BROWSER
def test_sleep_and_return_in_every_state(page_in_state: Page, backend: redis.Redis) -> None:
    page, before = page_in_state, page_in_state.state
    page.sleep_and_return()
    if before == "closed":
        assert page.state == "closed"
        page.is_well(0)
        return
    page.wait_for("registered")
    page.is_well()
    hears(page, backend, "CONFIRMED")


@IN_BROWSER
def test_close_in_every_state(page_in_state: Page, backend: redis.Redis) -> None:
    page = page_in_state
    page.run("client.close()")
    assert page.state == "closed"
    page.is_well(0)
    page.run("dispatchEvent(new Event('online'))")
    assert page.state == "closed"
    wait_until(lambda: nobody_listens(backend, page), "it has left")
    page.run("client.open()")
    page.wait_for("registered")
    page.is_well()
    hears(page, backend, "CONFIRMED")


@IN_BROWSER
def test_a_frozen_page_holds_nothing_and_gets_what_was_retained(page: Page, backend: redis.Redis) -> None:
    """Chromium would keep its connection, take what comes, and drop both when the page resumes."""
    page.lifecycle("frozen")
    wait_until(lambda: nobody_listens(backend, page), "a frozen page holds nothing")
    publish(backend, page.id, "CONFIRMED", retain=60)
    page.lifecycle("active")
    page.wait(lambda: page.seen("results") == ["CONFIRMED"], "it arrives")
    assert {"freeze", "resume"} <= set(page.seen("events"))
    page.is_well()


@IN_BROWSER
def test_a_page_is_back_as_soon_as_the_network_is(page: Page, backend: redis.Redis) -> None:
    page.run("Math.random = () => 1; window.haste = 0.1")
    page.network(offline=True)
    page.leads_to(f"ws://127.0.0.1:{free_port()}/ws")  # also where being offline does not end WebSockets
    page.run("client.close(); client.open()")
    page.wait_for("waiting")
    page.leads_to(page.websocket)
    page.network(offline=False)
    page.wait_for("registered")
    assert "online" in page.seen("events")
    page.is_well()
    hears(page, backend, "CONFIRMED")


@IN_BROWSER
def test_a_page_leaves_a_node_that_stays_without_redis_and_is_never_alone(
    page: Page, origin: str, deaf: NodeProcess, backend: redis.Redis
) -> None:
    """Its node holds it until another one does. The first one that it tries is no better."""
    with ValkeyProcess() as other_valkey:
        with NodeProcess(other_valkey.url, "--allowed-origins", origin) as old:
            page.leads_to(old.ws_url)
            page.run("client.close(); Math.random = () => 0; client.open()")
            page.wait_for("registered")
            page.run("window.haste = 20")
            page.leads_to(deaf.ws_url)
            other_valkey.kill()
            page.wait(lambda: page.seen("push") == ["degraded"], "its node has lost Redis")
            wait_until(lambda: deaf.sessions() > 0, "it tries another node")
            wait_until(lambda: deaf.sessions() == 0, "which is no better")
            assert old.sessions() == 1
            assert page.state == "registered"
            page.leads_to(page.websocket)
            page.wait(lambda: page.seen("push") == ["degraded", "restored"], "the next one has Redis")
            wait_until(lambda: old.sessions() == 0, "the old one is left")
        hears(page, backend, "CONFIRMED")
        assert "waiting" not in page.seen("states")
        page.is_well()
