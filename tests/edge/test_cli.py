"""The command line as a user meets it: what works says what it did, what is wrong is named without a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge.recording import Recording
from tests.command import maskline
from tests.support import RunningLine, calibrate_marker, journal_verdicts, marker_recipe


def test_check_prints_the_resolved_recipe_its_tiles_and_its_hash(tmp_path: Path) -> None:
    done = maskline("check", marker_recipe(tmp_path), MASKLINE__DEADLINE__DEADLINE_MS="777")
    assert done.returncode == 0, done.stderr
    assert '"deadline_ms": 777' in done.stdout
    assert "station s0: 1 tile of 224 x 224 x 1, bundle marker" in done.stdout
    assert "sha256 " in done.stdout


@pytest.mark.parametrize("name", ["demo", "web"])
def test_recipes_that_ship_are_valid_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()  # a folder of that name is not the recipe
    monkeypatch.chdir(tmp_path)
    done = maskline("check", name)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("check", "no-such.toml"), 78, ["no-such.toml", "cannot read"]),
        (("run", "no-such.toml"), 78, ["no-such.toml"]),
        (("bench", "nothing"), 1, ["'nothing'", "transport, pipeline, memory, engine"]),
        (("watch", "tcp://nowhere"), 1, ["tcp://nowhere", "endpoint"]),
        (("report", "web"), 1, ["journal.sqlite", "no journal"]),
        (("simulate", "x.mcap", "--texture", "cam=silk"), 1, ["silk", "brick, grass, gravel"]),
        (("calibrate", "web", "--good", "no-such-folder"), None, ["no-such-folder"]),
    ],
)
def test_a_mistake_is_named_without_a_traceback(
    arguments: tuple[str, ...], code: int | None, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = maskline(*arguments)
    assert done.returncode == code if code else done.returncode != 0
    assert done.stderr.startswith("maskline: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_simulate_writes_a_recording_with_its_truth(tmp_path: Path) -> None:
    out = tmp_path / "a.mcap"
    done = maskline("simulate", out, "--texture", "cam=brick", "--parts", 6, "--defect-share", 0.5, "--seed", 3)
    assert done.returncode == 0, done.stderr
    truths = Recording(out).truths("cam")
    assert len(truths) == 6
    assert f"'cam': {sum(t.bad for t in truths.values())}" in done.stdout


@pytest.mark.line
def test_a_run_leaves_pictures_and_a_report(tmp_path: Path, runtime_dir: Path) -> None:
    recipe = marker_recipe(tmp_path, parts=12, mode="lossless", slots=2)
    recipe.write_text(recipe.read_text().replace('keep = "none"', 'keep = "all"'))
    state = tmp_path / "state"
    calibrate_marker(recipe, state)
    with RunningLine(recipe, state, runtime_dir) as line:
        assert line.wait() == 0, line.log.read_text()
    verdicts = journal_verdicts(state)
    assert len(verdicts) == 12
    for verdict in verdicts:
        folder = state / verdict.views[0].picture
        names = {"image.png", "tiles.png", "reconstruction.png", "map.png"}
        assert {f.name for f in folder.iterdir()} == names
    done = maskline("report", recipe, "--state-dir", state, "--out", tmp_path / "report.html")
    assert done.returncode == 0, done.stderr
    rejected = sum(v.decision == "REJECT" for v in verdicts)
    assert f"12 parts, {12 - rejected} pass, {rejected} reject, 0 uninspected" in done.stdout
    assert "data:image/" in (tmp_path / "report.html").read_text()


@pytest.mark.line
def test_bench_writes_one_flat_object(tmp_path: Path) -> None:
    done = maskline("bench", "transport", "--json", tmp_path / "figures.json")
    assert done.returncode in (0, 1), (
        done.stderr
    )  # 1: a budget does not hold on this machine, which is no test's concern
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"machine", "commit", "transport.gb_per_s", "transport.ratio_vs_pyzmq_copy"} <= set(figures)
    assert all(isinstance(v, (str, float, int)) for v in figures.values())


def test_engines_lists_sizes_licences_and_work_and_writes_one_flat_object(tmp_path: Path) -> None:
    done = maskline("engines", "--json", tmp_path / "engines.json")
    assert done.returncode == 0, done.stderr
    for words in ("vit-h", "21,871", "CC-BY-NC", "Bauer", "for `maskline engine import` rather than `fit`"):
        assert words in done.stdout
    figures = json.loads((tmp_path / "engines.json").read_text())
    assert {"machine", "commit", "engines.mae.edge.x4.gflop", "engines.sdc.paper.million_parameters"} <= set(figures)
    assert all(isinstance(v, (str, float, int)) for v in figures.values())


def test_engines_on_paper_prints_markdown() -> None:
    done = maskline("engines", "--paper")
    assert done.returncode == 0, done.stderr
    assert "| network | plan | Orin NX, ms | AGX Orin, ms | RTX 4090, ms | H100 SXM, ms |" in done.stdout
