"""An RTSP server on loopback: GStreamer's, in a process of its own, run by the system's Python, which has PyGObject.

    /usr/bin/python3 rtsp_server.py h264|mjpeg [--port N] [--drop N,N,...] [--key-every N]

Prints its port once it listens. The stream is at /line: 224 x 224 grey at 25 per second; stripes of 16 px in its upper
half show the number of the frame in binary, lowest bit first, and below them a pattern moves. `--drop`: frames that are
encoded and never sent, as by a camera on a bad network.
"""

from __future__ import annotations

import argparse
import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

WIDTH, HEIGHT, RATE_HZ, STRIPES = 224, 224, 25, 14
CAPS = f"video/x-raw,format=GRAY8,width={WIDTH},height={HEIGHT},framerate={RATE_HZ}/1"
CODECS = {
    "h264": "x264enc tune=zerolatency sliced-threads=false speed-preset=veryfast bitrate=4000 key-int-max={key} ! "
    "rtph264pay name=pay0 pt=96 config-interval=-1",
    "mjpeg": "jpegenc quality=90 ! rtpjpegpay name=pay0 pt=26",
}


def picture(number: int) -> bytes:
    """A frame, row by row: stripes that are 40 or 200, then a moving pattern."""
    stripes = b"".join(bytes([200 if number >> i & 1 else 40]) * (WIDTH // STRIPES) for i in range(STRIPES))
    pattern = bytes(60 + (x * 7 + 3 * number) % 120 for x in range(WIDTH))
    return stripes * (HEIGHT // 2) + pattern * (HEIGHT // 2)


class Stream:
    """The frames of one client after another; each begins at number 0."""

    def __init__(self, drop: set[int]) -> None:
        self._drop, self._number, self._encoded, self._timer = drop, 0, 0, 0

    def configure(self, _factory: object, media: GstRtspServer.RTSPMedia) -> None:
        pipeline = media.get_element()
        source, pay = pipeline.get_child_by_name("frames"), pipeline.get_child_by_name("pay0")
        pay.get_static_pad("sink").add_probe(Gst.PadProbeType.BUFFER, self._filter)
        if self._timer:
            GLib.source_remove(self._timer)
        self._number = self._encoded = 0
        self._timer = GLib.timeout_add(1000 // RATE_HZ, self._push, source)

    def _push(self, source: Gst.Element) -> bool:
        buffer = Gst.Buffer.new_wrapped(picture(self._number))
        buffer.pts = self._number * Gst.SECOND // RATE_HZ
        buffer.duration = Gst.SECOND // RATE_HZ
        self._number += 1
        source.emit("push-buffer", buffer)
        return True

    def _filter(self, _pad: Gst.Pad, _info: Gst.PadProbeInfo) -> Gst.PadProbeReturn:
        number, self._encoded = self._encoded, self._encoded + 1
        return Gst.PadProbeReturn.DROP if number in self._drop else Gst.PadProbeReturn.OK


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("codec", choices=CODECS)
    parser.add_argument("--port", default="0")
    parser.add_argument("--drop", default="")
    parser.add_argument("--key-every", type=int, default=10)
    asked = parser.parse_args()
    Gst.init(None)
    server, factory = GstRtspServer.RTSPServer(), GstRtspServer.RTSPMediaFactory()
    server.set_address("127.0.0.1")
    server.set_service(asked.port)
    codec = CODECS[asked.codec].format(key=asked.key_every)
    source = f"appsrc name=frames is-live=true format=time caps={CAPS} ! videoconvert ! video/x-raw,format=I420"
    factory.set_launch(f"( {source} ! {codec} )")
    factory.set_shared(True)
    stream = Stream({int(number) for number in asked.drop.split(",") if number})
    factory.connect("media-configure", stream.configure)
    server.get_mount_points().add_factory("/line", factory)
    server.attach(None)
    sys.stdout.write(f"{server.get_bound_port()}\n")
    sys.stdout.flush()
    GLib.MainLoop().run()


main()
