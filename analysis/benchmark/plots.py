"""Figures of timings. Each function draws into the Axes it is given and sets nothing global."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from pandas.api.types import is_numeric_dtype

from analysis.figures import DASHES, MARKERS, OKABE_ITO, axes_or_new


def plot_benchmark(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Median times of every contender (`analysis.benchmark.compare`) against its own case, on logarithmic axes.

    The horizontal axis is the kernel size where it varies in the table, with one line per contender and, dashed
    differently, per map size; otherwise the case.
    """
    ax = axes_or_new(ax)
    timed = table.reindex(columns=list(dict.fromkeys([*table.columns, "median_ms"]))).dropna(subset=["median_ms"])
    labels = list(table.columns[: list(table.columns).index("contender")])
    by_kernel = "kernel" in timed and is_numeric_dtype(timed["kernel"]) and len(set(timed["kernel"])) > 6
    others = [label for label in labels if label != "kernel" and len(set(timed[label])) > 1] if by_kernel else []
    contenders = list(dict.fromkeys(timed["contender"]))
    groups: list[Any] = list(timed[others].drop_duplicates().itertuples(index=False, name=None)) if others else [()]
    timed = timed.assign(case=timed.groupby(labels, sort=False).ngroup() + 1)
    for key, rows in timed.groupby(["contender", *others], sort=False):
        number, group = contenders.index(key[0]), groups.index(tuple(key[1:]))
        ax.plot(
            rows["kernel"] if by_kernel else rows["case"],
            rows["median_ms"],
            color=OKABE_ITO[number % len(OKABE_ITO)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=3,
            linewidth=1 if by_kernel else 0,
            linestyle=DASHES[group % len(DASHES)],
            label=key[0] if group == 0 else None,
        )
    for index, values in enumerate(groups if others else []):
        text = ", ".join(f"{label} {value}" for label, value in zip(others, values, strict=True))
        ax.plot([], [], color="0.3", linewidth=1, linestyle=DASHES[index % len(DASHES)], label=text)
    ax.set_yscale("log")
    ax.set_ylabel("time (ms)")
    if by_kernel:
        ax.set_xscale("log")
        kernels = sorted(timed["kernel"].unique())
        shown = [kernels[0]]
        for kernel in kernels[1:]:
            if kernel >= 1.18 * shown[-1]:
                shown.append(kernel)
        ax.set_xticks(shown, [str(kernel) for kernel in shown])
        ax.minorticks_off()
        ax.set_xlabel("kernel size (pixels)")
    else:
        cases = timed.drop_duplicates(labels)
        varying = [label for label in labels if len(set(timed[label])) > 1] or labels
        names = [" ".join(str(row[label]) for label in varying) for _, row in cases.iterrows()]
        ax.set_xticks(range(1, len(names) + 1), names, rotation=30, ha="right")
        ax.set_xlabel(", ".join(varying))
    if contenders:
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return ax


def plot_ratios(ratios: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """A dot for each case: its ratio (`analysis.benchmark.slowness`) against the kernel, on logarithmic axes."""
    ax = axes_or_new(ax)
    directions = sorted(set(ratios["direction"]))
    for number, direction in enumerate(directions):
        rows = ratios[ratios["direction"] == direction]
        ax.plot(
            rows["kernel"] * 1.03 ** (number - (len(directions) - 1) / 2),  # beside each other
            rows["ratio"],
            color=OKABE_ITO[number % len(OKABE_ITO)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=2.5,
            linewidth=0,
            label=direction,
        )
    ax.axhline(1, color="0.3", linewidth=0.8)
    ax.set_xscale("log")
    ax.set_yscale("log")
    kernels = sorted(ratios["kernel"].unique())
    ax.set_xticks(kernels, [str(kernel) for kernel in kernels])
    ax.minorticks_off()
    ax.set_xlabel("kernel size (pixels)")
    ax.set_ylabel("time over conv2d's")
    ax.legend(fontsize="small")
    return ax
