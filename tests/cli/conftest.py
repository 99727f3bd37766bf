"""What tests of the commands share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from unittest import mock

import pytest


@pytest.fixture(autouse=True)
def environment_as_before() -> Iterator[None]:
    """A command bounds the look-ups of its process by a variable: here it is that of all tests."""
    with mock.patch.dict(os.environ):
        yield
