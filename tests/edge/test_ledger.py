"""The ledger: one answer per part, on time, and a PASS only where every view earned it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from gate_helpers import recipe
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from edge.ledger import MARGIN_NS, MAX_GAP, Answer, Ledger, view_of, withdraw
from edge.messages import SourceEnded, Trigger, ViewResult
from edge.settings import PartIds, Recipe
from edge.verdict import Decision, Reason

MS = 1_000_000
DEADLINE_MS, VIEW_TIMEOUT_MS = 100, 300
PASS, REJECT, UNINSPECTED = Decision.PASS, Decision.REJECT, Decision.UNINSPECTED


def one() -> Ledger:
    return Ledger(recipe(1, deadline_ms=DEADLINE_MS), {})


def two_views(answered: set[tuple[str, int]] | None = None) -> Ledger:
    known = answered or set()
    return Ledger(recipe(2, same_lane=True, deadline_ms=DEADLINE_MS), {}, lambda lane, number: (lane, number) in known)


def seen(number: int, at_ms: int = 0, station: str = "s0") -> Trigger:
    return Trigger(station, number, at_ms * MS)


def said(
    number: int,
    decision: Decision = PASS,
    station: str = "s0",
    score: float | None = 0.1,
    reason: Reason | None = None,
) -> ViewResult:
    return ViewResult(station, number, 0, decision, reason, score, 0.5)


def short(answers: list[Answer]) -> list[tuple[int, Decision, Reason | None]]:
    return [(a.number, a.decision, a.reason) for a in answers]


def test_a_part_is_answered_as_soon_as_it_is_complete() -> None:
    ledger = one()
    assert ledger.trigger(seen(0, at_ms=5)) == [seen(0, at_ms=5)]
    assert ledger.due(6 * MS) == []
    assert ledger.result(said(0)) == ([], True)
    (answer,) = ledger.due(7 * MS)
    assert short([answer]) == [(0, PASS, None)]
    assert (answer.trigger_ns, answer.deadline_ns) == (5 * MS, 105 * MS)
    assert (answer.score, answer.threshold) == (0.1, 0.5)
    assert ledger.open_parts == 0
    assert ledger.due(10_000 * MS) == []


def test_a_part_is_answered_a_little_before_its_deadline() -> None:
    ledger = one()
    ledger.trigger(seen(0))
    closing_ns = DEADLINE_MS * MS - MARGIN_NS
    assert ledger.next_closing_ns() == closing_ns
    assert ledger.due(closing_ns - 1) == []
    assert short(ledger.due(closing_ns)) == [(0, UNINSPECTED, Reason.DEADLINE)]
    assert ledger.next_closing_ns() is None


def test_a_late_result_changes_nothing() -> None:
    ledger = one()
    ledger.trigger(seen(0))
    ledger.due(DEADLINE_MS * MS)
    assert ledger.result(said(0)) == ([], False)
    assert ledger.open_parts == 0
    assert ledger.counters["late_results"] == 1


def test_the_first_result_counts() -> None:
    ledger = one()
    ledger.trigger(seen(0))
    ledger.result(said(0, REJECT))
    ledger.result(said(0, PASS))
    assert short(ledger.due(0)) == [(0, REJECT, None)]
    assert ledger.counters["duplicate_results"] == 1


def test_a_gap_in_the_numbers_is_parts_that_were_missed() -> None:
    ledger = one()
    new = ledger.trigger(seen(3, at_ms=7))
    assert [(t.number, t.missed, t.at_ns) for t in new] == [(n, n < 3, 7 * MS) for n in range(4)]
    assert short(ledger.due(7 * MS)) == [(n, UNINSPECTED, Reason.MISSED_FRAME) for n in range(3)]
    assert ledger.open_parts == 1
    assert ledger.counters["missed_triggers"] == 3


def test_triggers_that_should_have_a_part_id_and_have_none_are_counted() -> None:
    plain = recipe(1)
    camera = plain.stations[0].model_copy(update={"part_ids": PartIds(host="plc", address=2)})
    ledger = Ledger(plain.model_copy(update={"stations": (camera,)}), {})
    ledger.trigger(replace(seen(0), part_id=7))
    ledger.trigger(seen(3))
    assert ledger.counters["triggers_without_part_id"] == 3
    plain_one = one()
    plain_one.trigger(seen(0))
    assert "triggers_without_part_id" not in plain_one.counters


def test_a_missed_trigger_is_answered_at_once_and_cannot_pass() -> None:
    ledger = one()
    ledger.trigger(replace(seen(0), missed=True))
    ledger.result(said(0, PASS))
    assert short(ledger.due(0)) == [(0, UNINSPECTED, Reason.MISSED_FRAME)]


def test_the_end_of_a_source_shows_the_last_gap() -> None:
    ledger = one()
    ledger.trigger(seen(0))
    assert [t.number for t in ledger.ended(SourceEnded("s0", 3), 9 * MS)] == [1, 2]
    assert ledger.ended(SourceEnded("s0", 3), 9 * MS) == []
    assert ledger.ended(SourceEnded("s0", 1), 9 * MS) == [], "an end that is older than what was seen says nothing"
    assert ledger.next_number("s0") == 3
    assert ledger.ended(SourceEnded("nobody", 3), 9 * MS) == []


def test_the_same_trigger_twice_is_one_part() -> None:
    ledger = one()
    ledger.trigger(seen(0))
    assert ledger.trigger(seen(0)) == []
    ledger.result(said(0))
    assert len(ledger.due(0)) == 1
    assert ledger.trigger(seen(0)) == []
    assert ledger.due(10_000 * MS) == []
    assert ledger.counters["duplicate_trigger"] == 2


def test_a_counter_that_jumps_is_no_flood_of_missed_parts() -> None:
    ledger = one()
    ledger.trigger(seen(0))
    assert [t.number for t in ledger.trigger(seen(MAX_GAP + 2))] == [MAX_GAP + 2]
    assert ledger.counters["trigger_counter_jumped"] == 1
    assert len(ledger.trigger(seen(2 * MAX_GAP + 3))) == MAX_GAP + 1


def test_a_result_stands_for_its_trigger() -> None:
    ledger = one()
    new, in_time = ledger.result(said(2))
    assert [(t.number, t.missed) for t in new] == [(0, True), (1, True), (2, False)]
    assert in_time
    assert short(ledger.due(0)) == [
        (0, UNINSPECTED, Reason.MISSED_FRAME),
        (1, UNINSPECTED, Reason.MISSED_FRAME),
        (2, PASS, None),
    ]
    assert ledger.trigger(seen(2)) == [], "the trigger comes after its result"


def test_strangers_are_counted_and_open_nothing() -> None:
    ledger = one()
    assert ledger.trigger(seen(0, station="x")) == []
    assert ledger.result(said(0, station="x")) == ([], False)
    assert ledger.open_parts == 0
    assert ledger.counters["unknown_station"] == 1


def test_a_ledger_goes_on_where_another_left_off() -> None:
    ledger = Ledger(recipe(1), {"s0": 5})
    assert ledger.trigger(seen(4)) == []
    assert [t.number for t in ledger.trigger(seen(6))] == [5, 6]


@pytest.mark.parametrize(
    ("first", "second", "part"),
    [
        (PASS, PASS, PASS),
        (PASS, REJECT, REJECT),
        (REJECT, PASS, REJECT),
        (UNINSPECTED, REJECT, REJECT),
        (PASS, UNINSPECTED, UNINSPECTED),
        (UNINSPECTED, UNINSPECTED, UNINSPECTED),
    ],
)
def test_a_part_is_as_bad_as_its_worst_view(first: Decision, second: Decision, part: Decision) -> None:
    ledger = two_views()
    reasons = {UNINSPECTED: Reason.BLACK_FRAME}
    for station, decision in (("s0", first), ("s1", second)):
        ledger.trigger(seen(0, station=station))
        assert ledger.due(0) == []
        ledger.result(said(0, decision, station, reason=reasons.get(decision)))
    (answer,) = ledger.due(0)
    assert (answer.decision, answer.reason) == (part, reasons.get(part))
    assert [v.station for v in answer.views] == ["s0", "s1"]


def test_the_score_of_a_part_is_that_of_its_worst_view() -> None:
    ledger = two_views()
    for station, decision, score in (("s0", PASS, 0.9), ("s1", REJECT, 0.6)):
        ledger.trigger(seen(0, station=station))
        ledger.result(said(0, decision, station, score))
    assert ledger.due(0)[0].score == 0.6


@pytest.mark.parametrize("order", [("s0", "s1"), ("s1", "s0")])
def test_a_part_is_counted_at_its_first_station_in_whatever_order_its_views_come(order: tuple[str, str]) -> None:
    ledger = two_views()
    counts = {"s0": 1000, "s1": 1300}
    for station in order:
        ledger.trigger(Trigger(station, 0, 0, count=counts[station], part_id=77 if station == "s1" else None))
        ledger.result(said(0, station=station))
    (answer,) = ledger.due(0)
    assert (answer.count, answer.part_id) == (1000, 77)


def test_a_part_whose_first_view_was_missed_has_no_count() -> None:
    ledger = two_views()
    ledger.trigger(Trigger("s0", 0, 0, missed=True))
    ledger.trigger(Trigger("s1", 0, 0, count=1300))
    assert [a.count for a in ledger.close_all(Reason.STOPPING)] == [None]


def test_the_deadline_runs_from_the_last_view() -> None:
    ledger = two_views()
    ledger.trigger(seen(0, at_ms=0))
    ledger.trigger(seen(0, at_ms=250, station="s1"))
    assert ledger.next_closing_ns() == (250 + DEADLINE_MS) * MS - MARGIN_NS


def test_a_view_that_never_comes_is_waited_for_and_named() -> None:
    ledger = two_views()
    ledger.trigger(seen(0))
    ledger.result(said(0))
    closing_ns = (VIEW_TIMEOUT_MS + DEADLINE_MS) * MS - MARGIN_NS
    assert ledger.due(closing_ns - 1) == []
    (answer,) = ledger.due(closing_ns)
    assert (answer.decision, answer.reason) == (UNINSPECTED, Reason.MISSING_VIEW)
    assert [(v.station, v.reason) for v in answer.views] == [("s0", None), ("s1", Reason.MISSING_VIEW)]


def test_a_view_that_comes_without_an_answer_is_no_missing_view() -> None:
    ledger = two_views()
    ledger.trigger(seen(0))
    ledger.result(said(0))
    ledger.trigger(seen(0, station="s1"))
    (answer,) = ledger.due(10_000 * MS)
    assert answer.reason is Reason.DEADLINE


def test_a_view_that_comes_after_its_part_was_closed_opens_no_second_part() -> None:
    answered: set[tuple[str, int]] = {("lane", 0)}
    ledger = two_views(answered)
    new = ledger.trigger(seen(0, station="s1"))
    assert [t.number for t in new] == [0], "it was seen, and belongs in the journal"
    assert ledger.open_parts == 0
    assert ledger.result(said(0, station="s1")) == ([], False)
    assert ledger.counters["late_views"] == 1


def test_answers_come_in_the_order_of_their_deadlines() -> None:
    ledger = Ledger(recipe(2, deadline_ms=DEADLINE_MS), {})
    for number, at_ms, station in ((0, 30, "s0"), (0, 10, "s1"), (1, 20, "s1"), (1, 40, "s0")):
        ledger.trigger(seen(number, at_ms, station))
    order = [(a.lane, a.number) for a in ledger.due(1_000 * MS)]
    assert order == [("s1", 0), ("s1", 1), ("s0", 0), ("s0", 1)]


def test_at_the_end_what_is_open_gets_the_reason_and_what_is_answered_stays() -> None:
    ledger = two_views()
    ledger.trigger(seen(0))
    ledger.trigger(seen(0, station="s1"))
    ledger.result(said(0, REJECT))
    ledger.trigger(seen(1))
    ledger.trigger(seen(1, station="s1"))
    ledger.result(said(1))
    assert short(ledger.close_all(Reason.STOPPING)) == [(0, REJECT, None), (1, UNINSPECTED, Reason.STOPPING)]
    assert ledger.open_parts == 0


def test_a_pass_that_is_late_is_withdrawn_and_its_results_are_kept() -> None:
    ledger = one()
    ledger.trigger(seen(0))
    ledger.result(said(0))
    (answer,) = ledger.due(0)
    withdrawn, lost = withdraw(answer)
    assert (withdrawn.decision, withdrawn.reason, withdrawn.score) == (UNINSPECTED, Reason.DEADLINE, None)
    assert [(v.decision, v.reason, v.score) for v in withdrawn.views] == [(UNINSPECTED, Reason.DEADLINE, None)]
    assert lost == answer.views


def test_a_reject_that_is_late_stays_one() -> None:
    ledger = one()
    ledger.trigger(seen(0))
    ledger.result(said(0, REJECT))
    (answer,) = ledger.due(0)
    assert withdraw(answer) == (answer, [])


def test_a_view_keeps_what_its_result_said() -> None:
    result = replace(said(0, REJECT), boxes=[[1, 2, 3, 4]], witness=4, picture="p", calibration="c", stamps=[9])
    view = view_of(result, "bundle")
    assert view.bundle == "bundle"
    for name in ("station", "decision", "score", "threshold", "boxes", "witness", "picture", "calibration", "stamps"):
        assert getattr(view, name) == getattr(result, name)


WAY_MS, WINDOW_MS = 250, 40
BY_TIME = {"delay_ms": WAY_MS, "window_ms": WINDOW_MS}
BY_COUNT = {"distance_counts": WAY_MS, "window_counts": WINDOW_MS}


def apart(way: dict[str, int] | None, astray: tuple[str, ...] = (), **source: str) -> Ledger:
    """A lane whose second station stands behind the first."""
    base = recipe(2, same_lane=True, deadline_ms=DEADLINE_MS).model_dump()
    for station in base["stations"]:
        station["source"] |= source
    base["stations"][1]["behind"] = way
    return Ledger(Recipe.model_validate(base), {}, astray=astray)


@dataclass
class Belt:
    """Parts that come by two cameras, one count of the encoder each millisecond. A trigger that a camera does not take
    gives no number to anyone."""

    times_ms: Sequence[int]  # when each part is at the first camera
    jitter_ms: Sequence[int] = ()  # of each on its way to the second
    not_taken: Mapping[str, Collection[int]] = field(default_factory=dict)
    bad: Collection[int] = ()  # for the second camera alone
    counts: bool = True

    def run(self, ledger: Ledger) -> list[Answer]:
        """The answers; a result comes 20 ms after its trigger, and its witness is the part that was there."""
        answers: list[Answer] = []
        for at_ns, message in sorted(self._messages(), key=lambda m: (m[0], isinstance(m[1], ViewResult))):
            while (closing_ns := ledger.next_closing_ns()) is not None and closing_ns <= at_ns:
                answers += ledger.due(closing_ns)
            _ = ledger.trigger(message) if isinstance(message, Trigger) else ledger.result(message)
            answers += ledger.due(at_ns)
        return sorted([*answers, *ledger.due(1 << 62)], key=lambda a: a.number)

    def _messages(self) -> Iterator[tuple[int, Trigger | ViewResult]]:
        for station, way_ms in (("s0", 0), ("s1", WAY_MS)):
            taken = [p for p in range(len(self.times_ms)) if p not in self.not_taken.get(station, ())]
            for number, part in enumerate(taken):
                at_ms = self.times_ms[part] + way_ms
                at_ms += self.jitter_ms[part] if way_ms and self.jitter_ms else 0
                decision = REJECT if way_ms and part in self.bad else PASS
                yield at_ms * MS, Trigger(station, number, at_ms * MS, count=at_ms if self.counts else None)
                yield (
                    (at_ms + 20) * MS,
                    ViewResult(station, number, at_ms * MS, decision, score=0.1, witness=part),
                )


EVERY_100_MS = range(0, 1_000, 100)


@pytest.mark.parametrize("way", [BY_TIME, BY_COUNT])
def test_a_trigger_that_one_camera_did_not_take_joins_no_views_of_different_parts(way: dict[str, int]) -> None:
    belt = Belt(EVERY_100_MS, not_taken={"s1": {3}}, bad={7})
    ledger = apart(way)
    answers = belt.run(ledger)
    assert [(a.number, a.decision) for a in answers[:3]] == [(n, PASS) for n in range(3)]
    assert {a.decision for a in answers[3:]} == {UNINSPECTED}
    assert {a.reason for a in answers[3:9]} == {Reason.FRAME_OUT_OF_ORDER}
    assert [v.reason for v in answers[6].views] == [None, Reason.FRAME_OUT_OF_ORDER], "a REJECT of another part is none"
    assert list(ledger.astray) == ["s1"]
    assert ledger.astray["s1"].startswith("part 3, 350")
    assert ledger.counters["views_not_aligned"] == 6


def test_without_a_way_nothing_tells_that_views_are_of_different_parts() -> None:
    answers = Belt(EVERY_100_MS, not_taken={"s1": {3}}, bad={7}).run(apart(None))
    assert answers[7].decision is PASS, "which is why recipes of several cameras must say it"


def test_a_station_that_has_lost_its_place_stays_astray_when_its_numbers_fit_again() -> None:
    belt = Belt(EVERY_100_MS, not_taken={"s1": {2}, "s0": {5}})
    answers = belt.run(apart(BY_TIME))
    assert [a.number for a in answers if a.decision is PASS] == [0, 1]
    answers = Belt(EVERY_100_MS).run(apart(BY_TIME, astray=("s1",)))
    assert {(a.decision, a.reason) for a in answers} == {(UNINSPECTED, Reason.FRAME_OUT_OF_ORDER)}


def test_a_view_whose_image_was_missed_says_nothing_about_the_way() -> None:
    """Its trigger may have the time at which that was noticed, with the next one."""
    ledger = apart(BY_TIME)
    for station, at_ms in (("s0", 0), ("s1", 350)):
        ledger.trigger(seen(0, at_ms, station))
        decision, reason = (PASS, None) if station == "s0" else (UNINSPECTED, Reason.MISSED_FRAME)
        ledger.result(said(0, decision, station, reason=reason))
    assert short(ledger.due(400 * MS)) == [(0, UNINSPECTED, Reason.MISSED_FRAME)]
    assert not ledger.astray


def test_without_a_count_it_is_not_known_where_a_view_belongs() -> None:
    ledger = apart(BY_COUNT)
    answers = Belt(EVERY_100_MS, counts=False).run(ledger)
    assert {(a.decision, a.reason) for a in answers} == {(UNINSPECTED, Reason.TRACKING)}
    assert not ledger.astray


@pytest.mark.parametrize(("way", "decision"), [(BY_TIME, PASS), (BY_COUNT, UNINSPECTED)])
def test_lossless_only_counts_are_those_of_the_line(way: dict[str, int], decision: Decision) -> None:
    answers = Belt(EVERY_100_MS, not_taken={"s1": {3}}).run(apart(way, mode="lossless"))
    assert answers[4].decision is decision


PITCHES_MS = st.lists(st.integers(2 * WINDOW_MS + 1, 200), min_size=1, max_size=20)


@settings(max_examples=200)
@given(st.data(), PITCHES_MS, st.sampled_from([BY_TIME, BY_COUNT]))
def test_whatever_triggers_are_not_taken_a_pass_is_of_one_part(
    data: st.DataObject, pitches_ms: list[int], way: dict[str, int]
) -> None:
    """For parts that follow each other by more than twice the window."""
    parts = st.integers(0, len(pitches_ms) - 1)
    belt = Belt(
        times_ms=[sum(pitches_ms[:i]) for i in range(len(pitches_ms))],
        jitter_ms=[data.draw(st.integers(-WINDOW_MS, WINDOW_MS)) for _ in pitches_ms],
        not_taken={"s0": data.draw(st.sets(parts)), "s1": data.draw(st.sets(parts))},
        bad=data.draw(st.sets(parts)),
    )
    answers = belt.run(apart(way))
    for answer in answers:
        if answer.decision is PASS:
            (part,) = {v.witness for v in answer.views}
            assert part not in belt.bad
    if not any(belt.not_taken.values()):
        assert [a.decision for a in answers] == [REJECT if p in belt.bad else PASS for p in range(len(pitches_ms))]


STATIONS = ("s0", "s1", "s2")
LANES = {"s0": "s0", "s1": "pair", "s2": "pair"}

EVENT = st.one_of(
    st.tuples(st.just("trigger"), st.sampled_from(STATIONS), st.integers(-2, 3), st.integers(0, 50), st.booleans()),
    st.tuples(st.just("result"), st.sampled_from(STATIONS), st.integers(-4, 1), st.sampled_from(Decision)),
    st.tuples(st.just("pass"), st.sampled_from(STATIONS), st.integers(-3, 0)),
    st.tuples(st.just("end"), st.sampled_from(STATIONS), st.integers(-1, 3)),
    st.tuples(st.just("time"), st.integers(0, 120)),
    st.tuples(st.just("restart")),
)


class World:
    """A ledger, the journal and the publisher of a gate around it, and the clock."""

    def __init__(self) -> None:
        base = recipe(3, deadline_ms=DEADLINE_MS).model_dump()
        for station in base["stations"]:
            station["lane"] = LANES[station["name"]]
        self.recipe = type(recipe())(**base)
        self.now_ns = 0
        self.triggers: dict[tuple[str, int], Trigger] = {}
        self.answers: dict[tuple[str, int], Answer] = {}
        self.first_results: dict[tuple[str, int], Decision] = {}
        self.ledger = self.new_ledger()

    def new_ledger(self) -> Ledger:
        upto: Counter[str] = Counter()
        for station, number in self.triggers:
            upto[station] = max(upto[station], number + 1)
        return Ledger(self.recipe, dict(upto), lambda lane, number: (lane, number) in self.answers)

    def journal(self, triggers: list[Trigger]) -> None:
        for trigger in triggers:
            key = (trigger.station, trigger.number)
            assert key not in self.triggers, "the journal would refuse the second row"
            self.triggers[key] = trigger

    def publish(self, answers: list[Answer]) -> None:
        for answer in answers:
            key = (answer.lane, answer.number)
            assert key not in self.answers, "a second verdict for the part"
            late = self.now_ns > answer.deadline_ns
            self.answers[key] = withdraw(answer)[0] if late else answer
            if self.answers[key].decision is PASS:
                self.passed_in_time(self.answers[key])

    def passed_in_time(self, answer: Answer) -> None:
        assert self.now_ns <= answer.deadline_ns
        expected = [s for s in STATIONS if LANES[s] == answer.lane]
        assert [v.station for v in answer.views] == expected
        for station in expected:
            assert self.first_results[station, answer.number] is PASS
            assert not self.triggers[station, answer.number].missed

    def step(self, event: tuple[object, ...]) -> None:
        kind, station = event[0], str(event[1]) if len(event) > 1 else ""
        if kind == "time":
            self.now_ns += int(str(event[1])) * MS
        elif kind == "restart":  # SIGKILL of the gate: its ledger is gone, the journal is not
            self.ledger = self.new_ledger()
            left = {(LANES[s], n) for s, n in self.triggers} - set(self.answers)
            for lane, number in sorted(left):
                self.answers[lane, number] = Answer(lane, number, UNINSPECTED, Reason.RESTART, None, None, [], 0, 0)
            return
        else:
            number = max(0, self.ledger.next_number(station) + int(str(event[2])))
            if kind == "trigger":
                at_ns = max(0, self.now_ns - int(str(event[3])) * MS)
                self.journal(self.ledger.trigger(Trigger(station, number, at_ns, bool(event[4]))))
            elif kind == "end":
                self.journal(self.ledger.ended(SourceEnded(station, number), self.now_ns))
            else:
                decision = event[3] if kind == "result" else PASS
                assert isinstance(decision, Decision)
                result = ViewResult(station, number, self.now_ns, decision, score=0.1)
                new, in_time = self.ledger.result(result)
                self.journal(new)
                if in_time:
                    self.first_results.setdefault((station, number), decision)
        self.publish(self.ledger.due(self.now_ns))
        closing_ns = self.ledger.next_closing_ns()
        assert closing_ns is None or closing_ns > self.now_ns, "a part is open past its time"


@settings(max_examples=200)
@given(st.lists(EVENT, max_size=60))
@example([("trigger", "s1", 0, 0, False), ("time", 120), ("time", 120), ("time", 120), ("trigger", "s2", 0, 0, False)])
@example([("trigger", "s1", 0, 0, False), ("restart",), ("pass", "s2", 0), ("pass", "s1", -1), ("time", 100)])
def test_whatever_happens_every_part_has_one_answer_and_a_pass_is_earned(events: list[tuple[object, ...]]) -> None:
    world = World()
    for event in events:
        world.step(event)
    world.publish(world.ledger.close_all(Reason.STOPPING))
    assert world.ledger.open_parts == 0
    parts = {(LANES[station], number) for station, number in world.triggers}
    assert set(world.answers) == parts
