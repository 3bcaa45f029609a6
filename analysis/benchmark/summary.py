"""What `replknet bench all` is for: some ratios of its tables, beside what they are meant to be on a large GPU."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

CONVOLUTIONS = (
    (64, 128, 56, "31", "bfloat16", 60.0),
    (64, 256, 28, "29", "bfloat16", 60.0),
    (64, 512, 14, "27", "bfloat16", 40.0),
    (64, 1024, 7, "13", "bfloat16", 20.0),
    (1, 128, 256, "31", "bfloat16", 45.0),
    (32, 128, 56, "51", "bfloat16", 70.0),
    (64, 128, 56, "31", "float32", 15.0),
    (64, 124, 56, "51x5", "bfloat16", 10.0),
    (64, 124, 56, "5x51", "bfloat16", 10.0),
)
"""Images, channels, side, kernel, data type, and how many times as fast as `conv2d` the three directions are to be."""
LARGE, SMALL = "31-29-27-13", "3-3-3-3"


@dataclass(frozen=True)
class Figure:
    """A number that was measured, and its target; None where nothing was measured."""

    name: str
    value: float | None
    bound: str
    target: float

    @property
    def reached(self) -> bool | None:
        compare = operator.ge if self.bound == "at least" else operator.le
        return None if self.value is None else bool(compare(self.value, self.target))

    def __str__(self) -> str:
        told = {True: "reached", False: "NOT REACHED", None: ""}[self.reached]
        value = "not measured" if self.value is None else f"{self.value:.4g}"
        return f"{self.name:<78}{value:>13}  {self.bound} {self.target:g}  {told}".rstrip()


def figures(tables: Mapping[str, pd.DataFrame]) -> list[Figure]:
    """All figures, whether they were measured or not.

    Args:
        tables: By name: "conv-headline", "train", "inference", "erf", "train-compiled".
    """
    found = []
    headline = tables.get("conv-headline")
    for images, channels, side, kernel, dtype, target in CONVOLUTIONS:
        labels = {"images": images, "channels": channels, "size": side, "kernel": kernel, "dtype": dtype}
        value = _over(headline, "conv2d", "replknet", labels | {"direction": "sum"})
        name = f"({images}, {channels}, {side}, {kernel}) {dtype}: conv2d over ours, sum of three directions"
        found.append(Figure(name, value, "at least", target))
    for task, limit in (("train", 1.05), ("inference", 1.1)):
        for layout in ("", ", channels_last"):
            value = _over(tables.get(task), f"{LARGE}{layout}", f"{SMALL}{layout}")
            found.append(Figure(f"{task}{layout or ', contiguous'}: {LARGE} over {SMALL}", value, "at most", limit))
    native = _over(tables.get("train"), f"{LARGE}, nn.Conv2d", LARGE)
    found.append(Figure("train, contiguous: native over ours", native, "at least", 4.4))
    compiled = _value(tables.get("train-compiled"), f"{LARGE}, channels_last, torch.compile", "images_per_s")
    found.append(Figure("train, channels_last, torch.compile: images per second", compiled, "at least", 900.0))
    gradient = _over(tables.get("erf"), f"{LARGE}, nn.Conv2d", LARGE)
    found.append(Figure("effective receptive field at 1024 px, float32: native over ours", gradient, "at least", 5.0))
    return found


def _over(table: pd.DataFrame | None, contender: str, other: str, labels: Mapping[str, object] = {}) -> float | None:
    above, below = (_value(table, name, "median_ms", labels) for name in (contender, other))
    return None if above is None or below is None else above / below


def _value(table: pd.DataFrame | None, contender: str, column: str, labels: Mapping[str, object] = {}) -> float | None:
    if table is None or column not in table or not set(labels) <= set(table):
        return None
    rows = table[table["contender"] == contender]
    for label, value in labels.items():
        rows = rows[rows[label].astype(str) == str(value)]
    values = rows[column].dropna()
    return float(values.iloc[0]) if len(values) else None
