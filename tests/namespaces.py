"""Two boxes and a cable between them: network namespaces of their own, joined by a veth pair. Addresses are in there
alone; needs root and iproute2."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

__all__ = ["Box", "two_boxes"]

NOBODY = "02:00:00:00:00:99"
"""A hardware address that is not there: what is sent to it is dropped, and the sender hears nothing of that."""


@dataclass(frozen=True)
class Box:
    """One end of the cable."""

    name: str
    address: str
    other: str  # the address at the other end

    @property
    def before(self) -> list[str]:
        """The words before a command that runs in this box."""
        return ["ip", "netns", "exec", self.name]

    def link(self, up: bool) -> None:
        _ip("-n", self.name, "link", "set", "cable", "up" if up else "down")

    def drop(self, dropped: bool) -> None:
        """Packets to the other box are lost, or not any more."""
        if dropped:
            _ip("-n", self.name, "neigh", "replace", self.other, "lladdr", NOBODY, "dev", "cable", "nud", "permanent")
        else:
            _ip("-n", self.name, "neigh", "del", self.other, "dev", "cable")


@contextlib.contextmanager
def two_boxes() -> Iterator[tuple[Box, Box]]:
    """The test is skipped where nobody may make them."""
    found = [Box(f"maskline-{os.getpid()}-{i}", f"10.77.0.{i}", f"10.77.0.{3 - i}") for i in (1, 2)]
    with contextlib.ExitStack() as made:
        try:
            for box in found:
                _ip("netns", "add", box.name)
                made.callback(_ip, "netns", "del", box.name)
                _ip("-n", box.name, "link", "set", "lo", "up")
            _ip("link", "add", "cable", "netns", found[0].name, "type", "veth", "peer", "cable", "netns", found[1].name)
            for box in found:
                _ip("-n", box.name, "addr", "add", f"{box.address}/24", "dev", "cable")
                box.link(up=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', b'') or error}")
        yield found[0], found[1]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=100)
