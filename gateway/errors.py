"""Everything the gateway raises on purpose.

GatewayError
├── ConfigError      the settings cannot be used; says which one and why
├── PublishError     a result that no node would forward
├── Unconfirmed      Redis has not confirmed a result, which may have gone out nevertheless
├── NoMaster         no Sentinel names a master; Redis is out of reach
├── EmbeddedError    the embedded Valkey did not start
├── DrillError       a drill cannot be played here
└── WireError        the client broke its protocol; carries the close code it gets
"""

from __future__ import annotations

from .messages import CloseCode


class GatewayError(Exception):
    """The root of the tree."""


class ConfigError(GatewayError):
    """The settings cannot be used. The message names each wrong one and what would be right."""


class PublishError(GatewayError, ValueError):
    """The id, the result or its data has no form that a node would forward."""


class Unconfirmed(GatewayError):
    """It is unknown whether a result went out; to publish it again with the same messageId does no harm.

    `why` says what was wrong, in a few words.
    """

    def __init__(self, why: str, message_id: str) -> None:
        super().__init__(
            f"{why}; it is unknown whether the result went out: publish it again with messageId {message_id}"
        )
        self.why = why
        self.message_id = message_id


class NoMaster(GatewayError, ConnectionError):
    """No Sentinel answered in time, or none knows a master; the message has what each of them said.

    It is an OSError as any other way in which Redis is out of reach."""


class EmbeddedError(GatewayError):
    """The embedded Valkey is not installed or did not start; the message says which."""


class DrillError(GatewayError):
    """A drill cannot be played on this machine or at this size; the message says what would help."""


class WireError(GatewayError):
    """The client broke its protocol beyond an answer: the connection ends with this code and reason.

    `last_message` is one of the wire's messages, to send before the close frame; None for nothing.
    """

    def __init__(self, code: CloseCode, reason: str, *, last_message: bytes | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.last_message = last_message
