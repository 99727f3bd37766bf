"""What an error of Redis says about the script that publishes: nothing was done, or a part of it."""

from __future__ import annotations

import re
from typing import Final

WITHIN_SCRIPT: Final = "@user_script"
"""In an error of one of the script's commands. Without it, the script was not started."""

_SET_REFUSED: Final = re.compile(
    # Redis 6.2 puts its own words before the code.
    r"\b(?:OOM|READONLY|MISCONF|NOREPLICAS)\b|'set' command|access a key|of the keys"
)
"""Errors of the script's first command, SET; PUBLISH and SPUBLISH answer none of them."""


def is_refusal(error: str, retain: int) -> bool:
    """Whether the script, answered with `error`, has neither published nor retained the result.

    Redis does not undo what a script has done before an error. A user who may SET but not PUBLISH has
    retained the result, and browsers that register later receive it.
    """
    if WITHIN_SCRIPT not in error or not retain:
        return True
    return _SET_REFUSED.search(error) is not None
