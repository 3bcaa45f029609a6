"""The kinds of figures that saved results have, each drawn at any width."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from analysis.figures import COLUMN, cells_figure, made_taller, new_axes, paper_style
from analysis.receptive_field import plots as field_plots
from analysis.recognition.plots import plot_answers
from analysis.redrawing.saved import Saved
from analysis.runs.settings import Range, check_number
from analysis.shape_bias import plots as bias_plots
from analysis.shape_bias.comparing import consistency_table, human_reference
from analysis.study import plots as study_plots
from analysis.study.compared.panels import ComparisonView, scatter
from analysis.study.compared.result import Comparison
from analysis.study.measures import MEASURES
from analysis.study.panels import PANELS, Panel, View, plot_measure
from analysis.study.posthoc import posthoc_table
from analysis.study.result import first_seeds, study_table

_WIDTHS: Range = (1.5, 20, "1.5 to 20 inches")


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a figure is drawn.

    Args:
        width: In inches; 3.4 is a column of many journals, 7 both.
        cmap: A colour map of matplotlib, of a kind that has one.
        centered: Receptive fields count pixels from the unit.
    """

    width: float = COLUMN
    cmap: str | None = None
    centered: bool = False

    @property
    def colors(self) -> dict[str, Any]:
        """The colour map as an argument, where one was given."""
        return {} if self.cmap is None else {"cmap": self.cmap}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A figure that some results have.

    Args:
        draw: Makes it.
        has: Whether the results have it.
        needs: What they must hold for that, in words.
        has_colors: Whether it has a colour map.
        has_center: Whether it can be centred on the unit.
    """

    draw: Callable[[Saved, Look], Figure]
    has: Callable[[Saved], Any]
    needs: str = ""
    has_colors: bool = False
    has_center: bool = False


KINDS: dict[str, Kind] = {}
"""By name; studies have their measures and panels, too, see `kinds_of`."""


def _kind(name: str, needs: str, has: Callable[[Saved], Any], **options: bool) -> Callable[[Any], Any]:
    def register(draw: Callable[[Saved, Look], Figure]) -> Callable[[Saved, Look], Figure]:
        KINDS[name] = Kind(draw=draw, has=has, needs=needs, **options)
        return draw

    return register


def draw_saved(saved: Saved, kind: str, look: Look | None = None, *, font: str | None = None) -> Figure:
    """A figure of results, in a style for papers.

    Args:
        saved: Of `read_saved`.
        kind: One of `kinds_of` them.
        look: How.
        font: Name of an installed font.

    Raises:
        ValueError: If the results have no such figure, or an option does not go with it.
    """
    look = look or Look()
    check_number("width", look.width, _WIDTHS)
    known = kinds_of(saved)
    name = kind.replace("_", "-")
    if name in KINDS and name not in known:
        raise ValueError(
            f"kind={kind!r}: needs {KINDS[name].needs}, which these results do not hold; expected one of those that "
            f"they have: {', '.join(known)}"
        )
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        given = f"kind={kind!r}" if kind else "kind"
        raise ValueError(f"{given}: expected one of those that these results have: {', '.join(known)}{hint}")
    chosen = known[name]
    if look.cmap is not None:
        if not chosen.has_colors:
            own = [other for other, item in known.items() if item.has_colors]
            raise ValueError(f"cmap={look.cmap!r}: goes with kinds that have one ({', '.join(own) or 'none here'})")
        if look.cmap not in mpl.colormaps:
            near = difflib.get_close_matches(look.cmap, list(mpl.colormaps), n=3) or ["viridis", "magma", "cividis"]
            raise ValueError(f"cmap={look.cmap!r}: expected a colour map of matplotlib, such as {', '.join(near)}")
    if look.centered and not chosen.has_center:
        raise ValueError("centered=True: goes with kind='erf'")
    with paper_style(font=font):
        return chosen.draw(saved, look)


def kinds_of(saved: Saved) -> Mapping[str, Kind]:
    """The figures that results have, by name."""
    found = {name: kind for name, kind in KINDS.items() if kind.has(saved)}
    if len(saved.studies) != 1:
        return found
    view = _view(saved, Look())
    for panel in PANELS:
        name = panel.name.replace("_", "-")
        if view.has(panel.needs) and not panel.wide and name not in found:
            found[name] = Kind(draw=partial(_panel, panel), has=lambda saved: saved.studies)
    for name, measure in MEASURES.items():
        shown = name.replace("_", "-")
        if measure.heading and view.has(name) and shown not in found:
            found[shown] = Kind(draw=partial(_measure, name), has=lambda saved: saved.studies)
    return found


def _view(saved: Saved, look: Look) -> View:
    (record,) = saved.studies
    return View(record, study_table(record.results), look.width)


def _panel(panel: Panel, saved: Saved, look: Look) -> Figure:
    return panel.draw(_view(saved, look))


def _measure(name: str, saved: Saved, look: Look) -> Figure:
    return plot_measure(_view(saved, look), (name, ""))


# Of receptive fields ----------------------------------------------------------------------------------------------


@_kind("erf", "receptive fields", lambda saved: saved.fields, has_colors=True, has_center=True)
def _erf(saved: Saved, look: Look) -> Figure:
    return field_plots.erf_figure(saved.fields, width=look.width, centered=look.centered, **look.colors)


@_kind("erf-untrained", "one study", lambda saved: len(saved.studies) == 1, has_colors=True, has_center=True)
def _erf_untrained(saved: Saved, look: Look) -> Figure:
    named = first_seeds(saved.studies[0].results)
    fields = [replace(cell.untrained_erf, model=label) for label, cell in named.items()]
    return field_plots.erf_figure(fields, width=look.width, centered=look.centered, **look.colors)


@_kind("contribution", "receptive fields", lambda saved: saved.fields)
def _contribution(saved: Saved, look: Look) -> Figure:
    return field_plots.curves_figure(field_plots.plot_contribution, saved.fields, width=look.width)


@_kind("radial", "receptive fields", lambda saved: saved.fields)
def _radial(saved: Saved, look: Look) -> Figure:
    return field_plots.curves_figure(field_plots.plot_radial, saved.fields, width=look.width)


@_kind("growth", "receptive fields of several layers", lambda saved: len({field.layer for field in saved.fields}) > 1)
def _growth(saved: Saved, look: Look) -> Figure:
    return field_plots.curves_figure(field_plots.plot_growth, saved.fields, width=look.width)


# Of shape bias ----------------------------------------------------------------------------------------------------


def _decided(saved: Saved) -> bool:
    return any(result.num_images for result in saved.observers)


@_kind("shape-bias", "answers to images with a conflict of shape and texture", _decided)
def _shape_bias(saved: Saved, look: Look) -> Figure:
    observers, people = saved.on_common_images()
    return bias_plots.shape_bias_figure(observers, humans=people, cluster=saved.cluster, width=look.width)


@_kind("categories", "answers to images with a conflict of shape and texture", _decided)
def _categories(saved: Saved, look: Look) -> Figure:
    observers, people = saved.on_common_images()
    return bias_plots.box_figure(observers, humans=people, width=look.width)


@_kind("pairs", "answers to images with a conflict of shape and texture", _decided, has_colors=True)
def _pairs(saved: Saved, look: Look) -> Figure:
    observers, _ = saved.on_common_images()
    return cells_figure(bias_plots.plot_pair_map, observers, width=look.width, **look.colors)


@_kind(
    "confusion",
    "answers to images of known shapes or classes",
    lambda saved: saved.observers or saved.evaluations,
    has_colors=True,
)
def _confusion(saved: Saved, look: Look) -> Figure:
    if not saved.observers:
        return cells_figure(plot_answers, saved.evaluations, width=look.width, **look.colors)
    observers, _ = saved.on_common_images()
    return cells_figure(bias_plots.plot_confusion, observers, width=look.width, **look.colors)


@_kind(
    "consistency", "answers of networks and of several people", lambda saved: saved.observers and len(saved.people) > 1
)
def _consistency(saved: Saved, look: Look) -> Figure:
    observers, people = saved.on_common_images()
    table = consistency_table(observers, people, saved.cluster)
    return bias_plots.consistency_figure(table, human_reference(people), width=look.width)


@_kind(
    "sensitivity",
    "the sensitivities of one run",
    lambda saved: len(saved.sensitivity) == 1 and len(saved.sensitivity[0]),
)
def _sensitivity(saved: Saved, look: Look) -> Figure:
    return bias_plots.sensitivity_figure(saved.sensitivity[0], width=look.width)


# Of studies -------------------------------------------------------------------------------------------------------


@_kind(
    "psychometric",
    "answers at several balances of the cues, of one study",
    lambda saved: len(saved.studies) < 2 and any(cell.balances for cell in saved.cells),
)
def _psychometric(saved: Saved, look: Look) -> Figure:
    ax = new_axes(look.width, 3.1)
    return made_taller(study_plots.plot_psychometric([cell for cell in saved.cells if cell.balances], ax=ax))


@_kind("curves", "one study", lambda saved: len(saved.studies) < 2 and saved.cells)
def _curves(saved: Saved, look: Look) -> Figure:
    ax = new_axes(look.width, 3.1)
    return made_taller(study_plots.plot_curves(saved.cells, ax=ax))


@_kind("posthoc", "one network with cropped kernels", lambda saved: saved.variants and len(saved.energy) == 1)
def _posthoc(saved: Saved, look: Look) -> Figure:
    return study_plots.posthoc_figure(posthoc_table(saved.variants), saved.energy[0], width=look.width)


@_kind(
    "compare",
    "networks with both a receptive field and a shape bias",
    lambda saved: any(network.erf and network.shape_bias for network in saved.networks),
)
def _compare(saved: Saved, look: Look) -> Figure:
    comparison = Comparison(networks=saved.networks, people=tuple(saved.people))
    return scatter(ComparisonView(comparison, look.width))
