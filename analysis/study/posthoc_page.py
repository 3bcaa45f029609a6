"""What large kernels do in a trained network, on a page."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures import legend_below
from analysis.pages.drawing import Drawing, shown_drawings
from analysis.pages.page import Section, Table, rendered
from analysis.receptive_field.page import map_groups
from analysis.study.measures import MEASURES
from analysis.study.plots import plot_energy, plot_posthoc
from analysis.study.posthoc import (
    VariantResult,
    intervals_text,
    names_explained,
    posthoc_table,
    posthoc_texts,
    posthoc_warnings,
)


def posthoc_page(
    results: Sequence[VariantResult], energy: pd.DataFrame, *, name: str, command: str, files: Sequence[str]
) -> str:
    """The page of a network whose kernels were cropped.

    Args:
        results: Of `measure_variants`.
        energy: Of `kernel_energy`.
        name: Of the network.
        command: What makes the page again.
        files: To be linked.
    """
    table = posthoc_table(results)
    columns, rows = posthoc_texts(results)
    groups, numbers = map_groups(
        [("", [(result.erf, result.variant.name, {"variant": result.variant.name}) for result in results])]
    )
    first, measured_on = results[0].erf, dict(results[0].measured_on)
    of_fields = measured_on.pop("receptive_field", first.image_source)
    return rendered(
        "results.html.j2",
        title=f"What do the large kernels of {name} do?",
        kind="Kernels cropped in a trained network, without retraining",
        summary=f"The network as it is, and {len(results) - 1} variants of it with parts of its kernels set to zero.",
        command=command,
        files=files,
        data={"maps": numbers},
        scripts=["maps"],
        warnings=posthoc_warnings(results),
        setting=[
            ("question", "what the outer taps do in this network, not what one trained with smaller kernels would do"),
            ("variants", names_explained([result.variant for result in results])),
            ("intervals", intervals_text(results)),
            (
                "receptive fields",
                f"{first.map_size[0]} x {first.map_size[1]} pixels; raw map",
            ),
            ("their images", f"{len(first.images)}; {of_fields}"),
            *((name.replace("_", " "), images) for name, images in measured_on.items()),
        ],
        sections=[
            Section(
                title="Measures",
                text="Against the side that the kernels are cropped to. The solid horizontal line is the network as it "
                "is, a dotted one without a branch; bars and the band behind the line are 95 % intervals.",
                figures=shown_drawings(_drawings(table, energy)),
            ),
            Section(
                title="Receptive fields",
                text="Each map relative to its maximum, all on one scale. The solid square holds half of the gradient, "
                "the dashed one 99 %.",
                maps=groups,
            ),
            Section(title="Table", tables=[Table(columns=columns, rows=rows)]),
        ],
        environment=sorted(first.environment.items()),
        sources=[("Ding et al. 2022", "2203.06717")],
    )


def _drawings(table: pd.DataFrame, energy: pd.DataFrame) -> list[Drawing]:
    def measure(name: str) -> Figure:
        own = MEASURES[name]
        ax = plot_posthoc(table, name, own.label or own.heading, scale=own.scale)
        legend_below(ax)
        figure: Figure = ax.get_figure(root=True)  # type: ignore[assignment]
        return figure

    def energies() -> Figure:
        figure: Figure = plot_energy(energy).get_figure(root=True)  # type: ignore[assignment]
        return figure

    captions = {
        "accuracy": "Accuracy.",
        "erf_area_0.5": "Area that holds half of the gradient.",
        "shape_bias": "Shape bias.",
    }
    found = [
        Drawing(name=name.replace(".", "-"), caption=caption, draw=lambda name=name: measure(name))  # type: ignore[misc]
        for name, caption in captions.items()
        if table[name].notna().any()
    ]
    caption = (
        "Energy in central squares: their part of the sum of squared taps, the mean over channels. Of kernels with the "
        "small ones merged into them, which crops of the large ones spare."
    )
    return [*found, Drawing(name="energy", caption=caption, draw=energies)]
