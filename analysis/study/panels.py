"""The figures of a study's report: each a function, with the section that it belongs to and its caption."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import COLUMN, made_taller, new_axes, wrapped
from analysis.images.plots import balance_strip, contact_sheet
from analysis.receptive_field.plots import erf_figure
from analysis.receptive_field.result import ErfResult
from analysis.runs.texts import few
from analysis.shape_bias.result import ShapeBiasResult
from analysis.study import plots
from analysis.study.measures import MEASURES, STIMULI, people_table
from analysis.study.record import StudyRecord
from analysis.study.result import CellResult, plain_settings, settings_of
from replknet.networks import family_named

_FAMILY_WIDTH = 2.9
"""Inches of one family beside others."""
_NARROWEST = 2.2
"""Inches of it where they have to fit a width."""


@dataclass(frozen=True)
class View:
    """A study as its report shows it.

    Args:
        record: The study and its results.
        table: Of `study_table`.
        width: Of every figure, in inches; by default that of a column, or what families need beside each other.
    """

    record: StudyRecord
    table: pd.DataFrame
    width: float | None = None

    @cached_property
    def families(self) -> dict[str, list[CellResult]]:
        """The results of the first setting of each family, by its name, in the order of kernels and seeds."""
        by_name = {result.cell.name: result for result in self.record.results}
        return {name: [by_name[cell] for cell in rows["cell"]] for name, rows in plain_settings(self.table).items()}

    @cached_property
    def plain(self) -> list[CellResult]:
        """All of these."""
        return [result for own in self.families.values() for result in own]

    @cached_property
    def first(self) -> list[CellResult]:
        """Those of the first seed."""
        seed = min(result.cell.seed for result in self.plain)
        return [result for result in self.plain if result.cell.seed == seed]

    def title_of(self, result: CellResult) -> str:
        """Of a network's receptive field: the kernel, with the family and the seed if there are several."""
        family = f"{family_named(result.cell.family).name}, " if len(self.families) > 1 else ""
        seed = f", seed {result.cell.seed}" if len(set(self.table["seed"])) > 1 else ""
        return f"{family}kernel {result.cell.kernel}{seed}"

    @cached_property
    def people(self) -> list[ShapeBiasResult]:
        """What people answered to the images that the networks were shown."""
        shown = [result.cue_conflict for result in self.record.results if result.cue_conflict is not None]
        images = {name for answers in shown for name in answers.stimuli}
        own = [person.restricted([name for name in person.stimuli if name in images]) for person in self.record.people]
        return [person for person in own if person.stimuli]

    @cached_property
    def people_table(self) -> pd.DataFrame:
        """Of `people_table`; empty without people."""
        return people_table(self.people)

    def has(self, measure: str) -> bool:
        """Whether it was measured on some network."""
        return measure in self.table and bool(self.table[measure].notna().any())


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A figure of the report.

    Args:
        name: Of its files.
        section: That it is in.
        caption: Below it.
        draw: Makes it.
        needs: A measure without which there is nothing to draw.
        wide: As wide as the page.
        maps: In place of the figure, the receptive fields on the page; see `map_groups`.
    """

    name: str
    section: str
    caption: str
    draw: Callable[[Any], Figure]
    needs: str = "accuracy"
    wide: bool = False
    maps: Callable[[Any], Sequence[tuple[ErfResult, str, Mapping[str, Any]]]] | None = None


def _fields_text(view: View) -> str:
    shown = {result.cell.name for result in view.first}
    label = "; ".join(label for label, rows in settings_of(view.table) if label and shown.intersection(rows["cell"]))
    return (
        f"Mean absolute gradient of the central unit of the last feature map over {len(view.first[0].erf.images)} "
        f"validation images, magnified to {view.record.study.erf_size} pixels (the paper: 1024 for training at 224); "
        f"all on one scale. Seed {view.first[0].cell.seed}{f' ({label})' if label else ''}; the areas of all seeds are "
        "in the figures above and in the table."
    )


def _stimuli_text(view: View) -> str:
    shown = [(name, getattr(result, name)) for result in view.record.results for name in STIMULI]
    answers = {name: own for name, own in shown if own is not None}
    if not answers:
        return ""
    mapping: Any = next(iter(answers.values())).mapping
    classes = view.record.results[0].classes
    own = {category: [classes[index] for index in indices] for category, indices in mapping.indices}
    named = [category if names == [category] else f"{category} ({', '.join(names)})" for category, names in own.items()]
    others = [name for name in classes if not any(name in names for names in own.values())]
    counts = [f"{len(given.stimuli)} {name.replace('_', '-')}" for name, given in answers.items()]
    text = (
        f"Stimuli of others ({', '.join(counts)}), resized bicubically with antialiasing to {view.record.study.size} "
        f"pixels, as the training images were. Networks decide between {', '.join(named)}"
        f"{f'; other classes ({few(others)}) do not compete' if others else ''}. Where shape and texture tell the same "
        "class, the accuracy says whether the networks see anything in such images at all."
    )
    if view.people:
        seen = " or ".join(str(count) for count in sorted({len(person.stimuli) for person in view.people}))
        text += (
            f" {len(view.people)} people saw {seen} of the cue-conflict images, at their full size, and had more "
            "categories to choose from: what they answered outside of these is neither shape nor texture. Their line "
            "is the mean with its 95 % interval over people."
        )
    return text


SECTIONS: dict[str, Callable[[View], str]] = {
    "Kernel size": lambda _: (
        "Every dot is one training; lines join means, bars are 95 % intervals. A hollow mark "
        "is the mean of the seeds that have a value, where others lack it."
    ),
    "Effective receptive fields": _fields_text,
    "Shape against texture": lambda _: (
        "A logistic function of the balance of the cues, fitted to the answers of all seeds together. Vertical marks "
        "are its points of subjective equality; the table has their mean over seeds, each fitted on its own."
    ),
    "Real stimuli": _stimuli_text,
    "The images": lambda _: (
        "Every class has an outline and a texture. The network names one class; on a conflict image it cannot be right "
        "about both."
    ),
    "Cost and training": lambda _: "Times were taken while other cells waited, not side by side.",
}
"""Title and text of each, in order."""
_SEEDS = 3
"""Whose receptive fields are on the page."""
PANELS: list[Panel] = []
"""In order."""


def panel(section: str, caption: str, **options: Any) -> Callable[[Callable[[View], Figure]], Callable[[View], Figure]]:
    """Put a figure, named as its function, into a section of the report."""

    def register(draw: Callable[[View], Figure]) -> Callable[[View], Figure]:
        PANELS.append(Panel(name=draw.__name__, section=section, caption=caption, draw=draw, **options))
        return draw

    return register


def _each_family(view: View, draw: Callable[[list[CellResult], Axes], object]) -> Figure:
    """A figure of one family's networks; of several families side by side where they fit, on one scale."""
    count = len(view.families)
    if count == 1:
        ax = new_axes(view.width or COLUMN, 3.1)
        draw(view.plain, ax)
        return made_taller(ax)
    width = view.width or _FAMILY_WIDTH * count
    columns = min(count, max(1, int(width / _NARROWEST)))
    rows = -(-count // columns)
    figure = Figure(figsize=(width, 2.2 * rows + 0.9), layout="constrained")
    axes = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for ax in axes[count:]:
        ax.set_visible(False)
    known: dict[str, Any] = {}
    title = ""
    for number, (name, own) in enumerate(view.families.items()):
        ax = axes[number]
        draw(own, ax)
        ax.set_title(name)
        below = wrapped(ax.get_xlabel(), 72 * width / columns - 45)
        ax.label_outer()
        if number + columns >= count:  # none is below it that is seen
            ax.set_xlabel(below)
            ax.tick_params(labelbottom=True)
        for line in ax.lines:  # markers are not cut at the axes, and what they stand out is no matter of layout
            line.set_in_layout(False)
        handles, labels = ax.get_legend_handles_labels()
        known = dict(zip(labels, handles, strict=True)) | known
        legend = ax.get_legend()
        if legend is not None:
            title = legend.get_title().get_text()
            legend.remove()
    places: dict[str, Any] = {"loc": "outside lower center", "ncols": min(len(known), int(width)), "frameon": False}
    figure.legend(known.values(), known.keys(), title=title or None, **places)
    return figure


def plot_measure(view: View, *shown: tuple[str, str], chance: str = "") -> Figure:
    """Measures, each with its label, against the kernel size, drawn as the first one says.

    People are a line behind a single measure, and guessing where `chance` names the measure of it.
    """
    first = MEASURES[shown[0][0]]
    ax = new_axes(view.width or COLUMN, 3.1)
    lines = [plots.Line("guessing", view.table[chance].dropna().iloc[0], dash=":")] if chance else []
    if len(shown) == 1 and first.name in view.people_table:
        values = view.people_table[first.name].tolist()
        lines.append(plots.Line("people", float(np.nanmean(values)), *first.interval(values)))
    plots.plot_by_kernel(view.table, shown, scale=first.scale, lines=lines, ax=ax)
    ax.set_ylabel(first.label or first.heading)
    ax.set_ylim(*first.limits)
    return made_taller(ax)


def _by_kernel(name: str, section: str, caption: str, *shown: tuple[str, str], chance: str = "") -> None:
    """A panel with `plot_measure`."""

    def draw(view: View) -> Figure:
        return plot_measure(view, *shown, chance=chance)

    PANELS.append(Panel(name=name, section=section, caption=caption, draw=draw, needs=shown[0][0]))


_by_kernel(
    "area",
    "Kernel size",
    "Area that holds half of the gradient, trained and before (batch norms calibrated).",
    ("erf_area_0.5", "trained"),
    ("untrained_erf_area_0.5", "untrained"),
)
_by_kernel("shape_bias", "Kernel size", "Shape bias on conflict images with both cues full.", ("shape_bias", ""))
_by_kernel("accuracy", "Kernel size", "Accuracy on the validation images.", ("accuracy", ""))


def _titles(view: View) -> list[str]:
    return [view.title_of(result) for result in view.first]


def _fields(name: str) -> Callable[[View], list[tuple[ErfResult, str, Mapping[str, Any]]]]:
    """Of some seeds of the first settings, the first one first: it is shown where there is no script."""

    def maps(view: View) -> list[tuple[ErfResult, str, Mapping[str, Any]]]:
        seeds = sorted({result.cell.seed for result in view.plain})[:_SEEDS]
        own = [result for seed in seeds for result in view.plain if result.cell.seed == seed]
        return [
            (
                getattr(result, name),
                view.title_of(result),
                {"kernel": result.cell.kernel, "seed": result.cell.seed, "hidden": result.cell.seed != seeds[0]}
                | ({"model": family_named(result.cell.family).name} if len(view.families) > 1 else {}),
            )
            for result in own
        ]

    return maps


@panel(
    "Effective receptive fields",
    "Trained. The solid square holds half of the gradient, the dashed one 99 %.",
    wide=True,
    maps=_fields("erf"),
)
def erf_trained(view: View) -> Figure:
    return erf_figure([result.erf for result in view.first], titles=_titles(view))


@panel(
    "Effective receptive fields",
    "The same networks before the training, their batch norms calibrated on training images.",
    wide=True,
    maps=_fields("untrained_erf"),
)
def erf_untrained(view: View) -> Figure:
    return erf_figure([result.untrained_erf for result in view.first], titles=_titles(view))


@panel(
    "Shape against texture",
    "Share of shape decisions as the texture gets stronger and the figure weaker.",
    needs="shape_bias",
)
def psychometric(view: View) -> Figure:
    return _each_family(view, lambda own, ax: plots.plot_psychometric(own, ax=ax))


_by_kernel(
    "pse",
    "Shape against texture",
    "Point of subjective equality: above 0, shape wins even where it is the weaker cue.",
    ("pse", ""),
)


@panel(
    "Shape against texture",
    "Shape bias against the effective receptive field, every training a point.",
    needs="shape_bias",
)
def erf_and_bias(view: View) -> Figure:
    def draw(own: list[CellResult], ax: Axes) -> None:
        plots.plot_erf_against_bias(view.table[view.table["family"] == own[0].cell.family], ax=ax)

    return _each_family(view, draw)


_by_kernel(
    "single_cues",
    "Shape against texture",
    "Accuracy where only one of the cues is there.",
    ("shape_only_accuracy", "only shape"),
    ("texture_only_accuracy", "only texture"),
)


@panel(
    "The images",
    "One image of each class, drawn at 96 pixels: both cues, conflict, one cue only.",
    wide=True,
    needs="shape_bias",
)
def stimuli(view: View) -> Figure:
    study = view.record.study
    return contact_sheet(texture_region=study.texture_region, texture_scale=study.texture_scale)


@panel(
    "The images",
    "Three scenes in conflict at every balance, from no texture (-1) to no figure (1).",
    wide=True,
    needs="shape_bias",
)
def balance(view: View) -> Figure:
    study = view.record.study
    return balance_strip(study.balances, texture_region=study.texture_region, texture_scale=study.texture_scale)


_by_kernel(
    "cue_conflict",
    "Real stimuli",
    "Shape bias where shape and texture tell different classes.",
    ("cue_conflict_shape_bias", ""),
)
_by_kernel(
    "congruent",
    "Real stimuli",
    "Accuracy where shape and texture tell the same class.",
    ("congruent_accuracy", ""),
    chance="cue_conflict_chance",
)
_by_kernel(
    "cue_conflict_cues",
    "Real stimuli",
    "How much is answered with either cue where they tell different classes; the rest with neither.",
    ("cue_conflict_shape", "shape"),
    ("cue_conflict_texture", "texture"),
    chance="cue_conflict_chance",
)
_by_kernel("edges", "Real stimuli", "Accuracy on edges.", ("edges_accuracy", ""), chance="edges_chance")
_by_kernel(
    "silhouettes",
    "Real stimuli",
    "Accuracy on silhouettes.",
    ("silhouettes_accuracy", ""),
    chance="silhouettes_chance",
)
_by_kernel("macs", "Cost and training", "Multiply-accumulates for one image.", ("macs", ""))
_by_kernel("parameters", "Cost and training", "Parameters, kernels merged.", ("merged_parameters", ""))
_by_kernel("step_time", "Cost and training", "Median time of a training step.", ("seconds_per_step", ""))
_by_kernel("inference", "Cost and training", "Inference, re-parameterised, batches of 32.", ("inference_ms", ""))


@panel("Cost and training", "Validation accuracy during the training.")
def curves(view: View) -> Figure:
    return _each_family(view, lambda own, ax: plots.plot_curves(own, ax=ax))
