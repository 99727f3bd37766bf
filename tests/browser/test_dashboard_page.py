"""The dashboard in a real Chromium, over nodes and a Valkey in processes of their own, under load."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium.webdriver.common.keys import Keys

from gateway.drill.fleet import NodeProcess, ValkeyProcess

from ..integration.load import Backend, load_clients
from .chromium import Browser, chromium
from .test_demo_page import CONTRASTS, PHONE, READABLE, TOO_WIDE

pytestmark = [
    pytest.mark.needs("chromium"),
    pytest.mark.needs("chromedriver"),
    pytest.mark.adds_to("browser"),  # selenium connects to the browser's driver anew now and then
]

SESSIONS = 40
LONG_NAME = "a-node-with-a-name-as-long-as-any-" + "x" * 60
NOTHING = "\N{EN DASH}"
CHARTS = ("sessions", "registered", "delivered", "latency", "roundTrip", "lag")

ROWS = """
return Array.from(document.querySelectorAll("#nodes tr"), (row) =>
  Array.from(row.cells, (cell) => cell.firstElementChild?.textContent ?? cell.textContent));
"""

# Headers that are there for screen readers alone may be wide, and so may be what somebody has typed.
NARROW = TOO_WIDE.replace("*:not(.unseen)", "*:not(.unseen, thead, thead *, input)")

# Where the parts of the page begin, from the top of the document.
PLACES = """
return Array.from(document.querySelectorAll("section, figure, .legend"), (part) =>
  Math.round(part.getBoundingClientRect().top + scrollY));
"""


def page_url(node: NodeProcess) -> str:
    return f"http://127.0.0.1:{node.admin_port}/"


@contextmanager
def under_load(nodes: Sequence[NodeProcess], valkey: ValkeyProcess) -> Iterator[None]:
    """Browsers b-0, b-1, … on these nodes in turn, and a result for each of them every second or so."""
    ready, over = threading.Event(), threading.Event()
    names = [f"b-{number}" for number in range(SESSIONS)]

    async def run() -> None:
        async with Backend.on(valkey.url) as backend, load_clients([node.port for node in nodes], names):
            ready.set()
            while not over.is_set():
                with contextlib.suppress(Exception):  # Redis may be away
                    await backend.publish_once(names)
                await asyncio.to_thread(over.wait, 0.5)

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    try:
        assert ready.wait(20)
        yield
    finally:
        over.set()
        thread.join(20)


@contextmanager
def fleet(
    *options: str, names: Sequence[str] = ("node-1", "node-2")
) -> Iterator[tuple[ValkeyProcess, list[NodeProcess]]]:
    with ExitStack() as running:
        valkey = running.enter_context(ValkeyProcess())
        yield (
            valkey,
            [running.enter_context(NodeProcess(valkey.url, "--node", name, *options)) for name in names],
        )


@pytest.fixture(scope="module")
def well() -> Iterator[list[NodeProcess]]:
    """Two nodes under load that no test harms."""
    with fleet() as (valkey, nodes), under_load(nodes, valkey):
        yield nodes


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def tone(browser: Browser) -> str:
    name: str = browser.run("return document.documentElement.dataset.tone")
    return name


def rows(browser: Browser) -> list[list[str]]:
    found: list[list[str]] = browser.run(ROWS)
    return found


def opened(browser: Browser, node: NodeProcess, *, nodes: int = 2, **how: Any) -> None:
    """Load the page and wait until it shows so many nodes, and rates of them."""
    browser.open(page_url(node), **how)
    browser.wait(
        lambda: [row[3] != NOTHING for row in rows(browser)] == [True] * nodes, "all nodes have rates"
    )


def says(browser: Browser, expected: str) -> None:
    """Wait until the headline begins so."""
    browser.wait(lambda: re.match(expected, browser.text("headline")), f"the headline says {expected}")


def troubles(browser: Browser) -> list[str]:
    said: list[str] = browser.run(
        "return Array.from(document.querySelectorAll('#troubles li'), (row) => row.textContent)"
    )
    return said


def number(browser: Browser, chart: str) -> str:
    text: str = browser.run(f"return document.querySelector('[data-chart={chart}] output').textContent")
    return text


def test_shows_every_node_and_what_they_do_together(well: list[NodeProcess], browser: Browser) -> None:
    opened(browser, well[0])
    says(browser, "All 2 nodes are healthy")
    assert tone(browser) == "good"
    assert browser.driver.title == "All healthy · Webflow Gateway"
    assert [(row[0], row[2]) for row in rows(browser)] == [("node-1", "20"), ("node-2", "20")]
    assert all(re.fullmatch(r"round trip [\d.]+ m?s", row[1]) for row in rows(browser))
    browser.wait(lambda: number(browser, "sessions") == str(SESSIONS), "the sessions are counted together")
    browser.wait(lambda: float(number(browser, "delivered").removesuffix("/s")) > 10, "results come")
    for chart in ("latency", "roundTrip", "lag"):
        assert re.fullmatch(r"[\d.]+ m?s", number(browser, chart)), chart
    assert "127.0.0.1" in browser.text("port")
    for chart in CHARTS:
        line = f"return document.querySelector('[data-chart={chart}] .line').getAttribute('d')"
        browser.wait(lambda line=line: "L" in browser.run(line), f"{chart} has a line")  # type: ignore[misc]
    assert browser.run("return document.querySelectorAll('#nodes path.up[d^=M]').length") == 2


def test_loads_nothing_from_elsewhere_in_silence(well: list[NodeProcess], browser: Browser) -> None:
    opened(browser, well[0])
    browser.driver.find_element("id", "id").send_keys("b-0", Keys.ENTER)
    browser.wait(lambda: "node-" in browser.text("found"), "the id is found")
    urls = browser.requests()
    own = (page_url(well[0]), "data:image/svg+xml")
    assert [url for url in urls if not url.startswith(own)] == []
    paths = {urlsplit(url).path for url in urls}
    assert paths >= {
        "/",
        "/dashboard/dashboard.js",
        "/dashboard/dashboard.chart.js",
        "/dashboard/dashboard.css",
        "/dashboard/events",
    }
    assert browser.errors() == []


def test_finds_an_id_by_the_keyboard_alone(well: list[NodeProcess], browser: Browser) -> None:
    opened(browser, well[0])
    for _ in range(8):
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        if browser.run("return document.activeElement.id") == "id":
            break
    browser.driver.switch_to.active_element.send_keys("b-1", Keys.ENTER)
    browser.wait(lambda: "node-2" in browser.text("found"), "the id is found")
    found = browser.run(
        "return Object.fromEntries(Array.from(document.querySelectorAll('#found dl div'), (pair) => "
        "[pair.children[0].textContent, pair.children[1].textContent]))"
    )
    expected = {
        "Node": "node-2",
        "State": "registered",
        "Protocol": "json over websocket",
        "Client": "127.0.0.1",
    }
    assert expected.items() <= found.items()
    assert re.fullmatch(r"\d\d:\d\d:\d\d, \d+ (s|min) ago", found["Registered"])
    assert int(found["Results"]) > 0
    assert "no retained result" in browser.text("found")
    browser.driver.find_element("id", "id").send_keys("-of-nobody", Keys.ENTER)
    browser.wait(lambda: "None of the 2 nodes" in browser.text("found"), "nobody has the other id")


def test_what_is_no_id_is_not_asked_for(well: list[NodeProcess], browser: Browser) -> None:
    opened(browser, well[0])
    browser.requests()
    browser.driver.find_element("id", "id").send_keys("a b", Keys.ENTER)
    assert browser.run("return document.getElementById('id').validity.patternMismatch")
    assert not [url for url in browser.requests() if "session" in url]


def test_speaks_to_screen_readers(well: list[NodeProcess], browser: Browser) -> None:
    opened(browser, well[0])
    browser.wait(lambda: number(browser, "roundTrip") != NOTHING, "the charts have figures")
    named = browser.roles_and_names("All 2 nodes are healthy")
    images = [name for role, name in named if role == "image"]
    assert len(images) == len(CHARTS) + 2
    for start in ("Sessions, the last five minutes: from", "Registrations", "Deliveries", "Redis round trip"):
        assert any(name.startswith(start) for name in images), start
    assert any(re.search(r"; now [\d.,]+ m?s$", name) for name in images)
    assert ("textbox", "webSocketId") in named
    roles = [role for role, _ in named]
    assert (roles.count("row"), roles.count("columnheader"), roles.count("rowheader")) == (3, 6, 2)
    controls = {"button", "heading", "link", "textbox", "image"}
    assert [role for role, name in named if role in controls and not name] == []
    assert browser.text("announcement") == "All 2 nodes are healthy"


def test_stands_still_while_it_is_paused(well: list[NodeProcess], browser: Browser) -> None:
    opened(browser, well[0])
    browser.click("pause")
    assert browser.run("return document.getElementById('pause').getAttribute('aria-pressed')") == "true"
    assert browser.text("seen").startswith("Paused at")
    course = "return document.querySelector('[data-chart=sessions] .line').getAttribute('d')"
    before, asked = browser.run(course), "return performance.now()"
    start = browser.run(asked)
    browser.wait(lambda: browser.run(asked) - start > 2500, "two more events come")
    assert browser.run(course) == before
    browser.click("pause")
    browser.wait(lambda: browser.text("seen").startswith("As of"), "it goes on")
    assert browser.run(course) != before, "it has listened on meanwhile"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, PHONE])
def test_is_readable_in_both_colour_schemes(
    well: list[NodeProcess], browser: Browser, dark: bool, width: int
) -> None:
    opened(browser, well[0], dark=dark, width=width)
    browser.driver.find_element("id", "id").send_keys("b-0", Keys.ENTER)
    browser.wait(lambda: "node-" in browser.text("found"), "the id is found")
    ground = browser.run("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in re.findall(r"\d+", ground)[:3]) / 3
    assert brightness < 64 if dark else brightness > 192
    for shown in ("good", "warn", "bad"):
        browser.run(
            "document.documentElement.dataset.tone = arguments[0];"
            "document.querySelector('#nodes tr').className = "
            "{ good: 'up', warn: 'unsure', bad: 'down' }[arguments[0]]",
            shown,
        )
        contrasts = browser.run(CONTRASTS)
        assert len(contrasts) > 35
        assert [(text, ratio) for text, ratio in contrasts if ratio < READABLE] == []


# What goes wrong


def test_names_a_node_that_is_gone_and_nothing_jumps(browser: Browser) -> None:
    with fleet() as (valkey, (one, two)), under_load([one], valkey):
        opened(browser, one)
        browser.run(
            "window.shifts = 0; new PerformanceObserver((list) => list.getEntries().forEach("
            "({ value }) => { shifts += value; })).observe({ type: 'layout-shift' })"
        )
        says(browser, "All 2 nodes are healthy")
        before = browser.run(PLACES)
        two.kill()
        says(browser, r"node-2 has not answered for \d s")
        assert tone(browser) == "bad"
        assert browser.driver.title.startswith("node-2 has not answered")
        assert "node-2 has not answered" in browser.text("announcement")
        assert [row[1].startswith("no answer for") for row in rows(browser)] == [False, True]
        assert browser.run(PLACES) == before
        assert browser.run("return shifts") < 0.01
        announced = browser.text("announcement")
        says(browser, r"node-2 has not answered for [3-9] s")
        assert browser.text("announcement") == announced, "seconds that pass are no news"
        two.start()
        says(browser, "All 2 nodes are healthy")
        assert [row[0] for row in rows(browser)] == ["node-1", "node-2"]
        strip = browser.run("return document.querySelectorAll('#nodes path.up')[1].getAttribute('d')")
        assert strip.count("Z") > 2, "what it was before its new start is remembered"


def test_says_so_when_redis_is_away_and_shows_its_own_node(browser: Browser) -> None:
    with fleet() as (valkey, (one, two)), under_load([one, two], valkey):
        opened(browser, one)
        before = browser.run(PLACES)
        valkey.kill()
        says(browser, r"node-1 has been without Redis for \d+ s")
        browser.wait(lambda: troubles(browser), "it says why node-2 is missing")
        assert troubles(browser) == ["Other nodes cannot be shown: this node has no connection to Redis"]
        assert rows(browser)[0][1].startswith("outage for")
        assert rows(browser)[1][1].startswith("not asked for")
        assert browser.run(PLACES) == before
        assert browser.run("return document.querySelector('#nodes path.down').getAttribute('d')").startswith(
            "M"
        )
        valkey.start()
        says(browser, "All 2 nodes are healthy")
        browser.wait(lambda: rows(browser)[1][1].startswith("round trip"), "node-2 is back")


def test_says_so_when_a_node_cannot_prove_that_it_hears(browser: Browser) -> None:
    with fleet(names=("node-1",)) as (valkey, (one,)):
        opened(browser, one, nodes=1)
        says(browser, "The only node is healthy")
        valkey.ask("ACL", "SETUSER", "default", "-publish")
        says(browser, r"node-1 has not received its probe for \d+ s \(.*NOPERM")
        assert tone(browser) == "warn"


def test_says_so_when_its_own_node_is_gone(browser: Browser) -> None:
    with fleet(names=("node-1",)) as (_valkey, (one,)):
        opened(browser, one, nodes=1)
        one.kill()
        says(browser, r"This page has received nothing for \d+ s: the node at 127.0.0.1:\d+ is down")
        assert tone(browser) == "bad"
        assert browser.text("seen") == "No connection to the node"
        one.start()
        says(browser, "The only node is healthy")


@pytest.mark.parametrize("away", [False, True], ids=["well", "Redis away"])
def test_fits_a_phone_whatever_the_nodes_are_called(browser: Browser, away: bool) -> None:
    with fleet(names=(LONG_NAME, "n")) as (valkey, (one, _two)):
        opened(browser, one, width=PHONE, height=740)
        if away:
            valkey.kill()
            says(browser, f"{LONG_NAME} has been without Redis")
        browser.driver.find_element("id", "id").send_keys("x" * 200, Keys.ENTER)
        browser.wait(lambda: "Redis" in browser.text("found"), "the look-up is answered")
        assert browser.run("return document.documentElement.scrollWidth") <= PHONE
        assert browser.run(NARROW) == []
        small = browser.run(
            "return Array.from(document.querySelectorAll('button, input'), (b) => b.getBoundingClientRect())"
            ".filter((box) => box.height < 24 || box.width < 24).length"  # WCAG 2.2, 2.5.8
        )
        assert small == 0


# The function that draws


def drawn(browser: Browser, call: str) -> Any:
    """What a function of dashboard.chart.js returns."""
    return browser.driver.execute_async_script(
        "import('/dashboard/dashboard.chart.js')"
        f".then((chart) => chart.{call}).then(arguments[arguments.length - 1])"
    )


def test_draws_what_it_is_given(well: list[NodeProcess], browser: Browser) -> None:
    opened(browser, well[0])
    for value, least, top in ((0, 10, 10), (11, 10, 20), (50, 1, 50), (51, 1, 100), (0.0012, 0.001, 0.002)):
        assert drawn(browser, f"scale({value}, {least})") == pytest.approx(top)
    # At 1000 s, 300 s are seen; a gap of more than 3 s, or nothing, interrupts the line.
    points = "[[990, 0], [991, 5], [992, null], [996, 10], [1000, 10]]"
    assert (
        drawn(browser, f"line({points}, 1000, 10)") == "M290.0 100.0L291.0 50.0M296.0 0.0h0.01M300.0 0.0h0.01"
    )
    assert drawn(browser, "area([[998, 5], [1000, 5]], 1000, 10)") == (
        "M298.0 100L298.0 50.0L300.0 50.0L300.0 100Z"
    )
    states = "[[990, 'up'], [992, 'down'], [1000, 'up']]"
    assert drawn(browser, f"band({states}, 1000, 'down')") == "M292.0 0H295.0V100H292.0Z"
    assert drawn(browser, "line([], 1000, 10)") == ""


@pytest.mark.parametrize(
    ("counts", "part", "expected"),
    [
        ([0, 0, 0], 0.99, None),
        ([10, 10, 10], 0.5, 0.5),  # half of the way to the first bound
        ([0, 100, 100], 0.99, 1.99),
        ([90, 100, 100], 0.95, 1.5),
        ([0, 0, 10], 0.99, 2),  # all were longer than the last bound
        ([1, 1, 1], 0.99, 0.99),
    ],
)
def test_finds_what_most_did_not_exceed(
    well: list[NodeProcess], browser: Browser, counts: list[int], part: float, expected: float | None
) -> None:
    browser.open(page_url(well[0]))
    assert drawn(browser, f"quantile([1, 2], {counts}, {part})") == (expected and pytest.approx(expected))
