"""How long to wait before the next try: one rule for Redis, workers, publishing and clients."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Backoff:
    """Delays in seconds that double from `first` up to `longest`.

    `jitter` is the part of each delay that is drawn at random. With 1 ("full jitter") a delay is anything
    from 0 to its ceiling, so the clients of a dead node come back spread over the whole delay
    instead of all at once. `draw(low, high)` is the source of chance.
    """

    first: float
    longest: float
    jitter: float = 1.0
    draw: Callable[[float, float], float] = random.uniform
    _tries: int = field(default=0, init=False)

    def next(self) -> float:
        """Seconds to wait before the next try."""
        ceiling = min(self.longest, self.first * 2**self._tries)
        if ceiling < self.longest:
            self._tries += 1
        return self.draw(ceiling * (1 - self.jitter), ceiling)

    def reset(self) -> None:
        """Begin again with the first delay: the last try succeeded."""
        self._tries = 0
