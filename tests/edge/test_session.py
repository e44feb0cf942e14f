"""Both sides of the acknowledged channel: whatever is lost on the way, each verdict comes once, in order."""

from __future__ import annotations

import pytest
from channel_helpers import LEAD_NS, MS, World, beat, verdict
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.journal.schema import LOST_AT_MOST
from edge.messages import Ack, Clock, Heartbeat, Hello, Refusal, Trigger, Verdict, Welcome, decode, encode
from edge.session import Gap, NewEpoch, Position, Refused, Session, Silence

ACTIONS = st.sampled_from(
    ["publish", "publish_unheard", "flood", "heartbeat", "step", "step", "slow_client", "cut", "disconnect", "connect",
     "restart_server", "restart_client", "break_journal", "mend_journal", "fill", "drain", "one_event", "lose_frames"]
)  # fmt: skip


def act(world: World, action: str) -> None:
    match action:
        case "publish":
            world.publish()
        case "publish_unheard":
            world.publish(2, heard=False)
        case "flood":
            world.publish(9)
        case "heartbeat":
            world.heartbeat()
        case "step":
            world.step()
        case "slow_client":
            world.step(4000, events=0)
        case "one_event":
            world.step(events=1)
        case "lose_frames":
            for way in (world.to_client, world.to_server):
                if way:
                    way.popleft()
        case "cut":
            world.cut()
        case "disconnect":
            world.cut(reconnect=False)
        case "connect":
            world.connected = True
        case "restart_server":
            world.restart_server()
        case "restart_client":
            world.restart_client()
        case "break_journal" | "mend_journal":
            world.journal_works = action == "mend_journal"
        case "fill" | "drain":
            world.full = action == "fill"


@settings(max_examples=300)
@given(st.lists(ACTIONS, max_size=60), st.integers(1, 6), st.integers(1, 20))
def test_each_verdict_comes_once_and_in_order(actions: list[str], credit: int, memory: int) -> None:
    world = World(Position("e1", 0), credit, memory)
    for action in actions:
        act(world, action)
    world.settle()
    assert world.verdicts == list(range(1, world.published + 1))
    assert not world.of_type(Gap)
    assert not world.of_type(NewEpoch)
    assert world.client.position == Position("e1", world.published)
    assert isinstance(world.events[-1], Heartbeat), "and it is known to be alive"


def test_from_now_on_means_from_the_first_welcome_on() -> None:
    world = World()
    world.publish(5)
    world.settle(1)
    assert world.verdicts == []
    assert world.client.position == Position("e1", 5)
    world.publish()
    world.restart_client()
    world.publish()
    world.settle(2)
    assert world.verdicts == [6, 7], "what came while it was away is not skipped"


def decode_any(data: bytes) -> object:
    return decode(data, Verdict, Heartbeat, Welcome, Clock, Refusal, Hello, Ack)


def test_what_is_given_is_handled_when_the_next_is_asked_for() -> None:
    world = World(Position("e1", 0))
    world.publish(2)
    world.heartbeat()
    for _ in range(4):
        world.step(events=0)
        for frame in world.client.frames(world.now_ns):
            world.to_server.append((world.peer, frame))
        while world.to_client:
            world.client.receive(world.to_client.popleft(), world.now_ns)
    first = world.client.next_event(world.now_ns)
    assert first == verdict(1)
    assert world.client.position == Position("e1", 0)
    assert world.client.next_event(world.now_ns) == verdict(2)
    assert world.client.position == Position("e1", 1)
    world.restart_client()
    world.settle(1)
    assert world.verdicts == [2], "it was given, but never said to be handled"


def test_what_is_sent_again_has_the_same_bytes() -> None:
    world = World(Position("e1", 0), memory=2)
    world.publish(6)
    world.settle(2)
    first = {v.seq: d for d in world.sent if isinstance(v := decode_any(d), Verdict)}
    world.sent.clear()
    world.client = Session(Position("e1", 0), world.now_ns)
    world.settle(2)
    again = {v.seq: d for d in world.sent if isinstance(v := decode_any(d), Verdict)}
    assert first == again == world.journal


def test_verdicts_that_the_journal_has_no_more_are_a_gap() -> None:
    world = World(Position("e1", 2))
    world.publish(10)
    for seq in range(1, 6):
        del world.journal[seq]
    world.settle(3)
    assert world.of_type(Gap) == [Gap(None, 3, 5)]
    assert world.verdicts == [6, 7, 8, 9, 10]


def test_verdicts_that_go_while_they_are_waited_for_are_a_gap_too() -> None:
    world = World(Position("e1", 0))
    world.publish(20)
    world.heartbeat()
    world.step()
    world.step()
    for seq in range(1, 15):
        world.journal.pop(seq)
    world.settle(3)
    (gap,) = world.of_type(Gap)
    assert isinstance(gap, Gap)
    assert gap.last == 14
    assert world.verdicts == [*range(1, gap.first), *range(15, 21)]


def test_an_empty_journal_leaves_what_memory_has() -> None:
    world = World(Position("e1", 0), memory=3)
    world.publish(10)
    world.heartbeat()
    world.step()
    world.step()
    world.journal.clear()
    world.settle(3)
    assert world.verdicts[-3:] == [8, 9, 10]
    assert world.of_type(Gap) == [Gap(None, world.verdicts[-4] + 1 if len(world.verdicts) > 3 else 1, 7)]


def test_another_journal_is_told_and_comes_whole() -> None:
    world = World(Position("e1", 0))
    world.publish(3)
    world.settle(2)
    world.journal.clear()
    world.epoch, world.published = "e2", 0
    world.publish(4)
    world.settle(3)
    assert world.of_type(NewEpoch) == [NewEpoch("e2", Position("e1", 3))]
    assert world.verdicts == [1, 2, 3, 1, 2, 3, 4]
    assert world.client.position == Position("e2", 4)


def test_a_client_that_comes_back_to_another_journal_is_told() -> None:
    world = World(Position("old", 1000))
    world.publish(2)
    world.settle(2)
    assert world.of_type(NewEpoch) == [NewEpoch("e1", Position("old", 1000))]
    assert world.verdicts == [1, 2]


def lose_end(world: World, upto: int) -> None:
    """A power cut takes the end of the journal; the next gate skips all numbers that may have been given."""
    for seq in range(upto + 1, world.published + 1):
        del world.journal[seq]
    world.published = upto + LOST_AT_MOST
    world.restart_server()


@pytest.mark.parametrize("handled", [5, 7, 10])
@pytest.mark.parametrize("since", [0, 1, 5])
def test_after_a_power_cut_a_client_that_was_away_hears_all_that_is_new(handled: int, since: int) -> None:
    world = World(Position("e1", 0))
    world.publish(handled)
    world.settle(2)
    world.cut(reconnect=False)
    world.publish(10 - handled)
    lose_end(world, 7)
    new = range(8 + LOST_AT_MOST, 8 + LOST_AT_MOST + since)
    world.publish(since)
    world.settle(3)
    there = range(handled + 1, 8)
    assert world.verdicts == [*range(1, handled + 1), *there, *new]
    assert world.of_type(Gap) == [Gap(None, max(handled, 7) + 1, 7 + LOST_AT_MOST)], "some may be lost, and it is said"
    assert not world.of_type(NewEpoch)
    assert world.client.position == Position("e1", 7 + LOST_AT_MOST + since)


def test_an_older_copy_of_the_journal_goes_on_from_where_it_is() -> None:
    world = World(Position("e1", 0))
    world.publish(10)
    world.settle(2)
    for seq in (8, 9, 10):
        del world.journal[seq]
    world.published = 7
    world.restart_server()
    world.settle(2)
    assert world.of_type(NewEpoch) == [NewEpoch("e1", Position("e1", 10))]
    world.publish(1)
    world.settle(2)
    assert world.verdicts == [*range(1, 11), 8]


def test_silence_is_said_once_and_ends_with_a_fresh_heartbeat() -> None:
    world = World(Position("e1", 0))
    world.settle(2)
    world.events.clear()
    for _ in range(40):
        world.step(50)
    (silence,) = world.events
    assert isinstance(silence, Silence)
    assert 750 <= silence.for_ms <= 850
    world.settle(1)
    assert isinstance(world.events[-1], Heartbeat)


def test_a_heartbeat_that_was_long_on_its_way_is_not_fresh() -> None:
    """It comes at once after the pause, but was made before: on the client's own clock that can be known."""
    world = World(Position("e1", 0))
    world.settle(2)
    world.events.clear()
    held: list[bytes] = []
    for _ in range(8):
        world.heartbeat()
        held += [d for d in world.to_client if isinstance(decode_any(d), Heartbeat)]
        world.to_client.clear()
        world.step(250)
    assert [type(e) for e in world.events] == [Silence]
    world.client.receive(held[0], world.now_ns)
    world.client.receive(held[3], world.now_ns)
    world.client_turn()
    assert [type(e) for e in world.events] == [Silence], "1,250 ms old"
    world.client.receive(held[-1], world.now_ns)
    world.client_turn()
    assert [type(e) for e in world.events] == [Silence, Heartbeat], "250 ms old"


def test_before_the_clocks_are_compared_no_heartbeat_is_believed() -> None:
    world = World(Position("e1", 0))
    world.heartbeat()
    world.step()
    world.step()  # hello, welcome
    assert not world.client.clock.known
    world.to_client.append(encode(beat(0, world.server_now_ns)))
    world.client.receive(world.to_client.popleft(), world.now_ns)
    assert world.client.next_event(world.now_ns) is None
    world.settle(1)
    assert isinstance(world.events[-1], Heartbeat)


def test_what_the_clock_says_is_right() -> None:
    world = World()
    world.settle(8)
    assert abs(world.client.clock.offset_ns(world.now_ns) - LEAD_NS) <= world.client.clock.bound_ns(world.now_ns)
    assert world.client.clock.bound_ns(world.now_ns) <= 60 * MS


@pytest.mark.parametrize("data", [b"", b"garbage", encode(Trigger("a", 1, 2)), b"\x91" * 3000])
def test_garbage_from_the_line_is_said_once(data: bytes) -> None:
    world = World(Position("e1", 0))
    world.settle(1)
    for _ in range(3):
        world.to_client.append(data)
        world.publish()
        world.settle(1)
    assert world.verdicts == [1, 2, 3]
    assert len(world.of_type(Refused)) == 1


def test_another_line_than_the_expected_one_is_refused() -> None:
    world = World()
    world.client = Session(None, world.now_ns, line="other")
    world.publish()
    world.settle(2)
    assert Refused("this is the line test; expected other") in world.events
    assert not world.verdicts
    assert not world.of_type(Heartbeat)


def test_another_line_behind_the_same_port_is_not_believed() -> None:
    world = World()
    world.client = Session(None, world.now_ns, line="test")
    world.publish()
    world.settle(2)
    world.events.clear()
    world.client.receive(encode(Refusal("say hello first")), world.now_ns)
    world.client.receive(encode(Welcome("other", "e1", 1, 1, 250, "b")), world.now_ns)
    world.client.receive(encode(beat(1, world.server_now_ns)), world.now_ns)
    world.client.receive(encode(verdict(2)), world.now_ns)
    assert [type(world.client.next_event(world.now_ns)) for _ in range(2)] == [Refused, type(None)]


def test_what_comes_twice_is_dropped_and_after_a_hole_it_says_hello_again() -> None:
    world = World(Position("e1", 0))
    world.settle(1)
    world.events.clear()
    for seq in (1, 1, 2, 1, 4):
        world.client.receive(encode(verdict(seq)), world.now_ns)
    given = [world.client.next_event(world.now_ns) for _ in range(3)]
    assert given == [verdict(1), verdict(2), None]
    (frame,) = world.client.frames(world.now_ns + 300 * MS)
    assert decode_any(frame) == Hello("e1", 2, 4, "")


def test_a_server_that_knows_no_credit_fills_no_memory() -> None:
    world = World(Position("e1", 0), credit=2)
    world.settle(1)
    for seq in range(1, 100):
        world.client.receive(encode(verdict(seq)), world.now_ns)
    assert len(world.client._queue) <= 5
    world.publish(99)
    world.settle()
    assert world.verdicts == list(range(1, 100))


def test_an_answer_to_what_was_never_asked_says_nothing_of_the_clock() -> None:
    world = World(Position("e1", 0))
    world.settle(1)
    before = world.client.clock.range(world.now_ns)
    world.to_client.append(encode(Clock(world.now_ns + 1, 5, "b")))
    world.client_turn()
    assert world.client.clock.range(world.now_ns) == before
    assert "not sent yet" in str(world.of_type(Refused))


def test_a_welcome_to_a_journal_that_is_not_there_is_mended_by_what_follows() -> None:
    world = World(Position("e1", 0))
    world.publish(2)
    world.settle()
    world.client.receive(encode(Welcome("test", "e!", 2, 1, 250, "b")), world.now_ns)
    world.publish(2)
    world.settle(3)
    assert world.client.position == Position("e1", 4)


def test_a_garbled_interval_neither_hides_silence_nor_has_us_forgotten() -> None:
    world = World(Position("e1", 0))
    world.settle()
    world.client.receive(encode(beat(0, world.now_ns, interval_ms=2**31)), world.now_ns)
    for _ in range(20):
        world.step(250)
        world.server.forget_silent(world.server_now_ns)
    world.publish(3)
    world.settle()
    assert world.client.position == Position("e1", 3)
