"""Which simulated parts are bad: a pure function, so that whoever checks the verdicts knows."""

from __future__ import annotations

__all__ = ["mix", "truth_is_bad"]

_MASK = (1 << 64) - 1


def mix(*values: int) -> int:
    """A hash of integers in 0 .. 2^64 - 1, the same everywhere (SplitMix64; Steele, Lea and Flood 2014)."""
    state = 0
    for value in values:
        state = (state ^ (value & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


def truth_is_bad(seed: int, number: int, share: float) -> bool:
    """Whether part `number` of the simulation `seed` is bad, where `share` (0 to 1) of the parts are."""
    return mix(seed, number) < share * (1 << 64)
