"""What a replay said against what is expected of it, field by field. Pure: verdicts in, differences out.

Every field of a verdict counts but those in `edge.replay.outcome.IGNORED`, which says why. What time alone caused when
it was recorded, and frames that were not recorded, are listed apart: no difference, and not equal either. Scores are
compared bit by bit where the same bundle, backend, precision, library and instruction set made both; where not, that is
said, and decisions are compared all the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from edge.replay.outcome import PROVENANCE, Outcome, in_words, provenance_of
from edge.verdict import CLOCK_REASONS, Decision, Reason

__all__ = ["Apart", "Comparison", "Difference", "Provenance", "Rules", "Why", "compare"]

Key = tuple[str, int]
"""Lane and part."""

_SCORED_BY = ("bundle", "engine")
"""What the bits of a score depend on. A calibration shows in the thresholds, and these are compared."""

_FROM_PIXELS = ("score", "boxes", "areas_px", "place")
"""Fields that another machine computes a little differently."""

_CLOCK = frozenset(reason.value for reason in CLOCK_REASONS)


@dataclass(frozen=True)
class Rules:
    """What counts as equal."""

    ignore: frozenset[str] = frozenset()
    """Fields beside `IGNORED`; those of views are called `views.NAME`."""
    tolerance: float | None = None
    """A share of the threshold by which scores may differ; boxes are not compared then. None: not a bit."""
    clock: frozenset[str] = _CLOCK
    """Reasons for which an expected view says nothing of the line: time alone caused them when it was recorded."""
    live: bool = False
    """The replay kept the recorded times: it has reasons of `clock` too, and may have missed a frame because the source
    was polled late. A replay that is not live waits for every frame: there such a reason is a difference."""
    complete: bool = True
    """Whether each part that was replayed must be expected too; a recording may lack verdicts."""


@dataclass(frozen=True)
class Difference:
    """A field that is not what is expected. `field` is `decision`, `near.score`, or `verdict` where one is missing."""

    lane: str
    part: int
    field: str
    expected: Any
    found: Any


class Why(str, Enum):
    """Why a part is not compared, or not wholly."""

    CLOCK = "a reason that time alone causes"
    UNRECORDED = "its frame was not recorded"
    UNTOLD = "its trigger or its answer was not recorded"
    UNTIMED = "when its answer came was not recorded"
    ON_THE_EDGE = "its answer came within 5 ms of the moment when the gate closes the part"
    HELD_UP = "the gate was held up when it was recorded, and answered late"
    NEAR = "its score is as near to the threshold as the tolerance allows"
    OUTSIDE = "the recording does not hold all of its views"
    UNEXPECTED = "nothing was recorded to compare it with"


@dataclass(frozen=True)
class Apart:
    """A part that is listed apart, with what is expected and what was found, in words."""

    lane: str
    part: int
    why: Why
    expected: str
    found: str


@dataclass(frozen=True)
class Provenance:
    """Something that scores or thresholds depend on and that is not as it was, and in how many views."""

    station: str
    name: str  # such as bundle, engine.isa
    expected: str
    found: str
    views: int

    @property
    def of_scores(self) -> bool:
        """Whether scores may differ in their last bits for it."""
        return self.name.partition(".")[0] in _SCORED_BY


@dataclass(frozen=True)
class Comparison:
    """What came of it."""

    parts: int  # wholly compared, or different
    different: int  # of these
    differences: tuple[Difference, ...]
    apart: tuple[Apart, ...]
    provenance: tuple[Provenance, ...]
    scores_compared: int  # bit by bit, or within the tolerance
    scores_left_out: int  # of another provenance, without a tolerance
    largest_score_difference: float  # absolute

    @property
    def same(self) -> bool:
        """Whether nothing differs; where nothing was compared (`parts`) that says nothing."""
        return not self.differences

    @property
    def equal(self) -> int:
        """Parts that were wholly compared, and do not differ."""
        return self.parts - self.different

    @property
    def apart_parts(self) -> int:
        """Parts that were told apart, and do not differ in what was compared of them."""
        return len({(a.lane, a.part) for a in self.apart} - {(d.lane, d.part) for d in self.differences})


@dataclass
class _Found:
    """A comparison as it grows."""

    differences: list[Difference] = field(default_factory=list)
    apart: list[Apart] = field(default_factory=list)
    provenance: dict[tuple[str, str, str, str], int] = field(default_factory=dict)
    scores_compared: int = 0
    scores_left_out: int = 0
    largest: float = 0.0


def compare(
    expected: Iterable[Outcome],
    found: Iterable[Outcome],
    rules: Rules | None = None,
    *,
    excused: Mapping[Key, Why] | None = None,
    outside: Collection[Key] = (),
    adding_up: Collection[str] = (),
) -> Comparison:
    """Set two sets of outcomes against each other, part by part.

    `excused`: stations and parts whose view is told apart where it differs, and why: the recording does not say what
    made it as it was. `outside`: lanes and parts that it does not hold whole, so that they were not replayed.
    `adding_up`: stations of a web whose areas are added up from frame to frame: behind one that is told apart, the next
    is excused too.
    """
    rules, result, excused = rules or Rules(), _Found(), dict(excused or {})
    wanted, said = ({(o["lane"], o["part"]): o for o in those} for those in (expected, found))
    parts, different = 0, 0
    for key in sorted(wanted.keys() | said.keys()):
        before, whole = len(result.differences), False
        if key in wanted and key in said:
            whole = _Pair(wanted[key], said[key], rules, excused, adding_up, result).compare()
        elif key in said and not rules.complete:
            result.apart.append(Apart(*key, Why.UNEXPECTED, "", in_words(said[key])))
        elif key not in said and key in outside:
            result.apart.append(Apart(*key, Why.OUTSIDE, in_words(wanted[key]), ""))
        else:
            pair = (in_words(o[key]) if key in o else None for o in (wanted, said))
            result.differences.append(Difference(*key, "verdict", *pair))
        differs = len(result.differences) > before
        different += differs
        parts += whole or differs
    provenance = tuple(Provenance(*key, views=count) for key, count in sorted(result.provenance.items()))
    return Comparison(
        parts,
        different,
        tuple(result.differences),
        tuple(result.apart),
        provenance,
        result.scores_compared,
        result.scores_left_out,
        result.largest,
    )


class _Pair:
    """One part: what is expected, and what was found."""

    def __init__(
        self,
        wanted: Outcome,
        said: Outcome,
        rules: Rules,
        excused: dict[Key, Why],
        adding_up: Collection[str],
        to: _Found,
    ) -> None:
        self._wanted, self._said, self._rules, self._to = wanted, said, rules, to
        self._excused, self._adding_up = excused, adding_up
        self._key: Key = (wanted["lane"], wanted["part"])

    def compare(self) -> bool:
        """Note what differs; whether the part was wholly compared."""
        views, ours = ({v["station"]: v for v in o["views"]} for o in (self._wanted, self._said))
        whole, all_exact = True, True
        for station in [*views, *(s for s in ours if s not in views)]:
            if station not in views or station not in ours:
                self._differ(f"{station}.view", *("there" if station in v else None for v in (views, ours)))
                continue
            wanted, said = views[station], ours[station]
            exact = self._note_provenance(wanted, said)
            all_exact &= exact
            if why := self._why_apart(wanted, said):
                whole = False
                self._set_apart(said["station"], why)
            else:
                whole &= self._view(wanted, said, exact)
        if whole:
            self._fields(self._wanted, self._said, "", "", all_exact)
        return whole

    def _view(self, wanted: Outcome, said: Outcome, exact: bool) -> bool:
        """Compare a view; False where it differs and is excused, which is said apart."""
        found, before = self._to.differences, len(self._to.differences)
        self._fields(wanted, said, f"{said['station']}.", "views.", exact)
        why = self._excused.get((said["station"], self._key[1]))
        if len(found) == before or why is None:
            return True
        del found[before:]
        self._set_apart(said["station"], why)
        return False

    def _why_apart(self, wanted: Outcome, said: Outcome) -> Why | None:
        """Why a view tells nothing about the line; None when it does."""
        if wanted["reason"] in self._rules.clock or (self._rules.live and self._came_late(wanted, said)):
            return Why.CLOCK
        return Why.NEAR if self._is_near(wanted, said) else None

    def _came_late(self, wanted: Outcome, said: Outcome) -> bool:
        """Whether a replay at the recorded times was too slow for this view: it missed a frame that is there."""
        missed = said["reason"] == Reason.MISSED_FRAME.value != wanted["reason"]
        return said["reason"] in self._rules.clock or (missed and (said["station"], self._key[1]) not in self._excused)

    def _is_near(self, wanted: Outcome, said: Outcome) -> bool:
        """Whether a view changed side between two scores that the tolerance calls equal: the threshold lies between."""
        pairs = [(o["score"], o["threshold"]) for o in (wanted, said)]
        if self._rules.tolerance is None or any(None in pair for pair in pairs):
            return False
        if {wanted["decision"], said["decision"]} != {Decision.PASS.value, Decision.REJECT.value}:
            return False
        (score, threshold), (our_score, our_threshold) = pairs
        allowed = self._rules.tolerance * threshold
        return bool(threshold == our_threshold and abs(score - our_score) <= allowed)

    def _set_apart(self, station: str, why: Why) -> None:
        if station in self._adding_up:  # what its frame handed on to the next may be another thing too
            self._excused.setdefault((station, self._key[1] + 1), why)
        apart = Apart(*self._key, why, in_words(self._wanted), in_words(self._said))
        if not self._to.apart or self._to.apart[-1] != apart:  # two views of one part
            self._to.apart.append(apart)

    def _note_provenance(self, wanted: Outcome, said: Outcome) -> bool:
        """Count what is not as it was; whether scores must be equal to the bit."""
        before, now = dict(provenance_of(wanted)), dict(provenance_of(said))
        if not before.get("engine.backend") or not now.get("engine.backend"):  # one of the two has no score
            return True
        exact = True
        for name in sorted(before.keys() | now.keys()):
            values = before.get(name, ""), now.get(name, "")
            if name == "bundle" and "" in values:  # a recording that does not say it
                continue
            if values[0] != values[1] and f"views.{name.partition('.')[0]}" not in self._rules.ignore:
                key = (wanted["station"], name, *values)
                self._to.provenance[key] = self._to.provenance.get(key, 0) + 1
                exact &= name.partition(".")[0] not in _SCORED_BY
        return exact

    def _fields(self, wanted: Outcome, said: Outcome, prefix: str, path: str, exact: bool) -> None:
        for name in [*wanted, *(n for n in said if n not in wanted)]:
            if name == "views" or name in PROVENANCE or path + name in self._rules.ignore:
                continue
            before, now = wanted.get(name), said.get(name)
            if name == "score" and before is not None and now is not None:
                self._score(wanted, said, prefix, exact)
            elif name in _FROM_PIXELS and (not exact or self._rules.tolerance is not None):
                continue
            elif before != now:
                self._differ(prefix + name, before, now)

    def _score(self, wanted: Outcome, said: Outcome, prefix: str, exact: bool) -> None:
        before, now = wanted["score"], said["score"]
        self._to.largest = max(self._to.largest, abs(before - now))
        if not exact and self._rules.tolerance is None:
            self._to.scores_left_out += bool(prefix)
            return
        self._to.scores_compared += bool(prefix)
        threshold = wanted["threshold"]
        allowed = (self._rules.tolerance or 0.0) * (before if threshold is None else threshold)
        if abs(before - now) > allowed:
            self._differ(f"{prefix}score", before, now)

    def _differ(self, name: str, expected: Any, found: Any) -> None:
        self._to.differences.append(Difference(*self._key, name, expected, found))
