"""Network video from a real RTSP server on loopback, and from sockets that are no servers at all."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import ValidationError
from source_helpers import make_station

from edge.errors import RecipeError, SourceError
from edge.settings import Source as SourceSettings
from edge.settings import Station
from edge.sources import Exposed, Image, Source, Triggered, open_source, rtsp
from edge.sources.blocking import Limits
from edge.sources.camera import Grabbed
from edge.sources.rtsp import RtspCamera, without_credentials
from edge.testing import PATIENCE_S
from edge.verdict import Reason
from tests.listeners import Listener
from tests.support import RunningLine, calibrate_marker, journal_verdicts, marker_recipe, wait_until

pytest.importorskip("av", reason="needs av: pip install 'maskline[video]'")

PYTHON = "/usr/bin/python3"
"""The system's: PyGObject and GStreamer are Debian packages."""
SERVER = Path(__file__).with_name("rtsp_server.py")
QUICK = Limits(open_s=1.0, silence_s=1.0, close_s=3.0)
FRAME = {"width_px": 224, "height_px": 224}


def _lacking() -> str:
    if shutil.which(PYTHON) is None:
        return f"{PYTHON}: none here"
    probe = "import gi; gi.require_version('Gst', '1.0'); gi.require_version('GstRtspServer', '1.0'); "
    probe += "from gi.repository import Gst, GstRtspServer; "
    probe += "Gst.init(None); assert all(map(Gst.ElementFactory.find, ('x264enc', 'jpegenc', 'rtph264pay', 'appsrc')))"
    return subprocess.run([PYTHON, "-c", probe], capture_output=True, text=True).stderr[-200:]


needs_server = pytest.mark.skipif(
    bool(_lacking()), reason="needs gir1.2-gst-rtsp-server-1.0, python3-gi, gstreamer1.0-plugins-{base,good,ugly}"
)


class Server:
    """A server that can be killed, stopped, and started again on its port."""

    def __init__(self, codec: str, *options: object) -> None:
        self._command = [PYTHON, str(SERVER), codec, *map(str, options)]
        self._process: subprocess.Popen[str] | None = None
        self.port = 0
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [*self._command, "--port", str(self.port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        assert self._process is not None
        with self._process:  # waits, and closes the pipe
            self._process.kill()

    def send(self, what: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, what)

    @property
    def address(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}/line"


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def start(*arguments: object) -> Server:
        started.append(Server(*arguments))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for server in started:
        server.kill()


@pytest.fixture(autouse=True)
def _room_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is, no frame is dropped on our side."""
    monkeypatch.setattr("edge.sources.blocking.QUEUE", 500)


def station(address: str, **frame: object) -> Station:
    return make_station("rtsp", None, {**FRAME, **frame}, address=address, mode="live")


@contextmanager
def opened(where: Station) -> Iterator[Source]:
    source = open_source(where, time.monotonic_ns(), 0)
    try:
        yield source
    finally:
        source.close()


def number_in(image: Image) -> int:
    """What the server wrote into the picture."""
    grey = image.mean(axis=2)
    return sum(int(grey[8:56, 16 * i + 4 : 16 * i + 12].mean() > 120) << i for i in range(10))


def parts(source: Source, count: int) -> list[tuple[int, int | Reason]]:
    """The first parts: their numbers, and the numbers of their frames or why there is none."""
    found: list[tuple[int, int | Reason]] = []
    give_up = time.monotonic() + PATIENCE_S
    while len(found) < count and time.monotonic() < give_up:
        event = source.poll(0.5)
        if isinstance(event, Triggered) and event.missed:
            found.append((event.number, Reason.MISSED_FRAME))
        elif isinstance(event, Exposed):
            found.append(
                (event.number, number_in(event.image) if event.image is not None else event.reason or Reason.BAD_IMAGE)
            )
    assert len(found) == count, f"only {len(found)} parts in {PATIENCE_S} s"
    return found


def until_gone(ask: Callable[[float], object]) -> SourceError:
    """The error with which a source or a camera ends."""
    give_up = time.monotonic() + PATIENCE_S
    try:
        while time.monotonic() < give_up:
            ask(0.1)
    except SourceError as error:
        return error
    raise AssertionError(f"it goes on after {PATIENCE_S} s")


@needs_server
@pytest.mark.parametrize("codec", ["h264", "mjpeg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_frame_is_a_part(serve: Callable[..., Server], codec: str, channels: int) -> None:
    server = serve(codec)
    with opened(station(server.address, channels=channels)) as source:
        found = parts(source, 40)
    assert [number for number, _ in found] == list(range(40))
    shown = [(n, what) for n, what in found if isinstance(what, int)]
    assert len(shown) >= 30  # in the beginning, h264 has to wait for a key frame
    assert all(what is Reason.BAD_IMAGE for _, what in found[: 40 - len(shown)])
    assert len({what - n for n, what in shown}) == 1  # no frame left out, none twice


@needs_server
@pytest.mark.parametrize(("codec", "unusable"), [("mjpeg", 0), ("h264", 6)])
def test_frames_that_the_camera_dropped_are_parts_that_were_missed(
    serve: Callable[..., Server], codec: str, unusable: int
) -> None:
    """Frames 53 and 73 are gone. Those up to the next key frame, each tenth, were predicted from them: a decoder shows
    them all the same, and wrong."""
    server = serve(codec, "--drop", "53,73", "--key-every", 10)
    with opened(station(server.address)) as source:
        found = parts(source, 100)
    (offset,) = {what - n for n, what in found if isinstance(what, int)}
    by_frame = {n + offset: what for n, what in found}
    for lost in (53, 73):
        assert by_frame[lost] is Reason.MISSED_FRAME
        assert [by_frame[lost + i] for i in range(1, unusable + 1)] == [Reason.BAD_IMAGE] * unusable
        assert by_frame[lost + unusable + 1] == lost + unusable + 1
        assert by_frame[lost - 1] == lost - 1


@needs_server
def test_the_picture_is_the_one_that_was_sent(serve: Callable[..., Server]) -> None:
    server = serve("mjpeg")
    camera = RtspCamera(station(server.address))
    grabbed = next(filter(None, (camera.grab(1.0) for _ in itertools.count())))
    image = np.array(grabbed.image)
    camera.close()
    assert image.shape == (224, 224, 1)
    number = number_in(image)
    stripes = np.repeat([200 if number >> i & 1 else 40 for i in range(14)], 16)
    below = [60 + (x * 7 + 3 * number) % 120 for x in range(224)]
    expected = np.vstack([np.tile(stripes, (112, 1)), np.tile(below, (112, 1))])
    assert np.abs(image[..., 0] - expected).mean() < 4


@needs_server
def test_a_server_that_is_killed_and_comes_back(serve: Callable[..., Server]) -> None:
    server = serve("h264")
    where = station(server.address)
    with opened(where) as source:
        parts(source, 5)
        server.kill()
        error = until_gone(source.poll)
    assert str(error).startswith(f"top: {server.address}: the stream ")
    with pytest.raises(SourceError, match="refused"):
        open_source(where, 0, 5)
    server.start()
    with opened(where) as source:
        assert [n for n, _ in parts(source, 5)] == list(range(5))


@needs_server
def test_a_stream_that_stands_still_ends_in_a_known_time(serve: Callable[..., Server]) -> None:
    server = serve("mjpeg")
    camera = RtspCamera(station(server.address), Limits(silence_s=1.0))
    while camera.grab(1.0) is None:
        pass
    server.send(signal.SIGSTOP)
    error = until_gone(camera.grab)
    camera.close()
    assert re.search("does not answer|no frame for", str(error))


@needs_server
def test_what_the_server_does_not_have_is_an_error(serve: Callable[..., Server]) -> None:
    server = serve("mjpeg")
    with pytest.raises(SourceError, match="Not Found"):
        open_source(station(server.address + "/nothing"), 0, 0)


def test_an_address_that_never_answers_does_not_hold_anybody_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # it listens, and says nothing
        where = station(f"rtsp://user:secret@127.0.0.1:{listener.getsockname()[1]}/line")
        with pytest.raises(SourceError, match=r"top: rtsp://127\.0\.0\.1:\d+/line: no stream") as caught:
            RtspCamera(where, QUICK)
    assert "secret" not in str(caught.value)


def test_a_library_that_hangs_does_not_hold_anybody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that is away, for one: nothing can interrupt that call."""
    import av

    free = threading.Event()

    def hang(*_: object, **__: object) -> None:
        free.wait(PATIENCE_S)
        raise ValueError("nobody waits for this any more")

    monkeypatch.setattr(av, "open", hang)
    with pytest.raises(SourceError, match=r"no stream 0\.1 s after it was asked for"):
        RtspCamera(station("rtsp://camera.invalid/line"), Limits(open_s=0.1))
    free.set()


@pytest.mark.parametrize("answer", [b"", b"junk " * 1000, b"RTSP/1.0 200 OK\r\nCSeq: 1\r\n\r\n" * 50])
def test_a_server_that_talks_nonsense_is_an_error(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk() -> None:
            client, _ = listener.accept()
            with client, suppress(OSError):  # it may hang up at any moment
                client.sendall(answer)
                client.shutdown(socket.SHUT_WR)
                client.settimeout(3.0)
                while client.recv(4096):
                    pass

        thread = threading.Thread(target=talk)
        thread.start()
        with pytest.raises(SourceError, match="no stream"):
            RtspCamera(station(f"rtsp://127.0.0.1:{listener.getsockname()[1]}/line"), QUICK)
        thread.join()


def test_mjpeg_over_http() -> None:
    """Such a stream has no times: its frames are parts, and what is missing cannot be noticed."""
    pictures = [cv2.imencode(".jpg", np.full((128, 160, 3), 10 + 10 * n, np.uint8))[1].tobytes() for n in range(20)]
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def send() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(4096)
                client.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n\r\n")
                for data in pictures:
                    client.sendall(
                        b"--b\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data) + data + b"\r\n"
                    )
                    time.sleep(0.04)

        thread = threading.Thread(target=send)
        thread.start()
        camera = RtspCamera(station(f"http://127.0.0.1:{listener.getsockname()[1]}/video"))
        found: list[tuple[int | None, int]] = []

        def look(timeout_s: float) -> None:
            if (grabbed := camera.grab(timeout_s)) and grabbed.image is not None:
                found.append((grabbed.frame_id, round(float(grabbed.image.mean()) / 10) - 1))

        error = until_gone(look)
        camera.close()
        thread.join()
    assert re.search("has ended|broke off", str(error))
    assert len(found) >= 15
    assert [frame_id for frame_id, _ in found] == list(range(len(found)))
    assert [shown for _, shown in found] == list(range(20 - len(found), 20))


def test_a_stream_that_begins_between_key_frames_waits_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the place of a network: frames 7 to 40, without 23; each tenth is a key frame."""
    import av

    path = tmp_path / "line.mkv"
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=25, options={"tune": "zerolatency", "g": "10"})
        stream.width = stream.height = 224
        for number in range(41):
            stripes = np.repeat(np.array([200 if number >> i & 1 else 40 for i in range(14)], np.uint8), 16)
            frame = av.VideoFrame.from_ndarray(np.tile(stripes, (224, 1)), format="gray").reformat(format="yuv420p")
            frame.pts = number
            for packet in stream.encode(frame):
                if number >= 7 and number != 23:
                    out.mux(packet)
    monkeypatch.setattr(rtsp, "_NETWORK", {})  # with these it would open no file
    camera = RtspCamera(station("rtsp://x").model_copy(update={"source": _file_source(path)}))
    found: list[Grabbed] = []
    until_gone(lambda timeout_s: found.extend(filter(None, [camera.grab(timeout_s)])))
    camera.close()
    shown = {g.frame_id: number_in(g.image) for g in found if g.image is not None}
    refused = [g.frame_id for g in found if g.reason is Reason.BAD_IMAGE]
    assert shown == {n - 7: n for n in (*range(10, 23), *range(30, 41))}
    assert refused == [n - 7 for n in (7, 8, 9, *range(24, 30))]


def _file_source(path: Path) -> SourceSettings:
    return SourceSettings.model_construct(kind="rtsp", address=str(path))


@pytest.mark.parametrize("address", ["10.0.0.5", "file:///etc/passwd", "rtsp://", "concat:a|b", "rtsp:///line"])
def test_a_recipe_names_a_network_address(address: str) -> None:
    with pytest.raises(ValidationError, match="rtsp takes rtsp://, rtsps://, http:// or https://"):
        station(address)


def test_a_password_is_not_shown() -> None:
    assert without_credentials("rtsp://user:p@ss@10.0.0.5:554/s?x=1") == "rtsp://10.0.0.5:554/s?x=1"
    assert without_credentials("http://[::1]/video") == "http://[::1]/video"


def test_without_its_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(RecipeError, match=r"kind = \"rtsp\" needs av: pip install 'maskline\[video\]'"):
        RtspCamera(station("rtsp://127.0.0.1/line"))


CAMERA = """
[[stations]]
name = "net"
bundle = "null"
frame = {{ width_px = 224, height_px = 224 }}
source = {{ kind = "rtsp", address = "{address}" }}
"""


@needs_server
@pytest.mark.line
def test_a_line_goes_on_without_its_network_camera_and_with_it_again(
    serve: Callable[..., Server], tmp_path: Path, runtime_dir: Path
) -> None:
    server = serve("h264")
    recipe = marker_recipe(tmp_path, parts=None, rate_hz=20, engine="null")
    recipe.write_text(recipe.read_text() + CAMERA.format(address=server.address))
    state = tmp_path / "state"
    calibrate_marker(recipe, state)

    with RunningLine(recipe, state, runtime_dir) as line, Listener(line.endpoint) as heard:

        def answered(lane: str) -> int:
            return sum(v.lane == lane and v.reason is None for v in heard.verdicts)

        wait_until(lambda: answered("net") > 10)
        server.kill()
        wait_until(lambda: "camera_away" in line.log.read_text())
        before, others = answered("net"), answered("s0")
        wait_until(lambda: answered("s0") > others + 20)  # a second of the other station
        assert answered("net") <= before + 10  # what was on its way
        server.start()
        wait_until(lambda: answered("net") > before + 20)
        assert line.stop() == 0, line.log.read_text()
    verdicts = journal_verdicts(state)
    for lane in ("net", "s0"):
        numbers = [v.part for v in verdicts if v.lane == lane]
        assert sorted(numbers) == list(range(len(numbers)))  # one answer each
