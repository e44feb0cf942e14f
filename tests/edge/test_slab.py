"""The slab: whose a slot is, in which order it goes from hand to hand, and how it comes back when a hand dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import edge.slab
from edge.errors import ResourceError
from edge.slab import MAX_SLOTS, PAGE, ArraySpec, Orphans, Slab, SlotLayout, slab_bytes

FRAME = ArraySpec("frame", (30, 50, 1), "uint8")
MAP = ArraySpec("map", (2, 8, 8), "float32")
LAYOUT = SlotLayout((FRAME, MAP), 3)
CAPTURE, PREPARE = 6, 2


@pytest.fixture
def make_slab() -> Iterator[Callable[..., Slab]]:
    made: list[Slab] = []

    def make(**layouts: SlotLayout) -> Slab:
        made.append(Slab.create(layouts or {"a": LAYOUT}))
        return made[-1]

    yield make
    for slab in made:
        slab.close()


MakeSlab = Callable[..., Slab]


def test_every_array_begins_on_a_page_and_overlaps_no_other(make_slab: MakeSlab) -> None:
    slab = make_slab(a=LAYOUT, b=SlotLayout((MAP,), 2))
    spans = []
    for slot in range(5):
        for array in slab.arrays(slot).values():
            begin = array.__array_interface__["data"][0]
            assert begin % PAGE == 0
            assert array.flags.c_contiguous
            assert array.flags.writeable
            spans.append((begin, begin + array.nbytes))
    assert all(end <= begin for (_, end), (begin, _) in zip(sorted(spans), sorted(spans)[1:], strict=False))
    assert slab.station_slots == {"a": range(3), "b": range(3, 5)}
    assert slab.arrays(0)["frame"].shape == (30, 50, 1)
    assert slab.arrays(4)["map"].dtype == np.float32
    assert len(spans) == 3 * 2 + 2


def test_every_page_is_there_from_the_start(make_slab: MakeSlab) -> None:
    slab = make_slab()
    about = os.fstat(slab.fd)
    assert about.st_size == slab_bytes({"a": LAYOUT})
    assert about.st_blocks * 512 >= about.st_size


def test_a_slot_goes_from_hand_to_hand_and_back(make_slab: MakeSlab) -> None:
    slab = make_slab()
    slot, generation = slab.acquire("a", CAPTURE) or (-1, -1)
    assert slab.holds(slot, generation, CAPTURE)
    slab.hand_over(slot, PREPARE)
    assert slab.holds(slot, generation, PREPARE)
    assert not slab.holds(slot, generation, CAPTURE)
    assert slab.held_by(PREPARE) == [slot]
    slab.release(slot)
    assert slab.is_free(slot)
    assert not slab.holds(slot, generation, PREPARE), "a descriptor of a released slot is stale"
    again, newer = slab.acquire("a", CAPTURE) or (-1, -1)
    assert (again, newer) == (slot, generation + 1)


def test_a_station_has_so_many_slots_and_no_more(make_slab: MakeSlab) -> None:
    slab = make_slab(a=LAYOUT, b=LAYOUT)
    taken = [slab.acquire("a", CAPTURE) for _ in range(3)]
    assert len({t for t in taken if t}) == 3
    assert slab.acquire("a", CAPTURE) is None
    assert slab.acquire("b", CAPTURE + 1) is not None, "the other station has its own"


@pytest.mark.parametrize("slot", [-1, 3, 10**9])
def test_a_slot_that_does_not_exist_is_nobodys(make_slab: MakeSlab, slot: int) -> None:
    assert not make_slab().holds(slot, 1, CAPTURE)


def test_the_dead_lose_what_they_held_and_nobody_else_does(make_slab: MakeSlab) -> None:
    slab = make_slab()
    held = [slab.acquire("a", CAPTURE) for _ in range(3)]
    slab.hand_over(1, PREPARE)
    assert slab.reclaim(CAPTURE) == [0, 2]
    assert [slab.is_free(s) for s in range(3)] == [True, False, True]
    assert slab.reclaim(CAPTURE) == []
    assert held[1] is not None
    assert slab.holds(*held[1], PREPARE)


def test_an_orphan_is_released_after_a_while_and_only_then(make_slab: MakeSlab) -> None:
    slab = make_slab()
    orphans = Orphans(slab, PREPARE, patience_ns=100)
    slab.acquire("a", CAPTURE)
    slab.acquire("a", CAPTURE)
    slab.hand_over(0, PREPARE)
    slab.hand_over(1, PREPARE)
    assert orphans.release({1}, 0) == []
    assert orphans.release({1}, 99) == []
    assert orphans.release({1}, 100) == [0]
    assert slab.is_free(0)
    assert orphans.release({1}, 1000) == [], "what is known is no orphan"


def test_an_orphan_that_became_another_frame_is_waited_for_anew(make_slab: MakeSlab) -> None:
    slab = make_slab()
    orphans = Orphans(slab, PREPARE, patience_ns=100)
    for _ in range(2):
        slab.acquire("a", CAPTURE)
        slab.hand_over(0, PREPARE)
        assert orphans.release(set(), 0) == []
        assert orphans.release(set(), 90) == []
        slab.release(0)
    slab.acquire("a", CAPTURE)
    slab.hand_over(0, PREPARE)
    assert orphans.release(set(), 150) == []
    assert orphans.release(set(), 249) == []
    assert orphans.release(set(), 250) == [0]


OTHER = """
import os, sys, time
from edge.slab import ArraySpec, Slab, SlotLayout
layout = SlotLayout((ArraySpec("frame", (30, 50, 1), "uint8"), ArraySpec("map", (2, 8, 8), "float32")), 3)
slab = Slab(int(sys.argv[1]), {"a": layout})
slot, generation = slab.acquire("a", 6)
slab.arrays(slot)["frame"][:] = 7
slab.row(6)["beat_ns"] = 42
print(slab.server_id, slot, generation, flush=True)
time.sleep(60)
"""


def test_another_process_works_on_the_same_slots_and_leaves_nothing_when_it_is_killed(make_slab: MakeSlab) -> None:
    slab = make_slab()
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, str(slab.fd)], pass_fds=[slab.fd], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        server_id, slot, generation = map(int, other.stdout.readline().split())
        other.send_signal(signal.SIGKILL)
    assert server_id == slab.server_id
    assert slab.holds(slot, generation, CAPTURE), "the pixels of the dead stay until its slots are reclaimed"
    assert np.all(slab.arrays(slot)["frame"] == 7)
    assert int(slab.row(6)["beat_ns"]) == 42
    assert slab.reclaim(CAPTURE) == [slot]


def test_a_slab_larger_than_memory_is_refused_before_it_is_allocated() -> None:
    huge = SlotLayout((ArraySpec("frame", (32768, 32768, 3), "uint16"),), 64)
    with pytest.raises(ResourceError, match=r"needs 393216 MiB of shared memory .* are available: fewer slots"):
        Slab.create({"a": huge})


def test_the_limit_of_a_container_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "system.slice" / "maskline.service"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("5\n")
    (inner.parent / "memory.max").write_text("1000000\n")
    (inner.parent / "memory.current").write_text("400000\n")
    assert edge.slab._cgroup_available(tmp_path, "system.slice/maskline.service") == [600_000]
    monkeypatch.setattr(edge.slab, "_cgroup_available", lambda *_: [600_000])
    monkeypatch.setattr(edge.slab, "_available_bytes", lambda: 600_000)
    with pytest.raises(ResourceError, match="1 MiB are available"):
        Slab.create({"a": SlotLayout((ArraySpec("frame", (1024, 1024, 1), "uint8"),), 2)})


def test_an_allocation_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(fd: int, offset: int, size: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(edge.slab.os, "posix_fallocate", no_space)
    fds = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ResourceError, match=r"cannot allocate .* No space left on device"):
        Slab.create({"a": LAYOUT})
    assert len(os.listdir("/proc/self/fd")) == fds


def test_too_many_slots_are_refused() -> None:
    with pytest.raises(ResourceError, match=f"at most {MAX_SLOTS}"):
        Slab.create({"a": SlotLayout((ArraySpec("x", (1,), "uint8"),), MAX_SLOTS + 1)})


def test_what_is_no_slab_is_refused(make_slab: MakeSlab) -> None:
    with pytest.raises(ResourceError, match="not the same recipe"):
        Slab(make_slab().fd, {"a": SlotLayout((FRAME,), 999)})
    fd = os.memfd_create("other")
    try:
        os.truncate(fd, slab_bytes({"a": LAYOUT}))
        with pytest.raises(ResourceError, match="no slab of version"):
            Slab(fd, {"a": LAYOUT})
    finally:
        os.close(fd)


@dataclass
class Message:
    """A descriptor on its way."""

    slot: int
    generation: int
    frame: int


@dataclass
class Player:
    """A process of the line, which may be killed between any two of its steps."""

    name: str
    me: int
    socket: deque[Message] = field(default_factory=deque)  # arrived, not received
    received: deque[Message] = field(default_factory=deque)
    working: Message | None = None
    unsent: Message | None = None  # handed over, and not sent yet
    orphans: Orphans | None = None
    alive: bool = True


NEXT = {"capture": "prepare", "prepare": "judge"}
PATIENCE_NS = 1_000


class LineOfSlots(RuleBasedStateMachine):
    """Three processes pass slots along; each dies, is reaped and starts anew at any step.

    The content of a slot is the number of its frame, so a process that works on another frame's pixels is seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.slab = Slab.create({"a": SlotLayout((ArraySpec("frame", (1,), "int64"),), 3)})
        self.now_ns = self.frames = self.finished = 0
        self.players = {n: self.born(n, me) for n, me in (("capture", 6), ("prepare", 2), ("judge", 4))}

    def born(self, name: str, me: int) -> Player:
        return Player(name, me, orphans=Orphans(self.slab, me, PATIENCE_NS))

    def content(self, slot: int) -> int:
        return int(self.slab.arrays(slot)["frame"][0])

    @rule(name=st.sampled_from(["capture", "prepare", "judge"]))
    def step(self, name: str) -> None:
        player = self.players[name]
        if not player.alive:
            return
        if player.unsent is not None:
            self.players[NEXT[name]].socket.append(
                player.unsent
            )  # a queue that outlives the receiver: ZeroMQ's is ours
            player.unsent = None
        elif player.working is not None:
            self.finish(player, player.working)
        elif name == "capture":
            self.expose(player)
        else:
            self.take(player)

    def expose(self, player: Player) -> None:
        if taken := self.slab.acquire("a", player.me):
            self.frames += 1
            player.working = Message(*taken, self.frames)
            self.slab.arrays(taken[0])["frame"][0] = self.frames

    def take(self, player: Player) -> None:
        self.receive(player)
        if player.received:
            message = player.received.popleft()
            if self.slab.holds(message.slot, message.generation, player.me):
                player.working = message

    def receive(self, player: Player) -> None:
        player.received.extend(player.socket)
        player.socket.clear()

    def finish(self, player: Player, message: Message) -> None:
        assert self.content(message.slot) == message.frame, "somebody wrote another frame into the slot"
        assert self.slab.holds(message.slot, message.generation, player.me)
        player.working = None
        if player.name in NEXT:
            self.slab.hand_over(message.slot, self.players[NEXT[player.name]].me)
            player.unsent = message
        else:
            self.finished += 1
            self.slab.release(message.slot)

    @rule(name=st.sampled_from(["prepare", "judge"]))
    def sweep(self, name: str) -> None:
        """Between two frames, as `Worker.frames` does."""
        player = self.players[name]
        if player.alive and player.working is None and player.unsent is None:
            self.receive(player)
            assert player.orphans is not None
            player.orphans.release([m.slot for m in player.received], self.now_ns)

    @rule(name=st.sampled_from(["capture", "prepare", "judge"]), socket_survives=st.booleans())
    def kill(self, name: str, socket_survives: bool) -> None:
        player = self.players[name]
        player.alive = False
        player.working = player.unsent = None
        player.received.clear()
        if not socket_survives:
            player.socket.clear()

    @precondition(lambda self: not all(p.alive for p in self.players.values()))
    @rule()
    def reap(self) -> None:
        for name, player in list(self.players.items()):
            if not player.alive:
                self.slab.reclaim(player.me)
                self.players[name] = self.born(name, player.me)
                self.players[name].socket = player.socket

    @rule(ns=st.integers(1, PATIENCE_NS))
    def wait(self, ns: int) -> None:
        self.now_ns += ns

    @invariant()
    def no_slot_has_two_hands_on_it(self) -> None:
        at_work = [p.working.slot for p in self.players.values() if p.working is not None]
        assert len(at_work) == len(set(at_work))

    @invariant()
    def pixels_are_those_of_the_frame_that_is_worked_on(self) -> None:
        for player in self.players.values():
            if player.working is not None:
                assert self.content(player.working.slot) == player.working.frame

    def teardown(self) -> None:
        """When nobody dies any more, every slot comes back."""
        self.reap()
        for _ in range(20):
            for name in ("prepare", "judge"):
                for _ in range(8):
                    self.step(name)
                self.sweep(name)
            capture = self.players["capture"]
            while capture.working is not None or capture.unsent is not None:
                self.step("capture")
            self.now_ns += PATIENCE_NS
        assert all(self.slab.is_free(slot) for slot in range(3)), "a slot is lost for good"
        self.slab.close()


TestSlotsAcrossDeaths: Any = LineOfSlots.TestCase
TestSlotsAcrossDeaths.settings = settings(
    max_examples=150, stateful_step_count=60, suppress_health_check=[HealthCheck.too_slow]
)
