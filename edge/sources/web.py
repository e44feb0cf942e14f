"""A simulated web as a stream; see `edge.demo.web`."""

from __future__ import annotations

from edge.demo.web import Web
from edge.settings import Station
from edge.sources.pacing import Part, Rate, Shot

__all__ = ["WebFeed"]


class WebFeed:
    """A camera window that moves over a photograph; endless. On a web, frames follow each other without a gap."""

    def __init__(self, station: Station) -> None:
        source = station.source
        self._web = Web(
            *(source.texture, station.frame, source.seed, source.half, source.scale, source.defect_share),
            roll=station.web is not None,
        )
        self._rate = Rate(source.rate_hz)

    def part(self, number: int) -> Part | None:
        return self._rate.part(number, lambda: Shot(self._web.shot(number).image))

    def first_due(self, elapsed_ns: int, number: int) -> int:
        return self._rate.first_due(elapsed_ns, number)

    def close(self) -> None: ...
