"""The outlines of the twelve classes, as signed distances: negative inside, the shape in the circle of radius 1."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]
MARGIN = 1.3
"""Half the side of the square on which outlines are tabulated, in radii."""


# Outlines: signed distances, negative inside, in units in which the shape fits the circle of radius 1 ---------------


def _polygon(points: Sequence[tuple[float, float]], x: FloatArray, y: FloatArray) -> FloatArray:
    nearest = np.full(x.shape, np.inf, dtype=np.float32)
    inside = np.zeros(x.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        edge_x, edge_y = x1 - x0, y1 - y0
        along = np.clip(((x - x0) * edge_x + (y - y0) * edge_y) / (edge_x**2 + edge_y**2), 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - x0 - along * edge_x, y - y0 - along * edge_y))
        if edge_y:
            inside ^= ((y0 <= y) != (y1 <= y)) & (x - x0 < edge_x * (y - y0) / edge_y)
    return np.where(inside, -nearest, nearest).astype(np.float32)


def _corners(*radii: float) -> list[tuple[float, float]]:
    """Points at equal angles, the first one above."""
    angles = 2 * np.pi * np.arange(len(radii)) / len(radii)
    return [(float(r * np.sin(a)), float(-r * np.cos(a))) for r, a in zip(radii, angles, strict=True)]


def _heart() -> list[tuple[float, float]]:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x, y = 16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [(float(a), float(b)) for a, b in zip(x / 17.5, -(y + 2.5) / 17.5, strict=True)]


def _drop() -> list[tuple[float, float]]:
    t = np.linspace(0.2 * np.pi, 1.8 * np.pi, 40)
    return [(0.0, -0.98), *((float(0.6 * np.sin(a)), float(0.36 - 0.6 * np.cos(a))) for a in t)]


_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "arrow": [(0, -0.98), (0.74, -0.14), (0.28, -0.14), (0.28, 0.92), (-0.28, 0.92), (-0.28, -0.14), (-0.74, -0.14)],
    "bolt": [(0.34, -0.98), (-0.62, 0.16), (-0.1, 0.16), (-0.34, 0.98), (0.62, -0.26), (0.1, -0.26)],
    "cross": [
        (-0.3, -0.92), (0.3, -0.92), (0.3, -0.3), (0.92, -0.3), (0.92, 0.3), (0.3, 0.3),
        (0.3, 0.92), (-0.3, 0.92), (-0.3, 0.3), (-0.92, 0.3), (-0.92, -0.3), (-0.3, -0.3),
    ],
    "drop": _drop(),
    "heart": _heart(),
    "square": _corners(0.98, 0.98, 0.98, 0.98),
    "star": _corners(*[0.98, 0.42] * 5),
    "triangle": _corners(0.98, 0.98, 0.98),
}  # fmt: skip
_CURVES: dict[str, Callable[[FloatArray, FloatArray], FloatArray]] = {
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 0.97, 0.78 - np.hypot(x - 0.45, y)),
    "disc": lambda x, y: np.hypot(x, y) - np.float32(0.85),
    "flower": lambda x, y: (np.hypot(x, y) - 0.68 - 0.29 * np.cos(5 * np.arctan2(x, -y))) * np.float32(0.6),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.72) - np.float32(0.24),
}
CLASSES: tuple[str, ...] = tuple(sorted({*_POLYGONS, *_CURVES}))
"""In alphabetical order, which is the order of a trained network's outputs."""


@lru_cache(maxsize=len(CLASSES))
def outline(name: str) -> FloatArray:
    """Signed distances on a square grid that reaches `MARGIN` radii from the centre."""
    axis = np.linspace(-MARGIN, MARGIN, 521, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    curve = _CURVES.get(name)
    table = _polygon(_POLYGONS[name], x, y) if curve is None else curve(x, y)
    return np.asarray(table, dtype=np.float32)
