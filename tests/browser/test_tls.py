"""TLS in front of a node, as docs/proxies.md has it: more tabs than connections, in a real Chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium.common.exceptions import TimeoutException

from gateway.drill.fleet.nginx import NginxProcess

from ..certificates import haproxy_with_tls, self_signed
from ..paths import DEPLOY, DOCS
from ..running_nodes import BalancedNodes, started
from .chromium import Browser, chromium

pytestmark = [
    pytest.mark.needs("chromium"),
    pytest.mark.needs("chromedriver"),
    pytest.mark.adds_to("browser"),  # selenium connects to the browser's driver anew now and then
]

DOCUMENTED = (DOCS / "proxies.md").read_text()
TABS = 7  # one more than the connections that a browser opens to a host over HTTP/1.1

LISTEN = """
window.opened = 0;
for (let tab = 0; tab < arguments[0]; tab++) {
  new EventSource(`/events?webSocketId=tab-${tab}`).onopen = () => { window.opened++; };
}
"""
CONNECT = """
window.registered = false;
const socket = new WebSocket(`wss://${location.host}/ws`);
socket.onopen = () => socket.send(JSON.stringify({ webSocketId: "socket" }));
socket.onmessage = (message) => { window.registered = JSON.parse(message.data).registrationSucceeded; };
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium("--ignore-certificate-errors") as opened:
        yield opened


@pytest.fixture(scope="module")
def nodes() -> Iterator[BalancedNodes]:
    with started([]) as running:
        yield running


@contextmanager
def nginx(nodes: BalancedNodes, folder: Path) -> Iterator[int]:
    """nginx with the documented lines for TLS. Yields its port."""
    certificate, key = self_signed(folder)
    lines = re.search(r"^ +listen 443 (.*?)\n\n", DOCUMENTED, re.MULTILINE | re.DOTALL)
    assert lines is not None
    tls = lines[1].replace("/etc/nginx/site.pem", str(certificate)).replace("/etc/nginx/site.key", str(key))
    text = re.sub(r"listen 8080 .*?;", f"listen 8080 {tls}", (DEPLOY / "nginx.conf").read_text())
    with NginxProcess(
        text, (DEPLOY / "nginx-nodes.conf").read_text(), nodes.addresses, nodes.port
    ) as running:
        yield running.port


def serves_all_tabs(browser: Browser, port: int) -> None:
    browser.driver.get(f"https://localhost:{port}/websocket/info")
    browser.run(LISTEN, TABS)
    browser.wait(lambda: browser.run("return opened") == TABS, "every tab listens")
    browser.run(CONNECT)
    browser.wait(lambda: browser.run("return registered"), "a WebSocket opens beside them")
    browser.driver.get("about:blank")


@pytest.mark.needs("haproxy")
def test_haproxy_serves_a_seventh_tab_and_a_websocket(
    browser: Browser, nodes: BalancedNodes, tmp_path: Path
) -> None:
    with haproxy_with_tls(nodes, tmp_path) as balancer:
        serves_all_tabs(browser, balancer.port)


@pytest.mark.needs("haproxy")
def test_over_http_1_the_seventh_tab_waits(browser: Browser, nodes: BalancedNodes, tmp_path: Path) -> None:
    """The control."""
    with haproxy_with_tls(nodes, tmp_path, "http/1.1") as balancer:
        browser.driver.get(f"https://localhost:{balancer.port}/websocket/info")
        browser.run(LISTEN, TABS)
        browser.wait(lambda: browser.run("return opened") == TABS - 1, "six listen")
        with pytest.raises(TimeoutException):
            browser.wait(lambda: browser.run("return opened") == TABS, "the seventh too", seconds=1)
        browser.driver.get("about:blank")


@pytest.mark.needs("nginx")
def test_nginx_serves_a_seventh_tab_and_a_websocket(
    browser: Browser, nodes: BalancedNodes, tmp_path: Path
) -> None:
    with nginx(nodes, tmp_path) as port:
        serves_all_tabs(browser, port)
