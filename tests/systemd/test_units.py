"""The units as `make install-service` lays them, judged by systemd's own tools. Real units need a running systemd."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edge.actuators.process import HANGS_S
from edge.errors import EXIT_CONFIG
from edge.processes import process_table
from edge.recipes import load_recipe
from edge.settings import Deadline
from tests.support import marker_recipe

ROOT = Path(__file__).resolve().parents[2]
UNITS = [ROOT / "systemd" / name for name in ("maskline@.service", "maskline-actuate@.service")]
UNIT, ACTUATE = UNITS
WORST_EXPOSURE = 3.0


def needs(command: str) -> str:
    found = shutil.which(command)
    if not found:
        pytest.skip(f"{command} is not installed here")
    return found


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=100, check=False)


def unit(path: Path = UNIT) -> dict[str, dict[str, list[str]]]:
    """Section -> key -> values, in order: systemd allows a key many times."""
    sections: dict[str, dict[str, list[str]]] = {}
    for line in path.read_text().splitlines():
        if line.startswith("["):
            keys = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            keys.setdefault(key, []).append(value)
    return sections


def setting(key: str, section: str = "Service", path: Path = UNIT) -> str:
    (value,) = unit(path)[section][key]
    return value


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units in a folder of their own, with a command that exists."""
    command = tmp_path / "bin" / "maskline"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    make = needs("make")
    done = run(make, "-C", ROOT, "install-service", f"DESTDIR={tmp_path}/root", "PREFIX=/usr", f"MASKLINE={command}")
    assert done.returncode == 0, done.stderr
    return tmp_path / "root/usr/lib"


def test_install_service_lays_every_file(installed: Path, tmp_path: Path) -> None:
    files = {str(p.relative_to(installed)) for p in installed.rglob("*") if p.is_file()}
    units = {f"systemd/system/{u.name}" for u in UNITS}
    assert files == {*units, "sysusers.d/maskline.conf", "tmpfiles.d/maskline.conf"}
    assert {p.stat().st_mode & 0o777 for p in installed.rglob("*") if p.is_file()} == {0o644}
    for source, command in ((UNIT, "run"), (ACTUATE, "actuate")):
        text = (installed / "systemd/system" / source.name).read_text()
        assert f"ExecStart={tmp_path}/bin/maskline {command} /etc/maskline/%i.toml\n" in text
        assert text.replace(f"{tmp_path}/bin/maskline", "/opt/maskline/bin/maskline") == source.read_text()


@pytest.mark.parametrize("name", [u.name for u in UNITS])
def test_systemd_finds_no_fault_with_the_unit(installed: Path, name: str) -> None:
    """The exit code says little: unknown keys are warnings on standard error, so that must stay empty."""
    done = run(needs("systemd-analyze"), "verify", "--man=no", installed / "systemd/system" / name)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_systemd_would_find_a_fault(installed: Path) -> None:
    path = installed / "systemd/system/maskline@.service"
    path.write_text(path.read_text() + "\n[Service]\nNoSuchKey=1\n")
    done = run(needs("systemd-analyze"), "verify", "--man=no", path)
    assert "NoSuchKey" in done.stderr


@pytest.mark.parametrize("name", [u.name for u in UNITS])
def test_exposure_is_low(installed: Path, name: str) -> None:
    path = installed / "systemd/system" / name
    done = run(needs("systemd-analyze"), "security", "--no-pager", "--offline=yes", path)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= WORST_EXPOSURE


def test_user_is_declared(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "machine/etc").mkdir(parents=True)
    command = needs("systemd-sysusers")
    if "--dry-run" not in run(command, "--help").stdout:
        pytest.skip("this systemd-sysusers knows no --dry-run")
    done = run(command, "--dry-run", f"--root={tmp_path}/machine", installed / "sysusers.d/maskline.conf")
    assert done.returncode == 0, done.stderr
    assert "Creating user 'maskline'" in done.stdout + done.stderr


def test_folders_are_declared(installed: Path) -> None:
    """`systemd-tmpfiles` has no dry run before version 256: the lines are compared with what the unit says."""
    lines = [line.split() for line in (installed / "tmpfiles.d/maskline.conf").read_text().splitlines()]
    declared = {words[1]: words[2:] for words in lines if words and words[0] == "d"}
    assert declared == {
        "/run/maskline": [setting("RuntimeDirectoryMode"), setting("User"), setting("Group"), "-"],
        "/var/lib/maskline": [setting("StateDirectoryMode"), setting("User"), setting("Group"), "-"],
        "/var/cache/maskline": [setting("CacheDirectoryMode"), setting("User"), setting("Group"), "-"],
        "/etc/maskline": ["0755", "root", "root", "-"],
    }


def test_runtime_folder_outlives_one_of_many_lines() -> None:
    """Every instance has the same folder; without this, the first to stop removes the sockets of the others."""
    assert setting("RuntimeDirectory") == "maskline"
    assert setting("RuntimeDirectoryPreserve") == "yes"


def test_signals_reach_the_supervisor_alone() -> None:
    assert setting("KillMode") == "mixed"
    assert (setting("Type"), setting("NotifyAccess")) == ("notify", "main")


def test_wrong_configuration_is_not_restarted() -> None:
    assert setting("Restart") == "on-failure"
    assert setting("RestartPreventExitStatus") == str(EXIT_CONFIG)


def test_times_of_the_unit_fit_those_of_the_line(tmp_path: Path) -> None:
    table = process_table(load_recipe(marker_recipe(tmp_path)))
    assert int(setting("TimeoutStartSec")) * 1000 > max(p.start_ms for p in table if not p.tries)
    longest_drain_s = next(m.le for m in Deadline.model_fields["drain_ms"].metadata if hasattr(m, "le")) / 1000
    ends_s = 2.0 * len({p.stop_order for p in table})
    assert int(setting("TimeoutStopSec")) > longest_drain_s + ends_s
    assert int(setting("StartLimitIntervalSec", "Unit")) > int(setting("RestartSec")) * int(
        setting("StartLimitBurst", "Unit")
    )


def test_actuators_share_the_folders_of_the_line_and_outlive_it() -> None:
    for key in ("User", "Group", "RuntimeDirectory", "RuntimeDirectoryMode", "RuntimeDirectoryPreserve"):
        assert setting(key, path=ACTUATE) == setting(key)
    for key in ("StateDirectory", "StateDirectoryMode", "UMask", "RestartPreventExitStatus"):
        assert setting(key, path=ACTUATE) == setting(key)
    assert not {"BindsTo", "Requires", "PartOf", "Requisite"} & set(unit(ACTUATE)["Unit"])
    assert setting("Restart", path=ACTUATE) == "always"
    assert float(setting("WatchdogSec", path=ACTUATE)) > HANGS_S


def test_what_openvino_needs_stays_possible() -> None:
    service = unit()["Service"]
    assert "MemoryDenyWriteExecute" not in service
    assert "ProcSubset" not in service
