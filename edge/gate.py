"""The gate owes the verdicts: it is the only publisher, the only writer of the journal, and it keeps the deadlines.

One turn of its loop: take what has come, ask the ledger what is due, write both in one transaction, publish. Nothing is
published that is not in the journal. When the journal cannot be written, the gate holds what it has, receives no more,
and says so in its heartbeat.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import zmq

from edge.journal import Journal, JournalBlockedError, OpenTrigger, boot_id, write_turn
from edge.ledger import Answer, Ledger, view_of, withdraw
from edge.messages import Heartbeat, SourceEnded, Trigger, Verdict, View, ViewResult, encode
from edge.paths import journal_path
from edge.processes import capture
from edge.recorder.slots import recording_counters, recording_trouble
from edge.slab import Ending
from edge.topics import HEALTH, HEARTBEAT_INTERVAL_MS, VERDICT, topic
from edge.verdict import Decision, GateState, Reason
from edge.worker import IDLE_MS, Worker

__all__ = ["Gate", "run"]

RETRY_S = 0.05
MAX_OPEN = 10_000
"""With so many open parts a gate that may not publish receives no more: the rest waits in the senders' queues."""
LOOK_NS = 10_000_000
"""So often the gate looks at what changes its state: under load a turn takes a tenth of it."""
PATIENCE_NS = 1_000_000_000
"""How long after the end of its source a trigger may be on its way."""


@dataclass
class Turn:
    """What one turn of the loop has to write before anything of it is published."""

    triggers: list[Trigger] = field(default_factory=list)
    late: list[ViewResult] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)


class Gate:
    """The gate's state between two turns of its loop."""

    def __init__(self, worker: Worker, journal: Journal) -> None:
        """Close what an earlier gate left open, and bind the publisher."""
        self.worker, self.recipe, self.journal = worker, worker.recipe, journal
        self.recipe_sha256, self.simulated = self.recipe.sha256, self.recipe.simulated  # too slow for every verdict
        self.run = journal.run(worker.slab.server_id, self.recipe_sha256, self.recipe.model_dump_json())
        self.topic_seq = {lane: journal.last_topic_seq(lane) for lane in self.recipe.lanes}
        self.boot_id = boot_id()
        self.state: GateState | None = None
        self.journal_blocked = ""  # why, while it cannot be written
        self.counters: Counter[str] = Counter()
        self.next_beat_ns = self.next_look_ns = 0
        self._untold_since: dict[tuple[str, int], int] = {}
        self.publisher = self._bind()
        self.ledger = Ledger(self.recipe, journal.next_numbers(self.run), self._answered, self._known_astray())
        self._astray = set(self.ledger.astray)
        self._close_what_was_left()

    def turn(self) -> bool:
        """Receive, decide, write, publish; returns, within IDLE_MS, whether anything was received."""
        turn, lags, messages = Turn(), self._lags(), []
        if lags and self.ledger.open_parts >= MAX_OPEN:
            time.sleep(RETRY_S)
        else:
            messages = self.worker.receive(self._patience_ms(), Trigger, ViewResult, SourceEnded)
            for message in messages:
                self._take(message, turn)
            turn.triggers += self._lost(time.monotonic_ns())
        if not lags:
            turn.answers = self.ledger.due(time.monotonic_ns())
            if len(self.ledger.astray) > len(self._astray):
                self._note_astray()
        self.settle(turn)
        return bool(messages)

    def finish(self) -> None:
        """Answer what is open, unless nothing may be published, and say so in a last heartbeat: the line ends."""
        while self.turn():
            pass
        if self._lags():
            return
        self.next_beat_ns = self.next_look_ns = 0
        lost = [t for s, n in self._untold().items() for t in self.ledger.ended(SourceEnded(s, n), time.monotonic_ns())]
        self.settle(Turn(triggers=lost, answers=self.ledger.close_all(self._why_open())))

    def _known_astray(self) -> list[str]:
        """The stations that this gate or one before it found astray since the line was started."""
        flags = self.worker.slab.head["astray"]
        return [s.name for s in self.recipe.stations if flags[self.worker.index_of(capture(s.name))]]

    def _note_astray(self) -> None:
        """Leave in the slab which stations are astray, so that no restart of the gate forgets it."""
        for station in self.ledger.astray.keys() - self._astray:
            self.worker.slab.head["astray"][self.worker.index_of(capture(station))] = 1
            self._astray.add(station)
            self.worker.log.error("lane_not_aligned", station=station, why=self.ledger.astray[station])

    def _why_open(self) -> Reason:
        return Reason.CHANGE_OVER if self.worker.line_ending is Ending.CHANGE_OVER else Reason.STOPPING

    def settle(self, turn: Turn, run: int | None = None) -> None:
        """Write a turn, however long that takes, then publish its verdicts. `run`: of an earlier start of the line."""
        run = self.run if run is None else run
        self._report_open(len(turn.answers))
        if turn.triggers or turn.late or turn.answers:
            for verdict, payload in self._write(turn, run):
                self.publisher.send_multipart([topic(VERDICT, verdict.line, verdict.lane), payload])
                self.counters[verdict.decision.value.lower()] += 1
                if verdict.reason:
                    self.counters[f"uninspected.{verdict.reason.value}"] += 1
        self._report_open(0)
        self.heartbeat()

    def heartbeat(self) -> None:
        """Publish the heartbeat, when it is due or the state has changed."""
        now_ns = time.monotonic_ns()
        if now_ns < self.next_look_ns:
            return
        self.next_look_ns = now_ns + LOOK_NS
        state, trouble = self._state(now_ns)
        if state is self.state and now_ns < self.next_beat_ns:
            return
        if state is not self.state:
            self.worker.log.info("gate_state", state=state.value, trouble=trouble)
        self.state, self.next_beat_ns = state, now_ns + HEARTBEAT_INTERVAL_MS * 1_000_000
        beat = Heartbeat(
            line=self.recipe.line,
            epoch=self.journal.epoch,
            state=state,
            trouble=trouble,
            seq=self.journal.head.seq,
            chain=self.journal.head.chain.hex(),
            open=self.ledger.open_parts,
            interval_ms=HEARTBEAT_INTERVAL_MS,
            safe_state=self.recipe.safe_state,
            simulated=self.simulated,
            at_ns=now_ns,
            utc_ns=time.time_ns(),
            boot_id=self.boot_id,
            counters={**(self.counters + self.ledger.counters), **self._measured(now_ns)},
        )
        self.publisher.send_multipart([topic(HEALTH, self.recipe.line), encode(beat)])

    def _view(self, result: ViewResult) -> View:
        plan = self.worker.plan
        return view_of(result, plan.bundle_sha256(result.station), plan.scale_mm_per_px(result.station))

    def _measured(self, now_ns: int) -> dict[str, int]:
        lag = {"journal_lag_max_ms": round(self.journal.longest_lag_ms(now_ns))}
        return lag | recording_counters(self.worker)

    def _report_open(self, unpublished: int) -> None:
        on_their_way = sum(n - self.ledger.next_number(s) for s, n in self._untold().items())
        self.worker.report_open(self.ledger.open_parts + unpublished + on_their_way)

    def _untold(self) -> dict[str, int]:
        """The stations that have numbered more triggers than arrived, and how many they numbered."""
        numbered = {s.name: self.worker.numbered(s.name) for s in self.recipe.stations}
        return {s: n for s, n in numbered.items() if n > self.ledger.next_number(s)}

    def _lost(self, now_ns: int) -> list[Trigger]:
        """The last triggers of sources that have ended, where they died in the queue of an earlier gate and no later
        trigger will show the gap."""
        untold = self._untold()
        self._untold_since = {key: self._untold_since.get(key, now_ns) for key in untold.items()}
        late = [s for (s, _), since in self._untold_since.items() if now_ns - since > PATIENCE_NS]
        ended = [SourceEnded(s, untold[s]) for s in late if self.worker.source_ended(s)]
        return [trigger for end in ended for trigger in self.ledger.ended(end, now_ns)]

    def _patience_ms(self) -> int:
        """How long the loop may wait for messages: until the next deadline or heartbeat."""
        closing_ns = self.ledger.next_closing_ns()
        wake_ns = self.next_beat_ns if closing_ns is None else min(closing_ns, self.next_beat_ns)
        wait_ms = -((time.monotonic_ns() - wake_ns) // 1_000_000)
        return max(1 if self._lags() else 0, min(IDLE_MS, wait_ms))

    def _absent(self, process: str) -> str:
        for station in self.recipe.stations:
            if process == capture(station.name) and station.source.is_camera:
                camera = f"{station.source.kind} {station.source.shown_address}"
                return f"the camera of station {station.name} is away and tried again: {camera}"
        return f"{process} does not run"

    def _lags(self) -> bool:
        return self.journal.lag_ms(time.monotonic_ns()) > self.recipe.journal.max_lag_ms

    def _take(self, message: Trigger | ViewResult | SourceEnded, turn: Turn) -> None:
        if isinstance(message, Trigger):
            turn.triggers += self.ledger.trigger(message)
        elif isinstance(message, SourceEnded):
            turn.triggers += self.ledger.ended(message, time.monotonic_ns())
        else:
            seen, in_time = self.ledger.result(message)
            turn.triggers += seen
            if not in_time:
                turn.late.append(message)

    def _write(self, turn: Turn, run: int) -> list[tuple[Verdict, bytes]]:
        """Write until it is written: until then nothing is published, nothing received, and the heartbeat says why.

        Verdicts are made anew for each try, so that one whose deadline passes meanwhile is no PASS any more. So is one
        whose deadline passed while it was written: nobody has seen it yet.
        """
        rows, late = self._trigger_rows(turn, run), turn.late
        while True:
            verdicts, withdrawn = self._verdicts(turn.answers, run)
            encoded = [(v, encode(v)) for v in verdicts]
            try:
                turn_of = partial(write_turn, run, rows, late + withdrawn, encoded, self.journal.head)
                head = self.journal.write(turn_of)
            except JournalBlockedError as error:
                if not self.journal_blocked:
                    self.worker.log.error("journal_blocked", error=str(error))
                self.journal_blocked = error.trouble
                self.worker.beat()
                self.heartbeat()
                time.sleep(RETRY_S)
                continue
            self.journal_blocked, rows, late = "", [], []
            now_ns = time.monotonic_ns()
            if any(v.decision is Decision.PASS and now_ns > v.deadline_ns for v in verdicts):
                continue
            self.journal.head = head
            for verdict in verdicts:
                self.topic_seq[verdict.lane] = verdict.topic_seq
            return encoded

    def _verdicts(self, answers: list[Answer], run: int) -> tuple[list[Verdict], list[ViewResult]]:
        """The verdicts of these answers if they are published now, and the view results that come too late for that."""
        verdicts, late_results = [], []
        topic_seq = dict(self.topic_seq)
        now_ns, utc_ns = time.monotonic_ns(), time.time_ns()
        for seq, answer in enumerate(answers, self.journal.head.seq + 1):
            late = answer.reason is Reason.RESTART or now_ns > answer.deadline_ns
            said, withdrawn = withdraw(answer) if late else (answer, [])
            late_results += withdrawn
            if said.lane not in topic_seq:  # of an earlier recipe
                topic_seq[said.lane] = self.journal.last_topic_seq(said.lane)
            topic_seq[said.lane] += 1
            verdicts.append(
                Verdict(
                    line=self.recipe.line,
                    lane=said.lane,
                    part=said.number,
                    part_id=said.part_id,
                    count=said.count,
                    decision=said.decision,
                    reason=said.reason,
                    late=late,
                    epoch=self.journal.epoch,
                    seq=seq,
                    topic_seq=topic_seq[said.lane],
                    run=run,
                    score=said.score,
                    threshold=said.threshold,
                    views=[self._view(v) for v in said.views],
                    simulated=self.simulated,
                    recipe=self.recipe_sha256,
                    boot_id=self.boot_id,
                    trigger_ns=said.trigger_ns,
                    deadline_ns=said.deadline_ns,
                    decided_ns=now_ns,
                    trigger_utc_ns=said.seen_utc_ns or utc_ns - (now_ns - said.trigger_ns),
                    decided_utc_ns=utc_ns,
                )
            )
        return verdicts, late_results

    def _trigger_rows(self, turn: Turn, run: int) -> list[tuple[object, ...]]:
        utc_ns = time.time_ns()
        return [
            (run, t.station, t.number, self.ledger.lane_of(t.station), t.at_ns, utc_ns, t.missed, t.count, t.part_id)
            for t in turn.triggers
        ]

    def _bind(self) -> zmq.Socket[bytes]:
        publisher = self.worker.zmq.socket(zmq.PUB)
        publisher.bind(self.worker.verdict_endpoint)
        return publisher

    def _answered(self, lane: str, number: int) -> bool:
        return self.journal.has_verdict(self.run, lane, number)

    def _close_what_was_left(self) -> None:
        """Answer what a gate before this one saw and could not answer: UNINSPECTED(restart), late."""
        parts: dict[tuple[int, str, int], list[OpenTrigger]] = {}
        for trigger in self.journal.open_triggers():
            parts.setdefault((trigger.run, trigger.lane, trigger.number), []).append(trigger)
        for (run, lane, number), triggers in parts.items():
            seen, first = {t.station: t for t in triggers}, min(triggers, key=lambda t: t.at_ns)
            stations = dict.fromkeys((*self.journal.lane_views(run, lane), *seen))
            views = [
                ViewResult(s, number, seen.get(s, first).at_ns, Decision.UNINSPECTED, Reason.RESTART) for s in stations
            ]
            leading = seen.get(views[0].station)
            answer = Answer(
                lane,
                number,
                Decision.UNINSPECTED,
                Reason.RESTART,
                None,
                None,
                views,
                first.at_ns,
                first.at_ns,
                count=leading.count if leading else None,
                part_id=next((t.part_id for t in triggers if t.part_id is not None), None),
                seen_utc_ns=first.seen_utc_ns,
            )
            self.settle(Turn(answers=[answer]), run)
        if parts:
            self.worker.log.warning("closed_after_restart", parts=len(parts))

    def _state(self, now_ns: int) -> tuple[GateState, list[str]]:
        """The gate's state and what is wrong, in words."""
        blocking = [self.journal_blocked] if self.journal_blocked else []
        if (lag_ms := self.journal.lag_ms(now_ns)) > self.recipe.journal.max_lag_ms:
            blocking.append(self.journal.failure or f"the disk is {lag_ms:.0f} ms behind: the journal is not durable")
        trouble = [self._absent(name) for name in self.worker.processes_not_running()]
        trouble += [
            f"station {name} shows other parts of its lane since {when}: start the line again"
            for name, when in self.ledger.astray.items()
        ]
        if not self.worker.engine_served:
            trouble.append("the engine was stale: parts are UNINSPECTED(not_ready) until it is built and opened")
        if not self.journal.has_reserve:
            trouble.append("the disk is nearly full: the journal's reserve is used or could not be made")
        trouble += recording_trouble(self.worker)
        if self.worker.line_ending is Ending.STOP:
            return GateState.STOPPING, blocking + trouble
        if self.worker.line_ending is Ending.CHANGE_OVER:
            return GateState.NOT_READY, ["change-over to another recipe", *blocking, *trouble]
        if blocking or not self.worker.line_started:
            return GateState.NOT_READY, blocking + trouble
        return (GateState.DEGRADED if trouble else GateState.READY), trouble


def run(worker: Worker) -> None:
    """The gate process."""
    kept = worker.recipe.journal
    path = journal_path(worker.state_dir)
    journal = Journal(path, commit_interval_ms=kept.commit_interval_ms, reserve_mib=kept.reserve_mib)
    try:
        gate = Gate(worker, journal)
        worker.ready()
        while not worker.stopping:
            worker.beat()
            gate.turn()
        gate.finish()
    finally:
        journal.close()
