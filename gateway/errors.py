"""Every exception of the package, most as one tree. Those without a module in brackets are defined here.

GatewayError
├── ConfigError          the settings cannot be used; the message says which one, why, and what to write
├── PublishError         a result that no node would forward
├── NotPublished         Redis refused a result or was not reached, so nothing was published
├── Unconfirmed          Redis has not confirmed a result, which may have been published nevertheless
├── NotAnnounced         Redis has not confirmed the announcement of an id
├── ConnectionLost       [redis.connection] the connection to Redis is unusable; a new one replaces it
│   └── ReplyError       [redis.connection] Redis answered a command with an error
├── LoginRejected        [redis.connection] Redis rejects the login, or is not what the URL says
├── ServerMoved          [redis.topology] another server is the master by now
├── UnexpectedReply      [redis.reply_limits] Redis answered what no command asked; the connection is closed
├── NotReceiving         [redis.probe] published probes do not come back on a connection
├── NoMaster             no Sentinel names a master, so Redis cannot be reached
├── EmbeddedError        the embedded Valkey did not start
├── DrillError           a drill cannot run on this machine
├── ClientRejected       [client] a gateway rejects this client for good
├── CanaryFailed         [canary.stages] a stage of a check has failed; the message says where to look
├── RejectedRequest      [admin.backend] POST /publish or /announce cannot be served; carries the response
└── WireError            a client broke its protocol; carries the close code that it gets

Not below GatewayError, for a reason:

ValueError
├── InvalidResult        [messages] a payload is no result: `messages` imports nothing
├── InvalidPayload       [wire.sockjs] a SockJS body is malformed; it is answered at once
└── MalformedBody        [wire.body] the body of an HTTP request breaks RFC 9112; answered with 400

ClickException
└── CommandFailed        [cli.errors] a command ends with a message: click prints it and exits
    ├── UsageFailed      [cli.errors] what was asked for is not possible
    ├── PublishFailed    [cli.errors] `publish` has published nothing
    └── WatchRejected    [cli.errors] the gateway rejects `watch` for good
"""

from __future__ import annotations

from .messages import CloseCode


class GatewayError(Exception):
    """The root of the tree."""


class ConfigError(GatewayError):
    """The settings cannot be used. The message names each wrong one and what to write instead."""


class PublishError(GatewayError, ValueError):
    """The id, the result or its data has a form that no node would forward."""


class NotPublished(GatewayError):
    """Redis has refused a result, or could not be reached: nothing was published or retained.

    `reason` says what was wrong, with Redis's own words if there are any.
    """

    def __init__(self, reason: str, message_id: str) -> None:
        super().__init__(f"{reason}; the result was not published")
        self.reason = reason
        self.message_id = message_id


class Unconfirmed(GatewayError):
    """It is unknown whether a result was published. A retry with the same messageId is idempotent.

    `reason` says what was wrong, in a few words.
    """

    def __init__(self, reason: str, message_id: str) -> None:
        super().__init__(
            f"{reason}; it is unknown whether the result was published: retry with messageId {message_id}"
        )
        self.reason = reason
        self.message_id = message_id


class NotAnnounced(GatewayError):
    """Redis has refused the announcement of an id, or has not answered. A retry is idempotent.

    `reason` says what was wrong, with Redis's own words if there are any.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; Redis has not confirmed the announcement")
        self.reason = reason


class NoMaster(GatewayError, ConnectionError):
    """No Sentinel answered in time, or none knows a master. The message has the answer of each.

    As an OSError it is handled like any other way in which Redis cannot be reached.
    """


class EmbeddedError(GatewayError):
    """The embedded Valkey is not installed or did not start; the message says which."""


class DrillError(GatewayError):
    """A drill cannot run on this machine or at this size; the message says what would help."""


class WireError(GatewayError):
    """The client broke its protocol beyond an answer: the connection ends with this code and reason.

    `last_message` is one of the wire's messages, to send before the close frame; None for nothing.
    """

    def __init__(self, code: CloseCode, reason: str, *, last_message: bytes | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.last_message = last_message
