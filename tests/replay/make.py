"""Makes the recording that this folder keeps, and its references: `python -m tests.replay.make`, from the repository.

Both are made anew only when what is recorded is to be another thing. A change of what the line says of it is written
down, and reviewed: `maskline replay tests/replay/bricks.mcap --reference tests/replay/bricks.json --update-reference`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from edge.demo.simulate import EPOCH_NS, simulate, web_of
from edge.recording import RecordingWriter
from edge.settings import Frame
from edge.sources import Image

HERE = Path(__file__).parent
RECORDING, REFERENCES = HERE / "bricks.mcap", HERE / "bricks.json"
STATIONS = {"near": 3.0, "far": 2.0}
"""Frame pixels per pixel of the photograph, by station."""
FRAME = Frame(width_px=224, height_px=224)
PARTS, SEED, RATE_HZ = 9, 5, 5.0
TARGET = ("--false-reject-rate", "0.05")

RECIPE = """
line = "bricks"
safe_state = "reject_all"
line_ok = { wired = "none", because = "a recording for tests" }
deadline = { deadline_ms = 30000 }
journal = { reserve_mib = 1 }
pictures = { keep = "none" }
recording = { folder = "recorded", encoding = "png" }

[[stations]]
name = "near"
lane = "brick"
bundle = "texture-s"
plan = "x16"
frame = { width_px = 224, height_px = 224 }
tiling = { margin_px = 28 }
validity = { frozen = true }
source = { kind = "recording", path = "seen.mcap", mode = "lossless" }

[[stations]]
name = "far"
lane = "brick"
bundle = "texture-s"
plan = "x32"
frame = { width_px = 224, height_px = 224 }
tiling = { resize = 1.5, overlap_px = 32, region = { x_px = 12, y_px = 8, width_px = 200, height_px = 150 } }
source = { kind = "recording", path = "seen.mcap", mode = "lossless", triggers = "independent" }
"""


def main() -> None:
    """Simulate, calibrate, run the line with its recorder, replay."""
    with tempfile.TemporaryDirectory(prefix="ml-") as scratch:
        folder = Path(scratch)
        (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
        textures = dict.fromkeys(STATIONS, "brick")
        simulate(folder / "good.mcap", textures, parts=60, seed=SEED, half="left", frame=FRAME, scale=STATIONS)
        _write_what_is_seen(folder / "seen.mcap")
        _maskline(folder, "calibrate", "recipe.toml", "--good", "good.mcap", "--state-dir", "state", *TARGET)
        _maskline(folder, "run", "recipe.toml", "--state-dir", "state")
        (made,) = (folder / "recorded").glob("*.mcap")
        RECORDING.write_bytes(made.read_bytes())
    _maskline(HERE, "replay", RECORDING.name, "--reference", REFERENCES.name, "--update-reference")
    _maskline(HERE, "replay", RECORDING.name, "--compare")


def _write_what_is_seen(path: Path) -> None:
    """Parts with and without defects, and frames that are missed, black, defocused, frozen and of another size."""
    with RecordingWriter(path, {"simulated": "true", "seed": str(SEED)}) as out:
        for number in range(PARTS):
            at_ns = EPOCH_NS + round(number * 1e9 / RATE_HZ)
            for station, scale in STATIONS.items():
                out.trigger(station, number, at_ns, count=1000 * number, part_id=100 + number)
                image = _seen(station, scale, number)
                if image is not None:
                    out.frame(station, number, at_ns + 4_000_000, image)


def _seen(station: str, scale: float, number: int) -> Image | None:
    shot = web_of(station, "brick", SEED + 1, "right", FRAME, scale, 0.7 if number < 5 else 0.0, (0.4, 0.6), 28)
    image = shot.shot(number).image
    wrong = {("far", 5): None, ("near", 5): np.zeros_like(image), ("far", 6): cv2.blur(image, (15, 15))[..., None]}
    wrong |= {("near", 7): shot.shot(6).image, ("far", 7): image[:200]}
    return wrong.get((station, number), image)


def _maskline(folder: Path, *arguments: str) -> None:
    with tempfile.TemporaryDirectory(prefix="ml-") as sockets:
        environment = os.environ | {"MASKLINE_RUNTIME_DIR": sockets, "MASKLINE_LOG_LEVEL": "warning"}
        command = [sys.executable, "-m", "edge.cli", *arguments]
        subprocess.run(command, cwd=folder, env=environment, check=True)


if __name__ == "__main__":
    main()
