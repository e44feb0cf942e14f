"""Batches: no tile is lost or changed, the earliest deadline goes first, and nobody waits longer than that allows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.batching import Batch, Piece, Schedule, SideBySide
from engines.backends import open_backend
from engines.bundle import ZOO, load_bundle

ONE = "engine"


def schedule(size: int = 4, cost_ns: int = 10) -> Schedule[str]:
    return Schedule({ONE: (size, cost_ns)})


def taken(batch: Batch[str] | None) -> list[tuple[int, list[int]]]:
    return [(share.frame, list(share.tiles)) for share in batch.shares] if batch else []


def test_a_full_batch_goes_at_once() -> None:
    plan = schedule()
    for frame in range(3):
        plan.add(ONE, frame, range(1), deadline_ns=1000)
        assert plan.take(0) is None
    plan.add(ONE, 3, range(1), deadline_ns=1000)
    assert plan.start_by_ns() == 0
    assert taken(plan.take(0)) == [(0, [0]), (1, [0]), (2, [0]), (3, [0])]
    assert plan.start_by_ns() is None
    assert plan.take(0) is None


def test_a_batch_that_is_not_full_goes_when_waiting_longer_would_miss_the_first_deadline() -> None:
    plan = schedule(cost_ns=10)
    plan.add(ONE, 0, range(2), deadline_ns=1000, then_ns=100)
    plan.add(ONE, 1, range(1), deadline_ns=950)
    assert plan.start_by_ns() == 890
    assert plan.take(889) is None
    assert taken(plan.take(890)) == [(1, [0]), (0, [0, 1])]


def test_tails_never_wait() -> None:
    plan = schedule()
    plan.add(ONE, 0, range(6), deadline_ns=1000)
    batch = plan.take(0)
    assert taken(batch) == [(0, [0, 1, 2, 3, 4, 5])]
    assert batch is not None
    assert batch.rounds == 2
    plan.add(ONE, 1, range(3), deadline_ns=2000)
    plan.add(ONE, 2, range(3), deadline_ns=3000)
    assert taken(plan.take(0)) == [(1, [0, 1, 2]), (2, [0])]
    plan.add(ONE, 3, range(1), deadline_ns=4000)
    assert taken(plan.take(0)) == [(2, [1, 2]), (3, [0])], "the rest of frame 2 goes, and takes along who is there"


def test_a_tail_is_filled_up_with_tiles_of_the_next_frames() -> None:
    plan = schedule()
    plan.add(ONE, 0, range(6), deadline_ns=1000)
    plan.add(ONE, 1, range(6), deadline_ns=2000)
    assert taken(plan.take(0)) == [(0, [0, 1, 2, 3, 4, 5]), (1, [0, 1])]
    assert taken(plan.take(0)) == [(1, [2, 3, 4, 5])]


def test_one_tile_at_a_time_is_each_frame_as_a_whole() -> None:
    plan = schedule(size=1)
    for frame, deadline_ns in ((0, 300), (1, 100), (2, 200)):
        plan.add(ONE, frame, range(5), deadline_ns=deadline_ns)
    assert [taken(plan.take(0)) for _ in range(3)] == [[(frame, [0, 1, 2, 3, 4])] for frame in (1, 2, 0)]


def test_who_cannot_wait_takes_the_others_along() -> None:
    plan = schedule()
    plan.add(ONE, 0, range(1), deadline_ns=1000)
    assert taken(plan.take(0, hurry=True)) == [(0, [0])]
    plan.add(ONE, 1, range(1), deadline_ns=1000)
    plan.add(ONE, 2, range(1), deadline_ns=2000, patient=False)
    assert taken(plan.take(0)) == [(1, [0]), (2, [0])]


def test_a_batch_that_could_wait_goes_before_one_that_would_make_it_late() -> None:
    plan = Schedule({"slow": (2, 100), "fast": (2, 10)})
    plan.add("fast", 0, range(1), deadline_ns=50)
    plan.add("slow", 1, range(2), deadline_ns=1000)
    first, second = plan.take(0), plan.take(10)
    assert (taken(first), taken(second)) == ([(0, [0])], [(1, [0, 1])])
    plan.add("fast", 2, range(1), deadline_ns=150)
    plan.add("slow", 3, range(2), deadline_ns=1000)
    assert taken(plan.take(0)) == [(3, [0, 1])], "there is time for both"
    assert plan.take(100) is None


def test_several_engines_start_early_enough_for_all_that_wait() -> None:
    plan = Schedule({"a": (2, 100), "b": (2, 10)})
    plan.add("a", 0, range(1), deadline_ns=1000)
    plan.add("b", 1, range(1), deadline_ns=1001)
    assert plan.start_by_ns() == 1001 - 110
    assert taken(plan.take(891)) == [(0, [0])]


def test_what_is_dropped_never_goes() -> None:
    plan = schedule()
    plan.add(ONE, 0, range(3), deadline_ns=1000)
    plan.add(ONE, 1, range(1), deadline_ns=2000)
    plan.drop(0)
    assert taken(plan.take(5000)) == [(1, [0])]


def test_a_cost_is_believed_at_once_when_it_rises_and_slowly_when_it_falls() -> None:
    plan = schedule(cost_ns=80)
    plan.took(ONE, 2, 320)
    assert plan.cost_ns(ONE, 4) == 160
    plan.took(ONE, 1, 80)
    assert plan.cost_ns(ONE, 5) == 2 * 150
    for _ in range(200):
        plan.took(ONE, 1, 80)
    assert plan.cost_ns(ONE, 1) < 90


def test_a_frame_without_tiles_is_refused() -> None:
    with pytest.raises(ValueError, match="frame 7: no tiles"):
        schedule().add(ONE, 7, [], deadline_ns=1)


@dataclass
class Frame:
    """One that comes, in a simulation."""

    engine: int
    tiles: int
    comes_ns: int
    allowed_ns: int
    then_ns: int
    patient: bool

    @property
    def deadline_ns(self) -> int:
        return self.comes_ns + self.allowed_ns

    @property
    def due_ns(self) -> int:
        return self.deadline_ns - self.then_ns


@dataclass
class Run:
    """What a simulated thread did: each batch, when it was taken, and whether the thread had waited for that moment."""

    now_ns: int = 0
    waiting: dict[int, list[int]] = field(default_factory=dict)
    begun: set[int] = field(default_factory=set)
    done: Counter[tuple[int, int]] = field(default_factory=Counter)
    lasts: Counter[int] = field(default_factory=Counter)


frames = st.lists(
    st.builds(
        Frame,
        engine=st.integers(0, 1),
        tiles=st.integers(1, 9),
        comes_ns=st.integers(0, 400),
        allowed_ns=st.integers(0, 300),
        then_ns=st.integers(0, 60),
        patient=st.sampled_from([True, True, True, False]),
    ),
    max_size=12,
)
engines = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 40)), min_size=2, max_size=2)


@settings(max_examples=400)
@given(frames, engines)
def test_every_tile_goes_once_in_time_where_it_can_and_by_deadline(
    coming: list[Frame], engines: list[tuple[int, int]]
) -> None:
    plan, run = Schedule(dict(enumerate(engines))), Run()
    to_come = sorted(range(len(coming)), key=lambda f: coming[f].comes_ns)
    while to_come or run.waiting:
        while to_come and coming[to_come[0]].comes_ns <= run.now_ns:
            number = to_come.pop(0)
            f = coming[number]
            plan.add(
                f.engine,
                number,
                range(f.tiles),
                deadline_ns=f.deadline_ns,
                then_ns=f.then_ns,
                patient=f.patient,
            )
            run.waiting[number] = list(range(f.tiles))
        batch = plan.take(run.now_ns)
        if batch is None:
            run.now_ns = _wait(plan, run, coming, engines, to_come)
        else:
            _check_and_do(batch, run, coming, engines)
    assert run.done == Counter((n, tile) for n, f in enumerate(coming) for tile in range(f.tiles))
    assert run.lasts == Counter(range(len(coming)))


def _of(engine: int, run: Run, coming: list[Frame]) -> list[int]:
    return [n for n in run.waiting if coming[n].engine == engine]


def _first_deadline_ns(engine: int, run: Run, coming: list[Frame]) -> int:
    return min(coming[n].deadline_ns for n in _of(engine, run, coming))


def _wait(
    plan: Schedule[int], run: Run, coming: list[Frame], engines: list[tuple[int, int]], to_come: list[int]
) -> int:
    """Check that what waits may wait, and return until when it does."""
    start_by_ns = plan.start_by_ns()
    for engine, (size, _) in enumerate(engines):
        mine = _of(engine, run, coming)
        assert sum(len(run.waiting[n]) for n in mine) < size, "a full batch waits"
        assert not run.begun.intersection(mine), "a tail waits"
        assert all(coming[n].patient for n in mine)
    comes_ns = [coming[to_come[0]].comes_ns] if to_come else []
    if not run.waiting:
        assert start_by_ns is None
        return comes_ns[0]
    assert start_by_ns is not None
    assert start_by_ns > run.now_ns
    done_ns = start_by_ns
    for engine in sorted({coming[n].engine for n in run.waiting}, key=lambda e: _first_deadline_ns(e, run, coming)):
        done_ns += engines[engine][1]
        assert done_ns <= min(coming[n].due_ns for n in _of(engine, run, coming)), "waits for too long"
    return min([start_by_ns, *comes_ns])


def _check_and_do(batch: Batch[int], run: Run, coming: list[Frame], engines: list[tuple[int, int]]) -> None:
    size, cost_ns = engines[batch.engine]
    took_ns = batch.rounds * cost_ns
    goes = [share.frame for share in batch.shares]
    assert sum(len(share.tiles) for share in batch.shares) <= batch.rounds * size
    for share in batch.shares:
        left = run.waiting[share.frame]
        assert list(share.tiles) == left[: len(share.tiles)], "in the order of the frame"
        run.waiting[share.frame] = left[len(share.tiles) :]
        run.done.update((share.frame, tile) for tile in share.tiles)
        run.begun.add(share.frame)
        assert share.last == (not run.waiting[share.frame])
        if share.last:
            run.lasts[share.frame] += 1
            del run.waiting[share.frame]
    latest_ns = max(coming[n].deadline_ns for n in goes)
    assert all(latest_ns <= coming[n].deadline_ns for n in _of(batch.engine, run, coming)), "not by deadline"
    for other, (other_size, other_cost_ns) in enumerate(engines):
        mine = _of(other, run, coming)
        fresh = not run.begun.intersection(mine) and all(coming[n].patient for n in mine)
        if mine and other != batch.engine and fresh and sum(len(run.waiting[n]) for n in mine) < other_size:
            in_time = run.now_ns + took_ns + other_cost_ns <= min(coming[n].due_ns for n in mine)
            later = _first_deadline_ns(other, run, coming) >= min(coming[n].deadline_ns for n in goes)
            assert in_time or later, "an earlier one is made late"
    run.now_ns += took_ns


def test_tiles_of_several_frames_come_back_to_their_places() -> None:
    room = SideBySide((8, 2, 2, 1), (8, 2, 2, 1))
    first, second = (np.arange(i, i + 3, dtype=np.uint8).repeat(4).reshape(3, 2, 2, 1) for i in (0, 100))
    answers = [np.full((3, 2, 2, 1), -1, np.float32) for _ in range(2)]
    calls = []

    def infer(tiles: np.ndarray, out: np.ndarray) -> int:
        calls.append(len(tiles))
        out[:] = tiles + np.float32(0.5)
        return 7

    assert room.through(infer, [Piece(first, answers[0], [2, 0]), Piece(second, answers[1], range(1, 3))]) == 7
    assert [a[:, 0, 0, 0].tolist() for a in answers] == [[0.5, -1, 2.5], [-1, 101.5, 102.5]]
    assert room.through(infer, [Piece(first, answers[0], range(3))]) == 7
    assert answers[0][:, 0, 0, 0].tolist() == [0.5, 1.5, 2.5]
    assert calls == [4, 3]


def test_neither_padding_nor_neighbours_change_an_answer() -> None:
    """Bit by bit, with the real network: whatever lies beside a tile, and wherever in the batch it lies."""
    rng, batch = np.random.default_rng(0), 3
    backend = open_backend("openvino")
    backend.load(load_bundle(ZOO / "texture-s"), "x16", precision="f32", threads=1, batch=batch)
    frames = [rng.integers(0, 256, (count, 224, 224, 1), np.uint8) for count in (2, 3)]
    frames[1][1], frames[1][2] = 0, 255
    alone = [np.full(f.shape, np.nan, np.float32) for f in frames]
    for tiles, out in zip(frames, alone, strict=True):
        for i in range(len(tiles)):
            backend.infer(tiles[i : i + 1], out[i : i + 1])
    together = [np.full(f.shape, np.nan, np.float32) for f in frames]
    room = SideBySide((6, 224, 224, 1), (6, 224, 224, 1))
    pieces = [Piece(t, out, range(len(t))) for t, out in zip(frames, together, strict=True)]
    assert room.through(backend.infer, pieces) is None
    for expected, found in zip(alone, together, strict=True):
        np.testing.assert_array_equal(found, expected)
