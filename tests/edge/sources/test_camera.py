"""From the ids of a camera's frames to parts: gaps, repeats, resets, silence, and lanes with several stations."""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_helpers import FakeClock

from edge.errors import SourceError
from edge.settings import Station
from edge.sources import Event, Exposed, Triggered
from edge.sources.camera import LOOK_S, MAX_GAP, CameraSource, Grabbed
from edge.verdict import Reason

COUNTED = {"chunks": {"trigger": "Counter0"}}
IMAGE = np.zeros((48, 64, 1), np.uint8)
MS = 1_000_000


class Script:
    """A camera that delivers what the test says; None is a grab that waits in vain."""

    def __init__(
        self, clock: FakeClock, *grabs: Grabbed | SourceError | None, counted: list[int] | None = None
    ) -> None:
        self.clock, self.grabs, self.counted, self.closed = clock, deque(grabs), deque(counted or []), False

    def grab(self, timeout_s: float) -> Grabbed | None:
        grabbed = self.grabs.popleft() if self.grabs else None
        if isinstance(grabbed, SourceError):
            raise grabbed
        if grabbed is None:
            self.clock.sleep(timeout_s)
        return grabbed

    def close(self) -> None:
        self.closed = True


class Counting(Script):
    """One that can be asked for its trigger counter; it keeps its last value."""

    def triggers(self) -> int | None:
        return self.counted.popleft() if len(self.counted) > 1 else self.counted[0]


def station(**source: Any) -> Station:
    fields = {"kind": "genicam", "address": "192.0.2.1", "camera": {}, **source}
    frame = {"width_px": 64, "height_px": 48}
    return Station.model_validate({"name": "top", "bundle": "marker", "frame": frame, "source": fields})


def shot(frame_id: int | None, arrived_ns: int = 0, **fields: Any) -> Grabbed:
    return Grabbed(IMAGE, arrived_ns, frame_id, **fields)


def triggered(trigger_id: int | None, **fields: Any) -> Grabbed:
    return Grabbed(IMAGE, 0, trigger_id=trigger_id, **fields)


def events(source: CameraSource, polls: int = 60, timeout_s: float = 0.1) -> list[Event]:
    return [e for e in (source.poll(timeout_s) for _ in range(polls)) if e is not None]


def said(found: list[Event]) -> list[tuple[int, str]]:
    """Number and answer of each part: "ok", the reason, "unseen", or "open" when nothing was said of it."""
    answers: dict[int, str] = {}
    for event in found:
        if isinstance(event, Triggered):
            assert event.number not in answers
            assert "open" not in answers.values(), "the next trigger came before the answer of the one before"
            answers[event.number] = "unseen" if event.missed else "open"
        elif isinstance(event, Exposed):
            assert answers[event.number] == "open"
            assert (event.image is None) == (event.reason is not None)
            answers[event.number] = event.reason.value if event.reason else "ok"
    return list(answers.items())


def inferred(
    *grabs: Grabbed | SourceError | None, first: int = 0, alone: bool = True, astray: bool = False
) -> list[tuple[int, str]]:
    clock = FakeClock()
    return said(events(CameraSource(Script(clock, *grabs), station(), first, alone, astray, clock)))


def independent(
    *grabs: Grabbed | None, counted: list[int], alone: bool = True, **camera: Any
) -> tuple[list[tuple[int, str]], list[Event]]:
    clock = FakeClock()
    camera.setdefault("chunks", {"trigger": "Counter0"})
    settings = station(triggers="independent", frame_timeout_ms=200, camera=camera)
    found = events(CameraSource(Counting(clock, *grabs, counted=counted), settings, 0, alone, clock=clock))
    return said(found), found


def test_frame_ids_that_rise_by_one_are_parts() -> None:
    assert inferred(shot(7), None, shot(8), shot(9)) == [(0, "ok"), (1, "ok"), (2, "ok")]
    assert inferred(shot(7), shot(8), first=40) == [(40, "ok"), (41, "ok")]


def test_a_gap_in_the_frame_ids_is_parts_without_an_image() -> None:
    assert inferred(shot(1), shot(4)) == [(0, "ok"), (1, "unseen"), (2, "unseen"), (3, "ok")]


def test_a_repeated_frame_id_is_a_part_of_its_own() -> None:
    assert inferred(shot(1), shot(1), shot(2)) == [(0, "ok"), (1, "repeated_frame"), (2, "ok")]


@pytest.mark.parametrize("strange", [0, -5, MAX_GAP + 7])
def test_an_id_that_falls_or_jumps_is_out_of_order_and_counting_goes_on_from_it(strange: int) -> None:
    assert inferred(shot(5), shot(strange), shot(strange + 1)) == [(0, "ok"), (1, "frame_out_of_order"), (2, "ok")]


def test_the_longest_gap_is_one() -> None:
    assert inferred(shot(5), shot(5 + MAX_GAP + 1))[1] == (1, "unseen")
    assert inferred(shot(5), shot(5 + MAX_GAP + 2))[1] == (1, "frame_out_of_order")


def test_a_camera_that_does_not_count_gives_one_part_per_frame() -> None:
    assert inferred(shot(None), shot(None)) == [(0, "ok"), (1, "ok")]


def test_a_bad_image_keeps_its_place_and_its_reason() -> None:
    bad = Grabbed(IMAGE, 0, 2, reason=Reason.BAD_IMAGE, detail="3 of 748 packets are missing")
    assert inferred(shot(1), bad, shot(3)) == [(0, "ok"), (1, "bad_image"), (2, "ok")]


@pytest.mark.parametrize("strange", [3, 2])
def test_in_a_lane_of_several_stations_nothing_is_inspected_once_its_place_is_in_doubt(strange: int) -> None:
    answers = inferred(shot(2), shot(3), shot(strange), shot(4), shot(5), alone=False)
    assert [a for _, a in answers[:2]] == ["ok", "ok"]
    assert all(a in ("repeated_frame", "frame_out_of_order") or a == "unseen" for _, a in answers[2:])
    assert len(answers) >= 5


def test_in_a_lane_of_several_stations_a_new_capture_process_has_lost_its_place() -> None:
    assert inferred(shot(1), shot(2), first=9, alone=False, astray=True) == [
        (9, "frame_out_of_order"),
        (10, "frame_out_of_order"),
    ]


def test_in_a_lane_of_several_stations_gaps_keep_the_numbers() -> None:
    assert inferred(shot(1), shot(3), alone=False) == [(0, "ok"), (1, "unseen"), (2, "ok")]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=30), st.booleans())
def test_whatever_the_ids_are_every_part_has_one_answer_and_no_frame_is_judged_in_doubt(
    ids: list[int], alone: bool
) -> None:
    clock = FakeClock()
    source = CameraSource(Script(clock, *map(shot, ids)), station(), 0, alone, clock=clock)
    answers = said(events(source, polls=20 * 31, timeout_s=0))
    assert [n for n, _ in answers] == list(range(len(answers)))
    assert "open" not in dict(answers).values()
    rising = [True, *(b > a for a, b in itertools.pairwise(ids))]
    judged = [a for _, a in answers if a != "unseen"]
    expected_ok = [r and (alone or all(rising[: i + 1])) for i, r in enumerate(rising)]
    assert [a == "ok" for a in judged] == expected_ok


def test_a_trigger_is_said_at_the_time_of_its_exposure() -> None:
    clock = FakeClock()
    frames = [
        shot(i, 5_000 * MS + i * 100 * MS + delay, camera_ns=i * 100 * MS) for i, delay in ((1, 8 * MS), (2, 30 * MS))
    ]
    found = events(CameraSource(Script(clock, *frames), station(), 0, clock=clock))
    at = [e.at_ns for e in found if isinstance(e, Triggered)]
    assert abs(at[1] - at[0] - 100 * MS) < MS / 10


def test_times_never_fall() -> None:
    clock = FakeClock()
    frames = [shot(1, 900 * MS, camera_ns=900 * MS), shot(2, 910 * MS, camera_ns=100 * MS), shot(3, 905 * MS)]
    at = [
        e.at_ns
        for e in events(CameraSource(Script(clock, *frames), station(), 0, clock=clock))
        if isinstance(e, Triggered)
    ]
    assert at == sorted(at)


def test_a_camera_that_is_gone_is_said_after_what_came_before() -> None:
    clock = FakeClock()
    source = CameraSource(Script(clock, shot(1), SourceError("the cable")), station(), 0, clock=clock)
    assert isinstance(source.poll(1), Triggered)
    assert isinstance(source.poll(1), Exposed)
    for _ in range(2):
        with pytest.raises(SourceError, match="the cable"):
            source.poll(1)


def test_an_idle_camera_says_nothing_for_the_time_that_was_asked() -> None:
    clock = FakeClock()
    before = clock.now_ns
    assert CameraSource(Script(clock), station(), 0, clock=clock).poll(0.25) is None
    assert clock.now_ns - before == 250 * MS


def test_close_closes_the_camera() -> None:
    camera = Script(FakeClock())
    CameraSource(camera, station(), 0).close()
    assert camera.closed


# Independent triggers: the camera counts the edges at its input.


def test_numbers_follow_the_trigger_counter_from_where_it_stood() -> None:
    answers, _ = independent(triggered(5), triggered(6), counted=[4])
    assert answers == [(0, "ok"), (1, "ok")]


def test_triggers_before_the_first_image_are_parts() -> None:
    answers, _ = independent(triggered(6), counted=[4])
    assert answers == [(0, "missed_frame"), (1, "ok")]


def test_a_trigger_without_an_image_in_time_is_missed() -> None:
    answers, found = independent(triggered(1), None, counted=[0, 2])
    assert answers == [(0, "ok"), (1, "missed_frame")]
    late = [e for e in found if isinstance(e, Exposed)][-1]
    assert "200 ms after its trigger" in late.detail


def test_a_trigger_is_said_at_once_and_answered_later() -> None:
    clock = FakeClock()
    camera = Counting(clock, None, *[None] * 5, triggered(1), counted=[0, 1])
    source = CameraSource(camera, station(triggers="independent", camera=COUNTED), 0, clock=clock)
    start = clock.now_ns
    assert source.poll(1) == Triggered(0, start + round(LOOK_S * 1e9))
    assert clock.now_ns == start + round(LOOK_S * 1e9)
    event = source.poll(1)
    assert isinstance(event, Exposed)
    assert event.image is IMAGE


def test_a_camera_without_triggers_is_silent_and_well() -> None:
    answers, found = independent(*[None] * 50, counted=[7])
    assert (answers, found) == ([], [])


def test_an_image_that_comes_after_its_part_was_given_up_shifts_nothing() -> None:
    silence = [None] * 30  # of LOOK_S each
    answers, _ = independent(triggered(1), *silence, triggered(2), triggered(3), counted=[0, 2])
    assert answers == [(0, "ok"), (1, "missed_frame"), (2, "ok")]


def test_a_later_image_gives_up_the_triggers_before_it() -> None:
    answers, found = independent(None, triggered(3), triggered(4), counted=[0, 3])
    assert answers == [(0, "missed_frame"), (1, "missed_frame"), (2, "ok"), (3, "ok")]
    answers, later = independent(
        None, triggered(4), counted=[0, 2]
    )  # two that waited, and one that was not counted yet
    assert answers == [(0, "missed_frame"), (1, "missed_frame"), (2, "missed_frame"), (3, "ok")]
    details = [e.detail for e in (*found, *later) if isinstance(e, Exposed) and e.reason]
    assert details == ["a later image came first"] * 2 + ["a gap in the camera's counter"] * 3


def test_a_repeated_trigger_counter_does_not_give_up_those_who_wait() -> None:
    answers, _ = independent(triggered(1), None, triggered(1), triggered(2), counted=[0, 2])
    assert answers == [(0, "ok"), (1, "ok"), (2, "repeated_frame")]


def test_a_trigger_counter_that_began_anew_is_out_of_order_once() -> None:
    answers, _ = independent(triggered(500), triggered(1), triggered(2), counted=[499, 1])
    assert answers == [(0, "ok"), (1, "frame_out_of_order"), (2, "ok")]


def test_a_trigger_counter_that_began_anew_in_silence_goes_on_from_there() -> None:
    answers, _ = independent(triggered(500), None, None, triggered(2), counted=[499, 1, 2])
    assert answers == [(0, "ok"), (1, "ok")]


def test_a_trigger_counter_that_jumps_is_not_so_many_parts() -> None:
    answers, _ = independent(triggered(1), None, triggered(30_001), counted=[0, 30_000])
    assert answers == [(0, "ok"), (1, "ok")]


def test_in_a_lane_of_several_stations_a_trigger_counter_that_began_anew_ends_the_inspection() -> None:
    answers, _ = independent(triggered(500), None, None, triggered(2), counted=[499, 1, 2], alone=False)
    assert answers == [(0, "ok"), (1, "frame_out_of_order")]


def test_a_repeated_counter_hides_no_trigger_that_was_not_yet_seen() -> None:
    answers, _ = independent(triggered(1), triggered(1), triggered(2), triggered(3), counted=[0, 3])
    assert sorted(a for _, a in answers) == ["ok", "ok", "ok", "repeated_frame"]
    assert [a for _, a in answers[:3]] == ["ok", "ok", "ok"]


def test_a_trigger_before_the_first_look_is_nobodys() -> None:
    answers, _ = independent(triggered(7), triggered(8), counted=[7])
    assert answers == [(0, "ok")]
    answers, _ = independent(triggered(7), triggered(8), counted=[7], alone=False)
    assert answers == [(0, "frame_out_of_order")]


def test_an_image_of_a_trigger_that_a_broken_frame_has_answered_shifts_nothing() -> None:
    broken = Grabbed(None, 0, 3, reason=Reason.BAD_IMAGE, detail="12 of 748 packets are missing")
    answers, _ = independent(triggered(1), None, broken, triggered(2), triggered(3), counted=[0, 2])
    assert answers == [(0, "ok"), (1, "bad_image"), (2, "ok")]


def test_a_broken_frame_without_its_counter_answers_the_trigger_that_waits() -> None:
    broken = Grabbed(None, 0, 3, reason=Reason.BAD_IMAGE, detail="12 of 748 packets are missing")
    answers, _ = independent(None, broken, triggered(2), counted=[0, 1])
    assert answers == [(0, "bad_image"), (1, "ok")]


def test_a_camera_without_its_counter_in_the_frames_is_an_error_with_a_way_out() -> None:
    with pytest.raises(SourceError, match=r"sends no trigger counter with its frames"):
        independent(triggered(None), counted=[0])


def test_with_an_encoder_the_trigger_is_held_until_its_count_is_known() -> None:
    answers, found = independent(
        None, None, triggered(1, count=4711), counted=[0, 1], chunks={"trigger": "Counter0", "encoder": "Encoder0"}
    )
    assert answers == [(0, "ok")]
    assert isinstance(found[0], Triggered)
    assert found[0].count == 4711


def test_a_held_trigger_without_an_image_is_said_when_its_time_is_up() -> None:
    chunks = {"trigger": "Counter0", "encoder": "Encoder0"}
    answers, _ = independent(None, counted=[0, 1], chunks=chunks)
    assert answers == [(0, "missed_frame")]


class Belt:
    """Triggers and their images, in the order that the letters say: t a trigger, f the image of the oldest one that has
    none yet, l such an image is lost, w a wait in vain, W one that is longer than the line waits for an image."""

    def __init__(self, clock: FakeClock, letters: str) -> None:
        self.clock, self.letters = clock, deque(letters)
        self.counter, self.exposed = 100, deque[int]()

    def grab(self, timeout_s: float) -> Grabbed | None:
        while self.letters:
            letter = self.letters.popleft()
            if letter == "t":
                self.counter += 1
                self.exposed.append(self.counter)
            elif letter in "wW":
                self.clock.sleep(0.3 if letter == "W" else timeout_s)
                return None
            elif self.exposed:
                trigger_id = self.exposed.popleft()
                if letter == "f":
                    image = np.full((48, 64, 1), trigger_id - 101, np.uint8)
                    return Grabbed(image, self.clock.now_ns, trigger_id=trigger_id)
        self.clock.sleep(timeout_s)
        return None

    def triggers(self) -> int | None:
        return self.counter

    def close(self) -> None: ...


@given(st.lists(st.sampled_from(["t", "f", "tf", "l", "w", "WW"]), max_size=40), st.booleans(), st.booleans())
def test_whatever_is_lost_or_late_no_part_gets_the_image_of_another(
    words: list[str], alone: bool, encoder: bool
) -> None:
    letters = "".join(words)
    clock = FakeClock()
    chunks = {"trigger": "Counter0", **({"encoder": "Encoder0"} if encoder else {})}
    settings = station(triggers="independent", frame_timeout_ms=200, camera={"chunks": chunks})
    belt = Belt(clock, letters)
    found = events(CameraSource(belt, settings, 0, alone, clock=clock), polls=300)
    answers = said(found)
    assert [n for n, _ in answers] == list(range(letters.count("t")))
    assert {a for _, a in answers} <= {"ok", "missed_frame"}
    for event in found:
        if isinstance(event, Exposed) and event.image is not None:
            assert event.image[0, 0, 0] == event.number


def test_a_camera_that_dies_leaves_no_trigger_without_an_answer() -> None:
    clock = FakeClock()
    camera = Counting(clock, None, SourceError("the cable"), counted=[0, 2])
    source = CameraSource(camera, station(triggers="independent", camera=COUNTED), 0, clock=clock)
    found = [source.poll(1) for _ in range(4)]
    assert said([e for e in found if e]) == [(0, "missed_frame"), (1, "missed_frame")]
    with pytest.raises(SourceError, match="the cable"):
        source.poll(1)


def test_a_broken_frame_whose_id_is_lost_is_the_next_one() -> None:
    broken = Grabbed(None, 0, reason=Reason.BAD_IMAGE)
    assert inferred(shot(1), broken, shot(3), shot(5)) == [
        (0, "ok"),
        (1, "bad_image"),
        (2, "ok"),
        (3, "unseen"),
        (4, "ok"),
    ]


# Ids from a PLC (edge/sources/part_ids.py): which triggers they are asked for, and what is known of their times.


class Asked:
    """Hands out 1, 2, 3 and so on, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.times: list[tuple[int | None, int]] = []
        self.closed = False

    def take(self, earliest_ns: int | None, at_ns: int) -> int | None:
        self.times.append((earliest_ns, at_ns))
        return len(self.times)

    def close(self) -> None:
        self.closed = True


def asked(camera: Script, settings: Station) -> tuple[list[tuple[int | None, int]], list[tuple[int, int | None]]]:
    """What a source asked for, and number and id of each of its triggers."""
    ids: Any = Asked()
    source = CameraSource(camera, settings, 0, clock=camera.clock, ids=ids)
    found = events(source)
    source.close()
    assert ids.closed
    return ids.times, [(e.number, e.part_id) for e in found if isinstance(e, Triggered)]


@dataclass(frozen=True)
class Waited:
    """A frame that comes while it is waited for, so many ms after it was exposed."""

    frame_id: int
    delay_ms: int = 8
    has_clock: bool = True


class Live(Script):
    """The clock of its frames is the host's, less START; what is no `Waited` had been there before."""

    START = 500 * MS

    def __init__(self, clock: FakeClock, *grabs: Grabbed | Waited | None) -> None:
        super().__init__(clock, *grabs)  # type: ignore[arg-type]

    def grab(self, timeout_s: float) -> Grabbed | None:
        found = self.grabs[0] if self.grabs else None
        if not isinstance(found, Waited):
            return super().grab(timeout_s)
        self.grabs.popleft()
        self.clock.sleep(0.05)
        now_ns = self.clock()
        camera_ns = now_ns - found.delay_ms * MS - self.START
        return Grabbed(IMAGE, now_ns, found.frame_id, camera_ns if found.has_clock else None)


def test_a_trigger_whose_time_is_known_is_asked_for_from_then_on() -> None:
    clock = FakeClock()
    start = clock()
    times, ids = asked(Live(clock, Waited(1, 8), Waited(2, 30), Waited(3, 9), Waited(4, has_clock=False)), station())
    assert [(earliest is not None, round((at - start) / MS)) for earliest, at in times] == [
        (False, 50),  # the first one's way is taken for the shortest
        (True, 78),
        (True, 149),
        (False, 200),
    ]
    assert all(earliest in (at, None) for earliest, at in times)
    assert ids == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_frames_that_had_waited_are_timed_by_the_cameras_clock_once_it_is_known() -> None:
    clock = FakeClock()
    start = clock()

    def late(frame_id: int, arrived_ms: int, exposed_ms: int) -> Grabbed:
        return Grabbed(IMAGE, start + arrived_ms * MS, frame_id, start - Live.START + exposed_ms * MS)

    frames = [late(1, 0, -90), late(2, 0, -40), Waited(3), late(4, 50, 46), Waited(5), None, late(6, 200, 110)]
    times, _ = asked(Live(clock, *frames), station())
    assert [earliest is not None for earliest, _ in times] == [False, False, False, False, True, True]
    assert abs(times[5][1] - start - 114 * MS) < MS / 10, "when it was exposed, and 4 ms of the way; not when it came"


def test_a_camera_clock_that_began_anew_is_learnt_again() -> None:
    clock = FakeClock()
    frames = [Waited(1), Waited(2), Grabbed(IMAGE, clock(), 3, 5), Grabbed(IMAGE, clock(), 4, 6), Waited(5), Waited(6)]
    times, _ = asked(Live(clock, *frames), station())
    assert [earliest is not None for earliest, _ in times] == [False, True, False, False, False, True]


def test_parts_that_a_gap_shows_are_of_unknown_times() -> None:
    times, ids = asked(Live(FakeClock(), Waited(1), Waited(2), Waited(5)), station())
    assert [earliest is not None for earliest, _ in times] == [False, True, False, False, True]
    assert [number for number, _ in ids] == [0, 1, 2, 3, 4]


def test_a_counted_trigger_came_after_the_look_before_and_of_two_nobody_knows() -> None:
    clock = FakeClock()
    start = clock()
    camera = Counting(clock, counted=[4, 4, 5, 7, 7, 8])
    settings = station(triggers="independent", frame_timeout_ms=200, camera=COUNTED)
    times, _ = asked(camera, settings)
    look = round(LOOK_S * 1e9)
    assert times == [
        (start + look, start + 2 * look),
        (None, start + 3 * look),
        (None, start + 3 * look),
        (start + 4 * look, start + 5 * look),
    ]
