"""The textures of the twelve classes: functions of two coordinates with a period of 2 pi and of a random generator."""

from collections.abc import Callable

import numpy as np

from analysis.images.synthetic.outlines import FloatArray

Texture = Callable[[FloatArray, FloatArray, np.random.Generator], FloatArray]


def _bent(function: Callable[[FloatArray, FloatArray], FloatArray]) -> Texture:
    """The same pattern on coordinates that wander at random, so that it keeps its order over a few periods only.

    A lattice of unlimited order would be no local cue: the larger a kernel, the better it would match it.
    """

    def wander(u: FloatArray, v: FloatArray, generator: np.random.Generator) -> FloatArray:
        turns, phases = generator.uniform(0, 2 * np.pi, (2, 3))
        total = np.zeros_like(u)
        for turn, phase in zip(turns, phases, strict=True):
            total += np.cos(np.float32(0.3 * np.cos(turn)) * u + np.float32(0.3 * np.sin(turn)) * v + np.float32(phase))
        return np.asarray(np.float32(0.8) * total, dtype=np.float32)

    def bent(u: FloatArray, v: FloatArray, generator: np.random.Generator) -> FloatArray:
        return function(u + wander(u, v, generator), v + wander(u, v, generator))

    return bent


def _triangle_wave(u: FloatArray) -> FloatArray:
    return np.asarray(np.abs((u / np.float32(np.pi)) % 2 - 1) * 2 - 1, dtype=np.float32)


def _edge(values: FloatArray, sharpness: float = 3.0) -> FloatArray:
    """A soft threshold at 0."""
    return np.asarray(np.tanh(sharpness * values))


def _band(u: FloatArray, generator: np.random.Generator, *, width: float = 0.25, stretch: float = 1.0) -> FloatArray:
    """Noise around the texture's frequency, `stretch` times longer along one axis than across."""
    size = u.shape[0]
    step = max(float(np.hypot(u[0, 1] - u[0, 0], u[1, 0] - u[0, 0])), 1e-6)  # radians a pixel
    turn = np.arctan2(u[1, 0] - u[0, 0], u[0, 1] - u[0, 0])
    fy, fx = np.fft.fftfreq(size)[:, None] * 2 * np.pi / step, np.fft.rfftfreq(size)[None] * 2 * np.pi / step
    across, along = fx * np.cos(turn) + fy * np.sin(turn), fy * np.cos(turn) - fx * np.sin(turn)
    gain = np.exp(-(((np.hypot(across, stretch * along) - 1) / width) ** 2))
    noise = np.fft.rfft2(generator.standard_normal((size, size)))
    return np.fft.irfft2(noise * gain, s=(size, size)).astype(np.float32)


def _cells(u: FloatArray, v: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Coordinates from -pi to pi in the cells of rows that are shifted by half a cell."""
    row = np.floor(v / (2 * np.pi))
    return (u + np.pi * (row % 2)) % (2 * np.pi) - np.pi, v % (2 * np.pi) - np.pi


def _bricks(u: FloatArray, v: FloatArray) -> FloatArray:
    x, y = _cells(u / 2, v)
    return _edge(np.minimum(2 * (np.pi - np.abs(x)), np.pi - np.abs(y)) - 0.7)


def _scales(u: FloatArray, v: FloatArray) -> FloatArray:
    x, y = _cells(u, v)
    return _edge(np.sin(np.hypot(x, y + np.pi) * 1.5), 2.0)


def _weave(u: FloatArray, v: FloatArray) -> FloatArray:
    odd = (np.floor(u / (2 * np.pi)) + np.floor(v / (2 * np.pi))) % 2
    return _edge(np.where(odd > 0, np.sin(1.5 * u), np.sin(1.5 * v)) + 0.1, 2.0)


def _dots(u: FloatArray, v: FloatArray) -> FloatArray:
    x, y = _cells(u, v)
    return -_edge(np.hypot(x, y) - 1.35, 2.0)


def _speckle(u: FloatArray, v: FloatArray, generator: np.random.Generator) -> FloatArray:
    field = _band(u, generator, width=0.45)
    return np.asarray(np.clip(field / (field.std() + 1e-12) - 1.1, 0, 0.6))  # flat tops: none is cut at white


TEXTURES: dict[str, tuple[str, float, Texture]] = {
    "arrow": ("dots", 7.0, _bent(_dots)),
    "bolt": ("bricks", 8.0, _bent(_bricks)),
    "crescent": ("stripes", 5.0, _bent(lambda u, v: _edge(np.sin(u), 2.0))),
    "cross": ("blobs", 14.0, lambda u, v, g: _band(u, g)),
    "disc": ("zigzag", 8.0, _bent(lambda u, v: _edge(np.sin(u + 2.4 * _triangle_wave(v / 2)), 2.0))),
    "drop": ("checks", 10.0, _bent(lambda u, v: _edge(np.sin(u) * np.sin(v), 4.0))),
    "flower": ("grain", 5.0, lambda u, v, g: _band(u, g)),
    "heart": ("rays", 5.5, lambda u, v, g: _band(u, g, width=0.2, stretch=0.15)),
    "ring": ("hatch", 6.5, _bent(lambda u, v: -_edge(np.minimum(np.abs(np.sin(u / 2)), np.abs(np.sin(v / 2))) - 0.35))),
    "square": ("scales", 11.0, _bent(_scales)),
    "star": ("speckle", 6.0, _speckle),
    "triangle": ("weave", 9.0, _bent(_weave)),
}
"""For each class the name of its texture and its period in pixels of an image of 64, some fine and some coarse."""
