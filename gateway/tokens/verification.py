"""Whether a token proves that its client may register an id: a JWT (RFC 7519) whose `sub` is the id. Pure.

What is cheap is checked first, and can only refuse. PyJWT alone admits, at the end: it reads the whole token
again and verifies its signature. So a refused token costs less than an accepted one, and no difference
between two readers of a token can admit anybody.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode
from typing import TYPE_CHECKING, Any, Final

import orjson

if TYPE_CHECKING:  # it needs packages that most nodes do not have
    from .keys import KeySet

MAX_TOKEN: Final = 4_096
"""Characters. One with an id of 128 characters has 300 with HS256, 700 with RS256."""

LEEWAY: Final = 30.0
"""Seconds by which the clocks of the node and of the backend may differ."""

AUDIENCE: Final = "webflow-gateway"
"""Whom a token with `aud` must name (RFC 7519 section 4.1.3)."""

_DATES: Final = (("exp", None), ("nbf", 0), ("iat", 0))

MISSING: Final = "missing"
MALFORMED: Final = "malformed"
ALGORITHM: Final = "algorithm"
CRITICAL: Final = "critical_header"
UNKNOWN_KEY: Final = "unknown_key"
WRONG_SUBJECT: Final = "wrong_subject"
WRONG_AUDIENCE: Final = "wrong_audience"
NO_EXPIRY: Final = "no_expiry"
EXPIRED: Final = "expired"
NOT_YET_VALID: Final = "not_yet_valid"
BAD_SIGNATURE: Final = "bad_signature"

REASONS: Final = (
    MISSING, MALFORMED, ALGORITHM, CRITICAL, UNKNOWN_KEY, WRONG_SUBJECT, WRONG_AUDIENCE, NO_EXPIRY, EXPIRED,
    NOT_YET_VALID, BAD_SIGNATURE,
)  # fmt: skip
"""Why a token is refused."""


def refusal(keys: KeySet, web_socket_id: str, token: str | None, now: float) -> str | None:
    """Why `token` does not prove the id, a word for logs and metrics; None if it does.

    `now` is in seconds since 1970.
    """
    if token is None:
        return MISSING
    parts = token.split(".") if len(token) <= MAX_TOKEN and token.isascii() and "=" not in token else []
    header = _object(parts[0]) if len(parts) == 3 else None
    if header is None:
        return MALFORMED
    return _refused_header(keys, header) or _refused_body(keys, header, token, parts[1], web_socket_id, now)


def _refused_header(keys: KeySet, header: dict[str, Any]) -> str | None:
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in keys.algorithms:
        return ALGORITHM
    if "crit" in header or "b64" in header:  # RFC 7515 section 4.1.11, RFC 7797: no extension is known here
        return CRITICAL
    return None if keys.candidates(algorithm, kid) else UNKNOWN_KEY


def _refused_body(
    keys: KeySet, header: dict[str, Any], token: str, part: str, web_socket_id: str, now: float
) -> str | None:
    claims = _object(part)
    if claims is None:
        return MALFORMED
    return _refused_claims(claims, web_socket_id, now) or _refused_signature(keys, header, token, part)


def _refused_claims(claims: dict[str, Any], web_socket_id: str, now: float) -> str | None:
    if claims.get("sub") != web_socket_id:
        return WRONG_SUBJECT
    audience = claims.get("aud", AUDIENCE)
    if audience != AUDIENCE and not (isinstance(audience, list) and AUDIENCE in audience):
        return WRONG_AUDIENCE
    return _refused_time(claims, now)


def _refused_time(claims: dict[str, Any], now: float) -> str | None:
    expires, *begins = (_date(claims.get(name, default)) for name, default in _DATES)
    if expires is None:
        return NO_EXPIRY
    if now >= expires + LEEWAY:
        return EXPIRED
    if any(date is None or date > now + LEEWAY for date in begins):
        return NOT_YET_VALID
    return None


def _refused_signature(keys: KeySet, header: dict[str, Any], token: str, part: str) -> str | None:
    for key in keys.candidates(header["alg"], header.get("kid")):
        # The claims that were looked at must be those that are signed.
        if keys.verified(token, key) == _bytes(part):
            return None
    return BAD_SIGNATURE


def _bytes(part: str) -> bytes:
    return urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _object(part: str) -> dict[str, Any] | None:
    """The JSON object in a part of a token; None if it is none. PyJWT is stricter about its spelling."""
    try:
        value = orjson.loads(_bytes(part))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _date(value: object) -> float | None:
    """A NumericDate, in seconds since 1970 (RFC 7519 section 2). None for anything else."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
