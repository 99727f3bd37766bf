"""File descriptors: no more is let in than fits."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gateway.system import RESERVED, Capacity, capacity, cpu_count, raise_nofile_limit, unread_limit

from .wire import strategies  # noqa: F401 - sets hypothesis up


def test_what_fits_stays_as_it_is() -> None:
    with capture_logs() as lines:
        assert capacity(10_000, 5_000, 3_000) == Capacity(5_000, 3_000, 8_904, 1_000)
        assert capacity(resource.RLIM_INFINITY, 100_000, 5_000) == Capacity(100_000, 5_000, 205_000, 1_000)
        assert capacity(1_000_000, 100, 50) == Capacity(100, 50, 250, 1_000), "not more than they can use"
    assert lines == []


@given(st.integers(RESERVED + 16, 200_000), st.integers(1, 200_000), st.integers(1, 10_000))
def test_what_does_not_fit_is_cut_and_said(limit: int, sessions: int, handshakes: int) -> None:
    with capture_logs() as lines:
        fits = capacity(limit, sessions, handshakes)
    assert 1 <= fits.sessions <= sessions
    assert 1 <= fits.handshakes <= handshakes
    assert fits.sessions + fits.handshakes <= fits.connections
    assert fits.admin_connections >= 1
    assert fits.connections + fits.admin_connections + RESERVED <= limit
    assert len(lines) == (fits[:2] != (sessions, handshakes))


def test_what_clients_may_leave_unread(tmp_path: Path) -> None:
    assert unread_limit(64 << 20, 1, ()) == 64 << 20
    assert unread_limit(64 << 20, 4, ()) == 16 << 20, "each worker has its part"
    limit, old, none = tmp_path / "memory.max", tmp_path / "limit_in_bytes", tmp_path / "none"
    limit.write_text("max\n")
    old.write_text("134217728\n")
    assert unread_limit(64 << 20, 1, (limit, none)) == 64 << 20
    assert unread_limit(64 << 20, 2, (limit, old)) == 16 << 20, "a quarter of the container's memory"


def test_the_limit_is_raised_as_far_as_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(1_024, 4_096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _which: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _which, new: limits.append(new))
    assert raise_nofile_limit() == 4_096
    assert limits[-1] == (4_096, 4_096)
    assert raise_nofile_limit() == 4_096
    assert len(limits) == 2


def test_a_limit_that_is_not_granted_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_which: int, _new: tuple[int, int]) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _which: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_nofile_limit() == 256


ALLOWED = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("max 100000\n", ALLOWED),
        ("50000 100000\n", 1),
        ("100000 100000\n", 1),
        ("110000 100000\n", min(2, ALLOWED)),
        ("99900000 100000\n", ALLOWED),
        ("", ALLOWED),
    ],
)
def test_what_the_container_grants(tmp_path: Path, text: str, count: int) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(text)
    assert cpu_count(quota) == count


def test_without_a_container(tmp_path: Path) -> None:
    assert cpu_count(tmp_path / "none") == ALLOWED
    assert cpu_count() >= 1
