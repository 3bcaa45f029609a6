"""Figures of generated images."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from analysis.images.synthetic.drawing import SyntheticOptions
from analysis.images.synthetic.outlines import CLASSES
from analysis.images.synthetic.sets import KINDS, SyntheticImages


def contact_sheet(*, size: int = 96, texture_region: Any = "image", texture_scale: float = 1.0) -> Figure:
    """One image of every class in each set of generated images: both cues, each one alone, and in conflict."""
    options = SyntheticOptions(size=size, texture_region=texture_region, texture_scale=texture_scale)
    count = len(CLASSES)
    kinds = [kind for kind in KINDS for _ in range(3 if kind == "conflict" else 1)]
    figure = Figure(figsize=(0.72 * count + 0.9, 0.74 * len(kinds) + 0.35), layout="constrained")
    axes = figure.subplots(len(kinds), count)
    seen = 0
    for row, kind in enumerate(kinds):
        first = seen * count if kind == "conflict" else 0
        seen += kind == "conflict"
        images = SyntheticImages(kind=kind, num_images=12 * count, seed=5, options=options)
        for column in range(count):
            ax = axes[row, column]
            ax.imshow(images[first + column][0])
            ax.set(xticks=[], yticks=[])
            for spine in ax.spines.values():
                spine.set_visible(False)
            if row == 0:
                ax.set_title(CLASSES[column], fontsize=7)
            if column == 0:
                ax.set_ylabel(kind, fontsize=7)
            if kind == "conflict":
                ax.set_xlabel(f"texture: {CLASSES[images.cues(first + column)[1]]}", fontsize=5, labelpad=1)
    return figure


def balance_strip(
    balances: Sequence[float], *, size: int = 96, texture_region: Any = "image", texture_scale: float = 1.0
) -> Figure:
    """The same scenes at every balance of the two cues."""
    options = SyntheticOptions(size=size, texture_region=texture_region, texture_scale=texture_scale)
    figure = Figure(figsize=(0.85 * len(balances) + 0.4, 2.75), layout="constrained")
    axes = figure.subplots(3, len(balances))
    for column, balance in enumerate(balances):
        images = SyntheticImages(kind="conflict", num_images=132, seed=6, balance=balance, options=options)
        for row, index in enumerate((9, 40, 90)):
            ax = axes[row, column]
            ax.imshow(images[index][0])
            ax.set(xticks=[], yticks=[])
            for spine in ax.spines.values():
                spine.set_visible(False)
            if row == 0:
                ax.set_title(f"{balance:+g}" if balance else "0")
            if column == 0:
                shape, texture = images.cues(index)
                ax.set_ylabel(f"{CLASSES[shape]},\n{CLASSES[texture]} texture", fontsize=6)
    return figure
