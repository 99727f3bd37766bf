"""deploy/monitoring: Prometheus's configuration and alerts, and Grafana's dashboard, against real nodes.

What a file says is checked by the tool that reads it; what it names, against what nodes have.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
import yaml

import gateway
from gateway.admin import metrics
from gateway.canary.metrics import FAMILIES as OF_THE_CANARY
from gateway.drill.fleet import NodeProcess, Process, ValkeyProcess, free_port, spawn, wait_until

from ..integration.load import load_clients
from ..paths import ROOT

MONITORING = ROOT / "deploy" / "monitoring"
ALERTS = MONITORING / "alerts.yml"
DASHBOARD = MONITORING / "grafana" / "dashboards" / "gateway.json"
OPERATIONS = ROOT / "docs" / "operations.md"

DESCRIBED = tuple(dict.fromkeys((*metrics.FAMILIES, *metrics.PARENT_FAMILIES, *OF_THE_CANARY)))
"""A node's metrics, what the parent of several workers has besides, and those of the canary."""

NAME = re.compile(r"\b(?:gateway|process)_[a-z_]+\b")


def read(path: Path) -> Any:
    """What a file of YAML, or JSON, says."""
    return yaml.safe_load(path.read_text())


def rules() -> list[dict[str, Any]]:
    (group,) = read(ALERTS)["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def queries() -> list[str]:
    """The dashboard's, as Grafana sends them."""
    found = [target["expr"] for panel in panels() for target in panel.get("targets", [])]
    return [expr.replace("$__rate_interval", "20s").replace("$instance", ".*") for expr in found]


def names(text: str) -> set[str]:
    """The metrics that a query, or a page, names; a histogram by its own name."""
    histograms = {family.name for family in DESCRIBED if family.type == "histogram"}
    found = set(NAME.findall(text))
    return {name.rpartition("_")[0] if name.rpartition("_")[0] in histograms else name for name in found}


def promtool(*words: str) -> None:
    """Run promtool in the folder of the files, as their paths to each other want it."""
    command = [shutil.which("promtool") or "", *words]
    done = subprocess.run(command, cwd=MONITORING, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# The files as such


@pytest.mark.needs("promtool")
@pytest.mark.parametrize(
    "words",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=["configuration", "alerts", "when alerts fire"],
)
def test_promtool_finds_nothing_wrong(words: tuple[str, ...]) -> None:
    promtool(*words)


def test_each_alert_is_seen_to_fire_and_not_to_fire() -> None:
    told = {True: set[str](), False: set[str]()}
    for test in read(MONITORING / "alerts_test.yml")["tests"]:
        for case in test["alert_rule_test"]:
            told[bool(case["exp_alerts"])].add(case["alertname"])
    assert told[True] == told[False] == {rule["alert"] for rule in rules()}


def test_each_alert_says_how_urgent_it_is_and_the_page_what_to_do() -> None:
    page = OPERATIONS.read_text()
    documented = re.findall(r"^\| `(Gateway\w+)` \|", page, re.MULTILINE)
    assert documented == [rule["alert"] for rule in rules()]
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"].keys() == {"summary", "description"}


def test_the_dashboard_is_one_that_grafana_can_show() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    (source,) = read(MONITORING / "grafana" / "datasources" / "prometheus.yml")["datasources"]
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, f"{panel['title']} covers another"
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"]["uid"] == source["uid"]
        assert all(target["datasource"]["uid"] == source["uid"] for target in panel["targets"])
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
    (variable,) = dashboard["templating"]["list"]
    assert variable["datasource"]["uid"] == source["uid"]
    assert source["url"] == "http://prometheus:9090", "the service of docker-compose.yml"


def test_every_metric_that_is_named_anywhere_exists() -> None:
    known = {family.name for family in metrics.FAMILIES}
    everywhere = {family.name for family in DESCRIBED}
    for file in (ALERTS, MONITORING / "alerts_test.yml", DASHBOARD, OPERATIONS):
        assert names(file.read_text()) <= everywhere, file
    assert names(DASHBOARD.read_text()) >= known - {"process_start_time_seconds", "process_max_fds"}


def test_the_page_describes_every_metric() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", OPERATIONS.read_text(), re.MULTILINE)
    told = [row for row in rows if row[1] in ("counter", "gauge", "histogram")]
    assert told == [
        (family.name, family.type, ", ".join(f"`{label}`" for label in family.labels), family.help)
        for family in DESCRIBED
    ]


# Compose


def test_nobody_outside_reaches_the_admin_port() -> None:
    compose = read(ROOT / "docker-compose.yml")
    services, networks = compose["services"], compose["networks"]
    assert {name: each["ports"] for name, each in services.items() if "ports" in each} == {
        "haproxy": ["${PUBLIC_PORT:-8080}:8080"],
        "grafana": ["127.0.0.1:${GRAFANA_PORT:-3000}:3000"],
    }
    assert all(networks[name]["internal"] for name in services["gateway"]["networks"])
    # Whoever is on `front` is believed about clients' addresses.
    assert {name for name, each in services.items() if "front" in each.get("networks", ())} == {
        "gateway",
        "haproxy",
    }
    assert services["prometheus"]["networks"] == ["watch"]


def test_monitoring_is_there_for_who_asks_for_it() -> None:
    services = read(ROOT / "docker-compose.yml")["services"]
    optional = {name: each["profiles"] for name, each in services.items() if "profiles" in each}
    assert optional == {"prometheus": ["monitoring"], "grafana": ["monitoring"]}
    mounted = [mount for name in optional for mount in services[name]["volumes"] if mount.startswith("./")]
    assert mounted
    for mount in mounted:
        assert (ROOT / mount.split(":")[0]).exists()
        assert mount.endswith(":ro")


@pytest.mark.needs("docker-compose")
@pytest.mark.parametrize("options", [[], ["--profile", "monitoring"]], ids=["as it is", "with monitoring"])
def test_compose_can_read_it(options: list[str]) -> None:
    command = ["docker-compose", "-f", str(ROOT / "docker-compose.yml"), *options, "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


# A real Prometheus, a real node, real load


class Prometheus(Process):
    """A Prometheus with the shipped alerts, that scrapes these admin ports every half second."""

    def __init__(self, admin_ports: list[int]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="webflow-prometheus-")
        folder = Path(self._folder.name)
        configuration = read(MONITORING / "prometheus.yml")
        configuration["global"] = {
            "scrape_interval": "500ms",
            "scrape_timeout": "450ms",
            "evaluation_interval": "1s",
        }
        configuration["rule_files"] = [str(ALERTS)]
        (job,) = configuration["scrape_configs"]
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [f"127.0.0.1:{port}" for port in admin_ports]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        self._port = free_port()
        command = [
            shutil.which("prometheus") or "",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
        ]
        self._log = (folder / "log").open("wb")
        self.process = spawn(command, stdout=self._log, stderr=self._log)
        self._await_start(self._ready, "Prometheus", (folder / "log").read_text)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def ask(self, path: str, **parameters: str) -> Any:
        """What its API says; fails the test with its own words if it does not understand."""
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                pytest.fail(f"{parameters}: {error.read().decode()}")

    def query(self, expression: str) -> list[Any]:
        found: list[Any] = self.ask("query", query=expression)["result"]
        return found

    def stop(self) -> None:
        super().stop()
        self._log.close()
        self._folder.cleanup()


@pytest.fixture(scope="module")
def node(valkey: ValkeyProcess) -> Iterator[NodeProcess]:
    with NodeProcess(valkey.url) as started:
        yield started


BROWSERS = 50

SILENT = ("> 0", "== 0", "absent")
"""Queries with these have nothing to show while all is well."""


def test_every_metric_that_is_named_is_in_a_scrape_of_a_real_node(node: NodeProcess) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{node.admin_port}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"] == metrics.CONTENT_TYPE
        scraped = set(re.findall(r"^# TYPE (\w+) ", answer.read().decode(), re.MULTILINE))
    of_others = {family.name for family in (*metrics.PARENT_FAMILIES, *OF_THE_CANARY)}
    assert names(ALERTS.read_text() + DASHBOARD.read_text()) <= scraped | of_others


@pytest.mark.needs("prometheus")
async def test_a_real_prometheus_understands_and_answers_everything(
    valkey: ValkeyProcess, node: NodeProcess
) -> None:
    ids = [f"monitored-{number}" for number in range(BROWSERS)]
    with Prometheus([node.admin_port]) as prometheus:
        async with load_clients([node.port], ids), redis.asyncio.Redis(port=valkey.port) as backend:
            enough = asyncio.Event()

            async def publish() -> None:
                while not enough.is_set():
                    for name in ids:
                        await gateway.publish(backend, name, "CONFIRMED", retain=0)
                        await backend.publish(f"websocket:{name}", "DONE")

            publishing = asyncio.create_task(publish())
            try:
                await asyncio.to_thread(has_answers, prometheus)
            finally:
                enough.set()
                await publishing


def has_answers(prometheus: Prometheus) -> None:
    """Wait until every query of the dashboard has an answer, and look at those of the alerts."""
    telling = [query for query in queries() if not any(word in query for word in SILENT)]
    assert len(telling) > 30
    for query in telling:
        wait_until(lambda query=query: prometheus.query(query), query)  # type: ignore[misc]
    for query in set(queries()) - set(telling):
        prometheus.query(query)
    sessions = prometheus.query("sum(gateway_sessions)")
    assert float(sessions[0]["value"][1]) == BROWSERS
    buckets = 'rate(gateway_publish_to_socket_seconds_bucket{since="published"}[20s])'
    (half,) = prometheus.query(f"histogram_quantile(0.5, sum by (le) ({buckets}))")
    assert 0 < float(half["value"][1]) < 5
    wait_until(lambda: all(rule["health"] == "ok" for rule in evaluated(prometheus)), "alerts are evaluated")
    assert [rule["name"] for rule in evaluated(prometheus) if rule["state"] == "firing"] == []


def evaluated(prometheus: Prometheus) -> list[dict[str, Any]]:
    (group,) = prometheus.ask("rules")["groups"]
    found: list[dict[str, Any]] = group["rules"]
    assert len(found) == len(rules())
    return found
