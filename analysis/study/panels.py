"""The figures of a study's report: each a function, with the section that it belongs to and its caption."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import axes_or_new
from analysis.images.plots import balance_strip, contact_sheet
from analysis.receptive_field.plots import erf_row
from analysis.study import plots
from analysis.study.measures import MEASURES
from analysis.study.record import StudyRecord
from analysis.study.result import CellResult, settings_of


@dataclass(frozen=True)
class View:
    """A study as its report shows it.

    Args:
        record: The study and its results.
        table: Of `study_table`.
    """

    record: StudyRecord
    table: pd.DataFrame

    @cached_property
    def plain(self) -> list[CellResult]:
        """The results of the first setting."""
        names = set(settings_of(self.table)[0][1]["cell"])
        return [result for result in self.record.results if result.cell.name in names]

    @cached_property
    def first(self) -> list[CellResult]:
        """Those of its first seed, by kernel."""
        seed = min(result.cell.seed for result in self.plain)
        return sorted((r for r in self.plain if r.cell.seed == seed), key=lambda r: r.cell.kernel)

    @cached_property
    def has_two_cues(self) -> bool:
        """Whether shape bias was measured."""
        return bool(self.table["shape_bias"].notna().any())


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A figure of the report.

    Args:
        name: Of its files.
        section: That it is in.
        caption: Below it.
        draw: Makes it.
        wide: As wide as the page.
        two_cues: Only where shape bias was measured.
    """

    name: str
    section: str
    caption: str
    draw: Callable[[View], Figure]
    wide: bool = False
    two_cues: bool = False


def _fields_text(view: View) -> str:
    label = settings_of(view.table)[0][0]
    return (
        f"Mean absolute gradient of the central unit of the last feature map over {len(view.first[0].erf.images)} "
        f"validation images, magnified to {view.record.study.erf_size} pixels (the paper: 1024 for training at 224); "
        f"all on one scale. Seed {view.first[0].cell.seed}{f' ({label})' if label else ''}."
    )


SECTIONS: dict[str, Callable[[View], str]] = {
    "Kernel size": lambda _: "Every dot is one training; lines join means, bars are 95 % intervals.",
    "Effective receptive fields": _fields_text,
    "Shape against texture": lambda _: (
        "A logistic function of the balance of the cues; vertical marks are points of subjective equality."
    ),
    "The images": lambda _: (
        "Every class has an outline and a texture. The network names one class; on a conflict image it cannot be right "
        "about both."
    ),
    "Cost and training": lambda _: "Times were taken while other cells waited, not side by side.",
}
"""Title and text of each, in order."""
PANELS: list[Panel] = []
"""In order."""


def panel(section: str, caption: str, **options: Any) -> Callable[[Callable[[View], Figure]], Callable[[View], Figure]]:
    """Put a figure, named as its function, into a section of the report."""

    def register(draw: Callable[[View], Figure]) -> Callable[[View], Figure]:
        PANELS.append(Panel(name=draw.__name__, section=section, caption=caption, draw=draw, **options))
        return draw

    return register


def _axes(width: float = 3.4, height: float = 3.1) -> tuple[Figure, Axes]:
    ax = axes_or_new(None)
    figure: Any = ax.get_figure(root=True)
    figure.set_size_inches(width, height)
    return figure, ax


def _measures(view: View, named: Sequence[tuple[str, str]]) -> Figure:
    """Measures against the kernel size, drawn as the first one says."""
    figure, ax = _axes()
    first = MEASURES[named[0][0]]
    plots.plot_by_kernel(view.table, named, scale=first.scale, ax=ax)
    ax.set_ylabel(first.label)
    ax.set_ylim(*first.limits)
    return figure


@panel("Kernel size", "Area that holds half of the gradient, trained and before (batch norms calibrated).")
def area(view: View) -> Figure:
    return _measures(view, [("erf_area_0.5", "trained"), ("untrained_erf_area_0.5", "untrained")])


@panel("Kernel size", "Shape bias on conflict images with both cues full.", two_cues=True)
def shape_bias(view: View) -> Figure:
    return _measures(view, [("shape_bias", "")])


@panel("Kernel size", "Accuracy on the validation images.")
def accuracy(view: View) -> Figure:
    return _measures(view, [("accuracy", "")])


def _titles(view: View) -> list[str]:
    return [f"kernel {result.cell.kernel}" for result in view.first]


@panel("Effective receptive fields", "Trained. The square holds half of the gradient.", wide=True)
def erf_trained(view: View) -> Figure:
    return erf_row([result.erf for result in view.first], _titles(view))


@panel(
    "Effective receptive fields",
    "The same networks before the training, their batch norms calibrated on training images.",
    wide=True,
)
def erf_untrained(view: View) -> Figure:
    return erf_row([result.untrained_erf for result in view.first], _titles(view))


@panel(
    "Shape against texture",
    "Share of shape decisions as the texture gets stronger and the figure weaker.",
    two_cues=True,
)
def psychometric(view: View) -> Figure:
    figure, ax = _axes()
    plots.plot_psychometric(view.plain, ax=ax)
    return figure


@panel(
    "Shape against texture",
    "Point of subjective equality: above 0, shape wins even where it is the weaker cue.",
    two_cues=True,
)
def pse(view: View) -> Figure:
    return _measures(view, [("pse", "")])


@panel(
    "Shape against texture",
    "Shape bias against the effective receptive field, every training a point.",
    two_cues=True,
)
def erf_and_bias(view: View) -> Figure:
    figure, ax = _axes()
    plots.plot_erf_against_bias(view.table, ax=ax)
    return figure


@panel("Shape against texture", "Accuracy where only one of the cues is there.", two_cues=True)
def single_cues(view: View) -> Figure:
    return _measures(view, [("shape_only_accuracy", "only shape"), ("texture_only_accuracy", "only texture")])


def _textures(view: View) -> dict[str, Any]:
    study = view.record.study
    return {"texture_region": study.texture_region, "texture_scale": study.texture_scale}


@panel(
    "The images",
    "One image of each class, drawn at 96 pixels: both cues, conflict, one cue only.",
    wide=True,
    two_cues=True,
)
def stimuli(view: View) -> Figure:
    return contact_sheet(**_textures(view))


@panel(
    "The images",
    "Three scenes in conflict at every balance, from no texture (-1) to no figure (1).",
    wide=True,
    two_cues=True,
)
def balance(view: View) -> Figure:
    return balance_strip(view.record.study.balances, **_textures(view))


@panel("Cost and training", "Multiply-accumulates for one image.")
def macs(view: View) -> Figure:
    return _measures(view, [("macs", "")])


@panel("Cost and training", "Parameters, kernels merged.")
def parameters(view: View) -> Figure:
    return _measures(view, [("merged_parameters", "")])


@panel("Cost and training", "Median time of a training step.")
def step_time(view: View) -> Figure:
    return _measures(view, [("seconds_per_step", "")])


@panel("Cost and training", "Inference, re-parameterised, batches of 32.")
def inference(view: View) -> Figure:
    return _measures(view, [("inference_ms", "")])


@panel("Cost and training", "Validation accuracy during the training.")
def curves(view: View) -> Figure:
    figure, ax = _axes()
    plots.plot_curves(view.plain, ax=ax)
    return figure
