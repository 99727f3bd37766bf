"""Limits the sessions of a node and of each client address. Pure."""

from __future__ import annotations

from enum import Enum


class Verdict(Enum):
    """The answer of `Admission.admit`."""

    ADMITTED = "admitted"
    NODE_FULL = "node full"
    ADDRESS_FULL = "address full"


class Admission:
    """Counts sessions, in total and by client address. 0 for `per_address` means no limit per address."""

    __slots__ = ("_by_address", "_per_address", "_total", "sessions")

    def __init__(self, total: int, per_address: int) -> None:
        self._total = total
        self._per_address = per_address
        self._by_address: dict[str, int] = {}
        self.sessions = 0

    def admit(self, address: str) -> Verdict:
        """Count a session of `address`, if the limits allow it. `release` ends that."""
        if self.sessions >= self._total:
            return Verdict.NODE_FULL
        held = self._by_address.get(address, 0)
        if self._per_address and held >= self._per_address:
            return Verdict.ADDRESS_FULL
        self._by_address[address] = held + 1
        self.sessions += 1
        return Verdict.ADMITTED

    def release(self, address: str) -> None:
        held = self._by_address[address] - 1
        if held:
            self._by_address[address] = held
        else:
            del self._by_address[address]
        self.sessions -= 1
