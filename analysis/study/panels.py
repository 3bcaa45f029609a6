"""The figures of a study's report, section by section."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures import axes_or_new
from analysis.images.plots import balance_strip, contact_sheet
from analysis.receptive_field.plots import erf_row
from analysis.study import plots
from analysis.study.record import StudyRecord


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A figure: its file name, its caption, and what draws it."""

    name: str
    caption: str
    draw: Callable[[], Figure]
    wide: bool = False
    """As wide as the page."""


def _axes_figure(
    draw: Callable[..., Any], *arguments: Any, width: float = 3.4, height: float = 2.9, **options: Any
) -> Figure:
    ax = axes_or_new(None)
    figure = ax.get_figure(root=True)
    assert isinstance(figure, Figure)
    figure.set_size_inches(width, height)
    label = options.pop("ylabel", None)
    limits = options.pop("ylim", None)
    draw(*arguments, ax=ax, **options)
    if label:
        ax.set_ylabel(label)
    if limits is not None:
        ax.set_ylim(*limits)
    return figure


def sections_of(record: StudyRecord, table: pd.DataFrame) -> list[tuple[str, str, list[Panel]]]:
    study, results = record.study, record.results
    label, rows = plots.settings_of(table)[0]
    names = set(rows["cell"])
    plain = [result for result in results if result.cell.name in names]
    where = f" ({label})" if label else ""
    biased = bool(table["shape_bias"].notna().any())

    def by_kernel(
        name: str,
        caption: str,
        measures: list[tuple[str, str]],
        label: str,
        scale: float = 100,
        limits: tuple[float | None, float | None] = (0, None),
    ) -> Panel:
        return Panel(
            name=name,
            caption=caption,
            draw=lambda: _axes_figure(
                plots.plot_by_kernel, table, measures, scale=scale, ylabel=label, ylim=limits, height=3.1
            ),
        )

    main = [
        by_kernel(
            "area",
            "Area that holds half of the gradient, trained and before (batch norms calibrated).",
            [("erf_area_0.5", "trained"), ("untrained_erf_area_0.5", "untrained")],
            "area with half of the gradient (%)",
        )
    ]
    if biased:
        main.append(
            by_kernel(
                "shape_bias",
                "Shape bias on conflict images with both cues full.",
                [("shape_bias", "")],
                "shape bias, S / (S + T)",
                1,
                (-0.03, 1.03),
            )
        )
    main.append(
        by_kernel("accuracy", "Accuracy on the validation images.", [("accuracy", "")], "accuracy (%)", 100, (0, 103))
    )
    sections = [("Kernel size", "Every dot is one training; lines join means, bars are 95 % intervals.", main)]
    seed = min(result.cell.seed for result in plain)
    first = sorted((r for r in plain if r.cell.seed == seed), key=lambda r: r.cell.kernel)
    titles = [f"kernel {r.cell.kernel}" for r in first]
    maps = [
        Panel(
            name="erf_trained",
            caption="Trained. The square holds half of the gradient.",
            draw=lambda: erf_row([r.erf for r in first], titles),
            wide=True,
        ),
        Panel(
            name="erf_untrained",
            caption="The same networks before the training, their batch norms calibrated on training images.",
            draw=lambda: erf_row([r.untrained_erf for r in first], titles),
            wide=True,
        ),
    ]
    text = (
        f"Mean absolute gradient of the central unit of the last feature map over {len(first[0].erf.images)} "
        f"validation images, magnified to {study.erf_size} pixels (the paper: 1024 for training at 224); all "
        f"on one scale. Seed {seed}{where}."
    )
    sections.append(("Effective receptive fields", text, maps))
    if biased:
        sections.append(
            (
                "Shape against texture",
                "A logistic function of the balance of the cues; vertical marks are points of subjective equality.",
                [
                    Panel(
                        name="psychometric",
                        caption="Share of shape decisions as the texture gets stronger and the figure weaker.",
                        draw=lambda: _axes_figure(plots.plot_psychometric, plain, height=3.1),
                    ),
                    by_kernel(
                        "pse",
                        "Point of subjective equality: above 0, shape wins even where it is the weaker cue.",
                        [("pse", "")],
                        "point of subjective equality",
                        1,
                        (-1.05, 1.05),
                    ),
                    Panel(
                        name="erf_and_bias",
                        caption="Shape bias against the effective receptive field, every training a point.",
                        draw=lambda: _axes_figure(plots.plot_erf_against_bias, table, height=3.1),
                    ),
                    by_kernel(
                        "single_cues",
                        "Accuracy where only one of the cues is there.",
                        [("shape_only_accuracy", "only shape"), ("texture_only_accuracy", "only texture")],
                        "accuracy (%)",
                        100,
                        (0, 103),
                    ),
                ],
            )
        )
        sections.append(
            (
                "The images",
                "Every class has an outline and a texture. The network names one class; on a conflict image it cannot "
                "be right about both.",
                [
                    Panel(
                        name="stimuli",
                        caption="One image of each class, drawn at 96 pixels: both cues, conflict, one cue only.",
                        draw=lambda: contact_sheet(
                            texture_region=study.texture_region, texture_scale=study.texture_scale
                        ),
                        wide=True,
                    ),
                    Panel(
                        name="balance",
                        caption="Three scenes in conflict at every balance, from no texture (-1) to no figure (1).",
                        draw=lambda: balance_strip(
                            study.balances, texture_region=study.texture_region, texture_scale=study.texture_scale
                        ),
                        wide=True,
                    ),
                ],
            )
        )
    cost = [
        by_kernel("macs", "Multiply-accumulates for one image.", [("macs", "")], "million multiply-accumulates", 1e-6),
        by_kernel(
            "parameters", "Parameters, kernels merged.", [("merged_parameters", "")], "thousand parameters", 1e-3
        ),
        by_kernel(
            "step_time", "Median time of a training step.", [("seconds_per_step", "")], "time of a step (ms)", 1000
        ),
        by_kernel(
            "inference", "Inference, re-parameterised, batches of 32.", [("inference_ms", "")], "time per image (ms)", 1
        ),
    ]
    cost.append(
        Panel(
            name="curves",
            caption="Validation accuracy during the training.",
            draw=lambda: _axes_figure(plots.plot_curves, plain, height=3.1),
        )
    )
    sections.append(("Cost and training", "Times were taken while other cells waited, not side by side.", cost))
    return sections
