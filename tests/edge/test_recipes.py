"""Recipes: what is wrong is named, with its path, its value and what is allowed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.errors import BundleError, RecipeError
from edge.plan import plan_line
from edge.recipes import load_recipe, shipped_recipe
from edge.settings import Mode, Recipe, scoring_sha256
from engines.bundle import ZOO, load_bundle, write_bundle

WHOLE = """
line = "test"
safe_state = "reject_all"
line_ok = { wired = "none", because = "a test" }
deadline = { deadline_ms = 1000 }

[[stations]]
name = "top"
bundle = "marker"
frame = { width_px = 224, height_px = 224 }
source = { kind = "marker" }
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes WHOLE, with some of it replaced."""

    def write(*changes: tuple[str, str], text: str = WHOLE) -> Path:
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / "recipe.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def trouble(path: Path) -> str:
    with pytest.raises(RecipeError) as raised:
        load_recipe(path)
    assert raised.value.exit_code == 78
    assert str(raised.value).startswith(str(path))
    return str(raised.value).replace(str(path), "R")


def test_a_whole_recipe_is_resolved(write: Write) -> None:
    recipe = load_recipe(write())
    assert recipe.stations[0].lane == "top", "a station without a lane is a lane of its own"
    assert recipe.stations[0].source.mode is Mode.LIVE
    assert recipe.simulated
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe, "what the processes read is what was checked"


def test_a_recipe_cannot_be_changed(write: Write) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(write()).line = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("1000", "9"), "R: deadline.deadline_ms = 9: input should be .* equal to 10; allowed: 10 to 600000"),
        (("1000", "700000"), "R: deadline.deadline_ms = 700000: input should be less than or equal to 600000; allowed"),
        (("1000", '"soon"'), "R: deadline.deadline_ms = 'soon': input should be a valid integer"),
        (("1000", "1000.5"), "R: deadline.deadline_ms = 1000.5: input should be a valid integer"),
        (("1000", "nan"), "R: deadline.deadline_ms = nan: "),
        (("width_px = 224", "width_px = 8"), "R: stations.0.frame.width_px = 8: .* allowed: 16 to 32768"),
        (('kind = "marker"', 'kind = "marker", rate_hz = 0'), "R: stations.0.source.rate_hz = 0: .*: 0 to 1000"),
        (('kind = "marker"', 'kind = "marker", rate_hz = inf'), "R: stations.0.source.rate_hz = inf: "),
        (('kind = "marker"', 'kind = "camera"'), "R: stations.0.source.kind = 'camera': .* 'recording', 'folder'"),
        (('kind = "marker"', 'kind = "folder"'), 'R: stations.0.source: kind = "folder" needs a path'),
        (('name = "top"', 'name = "Top"'), "R: stations.0.name = 'Top': string should match pattern"),
        (('name = "top"', 'name = "top.1"'), "R: stations.0.name = 'top.1': "),
        (('name = "top"', 'name = "top"\nlane = "a.b"'), "R: stations.0.lane = 'a.b': string should match pattern"),
        (('name = "top"', 'name = "top"\nslots = 1'), "R: stations.0.slots = 1: .* allowed: 2 to 64"),
        (('name = "top"', 'name = "top"\nslotts = 4'), "R: stations.0.slotts: no such field"),
        (('name = "top"', ""), "R: stations.0.name: this field is required"),
        (('safe_state = "reject_all"', ""), "R: safe_state: this field is required"),
        (('safe_state = "reject_all"', 'safe_state = "pass_all"'), "R: safe_state = 'pass_all': .* 'reject_all'"),
        (('because = "a test"', 'because = " "'), 'R: line_ok: wired = "none" needs because'),
        (("deadline = { deadline_ms = 1000 }", ""), "R: deadline: this field is required"),
        (("[[stations]]", "[station]"), "R: stations: this field is required"),
        (('line = "test"', 'line = "test"\nlines = 2'), "R: lines: no such field"),
        (('line = "test"', 'line = "../etc"'), "R: line = '../etc': string should match pattern"),
        (('line = "test"', "line ="), r"R: .*line 2"),
        (('line = "test"', "line = " + "[" * 20_000), "R: nested too deep"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(write: Write, change: tuple[str, str], message: str) -> None:
    import re

    assert re.search(message, trouble(write(change)).replace("\n", " "))


def test_every_error_is_told_at_once_and_none_that_only_follows(write: Write) -> None:
    found = trouble(write(("1000", "1"), ("width_px = 224", "width_px = 1"))).splitlines()
    assert [line.split(" = ")[0] for line in found] == ["R: deadline.deadline_ms", "R: stations.0.frame.width_px"]


@pytest.mark.parametrize("output", ["publish", "channel"])
@pytest.mark.parametrize(
    "endpoint",
    ["tcp://127.0.0.1:0", "tcp://127.0.0.1:*", "tcp://127.0.0.1:99999", "tcp://127.0.0.1", "ipc:///tmp/x", "tcp://:5555",
     "tcp://127.0.0.1:5555;tcp://0.0.0.0:1", "udp://127.0.0.1:5555", "tcp://::1:5555", "tcp://a b:5555"],
)  # fmt: skip
def test_verdicts_leave_the_machine_by_tcp_only(write: Write, output: str, endpoint: str) -> None:
    found = trouble(write(("[[stations]]", f'[outputs]\n{output} = ["{endpoint}"]\n[[stations]]')))
    assert f"R: outputs.{output}: '{endpoint}': expected tcp://ADDRESS:PORT" in found


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:5555", "tcp://[::1]:65535"])
def test_loopback_is_not_beyond(write: Write, endpoint: str) -> None:
    outputs = load_recipe(write(("[[stations]]", f'[outputs]\npublish = ["{endpoint}"]\n[[stations]]'))).outputs
    assert outputs.publish == (endpoint,)
    assert outputs.beyond_loopback == ()
    assert not outputs.insecure


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://*:5555", "tcp://0.0.0.0:5555", "tcp://192.168.0.5:5555", "tcp://[::]:55", "tcp://eth0:5555",
     "tcp://127.0.0.12:5555", "tcp://[fe80::1%eth0]:5555"],
)  # fmt: skip
def test_what_others_can_reach_is_known(write: Write, endpoint: str) -> None:
    outputs = load_recipe(write(("[[stations]]", f'[outputs]\nchannel = ["{endpoint}"]\n[[stations]]'))).outputs
    assert outputs.beyond_loopback == (endpoint,)


def test_an_endpoint_named_twice_is_refused(write: Write) -> None:
    twice = '[outputs]\npublish = ["tcp://127.0.0.1:5555"]\nchannel = ["tcp://127.0.0.1:5555"]\n[[stations]]'
    assert "tcp://127.0.0.1:5555: named twice; publish and channel need a port each" in trouble(
        write(("[[stations]]", twice))
    )


def test_stations_named_twice_are_refused(write: Write) -> None:
    path = write(text=WHOLE + WHOLE[WHOLE.index("[[stations]]") :])
    assert trouble(path) == "R: recipe: stations named twice: top"


CAMERA = 'source = { kind = "genicam", address = "10.0.0.1", camera = { chunks = { trigger = "Counter0" } } }'
SECOND = WHOLE[WHOLE.index("[[stations]]") :].replace('"top"', '"side"')


def lane_of(write: Write, *changes: tuple[str, str], behind: str = "", source: str = CAMERA) -> Path:
    """Two stations that see the same parts; `behind`: of the second."""
    both = (WHOLE + SECOND).replace('source = { kind = "marker" }', source).replace("name =", 'lane = "l"\nname =')
    return write(*changes, text=both.replace('name = "side"', f'name = "side"\n{behind and f"behind = {behind}"}'))


def test_a_lane_of_several_cameras_says_how_far_they_are_apart(write: Write) -> None:
    found = trouble(lane_of(write))
    assert "station side: a part that one camera of lane l does not take would shift all its later views" in found
    assert "say how far behind top it is, such as behind = { delay_ms = 250, window_ms = 40 }" in found
    load_recipe(lane_of(write, behind="{ delay_ms = 0, window_ms = 5 }"))
    independent = CAMERA.replace("camera =", 'triggers = "independent", camera =')
    load_recipe(lane_of(write, source=independent))
    load_recipe(lane_of(write, source='source = { kind = "marker" }'))


@pytest.mark.parametrize(
    ("behind", "message"),
    [
        ("{}", "R: stations.1.behind: nothing; expected delay_ms and window_ms, or distance_counts and window_counts"),
        ("{ delay_ms = 5 }", "R: stations.1.behind: delay_ms; expected delay_ms and window_ms, or"),
        ("{ delay_ms = 5, window_counts = 5 }", "R: stations.1.behind: delay_ms, window_counts; expected"),
        ("{ delay_ms = -1, window_ms = 5 }", "R: stations.1.behind.delay_ms = -1: "),
        ("{ delay_ms = 5, window_ms = 0 }", "R: stations.1.behind.window_ms = 0: "),
        ("{ delay_ms = 9990, window_ms = 11 }", "behind top by up to 10001 ms, and deadline.view_timeout_ms = 10000"),
        ("{ distance_counts = 5, window_counts = 5 }", "name camera.chunks.encoder at top, or say behind in ms"),
    ],
)  # fmt: skip
def test_a_way_that_cannot_be_looked_at_is_refused(write: Write, behind: str, message: str) -> None:
    assert message in trouble(lane_of(write, behind=behind))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ('host = "plc"', "R: stations.0.part_ids.address: this field is required"),
        ('host = "plc", address = 65536', "R: stations.0.part_ids.address = 65536: "),
        ('host = "", address = 2', "R: stations.0.part_ids.host = "),
        (
            'host = "plc", address = 2, timeout_ms = 10',
            "cycle_ms = 10: an id stays for timeout_ms = 10, and",
        ),
    ],
)
def test_part_ids_that_cannot_be_read_are_refused(write: Write, ids: str, message: str) -> None:
    changed = ('source = { kind = "marker" }', f"{CAMERA}\npart_ids = {{ {ids} }}")
    assert message in trouble(write(changed))


def test_part_ids_are_for_cameras_that_a_plc_triggers(write: Write) -> None:
    ids = '\npart_ids = { host = "plc", address = 2 }'
    found = trouble(write(('source = { kind = "marker" }', f'source = {{ kind = "marker" }}{ids}')))
    assert 'part_ids with source.kind = "marker": they are for cameras that a PLC triggers, genicam and gentl' in found
    load_recipe(write(('source = { kind = "marker" }', CAMERA + ids)))
    load_recipe(write(('source = { kind = "marker" }', f'source = {{ kind = "recording", path = "a.mcap" }}{ids}')))


def test_the_first_station_of_a_lane_is_behind_no_other(write: Write) -> None:
    way = "behind = { delay_ms = 1, window_ms = 1 }"
    found = trouble(lane_of(write, ('name = "top"', f'name = "top"\n{way}'), behind="{ delay_ms = 9, window_ms = 9 }"))
    assert "station top: it is the first of lane l, and behind no other" in found


def test_a_region_outside_the_frame_is_refused(write: Write) -> None:
    region = "tiling = { region = { x_px = 100, y_px = 0, width_px = 200, height_px = 20 } }"
    found = trouble(write(('bundle = "marker"', f'bundle = "marker"\n{region}')))
    assert "tiling.region ends at 300 x 20 px, outside the frame of 224 x 224 px" in found


def test_the_environment_overrides_a_field(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write()
    plain = load_recipe(path)
    monkeypatch.setenv("MASKLINE__DEADLINE__DEADLINE_MS", "77")
    monkeypatch.setenv("MASKLINE__PICTURES", '{"keep": "none"}')
    monkeypatch.setenv("MASKLINE__OUTPUTS__PUBLISH", '["tcp://127.0.0.1:5555"]')
    changed = load_recipe(path)
    assert changed.deadline.deadline_ms == 77
    assert changed.pictures.keep == "none"
    assert changed.outputs.publish == ("tcp://127.0.0.1:5555",)
    assert changed.sha256 != plain.sha256, "the hash is of what is in force"
    assert scoring_sha256(changed.stations[0]) == scoring_sha256(plain.stations[0]), "and scores do not depend on it"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MASKLINE__DEADLINE__DEADLINE_MS", "3", "(from MASKLINE__DEADLINE__DEADLINE_MS in the environment) = '3'"),
        ("MASKLINE__DEADLINE__DEADLNE_MS", "50", "MASKLINE__DEADLINE__DEADLNE_MS; [deadline] has only"),
        ("MASKLINE__DEDLINE__DEADLINE_MS", "50", "MASKLINE__DEDLINE__DEADLINE_MS, which overrides nothing"),
        ("maskline__dedline", "50", "the environment sets maskline__dedline, which overrides nothing"),
        ("MASKLINE__STATIONS__0__SLOTS", "5", "MASKLINE__STATIONS overrides all stations at once, as JSON"),
        ("MASKLINE__STATIONS", "[{", 'error parsing value for field "stations"'),
        ("MASKLINE__STATIONS", '[{"name": "x"}]', "stations.0.source: this field is required"),
        ("MASKLINE__DEADLINE", "17", "deadline (from MASKLINE__DEADLINE in the environment) = 17"),
    ],
)  # fmt: skip
def test_an_override_that_is_wrong_is_named(
    write: Write, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert message in trouble(write())


def test_paths_start_at_the_recipe(write: Write, tmp_path: Path) -> None:
    path = write(('kind = "marker"', 'kind = "folder", path = "images"'))
    assert load_recipe(path).stations[0].source.path == tmp_path / "images"


def test_a_bundle_is_beside_the_recipe_or_ships_and_never_where_the_user_happens_to_be(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("here", "beside"):
        folder = tmp_path / place / "own"
        write_bundle(folder, load_bundle(ZOO / "marker").manifest, {})
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(BundleError, match=r"station top: bundle 'own': no manifest.json in"):
        plan_line(load_recipe(write(('bundle = "marker"', 'bundle = "own"'))))
    beside = load_recipe(write(('bundle = "marker"', 'bundle = "beside/own"')))
    assert plan_line(beside).stations["top"].bundle.path == tmp_path / "beside" / "own"
    with pytest.raises(BundleError, match=rf"no manifest.json in {tmp_path}/missing/own"):
        plan_line(load_recipe(write(('bundle = "marker"', 'bundle = "missing/own"'))))


def test_a_recipe_that_ships_is_found_by_its_name() -> None:
    assert shipped_recipe("web") is not None
    assert load_recipe("web").stations
    with pytest.raises(RecipeError, match=r"no-such-recipe: cannot read this recipe.* or a recipe that ships"):
        load_recipe("no-such-recipe")


def test_a_recipe_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    assert "No such file" in trouble(path)
    path.write_bytes(b"\xff\xfe" + WHOLE.encode())
    assert "can't decode byte 0xff" in trouble(path)
    path.write_bytes(b"#" * (1 << 21))
    assert "larger than 1048576 bytes" in trouble(path)
    path.unlink()
    path.symlink_to(path)
    assert "cannot read this recipe" in trouble(path)


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    assert "not a file" in trouble(tmp_path)
    assert "not a file" in trouble(Path("/dev/zero"))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert "not a file" in trouble(fifo), "and nothing waits for a writer"


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_a_recipe_without_permission_is_said(write: Write) -> None:
    path = write()
    path.chmod(0)
    assert "Permission denied" in trouble(path)


def test_the_command_ends_with_78_and_without_a_traceback(write: Write) -> None:
    path = write(("1000", "1"))
    done = subprocess.run(
        [sys.executable, "-m", "edge.cli", "check", str(path)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 78
    assert done.stderr.startswith(f"maskline: {path}: deadline.deadline_ms = 1: input should be")
    assert "Traceback" not in done.stderr
