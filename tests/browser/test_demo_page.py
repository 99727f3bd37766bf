"""The demo page in a real Chromium, against `webflow-gateway dev` in a process of its own."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
import redis
from selenium.webdriver.common.keys import Keys

import gateway
from gateway.drill.fleet import NodeProcess, ValkeyProcess, wait_until

from ..paths import ROOT
from .chromium import Browser, chromium

pytestmark = [
    pytest.mark.needs("chromium"),
    pytest.mark.needs("chromedriver"),
    pytest.mark.adds_to("browser"),  # selenium connects to the browser's driver anew now and then
]

RETAINED = (
    "was retained for this page"  # how the page marks a result that came with the registration's answer
)
PHONE = 360  # px: the narrowest screen that is common
READABLE = 4.5  # WCAG 2.2, 1.4.3: the least contrast of ordinary text

# The contrast of every visible element that has text of its own, with what it stands on.
CONTRASTS = """
const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
const rgba = (color) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = color;
  canvas.fillRect(0, 0, 1, 1);
  return canvas.getImageData(0, 0, 1, 1).data;
};
const luminance = (color) => {
  const [r, g, b] = Array.from(rgba(color)).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
  const color = getComputedStyle(element).backgroundColor;
  return rgba(color)[3] || !element.parentElement ? color : ground(element.parentElement);
};
const seen = (element) => !element.closest(".unseen, noscript, :disabled") && element.checkVisibility() &&
  Array.from(element.childNodes).some((node) => node.nodeType === 3 && node.data.trim());
return Array.from(document.body.querySelectorAll("*")).filter(seen).map((element) => {
  const [dark, light] = [luminance(getComputedStyle(element).color), luminance(ground(element))]
    .sort((a, b) => a - b);
  return [element.textContent.trim().slice(0, 40), (light + 0.05) / (dark + 0.05)];
});
"""

# The frames on the page, newest first, oldest last: here the other way round.
FRAMES = """
return Array.from(document.querySelectorAll(`#frames .${arguments[0]}`), (row) => row.textContent).reverse();
"""

TOO_WIDE = """
return Array.from(document.body.querySelectorAll("*:not(.unseen)"))
  .filter((element) => element.getBoundingClientRect().right > innerWidth + 0.5 ||
    (element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).display !== "inline" &&
      !["hidden", "auto"].includes(getComputedStyle(element).overflowX)))
  .map((element) => element.outerHTML.slice(0, 100));
"""


class Dev(NamedTuple):
    """A running `webflow-gateway dev`: its process, its address with a slash at the end, its Redis."""

    process: subprocess.Popen[str]
    url: str
    redis_url: str

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port


def demo_info(url: str) -> dict[str, Any]:
    """What the node tells its demo page."""
    with urlopen(url + "demo/info") as answer:
        info: dict[str, Any] = json.load(answer)
    return info


@contextmanager
def dev_node() -> Iterator[Dev]:
    command = [sys.executable, "-m", "gateway", "dev", "--host", "127.0.0.1", "--port", "0"]
    command += ["--admin-port", "0"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GATEWAY_")}
    environment["PYTHONUNBUFFERED"] = "1"
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT
    )
    said: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda lines: said.extend(lines), args=(process.stdout,))
    reader.start()

    def port() -> re.Match[str] | None:
        return re.search(r"Demo page +http://localhost:(\d+)/", "".join(list(said)))

    try:
        wait_until(lambda: port() or process.poll() is not None, "dev says where the demo page is")
        found = port()
        assert found, f"dev ended with {process.poll()}: {''.join(said)}"
        url = f"http://127.0.0.1:{found[1]}/"
        yield Dev(process, url, demo_info(url)["redisUrl"])
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join()
        process.stdout.close()


@pytest.fixture(scope="module")
def dev() -> Iterator[Dev]:
    with dev_node() as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def publish(dev: Dev) -> Iterator[Callable[[str, object], int]]:
    """Publishes as any backend would, with a plain Redis client; an object goes out as JSON."""
    with redis.Redis.from_url(dev.redis_url) as client:

        def publish(web_socket_id: str, result: object) -> int:
            payload = result if isinstance(result, str) else json.dumps(result)
            return int(client.publish(f"websocket:{web_socket_id}", payload))

        yield publish


def new_id() -> str:
    return f"test-{secrets.token_hex(4)}"


def state(browser: Browser) -> str:
    name: str = browser.run("return document.documentElement.dataset.state")
    return name


def results(browser: Browser) -> list[str]:
    rows: list[str] = browser.run(
        "return Array.from(document.querySelectorAll('#results li strong'), (row) => row.textContent)"
    )
    return rows


def registered(browser: Browser, url: str, web_socket_id: str | None = None) -> str:
    """Load the page and wait until it is registered and shows its node's name; returns the id on the page."""
    browser.open(url + (f"?id={web_socket_id}" if web_socket_id else ""))
    settled(browser)
    return browser.text("id")


def settled(browser: Browser) -> None:
    browser.wait(lambda: state(browser) == "registered", "the page registers")
    browser.wait(lambda: browser.text("version"), "the page knows its node")


def shows(browser: Browser, *expected: str) -> None:
    browser.wait(lambda: results(browser) == list(expected), f"the page shows {expected}")


def test_shows_the_id_its_node_and_each_result_newest_first(
    dev: Dev, browser: Browser, publish: Callable[[str, object], int]
) -> None:
    web_socket_id = registered(browser, dev.url)
    assert re.fullmatch("demo-[0-9a-f]{8}", web_socket_id)
    node = demo_info(dev.url)["node"]
    browser.wait(lambda: node in browser.text("state"), "the state names the node")
    assert browser.text("node") == node
    assert browser.text("headline") == "Waiting for your approval"
    assert browser.text("story").startswith("This browser waits for a result.")

    assert publish(web_socket_id, "CONFIRMED") == 1
    shows(browser, "CONFIRMED")
    assert browser.text("headline") == "CONFIRMED"
    assert "CONFIRMED arrived" in browser.text("announcement")
    assert browser.text("story").startswith("Arrived at")
    assert browser.driver.title.startswith("CONFIRMED")

    data = {"amount": "120.00", "note": "<b>bold</b>"}
    publish(web_socket_id, {"authResult": "FAILED", "messageId": "m-7", "data": data})
    shows(browser, "FAILED", "CONFIRMED")
    assert "m-7" in browser.text("results")
    assert "<b>bold</b>" in browser.text("results")
    assert browser.run("return document.documentElement.dataset.outcome") == "bad"


def test_shows_once_what_comes_again_with_every_registration(dev: Dev, browser: Browser) -> None:
    web_socket_id = registered(browser, dev.url, new_id())
    with redis.Redis.from_url(dev.redis_url) as client:
        gateway.publish(client, web_socket_id, "CONTINUE", retain=60)
        shows(browser, "CONTINUE")
        browser.click("offline")
        browser.wait(lambda: state(browser) == "closed", "the page is offline")
        browser.click("offline")
        settled(browser)
        # The retained result comes right after the registration's answer, so it is through before this one.
        gateway.publish(client, web_socket_id, "DONE", retain=60)
    shows(browser, "DONE", "CONTINUE")
    sent, received = (browser.run(FRAMES, kind) for kind in ("sent", "received"))
    assert ["lastMessageId" in frame for frame in sent] == [False, True]
    assert sum("CONTINUE" in frame for frame in received) == 1, "the node does not even send it"


def test_a_client_with_no_memory_is_sent_what_is_retained_again(dev: Dev, browser: Browser) -> None:
    """The control: a reload forgets what came, so the node has to send it."""
    web_socket_id = registered(browser, dev.url, new_id())
    with redis.Redis.from_url(dev.redis_url) as client:
        gateway.publish(client, web_socket_id, "CONTINUE", retain=60)
    shows(browser, "CONTINUE")
    browser.driver.refresh()
    shows(browser, "CONTINUE")
    assert not any("lastMessageId" in frame for frame in browser.run(FRAMES, "sent"))


@pytest.mark.needs("redis-cli")
def test_the_commands_on_the_page_work_as_they_stand(dev: Dev, browser: Browser) -> None:
    registered(browser, dev.url, new_id())
    for expected, command in enumerate(("command-plain", "command-data", "command-retained"), start=1):
        line = browser.text(command)
        done = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, (line, done)
        shows(browser, *["CONFIRMED"] * expected)
    assert "payment-1" in browser.text("results")


@pytest.mark.parametrize("web_socket_id", ["-n", "~root", "a.b~c_d-"])
@pytest.mark.needs("redis-cli")
def test_the_commands_work_for_ids_that_shells_and_options_trip_over(
    dev: Dev, browser: Browser, web_socket_id: str
) -> None:
    registered(browser, dev.url, web_socket_id)
    for command in ("command-plain", "command-retained"):
        line = browser.text(command)
        done = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, (line, done)
    shows(browser, "CONFIRMED", "CONFIRMED")


def test_copies_a_command_and_says_so(dev: Dev, browser: Browser) -> None:
    registered(browser, dev.url)
    browser.driver.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"origin": dev.url, "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]},
    )
    button = browser.driver.find_element("css selector", "[data-copies=command-plain]")
    button.send_keys(Keys.ENTER)
    browser.wait(lambda: button.text == "Copied", "the button says that it copied")
    assert browser.text("announcement") == "Copied"
    assert browser.run("return navigator.clipboard.readText()") == browser.text("command-plain")
    browser.wait(lambda: button.text == "Copy", "the button is ready again")


def test_copies_where_there_is_no_clipboard_api(dev: Dev, browser: Browser) -> None:
    """As on a phone that opens the page over plain http from another machine."""
    registered(browser, dev.url)
    browser.run(
        "Object.defineProperty(navigator, 'clipboard', { value: undefined });"
        "addEventListener('copy', () => { window.copied = getSelection().toString(); });"
    )
    button = browser.driver.find_element("css selector", "[data-copies=command-plain]")
    button.click()
    browser.wait(lambda: button.text == "Copied", "the button says that it copied")
    assert browser.run("return window.copied") == browser.text("command-plain")


def test_a_reload_keeps_the_id_and_a_button_makes_a_new_one(
    dev: Dev, browser: Browser, publish: Callable[[str, object], int]
) -> None:
    first = registered(browser, dev.url, new_id())
    browser.driver.get(dev.url)
    settled(browser)
    assert browser.text("id") == first
    publish(first, "CONFIRMED")
    shows(browser, "CONFIRMED")

    browser.click("new-id")
    settled(browser)
    second = browser.text("id")
    assert second != first
    assert results(browser) == []
    assert second in browser.text("command-plain")
    # The old registration goes when the node has read the close.
    browser.wait(lambda: publish(first, "DONE") == 0, "nobody holds the old id")
    publish(second, "CONFIRMED")
    shows(browser, "CONFIRMED")


@pytest.mark.parametrize("bad", ["a%20b", "caf%C3%A9", "x" * 201, "%3Cb%3E"])
def test_an_id_that_no_node_takes_is_refused_with_the_reason(dev: Dev, browser: Browser, bad: str) -> None:
    browser.open(f"{dev.url}?id={bad}")
    browser.wait(lambda: state(browser) == "rejected", "the page rejects the id")
    assert "1 to 200" in browser.text("state")
    assert browser.text("story") == "This id cannot be registered. Choose a new id."
    assert not [url for url in browser.requests() if url.startswith("ws")]
    browser.click("new-id")
    settled(browser)


def test_a_refusal_by_the_node_is_final(dev: Dev, browser: Browser) -> None:
    """The page checks ids itself, so the client alone is asked to register what the node refuses."""
    registered(browser, dev.url)
    states: list[str] = browser.driver.execute_async_script(
        """
        const [done] = arguments;
        import("/demo/client.js").then(({ ResultClient }) => {
          const states = [];
          const client = new ResultClient(location.origin.replace("http", "ws") + "/ws", "not an id", {
            state: (name, detail) => {
              states.push(name);
              if (name === "rejected") setTimeout(() => done([...states, detail.code]), 1000);
            },
          });
          client.open();
        });
        """
    )
    # A second is twice the longest first wait, so a client that tried again would be seen.
    assert states == ["connecting", "registering", "rejected", "invalid_id"]


def test_a_result_kept_while_the_browser_was_away_arrives_when_it_is_back(dev: Dev, browser: Browser) -> None:
    web_socket_id = registered(browser, dev.url, new_id())
    browser.click("offline")
    browser.wait(lambda: state(browser) == "closed", "the page is offline")
    with redis.Redis.from_url(dev.redis_url) as client:
        wait_until(lambda: client.pubsub_numsub(f"websocket:{web_socket_id}")[0][1] == 0, "nobody is there")
        assert gateway.publish(client, web_socket_id, "CONFIRMED", retain=60).receivers == 0
        assert browser.text("story").startswith("No result can arrive now")
        browser.click("offline")
        shows(browser, "CONFIRMED")
        assert RETAINED in browser.text("results")
        assert browser.text("story").startswith("Arrived at")
        browser.run("const now = performance.now(); performance.now = () => now + 60_000")  # a minute later
        gateway.publish(client, web_socket_id, "DONE")
        shows(browser, "DONE", "CONFIRMED")
        assert browser.text("results").count(RETAINED) == 1


def test_says_what_it_waits_for_while_redis_is_away_and_while_the_node_restarts(browser: Browser) -> None:
    with dev_node() as dev, ValkeyProcess() as valkey:
        registered(browser, dev.url, new_id())
        browser.run(  # some sentences stand for an instant only
            "window.said = { story: [], announcement: [] };"
            "for (const id in said) new MutationObserver(() => said[id].push(document.getElementById(id)"
            ".textContent)).observe(document.getElementById(id), { childList: true })"
        )

        def says(sentence: str) -> None:
            for place in ("story", "announcement"):
                found = "return said[arguments[0]].some((text) => text.includes(arguments[1]))"
                browser.wait(partial(browser.run, found, place, sentence), f"{place}: {sentence}")

        dev.process.terminate()
        says("The node restarts. Reconnecting.")  # 1012
        dev.process.wait()
        says("The connection was lost without a reason. Reconnecting.")
        valkey.kill()
        options = ("--registration-timeout", "3")
        with NodeProcess(valkey.url, *options, port=dev.port, wait_ready=False):
            browser.run("dispatchEvent(new Event('online'))")
            says("The node waits for Redis, and registers this page as soon as it is connected.")
            says("The node has no connection to Redis; its log says why. Reconnecting.")  # 1013
            valkey.start()
            browser.run("dispatchEvent(new Event('online'))")
            browser.wait(lambda: state(browser) == "registered", "the page registers")
            assert browser.text("story").startswith("This browser waits for a result.")


# A client of its own beside the page's: what it is told of push, and the frames that it receives.
WATCHED = """
window.told = [];
window.received = [];
import("/demo/client.js").then(({ ResultClient }) => {
  const frame = (mark, text) => mark === "<" && received.push(text);
  const push = (name) => told.push(name);
  new ResultClient(location.origin.replace("http", "ws") + "/ws", "watching", { push, frame }).open();
});
"""


def test_says_that_its_node_has_lost_redis_and_that_it_has_it_back(browser: Browser) -> None:
    with dev_node() as dev, ValkeyProcess() as valkey:
        web_socket_id = registered(browser, dev.url, new_id())
        dev.process.kill()
        dev.process.wait()
        with NodeProcess(valkey.url, port=dev.port) as node:
            browser.run("dispatchEvent(new Event('online'))")
            settled(browser)
            browser.run(WATCHED)
            browser.wait(lambda: browser.run("return received.length") == 1, "the other client registers")
            valkey.kill()
            browser.wait(lambda: "the node has lost Redis" in browser.text("state"), "the page says so")
            assert state(browser) == "registered"
            assert browser.text("story").startswith("No result can arrive until the node has Redis again, or")
            assert browser.text("announcement") == browser.text("story")
            browser.wait(lambda: browser.run("return told") == ["degraded"], "the other client is told")
            browser.run("document.dispatchEvent(new Event('visibilitychange'))")  # registers again
            browser.wait(lambda: browser.run("return received.length") == 4, "an answer, and how push is")
            assert browser.run("return told") == ["degraded"], "which is no news"

            # The node goes, and what was told with it; the next one registers them, so results are heard.
            node.kill()
            browser.wait(lambda: state(browser) == "waiting", "the page notices")
            valkey.start()
        with NodeProcess(valkey.url, port=dev.port):
            browser.run("dispatchEvent(new Event('online'))")
            settled(browser)
            assert "lost Redis" not in browser.text("state")
            assert browser.text("story").startswith("This browser waits for a result.")
            browser.wait(lambda: browser.run("return told") == ["degraded", "restored"], "the other one too")

            valkey.kill()
            browser.wait(lambda: "the node has lost Redis" in browser.text("state"), "the page says so again")
            valkey.start()
            browser.wait(lambda: "lost Redis" not in browser.text("state"), "and that it is over")
            assert browser.text("announcement") == "Results can arrive again."
            with valkey.client() as client:
                client.publish(f"websocket:{web_socket_id}", "CONFIRMED")
            shows(browser, "CONFIRMED")
            assert browser.run("return told") == ["degraded", "restored"] * 2


def test_a_page_in_the_back_forward_cache_holds_nothing_and_comes_back(
    dev: Dev, browser: Browser, publish: Callable[[str, object], int]
) -> None:
    web_socket_id = registered(browser, dev.url, new_id())
    browser.driver.get("about:blank")
    browser.wait(lambda: publish(web_socket_id, "DONE") == 0, "nobody holds the id of a page that was left")
    browser.driver.back()
    settled(browser)
    publish(web_socket_id, "CONFIRMED")
    browser.wait(lambda: results(browser)[:1] == ["CONFIRMED"], "the page is back")
    assert browser.errors() == []


def test_reconnects_to_another_node_and_gets_what_was_kept(browser: Browser) -> None:
    """The node dies without a goodbye; another one with a Redis that kept a result takes its place."""
    with dev_node() as dev, ValkeyProcess() as valkey:
        web_socket_id = registered(browser, dev.url, new_id())
        browser.run("Math.random = () => 1")  # every wait is the longest that may be
        dev.process.kill()
        browser.wait(lambda: state(browser) == "waiting", "the page notices")
        assert re.match(r"Reconnecting in \d+\.\d s", browser.text("state"))
        # 15.5 s of waits come before it.
        browser.wait(lambda: re.search(r"in \d\d\.\d s", browser.text("state")), "the waits grow longer", 45)
        dev.process.wait()
        with valkey.client() as client:
            gateway.publish(client, web_socket_id, "CONFIRMED", retain=60)
        with NodeProcess(valkey.url, port=dev.port):
            # The network coming back ends the wait, whatever is left of it.
            now = "dispatchEvent(new Event('online')); return document.documentElement.dataset.state"
            assert browser.run(now) == "connecting"
            shows(browser, "CONFIRMED")
            assert state(browser) == "registered"


def test_notices_a_node_that_answers_no_more_when_the_user_is_back(browser: Browser) -> None:
    """As after a laptop's sleep: the connection is dead and nothing has said so."""
    with ValkeyProcess() as valkey, dev_node() as dev:
        web_socket_id = registered(browser, dev.url, new_id())
        dev.process.kill()
        dev.process.wait()
        with NodeProcess(valkey.url, port=dev.port) as node:
            browser.run("dispatchEvent(new Event('online'))")
            settled(browser)
            browser.run(
                "window.said = []; new MutationObserver(() => said.push(arguments[0].textContent))"
                ".observe(arguments[0], { childList: true })",
                browser.driver.find_element("id", "state"),
            )
            with node.frozen():
                browser.run("document.dispatchEvent(new Event('visibilitychange'))")
                gave_up = "return said.some((text) => text.includes('no answer'))"
                browser.wait(lambda: browser.run(gave_up), "the page asks and gets no answer")
            settled(browser)
            with valkey.client() as client:
                client.publish(f"websocket:{web_socket_id}", "CONFIRMED")
            shows(browser, "CONFIRMED")


def test_loads_nothing_from_elsewhere_and_the_console_stays_silent(
    dev: Dev, browser: Browser, publish: Callable[[str, object], int]
) -> None:
    web_socket_id = registered(browser, dev.url, new_id())
    publish(web_socket_id, {"authResult": "CONFIRMED", "data": {"amount": 1}})
    shows(browser, "CONFIRMED")
    browser.click("new-id")
    settled(browser)
    urls = browser.requests()
    own = (dev.url, dev.url.replace("http", "ws"), "data:image/svg+xml")
    assert [url for url in urls if not url.startswith(own)] == []
    assert {urlsplit(url).path for url in urls} >= {"/", "/demo/demo.js", "/demo/client.js", "/demo/demo.css"}
    assert browser.errors() == []
    with urlopen(dev.url) as answer:
        policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("web_socket_id", ["a", "0123456789abcdef" * 8, "W" * 200])
def test_fits_a_phone(
    dev: Dev, browser: Browser, publish: Callable[[str, object], int], web_socket_id: str
) -> None:
    browser.open(f"{dev.url}?id={web_socket_id}", width=PHONE, height=740)
    settled(browser)
    publish(
        web_socket_id, {"authResult": "A" * 64, "messageId": "m" * 200, "data": {"k": "v" * 500, "n": None}}
    )
    shows(browser, "A" * 64)
    assert browser.run("return document.documentElement.scrollWidth") <= PHONE
    assert browser.run(TOO_WIDE) == []
    small = browser.run(
        "return Array.from(document.querySelectorAll('button'), (b) => b.getBoundingClientRect())"
        ".filter((box) => box.height < 24 || box.width < 24).length"  # WCAG 2.2, 2.5.8
    )
    assert small == 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_is_readable_in_both_colour_schemes(
    dev: Dev, browser: Browser, publish: Callable[[str, object], int], dark: bool
) -> None:
    web_socket_id = new_id()
    browser.open(f"{dev.url}?id={web_socket_id}", dark=dark)
    settled(browser)
    ground = browser.run("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in re.findall(r"\d+", ground)[:3]) / 3
    assert brightness < 64 if dark else brightness > 192
    for result in ("FAILED", "CONFIRMED"):
        publish(web_socket_id, {"authResult": result, "messageId": result, "data": result})
    shows(browser, "CONFIRMED", "FAILED")
    contrasts = browser.run(CONTRASTS)
    assert len(contrasts) > 25
    assert [(text, ratio) for text, ratio in contrasts if ratio < READABLE] == []


def test_speaks_to_keyboards_and_screen_readers(dev: Dev, browser: Browser) -> None:
    registered(browser, dev.url)
    assert browser.run("return document.documentElement.lang") == "en"
    assert browser.run("return document.getElementById('announcement').getAttribute('role')") == "status"

    named = browser.roles_and_names("Waiting for your approval")
    assert ("button", "New id") in named
    assert [role for role, name in named if role in {"button", "heading", "link"} and not name] == []
    reached: set[str] = set()
    for _ in range(12):
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(browser.run("return document.activeElement.dataset.copies ?? document.activeElement.id"))
    assert reached >= {"id", "new-id", "offline", "command-plain", "command-retained", "command-data"}
