"""Certificates for tests of TLS."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.drill.fleet import HAProxyProcess, NodeGroup

from .paths import DEPLOY, DOCS


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-noenc",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


@contextmanager
def haproxy_with_tls(nodes: NodeGroup, folder: Path, alpn: str | None = None) -> Iterator[HAProxyProcess]:
    """HAProxy with the `bind` of docs/proxies.md, or another ALPN list, and a certificate in `folder`."""
    certificate, key = self_signed(folder)
    (folder / "site.pem").write_text(certificate.read_text() + key.read_text())
    documented = (DOCS / "proxies.md").read_text()
    bind = re.search(r'^ +(bind "\$\{LB_LISTEN\}" ssl .*)$', documented, re.MULTILINE)
    assert bind is not None
    line = bind[1].replace("/etc/haproxy/site.pem", str(folder / "site.pem"))
    if alpn is not None:
        line = re.sub(r"alpn \S+", f"alpn {alpn}", line)
    path = folder / "haproxy.cfg"
    path.write_text((DEPLOY / "haproxy.cfg").read_text().replace('bind "${LB_LISTEN}"', line))
    with HAProxyProcess(nodes.nodes, path) as balancer:
        yield balancer
