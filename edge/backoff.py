"""When what failed may be tried again: soon at first, then ever more rarely. Pure: it is told the time."""

from __future__ import annotations

__all__ = ["FIRST_S", "MOST_S", "Backoff"]

FIRST_S, MOST_S = 0.5, 30.0


class Backoff:
    """The wait after each failure in a row: FIRST_S, doubled up to MOST_S."""

    def __init__(self) -> None:
        self.failures = 0  # in a row
        self._until_s = float("-inf")

    def failed(self, now_s: float, lasted_s: float) -> float:
        """Note a failure of what had lasted so long; returns how long to wait [s]. After MOST_S the row begins anew."""
        self.failures = 1 if lasted_s > MOST_S else self.failures + 1
        wait_s: float = min(MOST_S, FIRST_S * 2.0 ** min(self.failures - 1, 10))
        self._until_s = now_s + wait_s
        return wait_s

    def is_over(self, now_s: float) -> bool:
        """Whether it may be tried now."""
        return now_s >= self._until_s
