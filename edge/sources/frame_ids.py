"""Frame ids that go on rising where a camera's wrap."""

from __future__ import annotations

__all__ = ["FrameIds"]

LAST = 65535
"""Ids of GigE Vision 1 have 16 bits: after 65535 comes 1, as 0 is no id. Extended ones have 64, and USB3 Vision's."""

NEAR = 10_000
"""So near to the end and to the beginning a fall of the id is a wrap; elsewhere the camera began anew."""


class FrameIds:
    """The ids of one stream."""

    def __init__(self) -> None:
        self._before, self._last = 0, 0

    def unwrap(self, frame_id: int) -> int:
        """The id as it would be without wraps."""
        if frame_id <= NEAR and LAST - NEAR <= self._last <= LAST:
            self._before += LAST
        elif self._before and self._last <= NEAR and LAST - NEAR <= frame_id <= LAST:
            self._before -= LAST  # one from before the wrap, out of order
        self._last = frame_id
        return self._before + frame_id if frame_id <= LAST else frame_id
