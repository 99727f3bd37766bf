"""What clients pay for what they send, before the gateway does the work. Pure.

A session has one second of allowance a second, and can save up one. The price of a message is the part of it
that the message uses up: by number, by size, by fragments. So a message that costs much work costs its client
much of its allowance.

The sessions and the requests of one client address pay together from a budget, too. An address that has used
it up is served later and not rejected, because a company's customers share an address: see `AddressBudgets`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ..config import Config

FULL_MESSAGES: Final = 2
"""Messages of --max-message-size that a session may send in a second. Clients send some 500 bytes in all."""

FRAGMENTS: Final = 16
"""Fragments of a WebSocket message, or packets with a part of one, that cost as much as a message: they take
2.5 µs each, a message 20 to 40 µs. So a message may come in 320 fragments."""

REQUEST: Final = 4
"""Messages that cost as much as a new session or a request over HTTP: 150 to 700 µs."""

REFUSED_TOKEN: Final = 0.2
"""Seconds of a session's allowance that a token costs which does not prove its id. To verify a signature
takes 35 to 150 µs with each key that it may be of. A token that proves its id costs nothing: a connection
needs one, and has been paid for."""

BUSY_SESSIONS: Final = 20
"""Of so many sessions that --max-sessions-per-ip admits, one may use all its allowance all the time. Sessions
that wait for a result use a thousandth."""

MIN_BUDGET: Final = 10.0
"""Sessions' allowances that an address may use in any case."""

BURST: Final = 10.0
"""Seconds of its budget that an address can save up. All sessions of an address may so begin at once."""

MAX_DELAY: Final = 5.0
"""Seconds that a client waits at most because its address has used up its budget: less than the time that it
has to register, and than the time between two heartbeats."""

TOO_LONG: Final = 4.0
"""Seconds of waiting from which an address gets no new sessions, and its requests are rejected."""


class Prices(NamedTuple):
    """In seconds of a session's allowance."""

    message: float
    byte: float
    """Of a message's size."""
    fragment: float
    """Of a part of a message that is not complete yet."""
    request: float
    """Of a request over HTTP or a new session. The address pays it."""
    early: float
    """Seconds before its allowance has grown again in which a session may pay. Half a message's price is left
    out, so that rounding never decides."""

    @classmethod
    def of(cls, config: Config) -> Prices:
        """The prices that follow from the settings."""
        message = 1 / config.messages_per_second
        byte = 1 / (FULL_MESSAGES * config.max_message_size)
        return cls(message, byte, message / FRAGMENTS, message * REQUEST, 1 - message / 2)


class AddressBudgets:
    """What the clients at each address have used up together.

    The generic cell rate algorithm: one number an address, the time until which its budget is used up. An
    address whose time has come is forgotten, so the table is as large as the number of addresses that have
    sent anything in the last seconds.
    """

    __slots__ = ("_share", "_swept_size", "_used_until")

    def __init__(self, sessions: int) -> None:
        """`sessions` may come from one address. 0: without limit, so there is no budget either."""
        self._share = max(sessions / BUSY_SESSIONS, MIN_BUDGET) if sessions else 0.0
        self._used_until: dict[str, float] = {}
        self._swept_size = 0

    def __len__(self) -> int:
        """The addresses that are remembered."""
        return len(self._used_until)

    def charge(self, address: str, price: float, now: float) -> float:
        """Charge `address` with `price` seconds. Returns the seconds that its client must wait: usually 0."""
        if not self._share:
            return 0.0
        # Comparisons, because max and min would cost a third of this function, which every message needs.
        used = self._used_until.get(address, now)
        if used < now:
            used = now
        used += price / self._share
        if used > now + BURST + MAX_DELAY:  # an attack ends, and the others at its address are there
            used = now + BURST + MAX_DELAY
        self._used_until[address] = used
        if len(self._used_until) > 2 * self._swept_size + 1_000:
            self._sweep(now)
        return used - now - BURST if used > now + BURST else 0.0

    def _sweep(self, now: float) -> None:
        self._used_until = {address: used for address, used in self._used_until.items() if used > now}
        self._swept_size = len(self._used_until)
