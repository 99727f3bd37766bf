"""The stages of a check, in their order, and the failure of one. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from ..errors import GatewayError


class Stage(StrEnum):
    """What a check proves, one after the other. The values stand in reports and metrics."""

    LOOK_UP = "lookup"
    """The name of the URL has an address."""
    TCP = "tcp"
    """A machine with this address accepts connections."""
    TLS = "tls"
    """It has a certificate for the name that is trusted. Only with wss://."""
    UPGRADE = "upgrade"
    """The proxy and a node open a WebSocket for pages of this origin."""
    ANNOUNCE = "announce"
    """Redis accepts the announcement of an id."""
    REGISTRATION = "registration"
    """The node subscribes at Redis."""
    PUBLISH = "publish"
    """Redis accepts a result."""
    DELIVERY = "delivery"
    """The result comes to the client."""


CONNECT: Final = "connect"
"""The stages up to `UPGRADE`, which are timed together."""

TIMED: Final = (CONNECT, str(Stage.REGISTRATION), str(Stage.DELIVERY))
"""What a check times. The last is from publishing to the result."""


class CanaryFailed(GatewayError):
    """A stage has failed. `reason` says what was seen, `hint` where to look; either is part of a sentence."""

    def __init__(self, stage: Stage, reason: str, hint: str = "") -> None:
        super().__init__(f"{stage}: {reason}" + (f"; {hint}" if hint else ""))
        self.stage = stage
