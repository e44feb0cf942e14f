"""The actuator is on a box of its own, and the network between it and the gate is cut, in every way that networks have.

As two real boxes: TCP and keys. Only the conveyor's wires, which are no network, lead to both.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from edge.bench.faults import belt_of_round
from edge.bench.storm import Fault, Storm, storm
from edge.keys import Keyring, make_pair
from tests.faults.storm_helpers import assert_nothing_wrong, weather
from tests.namespaces import Box, two_boxes

pytestmark = pytest.mark.line


def cuts(line: Box, actuator: Box) -> list[Fault]:
    """Each for some parts, so that what was on its way arrives late, and until the actuator knows that it is alone."""
    ways: dict[str, list[Callable[[bool], None]]] = {
        "cable at the line": [lambda cut: line.link(not cut)],
        "cable at the actuator": [lambda cut: actuator.link(not cut)],
        "from the line": [line.drop],
        "from the actuator": [actuator.drop],
        "both ways": [line.drop, actuator.drop],
    }
    return [
        Fault("short_cut" if short else "cut", way, partial(_cut, ends=ends, short=short))
        for way, ends in ways.items()
        for short in (True, False)
    ]


def _cut(it: Storm, ends: list[Callable[[bool], None]], short: bool) -> None:
    for end in ends:
        end(True)
    try:
        if short:
            it.some_parts()
        else:
            it.plant.wait_for(lambda: not it.plant.conveyor.running)
    finally:
        for end in ends:
            end(False)


def test_the_network_to_the_actuator_is_cut(tmp_path: Path, runtime_dir: Path) -> None:
    with two_boxes() as (line, actuator):
        endpoint = f"tcp://{line.address}:5599"
        keyring = Keyring(tmp_path / "state")
        keyring.make("a test")
        keyring.allow("ejector", make_pair(tmp_path / "client", "client").public, "a test")
        keys = f'server_key = "{keyring.public_path}"\nclient_key = "{tmp_path / "client" / "client.key_secret"}"'
        outputs = f'channel = "{endpoint}"\n{keys}\n[outputs]\nchannel = ["{endpoint}"]'
        with storm(
            tmp_path,
            runtime_dir,
            belt_of_round(1),
            seed=3,
            extra=outputs,
            before_line=line.before,
            before_actuator=actuator.before,
        ) as it:
            weather(it, cuts(line, actuator))
            assert_nothing_wrong(it)
