"""How long to wait before the next try."""

from __future__ import annotations

from edge.backoff import FIRST_S, MOST_S, Backoff


def test_it_doubles_up_to_its_end_and_begins_anew_after_a_long_life() -> None:
    backoff = Backoff()
    assert backoff.is_over(0)
    assert [backoff.failed(100.0, 1.0) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert not backoff.is_over(100 + MOST_S - 0.1)
    assert backoff.is_over(100 + MOST_S)
    assert backoff.failed(200.0, lasted_s=MOST_S + 1) == FIRST_S
    assert backoff.failures == 1


def test_it_never_overflows() -> None:
    backoff = Backoff()
    assert {backoff.failed(0, 0) for _ in range(5000)} >= {MOST_S}
