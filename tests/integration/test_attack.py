"""`make attack`: a node holds against each attack, and so do several workers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from ..attack.__main__ import outcome, own_node
from ..attack.attacks import ATTACKS, Attack
from ..attack.target import Target


@pytest.fixture(scope="module", params=[[], ["--workers", "2"]], ids=["one process", "two workers"])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    with own_node(*request.param) as node:
        yield node


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.name for attack in ATTACKS])
async def test_a_node_holds(target: Target, attack: Attack) -> None:
    held, measured = await asyncio.wait_for(outcome(attack, target), 50)
    assert held, measured


def test_only_nodes_on_this_machine_are_attacked() -> None:
    with pytest.raises(ValueError, match="not a loopback address"):
        Target("192.0.2.1", 8080, 8081)
