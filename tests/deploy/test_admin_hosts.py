"""Whoever asks a node's admin port in the shipped files does so under a name that the node knows."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import yaml

from gateway.admin.hosts import KnownHosts, known_names
from gateway.config import build

from ..paths import DEPLOY, ROOT

ADDRESS = "10.0.0.7:8081"


def known(**settings: str) -> KnownHosts:
    """A node with these settings, whose host has some other name."""
    return KnownHosts(known_names(build(settings), "node"), Counter())


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return found


def test_composes_nodes_know_the_name_of_their_service() -> None:
    (name,) = (name for name, service in compose()["services"].items() if "scale" in service)
    environment = compose()["services"][name]["environment"]
    assert known(admin_hosts=environment["GATEWAY_ADMIN_HOSTS"]).allow(f"{name}:8081")
    assert not known().allow(f"{name}:8081"), "the control"


def test_prometheus_asks_by_address() -> None:
    scrape = yaml.safe_load((DEPLOY / "monitoring" / "prometheus.yml").read_text())["scrape_configs"]
    (job,) = (job for job in scrape if job["job_name"] == "gateway")
    assert "static_configs" not in job
    assert [each["type"] for each in job["dns_sd_configs"]] == ["A"], "each target is an address"
    assert known().allow(ADDRESS)


@pytest.mark.parametrize("file", ["haproxy.cfg", "nginx.conf", "nginx-nodes.conf"])
def test_proxies_health_checks_name_no_strange_host(file: str) -> None:
    """HAProxy's checks are HTTP/1.0 and have no Host, unless the file gives them one."""
    text = (DEPLOY / file).read_text()
    hosts = re.findall(r"^\s*http-check send\b.*\bhdr Host (\S+)", text, re.MULTILINE)
    assert all(known().allow(host.strip('"')) for host in hosts)


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_kubernetes_probes_ask_by_address(probe: str) -> None:
    """The kubelet sends the pod's address, unless the manifest names a host or a header."""
    deployment = yaml.safe_load((DEPLOY / "kubernetes" / "base" / "deployment.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert not {"host", "httpHeaders"} & set(container[probe]["httpGet"])
