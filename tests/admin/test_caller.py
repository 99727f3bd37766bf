"""Who asks, as the log tells it."""

from __future__ import annotations

import pytest
from aiohttp.test_utils import make_mocked_request

from gateway.admin.caller import caller_of


@pytest.mark.parametrize(
    ("headers", "fields"),
    [
        ({}, {}),
        ({"X-Forwarded-For": "192.0.2.1, 10.0.0.1"}, {"forwarded_for": "192.0.2.1, 10.0.0.1"}),
    ],
)
def test_who_asks(headers: dict[str, str], fields: dict[str, str]) -> None:
    request = make_mocked_request("GET", "/", headers)
    assert caller_of(request) == {"peer": request.remote or "", **fields}
