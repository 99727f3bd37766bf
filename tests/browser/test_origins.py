"""What a real Chromium sends as a page's origin, and that a node which allows that origin serves the page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.drill.fleet import NodeProcess, ValkeyProcess

from .chromium import Browser, chromium

pytestmark = [
    pytest.mark.needs("chromium"),
    pytest.mark.needs("chromedriver"),
    pytest.mark.adds_to("browser"),  # selenium connects to the browser's driver anew now and then
]

# As the libraries that fetch an event stream do it, because an EventSource can set no header.
FETCH = """
const headers = { "Last-Event-ID": "m-1", "Cache-Control": "no-cache" };
const answer = await fetch(arguments[0], { headers });
const reader = answer.body.getReader();
const first = await reader.read();
await reader.cancel();
return new TextDecoder().decode(first.value);
"""

CONNECT = """
const socket = new WebSocket(arguments[0]);
return await new Promise((resolve) => {
  socket.onopen = () => resolve("open");
  socket.onclose = (event) => resolve(event.code);
});
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@contextmanager
def node(valkey: ValkeyProcess, origins: str) -> Iterator[tuple[str, str]]:
    """The URLs of the events and of the WebSocket of a node that allows `origins`."""
    with NodeProcess(valkey.url, "--allowed-origins", origins) as running:
        yield f"http://127.0.0.1:{running.port}/events?webSocketId=a", running.ws_url


def test_a_page_that_fetches_the_events_of_another_host_comes_back(
    browser: Browser, valkey: ValkeyProcess
) -> None:
    with NodeProcess(valkey.url) as page_server:
        page = f"http://localhost:{page_server.admin_port}"
        with node(valkey, page) as (events, websocket):
            browser.open(f"{page}/healthz")
            assert browser.run(FETCH, events).startswith("retry: 1000")
            assert browser.run(CONNECT, websocket) == "open"
            browser.open(f"http://127.0.0.1:{page_server.admin_port}/healthz")
            assert browser.run(CONNECT, websocket) == 1006, "the control: another origin"


def test_a_page_in_a_file(browser: Browser, valkey: ValkeyProcess, tmp_path: Path) -> None:
    """Chromium sends `null` when such a page fetches, and `file://` when it opens a WebSocket."""
    file = tmp_path / "page.html"
    file.write_text("<!doctype html><title>page</title>")
    with node(valkey, "null,file://") as (events, websocket):
        browser.open(file.as_uri())
        assert browser.run(FETCH, events).startswith("retry: 1000")
        assert browser.run(CONNECT, websocket) == "open"
