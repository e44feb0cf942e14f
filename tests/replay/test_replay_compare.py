"""What counts as a difference, what is set apart, and what nobody looks at."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from edge.messages import Verdict, View
from edge.replay.compare import Comparison, Rules, Why, compare
from edge.replay.differences import long_text, short_text
from edge.replay.outcome import IGNORED, Outcome, known_fields, outcome
from edge.verdict import CLOCK_REASONS, Decision, Reason
from tests.replay.verdict_helpers import ENGINE, refused, rejected, verdict, view


def held(before: View | Verdict, now: View | Verdict, rules: Rules | None = None, **options: Any) -> Comparison:
    made = [outcome(v if isinstance(v, Verdict) else verdict(7, v)) for v in (before, now)]
    return compare(made[:1], made[1:], rules, **options)


def fields_of(comparison: Comparison) -> list[str]:
    return [d.field for d in comparison.differences]


def test_every_field_counts_but_those_that_are_ignored_with_a_reason() -> None:
    """A field that is added to a verdict is compared from then on, whoever adds it."""
    changed = {
        bool: lambda v: not v,
        int: lambda v: v + 1,
        str: lambda v: v + "x",
        float: lambda v: v * 1.5,
        list: lambda v: [*v, [9, 9, 9, 9]],
        type(None): lambda v: 12,
        Decision: lambda v: Decision.REJECT,
    }
    structural = {"part", "lane", "views", "views.station", "views.engine", "views.bundle", "views.calibration"}
    for name in known_fields():
        if name in structural:
            continue
        base = verdict(7)
        of_view = name.startswith("views.")
        owner = base.views[0] if of_view else base
        short = name.removeprefix("views.")
        value = getattr(owner, short)
        other = replace(owner, **{short: changed[type(value)](value)})
        now = replace(base, views=[other]) if of_view else other
        assert held(base, now).same is (name in IGNORED), name
        assert held(base, now, Rules(ignore=frozenset({name}))).same, name


def test_what_is_ignored_exists() -> None:
    assert set(IGNORED) <= set(known_fields())
    assert all(IGNORED.values())


def test_scores_are_compared_to_the_last_bit() -> None:
    base, next_float = view(), view(score=0.25000000000000006)
    found = held(base, next_float)
    assert fields_of(found) == ["near.score", "score"]
    assert found.largest_score_difference == pytest.approx(5.55e-17, rel=0.01)
    assert "0.25 -> 0.25000000000000006" in short_text(found)


@pytest.mark.parametrize("reason", sorted(CLOCK_REASONS))
@pytest.mark.parametrize("recorded", [True, False])
def test_reasons_of_the_clock_are_told_apart_and_are_no_difference(reason: Reason, recorded: bool) -> None:
    """Of a live replay both ways; one that waits for every frame has no such reason of itself."""
    pair = (refused(reason), rejected())
    found = held(*(pair if recorded else pair[::-1]), Rules(live=not recorded))
    assert found.same
    assert [(a.part, a.why) for a in found.apart] == [(7, Why.CLOCK)]
    assert reason.value in short_text(found)


@pytest.mark.parametrize("reason", sorted(CLOCK_REASONS))
def test_a_replay_that_waits_for_every_frame_has_no_reason_of_the_clock(reason: Reason) -> None:
    """It is a process that died or hung."""
    assert fields_of(held(view(), refused(reason)))[:2] == ["near.decision", "near.reason"]
    assert held(refused(Reason.OVERLOAD), refused(reason)).same, "the recording has no answer to hold it against"


def test_parts_that_are_told_apart_are_not_equal() -> None:
    late = [outcome(verdict(n, refused(Reason.DEADLINE))) for n in range(3)]
    now = [outcome(verdict(n)) for n in range(5)]
    apart = compare(late, now[:3])
    assert (apart.parts, apart.equal, apart.different, apart.apart_parts) == (0, 0, 0, 3)
    assert short_text(apart).splitlines()[0] == "0 parts compared: 0 equal, 0 different, 3 apart"
    mixed = compare([*late, outcome(verdict(3)), outcome(verdict(4, rejected()))], now)
    assert short_text(mixed).splitlines()[0] == "2 parts compared: 1 equal, 1 different, 3 apart"


def test_a_part_that_is_apart_in_one_view_and_differs_in_another_counts_once() -> None:
    before = verdict(7, refused(Reason.DEADLINE), view("far"))
    found = held(before, verdict(7, view(), rejected(station="far")))
    assert (found.parts, found.different, len(found.apart), found.apart_parts) == (1, 1, 1, 0)
    partly = held(before, verdict(7, view(), view("far")))
    assert (partly.parts, partly.equal, partly.apart_parts) == (0, 0, 1)


def test_parts_that_one_side_lacks_are_different_and_not_less_than_none_equal() -> None:
    said = [outcome(verdict(n)) for n in range(3)]
    assert short_text(compare(said, [])).splitlines()[0] == "3 parts compared: 0 equal, 3 different, 0 apart"


@pytest.mark.parametrize("reason", sorted(set(Reason) - CLOCK_REASONS))
def test_every_other_reason_is_a_difference(reason: Reason) -> None:
    assert fields_of(held(refused(reason), view()))[:2] == ["near.decision", "near.reason"]
    assert not held(view(), refused(reason), Rules(live=reason is not Reason.MISSED_FRAME)).same


def test_a_view_is_compared_where_another_one_ran_out_of_time() -> None:
    before = verdict(7, refused(Reason.DEADLINE), rejected(station="far"), decision=Decision.REJECT)
    same = verdict(7, view(), rejected(station="far"), decision=Decision.REJECT)
    other = verdict(7, view(), view("far"), decision=Decision.PASS)
    assert held(before, same).same
    assert fields_of(held(before, other))[0] == "far.decision"


def test_a_live_replay_may_miss_a_frame_that_was_recorded() -> None:
    now = refused(Reason.MISSED_FRAME)
    assert not held(view(), now).same
    assert held(view(), now, Rules(live=True)).same
    assert not held(now, view(), Rules(live=True)).same, "the recording missed it, and the replay found it"


def test_a_frame_that_was_not_recorded_is_told_apart_only_where_it_matters() -> None:
    lost = {"excused": {("near", 7): Why.UNRECORDED}}
    found = held(view(), refused(Reason.MISSED_FRAME), **lost)
    assert found.same
    assert found.apart[0].why is Why.UNRECORDED
    assert not held(refused(Reason.MISSED_FRAME), refused(Reason.MISSED_FRAME), **lost).apart
    assert not held(view(), refused(Reason.MISSED_FRAME), excused={("far", 7): Why.UNRECORDED}).same


def test_a_tolerance_is_a_share_of_the_threshold() -> None:
    rules = Rules(tolerance=0.1)
    assert held(view(score=0.25), view(score=0.3), rules).same
    assert fields_of(held(view(score=0.25), view(score=0.301), rules)) == ["near.score", "score"]
    assert held(rejected(boxes=[[1, 2, 3, 4]]), rejected(boxes=[[1, 2, 3, 5]]), rules).same


def test_within_the_tolerance_a_part_near_the_threshold_may_change_side() -> None:
    before, now = view(score=0.48), rejected(score=0.52)
    found = held(before, now, Rules(tolerance=0.1))
    assert found.same
    assert found.apart[0].why is Why.NEAR
    assert not held(before, now, Rules(tolerance=0.05)).same
    assert not held(view(score=0.2), rejected(score=0.52), Rules(tolerance=0.1)).same
    assert not held(before, refused(Reason.BLACK_FRAME), Rules(tolerance=0.1)).same


def test_scores_of_another_machine_are_not_compared_and_it_is_said() -> None:
    elsewhere = {"engine": {**ENGINE, "isa": "avx512"}, "score": 0.2501}
    found = held(view(), view(**elsewhere))
    assert found.same
    assert (found.scores_compared, found.scores_left_out) == (0, 1)
    said = short_text(found)
    assert "near: engine.isa was avx2, is avx512 (1 view)" in said
    assert "scores are not compared" in said
    assert not held(view(), rejected(**elsewhere)).same, "decisions are compared everywhere"
    assert not held(view(), view(**elsewhere), Rules(tolerance=1e-5)).same, "with a tolerance scores are compared too"


def test_another_bundle_too() -> None:
    found = held(view(), view(bundle="d" * 64, score=0.4))
    assert found.same
    assert found.provenance[0].of_scores


def test_another_calibration_shows_in_the_thresholds() -> None:
    found = held(view(), view(calibration="d" * 64))
    assert found.same
    assert [p.name for p in found.provenance] == ["calibration"]
    assert not found.provenance[0].of_scores
    assert fields_of(held(view(), view(calibration="d" * 64, threshold=0.6))) == ["near.threshold", "threshold"]
    assert not held(view(), view(calibration="d" * 64, score=0.26)).same


def test_parts_that_are_missing_on_either_side() -> None:
    said = [outcome(verdict(n)) for n in range(3)]
    assert fields_of(compare(said, said[1:])) == ["verdict"]
    assert fields_of(compare(said[1:], said)) == ["verdict"]
    partly = compare(said[1:], said, Rules(complete=False))
    assert partly.same
    assert partly.apart[0].why is Why.UNEXPECTED
    outside = compare(said, said[1:], outside=[("lane", 0)])
    assert outside.same
    assert outside.apart[0].why is Why.OUTSIDE
    assert not compare(said, said[1:], outside=[("lane", 1)]).same


def test_a_view_that_is_missing() -> None:
    both = verdict(7, view(), view("far"))
    assert fields_of(held(both, verdict(7, view()))) == ["far.view"]


def test_parts_are_those_of_the_recording() -> None:
    assert compare([outcome(verdict(1007))], [outcome(verdict(7), first=1000)]).same


def test_the_short_text_is_short_and_the_long_one_is_not() -> None:
    before = [outcome(verdict(n)) for n in range(40)]
    now: list[Outcome] = [outcome(verdict(n, rejected())) for n in range(40)]
    found = compare(before, now)
    short, long = short_text(found), long_text(found, "a recording")
    assert found.different == 40
    assert short.splitlines()[0] == "40 parts compared: 0 equal, 40 different, 0 apart"
    assert "  lane 0: near.decision PASS -> REJECT; near.score 0.25 -> 0.75" in short
    assert "and 30 more" in short
    assert len(short.splitlines()) < 15
    assert long.startswith("a recording\n")
    assert all(f"lane {n}\n  near.decision: expected 'PASS', found 'REJECT'" in long for n in range(40))


def test_the_counts_of_different_parts_count_parts() -> None:
    before = [outcome(verdict(n)) for n in range(4)]
    now = [*before[:3], outcome(verdict(3, rejected()))]
    found = compare(before, now)
    assert (found.parts, found.different, len(found.differences) > 1) == (4, 1, True)


def test_behind_a_frame_that_was_not_judged_a_web_may_add_up_to_something_else() -> None:
    """As long as the area goes on: part 9 differs because part 8 does, and part 11 for no such reason."""
    before = [outcome(verdict(7, refused(Reason.OVERLOAD))), *(outcome(verdict(n)) for n in (8, 9, 10, 11))]
    scores = (0.25, 0.3, 0.35, 0.25, 0.3)
    now = [outcome(verdict(n, view(score=score))) for n, score in enumerate(scores, 7)]
    assert {d.part for d in compare(before, now).differences} == {8, 9, 11}
    found = compare(before, now, adding_up=["near"])
    assert {d.part for d in found.differences} == {11}
    assert [(a.part, a.why) for a in found.apart] == [(n, Why.CLOCK) for n in (7, 8, 9)]
