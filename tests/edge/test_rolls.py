"""Which files of an endless recording must go, and what of them is protected."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from edge.recorder.rolls import Bounds, Marks, Roll, Stretch, beyond, find_rolls, marked_path, roll_path

times = st.integers(0, 1000)
stretches = st.lists(st.tuples(times, times).map(lambda s: (min(s), max(s))), max_size=12)
rolls = st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=12).map(
    lambda found: [Roll(Path(str(i)), i, -i, -i, size, marked) for i, (size, marked) in enumerate(found)]
)


def test_names_tell_line_start_and_marks(tmp_path: Path) -> None:
    start_ns = 1_795_364_318_447_122_000
    older, path = roll_path(tmp_path, "a", 7, start_ns), roll_path(tmp_path, "a", 8, start_ns - 1_000_000_000)
    assert older.name == "a.00000007.20261122T161838.447122Z.mcap"
    marked, unnumbered = marked_path(older), tmp_path / "a.20271122T161838.447122Z.mcap"
    others = (
        "a-b.00000001.20261122T161838.447122Z.mcap",
        "a.mcap",
        "a.00000001.20261122T161838.447122Z.mcap.part",
        "a.00000001.99999999T161838.447122Z.mcap",
        "a.1.20261122T161838.447122Z.mcap",
    )
    for file in (path, marked, unnumbered, *(tmp_path / other for other in others)):
        file.write_bytes(b"12345")
    found = find_rolls(tmp_path, "a")
    assert [(r.path, r.number, r.start_ns, r.nbytes, r.marked) for r in found] == [
        (unnumbered, 0, start_ns + 365 * 86_400 * 1_000_000_000, 5, False),
        (marked, 7, start_ns, 5, True),
        (path, 8, start_ns - 1_000_000_000, 5, False),
    ], "in the order in which they were begun, whatever the clock said then"


@given(stretches)
def test_marks_cover_just_what_was_marked(given_stretches: list[Stretch]) -> None:
    marks = Marks(given_stretches)
    covered = {t for first, last in given_stretches for t in range(first, last + 1)}
    assert {t for first, last in marks.stretches for t in range(first, last + 1)} == covered
    assert all(a[1] < b[0] for a, b in zip(marks.stretches, marks.stretches[1:], strict=False)), "apart, and in order"


@given(stretches, times, times)
def test_what_is_marked_of_a_roll(given_stretches: list[Stretch], a: int, b: int) -> None:
    roll = min(a, b), max(a, b)
    marked = {t for first, last in Marks(given_stretches).within(roll) for t in range(first, last + 1)}
    assert marked == {t for s in given_stretches for t in range(s[0], s[1] + 1) if roll[0] <= t <= roll[1]}


def test_marks_are_forgotten_with_the_last_file() -> None:
    marks = Marks([(1, 5), (10, 20)])
    marks.forget_before(6)
    assert marks.stretches == [(10, 20)]
    marks.forget_before(20)
    assert marks.stretches == [(10, 20)]


@given(rolls, st.integers(0, 300))
def test_no_more_goes_than_must_the_oldest_first_and_marked_ones_last(found: list[Roll], limit: int) -> None:
    gone = beyond(found, limit)
    left = [r for r in found if r not in gone]
    assert sum(r.nbytes for r in left) <= limit or not left
    if gone:
        assert sum(r.nbytes for r in left) + gone[-1].nbytes > limit, "the last one had to go"
    assert all(r.marked for r in left) or not any(r.marked for r in gone)
    for kind in (True, False):
        ages = [r.number for r in found if r.marked is kind]
        assert [r.number for r in gone if r.marked is kind] == ages[: sum(r.marked is kind for r in gone)]


def test_closed_files_leave_room_for_the_open_one_and_for_what_is_cut_out() -> None:
    assert Bounds(roll_bytes=10, total_bytes=50, marked_bytes=20).closed_bytes == 30
