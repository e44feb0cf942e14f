"""What is in the wheel, what an import costs, and what happens where another `edge` is in the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support import calibrate_marker, journal_verdicts, marker_recipe

ROOT = Path(__file__).resolve().parent.parent
RUN_MASKLINE = (
    "import sys; from maskline import main; sys.argv[0] = 'maskline'; main()"  # as the installed command does
)


def python(code: str, *arguments: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=100, check=False)


def make_foreign(
    folder: Path, name: str = "edge", text: str = "raise RuntimeError('a foreign package was run')\n"
) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(text)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as it would be published."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=100)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def tracked(*folders: str) -> list[str]:
    """The files of these folders that belong to the project; skips where this is no git checkout (an sdist)."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: cannot tell which files belong to the project")
    listed = subprocess.run(["git", "ls-files", "--", *folders], cwd=ROOT, check=True, capture_output=True, text=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def test_wheel_holds_every_file_of_the_packages(names: set[str]) -> None:
    files = tracked("edge", "engines", "calib", "maskline.py")
    assert {"edge/demo/photos/gravel.png", "engines/zoo/marker/manifest.json", "maskline.py"} <= set(files)
    assert not set(files) - names


def test_wheel_holds_recipes_and_units(names: set[str]) -> None:
    for folder in ("configs", "systemd"):
        files = tracked(folder)
        assert not {f"edge/{name}" for name in files} - names
    assert "edge/systemd/maskline@.service" in names


def test_wheel_holds_nothing_else(names: set[str]) -> None:
    allowed = {"maskline.py", "edge", "engines", "calib"}
    tops = {name.split("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == allowed
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]


def test_unpacked_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    done = python(RUN_MASKLINE, "--help", cwd=tmp_path, path=tmp_path / "site")
    assert done.returncode == 0, done.stderr
    where = python("import edge; print(edge.__file__)", cwd=tmp_path, path=tmp_path / "site")
    assert where.stdout.strip() == str(tmp_path / "site/edge/__init__.py")


LIGHT = (
    *("edge", "edge.cli", "edge.gate", "edge.judge", "edge.supervisor", "edge.capture", "edge.verdicts"),
    *("engines", "engines.plans", "engines.bundle", "engines.backends", "calib", "calib.calibration"),
)


@pytest.mark.parametrize("module", LIGHT)
def test_import_is_light(module: str, tmp_path: Path) -> None:
    heavy = "torch", "openvino", "onnx", "onnxruntime", "transformers"
    code = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_engine_phones_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO's import starts a process that posts to an analytics service, and leaves files in the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CI", raising=False)
    code = """
import sys
from engines.backends import open_backend
from engines.bundle import find_bundle, load_bundle
backend = open_backend("openvino")
backend.load(load_bundle(find_bundle("texture-s")), "x16", precision="f32", threads=1, batch=1)
print(backend.describe().backend, sys.modules.get("openvino_telemetry"))
"""
    done = python(code, cwd=tmp_path)
    assert done.stdout == "openvino None\n", done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["edge", "engines", "calib"])
def test_a_package_that_shadows_ours_is_named(name: str, tmp_path: Path) -> None:
    foreign = make_foreign(tmp_path / "foreign", name)
    done = python(RUN_MASKLINE, "--help", cwd=tmp_path, path=foreign)
    assert done.returncode == 78
    assert f"another package `{name}` at {foreign}/{name}/__init__.py shadows ours" in done.stderr
    assert "PYTHONPATH" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_module_that_shadows_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "edge.py").write_text("raise RuntimeError\n")
    done = python(RUN_MASKLINE, "--help", cwd=tmp_path)
    assert done.returncode == 78
    assert "edge.py shadows ours" in done.stderr


def test_a_package_that_overwrote_ours_is_noticed(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "site/edge/cli/__init__.py").unlink()
    done = python(RUN_MASKLINE, "--help", cwd=tmp_path, path=tmp_path / "site")
    assert done.returncode == 78
    assert "the installation is damaged" in done.stderr
    assert "edge.cli" in done.stderr


def test_an_error_of_a_dependency_is_not_hidden(tmp_path: Path) -> None:
    foreign = make_foreign(tmp_path / "foreign", "typer", "import no_such_module_anywhere\n")
    done = python(RUN_MASKLINE, "--help", cwd=tmp_path, path=foreign)
    assert done.returncode == 1
    assert "no_such_module_anywhere" in done.stderr


def test_the_line_runs_in_a_folder_that_holds_another_edge(
    tmp_path: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m` would take the current folder first; the processes of a line must not."""
    recipe = marker_recipe(tmp_path, parts=3, mode="lossless", deadline_ms=10_000)
    calibrate_marker(recipe, tmp_path / "state")
    elsewhere = make_foreign(tmp_path / "project")
    code = f"import sys; sys.path.remove(''); {RUN_MASKLINE}"  # the installed command has its own folder there
    monkeypatch.setenv("MASKLINE_RUNTIME_DIR", str(runtime_dir))
    done = python(code, "run", str(recipe), "--state-dir", str(tmp_path / "state"), cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert len(journal_verdicts(tmp_path / "state")) == 3


def test_make_says_which_python_it_needs(tmp_path: Path) -> None:
    make = shutil.which("make")
    if not make:
        pytest.skip("make is not installed here")
    command = [make, "-C", str(ROOT), "PYTHON=", f"VENV={tmp_path}/venv", "demo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert "no Python 3.10 to 3.12 with venv" in done.stderr
    assert not (tmp_path / "venv").exists()
