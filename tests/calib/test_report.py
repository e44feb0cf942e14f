"""The report: whole, self-contained, and it says what happened."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from calib.charts import strip_chart
from calib.pictures import map_scales, view_panels
from calib.report import Limits, render_report, write_report
from calib.report_data import ReportPart, ReportRun, ReportStation, ReportView, Truth, summarise
from edge.errors import ResourceError
from edge.tiling import Box
from edge.verdict import Decision

PASS, REJECT, UNINSPECTED = Decision.PASS, Decision.REJECT, Decision.UNINSPECTED
STATION = ReportStation("web", Box(10, 20, 80, 60), 0.5, 0.3, "little is promised", 2.0)


def pictures(folder: Path, number: int, size: tuple[int, int] = (30, 40)) -> dict[str, Path]:
    rng = np.random.default_rng(number)
    paths = {name: folder / f"{number}-{name}.png" for name in ("image", "reconstruction", "anomaly_map")}
    cv2.imwrite(str(paths["image"]), rng.integers(0, 256, size, np.uint8))
    cv2.imwrite(str(paths["reconstruction"]), rng.integers(0, 256, size, np.uint8))
    cv2.imwrite(str(paths["anomaly_map"]), rng.integers(0, 20000, size, np.uint16))
    return paths


def part(
    number: int,
    decision: Decision,
    *,
    bad: bool | None = None,
    score: float | None = 0.2,
    paths: dict[str, Path] | None = None,
    reason: str = "",
    latency_ms: float | None = 100.0,
    boxes: Sequence[tuple[int, int, int, int]] = (),
    mask: np.ndarray | None = None,
) -> ReportPart:
    view = ReportView("web", decision, reason, score, boxes, **(paths or {}), truth_mask=mask)
    truth = None if bad is None else Truth(bad, "scratch" if bad else "", 12 if bad else None, 0.1 if bad else None)
    return ReportPart("a", number, decision, number * 0.5, latency_ms, [view], reason, False, truth)


def run(parts: Sequence[ReportPart], **changes: object) -> ReportRun:
    plain = ReportRun("demo", "2026-01-01", True, {"backend": "openvino f32"}, [STATION], parts, 500.0)
    return replace(plain, **changes)  # type: ignore[arg-type]


@pytest.fixture
def mixed(tmp_path: Path) -> ReportRun:
    mask = np.zeros((100, 120), np.uint8)
    mask[30:34, 40:60] = 1
    parts = [
        part(0, PASS, bad=False, paths=pictures(tmp_path, 0)),
        part(1, REJECT, bad=True, score=0.9, paths=pictures(tmp_path, 1), boxes=[(38, 28, 24, 8)], mask=mask),
        part(2, PASS, bad=True, score=0.4, paths=pictures(tmp_path, 2), mask=mask),
        part(3, REJECT, bad=False, score=0.6),
        part(4, UNINSPECTED, bad=False, score=None, reason="deadline", latency_ms=500.0),
    ]
    return run(parts)


class Checker(HTMLParser):
    """Every element that is opened is closed, and nothing is fetched."""

    void = frozenset({"meta", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            assert not (name in ("src", "href") and not str(value).startswith(("data:image/jpeg;base64,", "#")))
            assert not name.startswith("on")
            if name == "src":
                self.pictures.append(str(value).split(",")[1])
        assert tag not in ("script", "link", "iframe", "object")
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.void:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]+>", " ", html, flags=re.S))


def test_it_needs_nothing_else_and_its_pictures_decode(mixed: ReportRun) -> None:
    html = render_report(mixed)
    checker = Checker()
    checker.feed(html)
    assert not checker.open
    assert len(checker.pictures) == 3 * 3 + 1
    for data in checker.pictures:
        assert cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR) is not None
    assert "url(" not in html
    assert "@import" not in html


def test_it_says_what_happened(mixed: ReportRun) -> None:
    html = render_report(mixed)
    text = text_of(html)
    for words in (
        "1 found, 1 missed, 1 falsely rejected",
        "a demonstration and no rate",
        "the escape rate could be anything from 1.3 % to 99 %",
        "little is promised",
        "simulated",
        "deadline",
        "scratch, 12 px, 10 % contrast",
        "score 0.9 , threshold 0.5",
        "openvino f32",
    ):
        assert words in text.replace("score 0.9,", "score 0.9 ,"), words
    for group in ("missed", "false", "found", "uninspected", "good"):
        assert f'<section id="{group}">' in html
    assert html.count('class="truth" d=') == 4  # on image and map of the two parts that have a mask
    assert '<rect class="box" x="14" y="4" width="12" height="4"/>' in html  # frame pixels to picture pixels


def test_without_truth_it_claims_nothing(tmp_path: Path) -> None:
    text = text_of(render_report(run([part(0, PASS, paths=pictures(tmp_path, 0)), part(1, REJECT, score=0.9)])))
    assert "Against the truth" not in text
    assert "escape" not in text
    assert "Rejects" in text
    assert "not kept" not in text
    assert "No pictures of this view were kept" in text


def test_an_empty_run_is_a_report_too() -> None:
    text = text_of(render_report(run([])))
    assert "0 parts" in text.replace("0 </b> <span>", "0 ")
    assert str(summarise([])) == "0 parts, 0 pass, 0 reject, 0 uninspected, no verdict timed"


def test_everything_foreign_is_escaped() -> None:
    nasty = '<script>alert("x")</script>'
    spoilt = replace(part(0, REJECT, bad=True, score=0.9, reason=nasty), lane=nasty)
    html = render_report(run([spoilt], line=nasty, facts={nasty: nasty}, notes=[nasty]))
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 5


def test_summary_counts_and_measured_percentiles(mixed: ReportRun) -> None:
    summary = summarise(mixed.parts)
    assert (summary.parts, summary.passed, summary.rejected, summary.uninspected) == (5, 2, 2, 1)
    assert (summary.p50_ms, summary.p99_ms) == (100, 500)
    assert str(summary) == "5 parts, 2 pass, 2 reject, 1 uninspected, p50 100 ms, p99 500 ms trigger to verdict"


def test_groups_are_bounded_and_say_so(tmp_path: Path) -> None:
    html = render_report(run([part(i, PASS, bad=False) for i in range(20)]), Limits(passes=3))
    assert html.count("<article") == 3
    assert "3 of 20 are shown" in text_of(html)


def test_maps_of_a_station_share_one_scale(tmp_path: Path) -> None:
    dim, bright = pictures(tmp_path, 0), pictures(tmp_path, 1)
    cv2.imwrite(str(bright["anomaly_map"]), np.full((30, 40), 65535, np.uint16))
    views = [part(i, PASS, paths=p).views[0] for i, p in enumerate((dim, bright))]
    scales = map_scales([(v, STATION) for v in views])
    assert scales == {"web": pytest.approx(2.0)}
    assert map_scales([(views[0], STATION)]) == {"web": pytest.approx(0.61, abs=0.02)}
    assert view_panels(views[0], STATION, scales["web"]).map_top == scales["web"]


def test_large_pictures_get_a_detail_around_the_defect(tmp_path: Path) -> None:
    mask = np.zeros((100, 120), np.uint8)
    mask[70, 80] = 1
    paths = pictures(tmp_path, 0, (600, 800))
    panels = view_panels(part(0, REJECT, paths=paths, mask=mask).views[0], STATION, 1.0)
    assert [p.title for p in panels.detail] == ["image, closer", "reconstruction, closer", "anomaly map, closer"]
    assert panels.detail[0].overlay.width == 112
    assert not view_panels(part(0, PASS, paths=paths).views[0], STATION, 1.0).detail


def test_a_picture_deleted_under_pressure_leaves_a_gap(tmp_path: Path) -> None:
    paths = pictures(tmp_path, 0)
    paths["reconstruction"].unlink()
    html = render_report(run([part(0, REJECT, score=0.9, paths=paths)]))
    assert html.count("not kept") == 1


def test_chart_puts_the_threshold_between_what_it_separates(mixed: ReportRun) -> None:
    chart = strip_chart(STATION, mixed.parts)
    assert chart.threshold_y is not None
    by_number = {mark.number: mark for mark in chart.marks}
    assert by_number[1].y < chart.threshold_y < by_number[2].y
    assert {n for n, mark in by_number.items() if mark.wrong} == {2, 3}
    assert by_number[4].kind == "none"
    assert all(chart.left <= m.x <= chart.right and chart.top <= m.y <= chart.bottom for m in chart.marks)


@pytest.mark.parametrize("scores", [[0.0], [0.01, 40.0], [1e-7], []])
def test_chart_takes_any_scores(scores: list[float]) -> None:
    chart = strip_chart(STATION, [part(i, PASS, score=s) for i, s in enumerate(scores)])
    assert chart.logarithmic == (scores == [0.01, 40.0])
    assert len(chart.y_ticks) >= 1
    assert all(chart.top - 1 <= m.y <= chart.bottom + 1 for m in chart.marks)


def test_it_is_written_whole_or_not_at_all(mixed: ReportRun, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    write_report(mixed, folder / "report.html")
    assert [p.name for p in folder.iterdir()] == ["report.html"]
    with pytest.raises(ResourceError, match="cannot write the report"):
        write_report(mixed, tmp_path / "nowhere" / "report.html")
