"""Procedural textures for pretraining: unlimited, ours, the same for the same seed.

Each family draws a grey canvas, float32 [size, size], of no particular range; `canvas` picks one or two of them, bends,
lights, blurs and adds noise, and returns uint8. A family sees the plane through `Plane`: turned, scaled and slightly
bent coordinates, so that no two canvases of a family look alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["FAMILIES", "canvas", "grey_field"]

Image = npt.NDArray[Any]
Rng = np.random.Generator


@dataclass(frozen=True)
class Plane:
    """Coordinates of a canvas: u and v, float32 [size, size], in pixels of the texture."""

    u: Image
    v: Image
    rng: Rng

    @property
    def size(self) -> int:
        return int(self.u.shape[0])


def canvas(seed: int, number: int, size: int = 512) -> npt.NDArray[np.uint8]:
    """Canvas `number` of the endless series `seed`: uint8 [size, size]. Equal arguments give equal pixels."""
    rng = np.random.default_rng([seed, number])
    plane = _plane(rng, size)
    names = list(FAMILIES)
    image = _unit(FAMILIES[names[rng.integers(len(names))]](plane))
    if rng.random() < 0.25:
        other = _unit(FAMILIES[names[rng.integers(len(names))]](_plane(rng, size)))
        image = image + np.float32(rng.uniform(0.1, 0.8)) * other
    if rng.random() < 0.7:
        image = image + np.float32(rng.uniform(0.02, 0.6)) * grey_field(rng, size, rng.uniform(0.3, 1.5))
    return _photograph(_unit(image), rng)


def grey_field(rng: Rng, size: int, exponent: float, stretch: float = 1.0, angle: float = 0.0) -> Image:
    """Gaussian noise with amplitude spectrum 1/f**exponent, unit variance; `stretch` > 1 draws it out along `angle`."""
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    along, across = fx * np.cos(angle) + fy * np.sin(angle), fy * np.cos(angle) - fx * np.sin(angle)
    f2 = ((along * stretch) ** 2 + across**2).astype(np.float32)
    gain = (f2 + np.float32((1.0 / size) ** 2)) ** np.float32(-exponent / 2)
    gain[0, 0] = 0
    return _unit(_filtered(rng, size, gain))


def _filtered(rng: Rng, size: int, gain: Image) -> Image:
    spectrum = np.fft.rfft2(rng.standard_normal((size, size), dtype=np.float32))
    return np.fft.irfft2(spectrum * gain, s=(size, size)).astype(np.float32)


def _unit(x: Image) -> Image:
    """Zero mean, unit variance."""
    drawn: Image = ((x - x.mean()) / (x.std() + 1e-6)).astype(np.float32)
    return drawn


def _plane(rng: Rng, size: int) -> Plane:
    angle = rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi), rng.normal(0, 0.06)])
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) - size / 2
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    if rng.random() < 0.6:
        amount = np.float32(rng.uniform(0.2, 4.0))
        small = [rng.standard_normal((int(n), int(n)), dtype=np.float32) for n in rng.integers(4, 14, 2)]
        u = u + amount * cv2.resize(small[0], (size, size), interpolation=cv2.INTER_CUBIC)
        v = v + amount * cv2.resize(small[1], (size, size), interpolation=cv2.INTER_CUBIC)
    return Plane(u.astype(np.float32), v.astype(np.float32), rng)


def _photograph(image: Image, rng: Rng) -> npt.NDArray[np.uint8]:
    """Negative or not, light, contrast, lens and sensor: unit-variance float32 to uint8."""
    size = image.shape[0]
    image = image * np.float32(rng.choice([-1, 1]))
    image = np.tanh(image * np.float32(rng.uniform(0.3, 1.0))) if rng.random() < 0.5 else image
    image = _unit(image)
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.6))
    contrast, level = np.exp(rng.uniform(np.log(4), np.log(55))), rng.uniform(60, 190)
    image = image * np.float32(contrast) + np.float32(level)
    if rng.random() < 0.5:
        light = cv2.resize(rng.standard_normal((3, 3), dtype=np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
        image = image * (1 + np.float32(rng.uniform(0.02, 0.15)) * light)
    sensor = np.float32(rng.uniform(0.2, 4.0))
    image = image + sensor * rng.standard_normal((size, size), dtype=np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _scatter(values: Image, index: Image) -> Image:
    """A value for each cell number: looks `index` up in `values`, wrapping."""
    taken: Image = values[np.mod(index, len(values)).astype(np.int32)]
    return taken


def _hash(i: Image, j: Image, rng: Rng, states: int = 997) -> Image:
    """Noise in [0, 1] that is constant on the cells (i, j) of a lattice."""
    return _scatter(rng.random(states, dtype=np.float32), i * np.float32(31.0) + j * np.float32(57.0))


def woven(p: Plane) -> Image:
    """Warp and weft threads in plain, twill or basket weave."""
    a, b = p.rng.uniform(5, 22), p.rng.uniform(5, 22)
    i, j = np.floor(p.u / a), np.floor(p.v / b)
    over = p.rng.integers(1, 4)
    phase = i + j * p.rng.choice([1, 1, 2]) if over < 3 else np.floor(i / 2) + np.floor(j / 2)
    top = np.mod(phase, over + 1 if over < 3 else 2) < 1
    warp = np.abs(np.sin(np.pi * p.u / a)) ** np.float32(p.rng.uniform(0.4, 1.2))
    weft = np.abs(np.sin(np.pi * p.v / b)) ** np.float32(p.rng.uniform(0.4, 1.2))
    shade = p.rng.uniform(-0.6, 0.6)
    threads = 0.15 * _hash(i, 0 * i, p.rng) + 0.15 * _hash(0 * j, j, p.rng)
    drawn: Image = np.where(top, warp, weft + np.float32(shade)) + np.float32(p.rng.uniform(0, 1.5)) * threads
    return drawn


def grain(p: Plane) -> Image:
    """Wood: bent rings with fine fibres along them."""
    stretch = p.rng.uniform(6, 30)
    bend = cv2.resize(p.rng.standard_normal((9, 5), dtype=np.float32), (p.size, p.size), interpolation=cv2.INTER_CUBIC)
    rings = p.v / np.float32(p.rng.uniform(8, 40)) + bend * np.float32(p.rng.uniform(0.2, 1.5))
    wave = np.abs(np.mod(rings, 1.0) - np.float32(p.rng.uniform(0.2, 0.8)))
    drawn: Image = _unit(wave) + np.float32(p.rng.uniform(0.2, 1)) * grey_field(p.rng, p.size, 0.8, stretch)
    return drawn


def brushed(p: Plane) -> Image:
    """Brushed metal: noise drawn out along one direction."""
    return grey_field(p.rng, p.size, p.rng.uniform(0.4, 1.2), p.rng.uniform(8, 60), p.rng.uniform(0, np.pi))


def _distances(p: Plane, spacing: float) -> tuple[Image, Image]:
    """Distance to the nearest of random points, and the number of that point."""
    count = max(4, int((p.size / spacing) ** 2))
    points = np.ones((p.size, p.size), np.uint8)
    where = p.rng.integers(0, p.size, (count, 2))
    points[where[:, 0], where[:, 1]] = 0
    distance, label = cv2.distanceTransformWithLabels(points, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    return distance.astype(np.float32), label


def cellular(p: Plane) -> Image:
    """Worley cells: domed, flat-toned, or outlined."""
    spacing = p.rng.uniform(8, 40)
    distance, label = _distances(p, spacing)
    tone = _scatter(p.rng.random(997, dtype=np.float32), label.astype(np.float32))
    weights = p.rng.random(2)
    drawn: Image = (weights[0] * distance / np.float32(spacing) + weights[1] * tone).astype(np.float32)
    return drawn


def leather(p: Plane) -> Image:
    """Rounded cells with dark creases, lit from one side."""
    distance, _ = _distances(p, p.rng.uniform(6, 18))
    height = cv2.GaussianBlur(-distance, (0, 0), p.rng.uniform(0.8, 2.0)) + 0.4 * grey_field(p.rng, p.size, 1.2)
    angle = p.rng.uniform(0, 2 * np.pi)
    lit = np.cos(angle) * cv2.Sobel(height, cv2.CV_32F, 1, 0) + np.sin(angle) * cv2.Sobel(height, cv2.CV_32F, 0, 1)
    drawn: Image = _unit(height) * np.float32(p.rng.uniform(0, 1)) + _unit(lit)
    return drawn


def aggregate(p: Plane) -> Image:
    """Overlapping stones of many sizes (dead leaves), each with its own tone and a lit side."""
    low = p.rng.uniform(2, 6)
    largest = p.rng.uniform(3 * low, 34)
    image = np.full((p.size, p.size), 0.5, np.float32)
    count = int(1.2 * (p.size / (0.6 * (low + largest) / 2)) ** 2)
    count = min(count, 2500)
    radius = low * (1 - p.rng.random(count) * (1 - (low / largest) ** 1.5)) ** (-1 / 1.5)
    centre, angle = p.rng.integers(0, p.size, (count, 2)), p.rng.uniform(0, 180, count)
    tone, aspect, light = p.rng.random(count), p.rng.uniform(0.5, 1, count), p.rng.uniform(-0.3, 0.3)
    for k in np.argsort(-radius):
        x, y, r = int(centre[k, 0]), int(centre[k, 1]), radius[k]
        axes = (max(1, int(r)), max(1, int(r * aspect[k])))
        cv2.ellipse(image, (x, y), axes, angle[k], 0, 360, float(tone[k]), -1, cv2.LINE_AA)
        if r > 4:
            inner = (max(1, axes[0] * 2 // 3), max(1, axes[1] * 2 // 3))
            offset = (x - int(r / 6), y - int(r / 6))
            cv2.ellipse(image, offset, inner, angle[k], 0, 360, float(tone[k] + light), -1, cv2.LINE_AA)
    return image


def dots(p: Plane) -> Image:
    """Printed dots or perforations on a square or hexagonal lattice."""
    a = p.rng.uniform(8, 36)
    b = a * p.rng.choice([1.0, 0.866, p.rng.uniform(0.7, 1.4)])
    j = np.floor(p.v / b)
    u = p.u / a + 0.5 * np.mod(j, 2) * p.rng.integers(0, 2)
    i = np.floor(u)
    jitter = np.float32(p.rng.choice([0, 0, p.rng.uniform(0, 0.15)]))
    du = (u - i - 0.5 + jitter * (_hash(i, j, p.rng) - 0.5)) * np.float32(a)
    dv = (p.v / b - j - 0.5 + jitter * (_hash(i, j, p.rng) - 0.5)) * np.float32(b)
    radius = p.rng.uniform(0.15, 0.45) * min(a, b)
    edge = np.clip((np.hypot(du, dv) - radius) / p.rng.uniform(0.7, 3), -1, 1)
    rim = np.float32(p.rng.uniform(0, 0.6)) * np.clip((du + dv) / np.float32(radius), -1, 1) * (edge < 0)
    drawn: Image = edge + rim
    return drawn


def knit(p: Plane) -> Image:
    """Rows of V-shaped stitches."""
    a, b = p.rng.uniform(9, 30), p.rng.uniform(7, 24)
    x = np.abs(np.mod(p.u / a, 1.0) - 0.5) * 2
    y = p.v / b + x * np.float32(p.rng.uniform(0.5, 1.4))
    yarn = np.abs(np.sin(np.pi * y)) * np.abs(np.sin(2 * np.pi * p.u / a)) ** np.float32(0.5)
    drawn: Image = yarn + np.float32(p.rng.uniform(0, 0.3)) * np.sin(
        2 * np.pi * (p.u + p.v) / np.float32(p.rng.uniform(2.5, 5))
    )
    return drawn


def bricks(p: Plane) -> Image:
    """Bricks or tiles in running or stacked bond, laid more or less exactly, with mortar, a tone and a relief each."""
    b = np.exp(p.rng.uniform(np.log(14), np.log(90)))
    a = np.clip(b * p.rng.uniform(1, 4), 24, 240)
    slack = np.float32(p.rng.choice([0, p.rng.uniform(0, 0.25)]))
    j = np.floor(p.v / b)
    u = p.u / a + np.mod(j, 2) * np.float32(p.rng.choice([0, 0.5, 0.33])) + slack * _hash(0 * j, j, p.rng)
    i = np.floor(u)
    ends = p.rng.random(997, dtype=np.float32)
    left, right = (k + slack * (_scatter(ends, k * 31 + j * 57) - np.float32(0.5)) for k in (i, i + 1))
    du, dv = np.minimum(u - left, right - u) * a, (0.5 - np.abs(p.v / b - j - 0.5)) * b
    width, soft = p.rng.uniform(0, 0.08) * b, p.rng.uniform(1, 4)
    joint = np.clip((np.minimum(du, dv) - width) / soft, 0, 1)
    tone = np.float32(p.rng.uniform(0, 0.8)) * _hash(i, j, p.rng)
    upper_edge = (dv < width + soft + 2) & (np.mod(p.v / b, 1) < 0.5)
    light = np.float32(p.rng.choice([0, p.rng.uniform(-0.5, 0.5)])) * upper_edge
    rough = np.float32(p.rng.uniform(0, 0.3)) * grey_field(p.rng, p.size, p.rng.uniform(0.3, 1.2))
    drawn: Image = (joint * (1 + tone) + light + rough).astype(np.float32)
    return drawn


def motif(p: Plane) -> Image:
    """Any periodic texture: a random smooth motif repeated on a skewed lattice."""
    a, b = p.rng.uniform(8, 64), p.rng.uniform(8, 64)
    cells = 24
    small = np.float32(_unit(_smooth_torus(p.rng, cells, p.rng.uniform(0.8, 2.0))))
    if p.rng.random() < 0.4:
        small = np.tanh(small * np.float32(4))
    u, v = p.u / np.float32(a) + p.v * np.float32(p.rng.choice([0, p.rng.uniform(-0.02, 0.02)])), p.v / np.float32(b)
    wrapped = np.pad(small, ((0, 2), (0, 2)), mode="wrap")
    x, y = np.mod(u, 1.0) * cells + 0.5, np.mod(v, 1.0) * cells + 0.5
    return cv2.remap(wrapped, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR)


def _smooth_torus(rng: Rng, cells: int, exponent: float) -> Image:
    return grey_field(rng, cells, exponent)


def ripples(p: Plane) -> Image:
    """Band-passed noise: almost periodic, with a preferred direction or none."""
    fy, fx = np.fft.fftfreq(p.size)[:, None], np.fft.rfftfreq(p.size)[None]
    centre, width = 1 / p.rng.uniform(5, 40), p.rng.uniform(0.06, 0.4)
    f, angle = np.hypot(fx, fy) + 1e-9, np.arctan2(fy, fx)
    gain = np.exp(-((np.log2(f / centre) / width) ** 2))
    if p.rng.random() < 0.6:
        gain = gain * np.exp(3 * np.cos(2 * (angle - p.rng.uniform(0, np.pi))))
    image = _filtered(p.rng, p.size, gain.astype(np.float32))
    return image if p.rng.random() < 0.6 else np.abs(_unit(image))


def noise(p: Plane) -> Image:
    """Noise of any colour, from sand to clouds."""
    return grey_field(p.rng, p.size, p.rng.uniform(0.0, 2.0), p.rng.uniform(1, 3), p.rng.uniform(0, np.pi))


def stripes(p: Plane) -> Image:
    """Stripes and plaids, soft or sharp."""
    a, sharp = p.rng.uniform(4, 50), p.rng.uniform(1, 6)
    image = np.tanh(np.float32(sharp) * np.sin(2 * np.pi * p.u / np.float32(a)))
    if p.rng.random() < 0.5:
        b = p.rng.uniform(4, 50)
        image = image + np.float32(p.rng.uniform(0.2, 1)) * np.tanh(
            np.float32(sharp) * np.sin(2 * np.pi * p.v / np.float32(b))
        )
    drawn: Image = image
    return drawn


def fibres(p: Plane) -> Image:
    """Felt, grass or paper: many short curved strokes, bright over dark."""
    image = np.zeros((p.size, p.size), np.float32)
    count, length = int(p.rng.integers(1200, 3000)), p.rng.uniform(8, 50)
    start = p.rng.uniform(0, p.size, (count, 2))
    angle = p.rng.normal(p.rng.uniform(0, np.pi), p.rng.choice([0.2, 0.6, 2.0]), count)
    step = np.stack([np.cos(angle), np.sin(angle)], 1) * length
    bend = np.stack([-np.sin(angle), np.cos(angle)], 1) * p.rng.normal(0, 0.15 * length, (count, 1))
    lines = np.stack([start, start + step / 2 + bend, start + step], 1)
    tone, thick = np.sort(p.rng.random(count)), int(p.rng.integers(1, 4))
    fixed = np.rint(lines * 16).astype(np.int32)
    for k in range(count):
        cv2.polylines(image, [fixed[k]], False, float(tone[k]), thick, cv2.LINE_AA, 4)
    return image


FAMILIES: dict[str, Callable[[Plane], Image]] = {
    "woven": woven,
    "grain": grain,
    "brushed": brushed,
    "cellular": cellular,
    "leather": leather,
    "aggregate": aggregate,
    "dots": dots,
    "knit": knit,
    "bricks": bricks,
    "motif": motif,
    "ripples": ripples,
    "noise": noise,
    "stripes": stripes,
    "fibres": fibres,
}
"""Name of each family and the function that draws it."""
