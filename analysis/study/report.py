"""One self-contained HTML page of a kernel-size study, with its figures and its table."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import pandas as pd

from analysis.figures import OKABE_ITO, paper_style, save_figure
from analysis.runs.tables import write_table
from analysis.runs.writing import clear_leftovers, replacing
from analysis.study.association import association_rows
from analysis.study.design import Study
from analysis.study.measures import REPORTED, Measure, shown
from analysis.study.panels import PANELS, SECTIONS, Panel, View
from analysis.study.record import StudyRecord, load_study
from analysis.study.result import settings_of, study_table
from analysis.study.verdict import chance_of_any, findings, power_text, summary_text, warnings_of

REPORT = "report.html"
TABLE = "study.csv"
FIGURES = "figures"
_TEMPLATE = "report.html.j2"
_INK = "#010203"
"""Stands for the page's own text colour in figures that are put into it."""


def write_report(directory: str | PathLike[str]) -> Path:
    """Write the table, every figure as PNG and PDF, and `report.html` into the folder of a study.

    Of a study that is not finished, the page shows what there is and names the rest; while no cell is finished, it is
    the only file.

    Returns:
        The path of the page.

    Raises:
        ResultError: If the folder holds no study, or a file is damaged.
    """
    directory = Path(directory)
    record = load_study(directory)
    for name in (REPORT, TABLE):
        clear_leftovers(directory, of=name)
    clear_leftovers(directory / FIGURES)
    if not record.results:
        return write_page(directory / REPORT, _render(record, None, []))
    table = study_table(record.results)
    view = View(record, table)
    with replacing(directory / TABLE) as path:
        write_table(table, path)
    return write_page(directory / REPORT, _render(record, view, drawn(PANELS, SECTIONS, view, directory / FIGURES)))


def drawn(
    panels: Sequence[Panel], sections: Mapping[str, Callable[[Any], str]], view: Any, folder: Path
) -> list[dict[str, Any]]:
    """Write the figures of a report as PNG and PDF; returns the sections of the page that have some.

    Args:
        panels: The figures; those for which the view has what they need.
        sections: Title and text of each.
        view: What the panels show.
        folder: For the files.
    """
    shown = []
    for title, text in sections.items():
        own = [panel for panel in panels if panel.section == title and view.has(panel.needs)]
        for panel in own:
            with paper_style():
                save_figure(panel.draw(view), panel.name, lambda name: replacing(folder / name))
        figures = [{"svg": _inline_svg(panel, view), "caption": panel.caption} for panel in own]
        columns = not any(panel.wide for panel in own)
        shown += [{"title": title, "text": text(view), "figures": figures, "columns": columns}] if own else []
    return shown


def write_page(path: Path, page: str) -> Path:
    """Write a page, whole or not at all; returns its path."""
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def rendered(template: str, **context: Any) -> str:
    """A page from one of the templates; every value that it names has to be there."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("analysis.study"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(**context)


def _inline_svg(panel: Panel, view: Any) -> str:
    """The figure as an SVG element in the colours of the page."""
    style: dict[Any, Any] = {
        "svg.fonttype": "path",
        "svg.hashsalt": panel.name,
        "savefig.transparent": True,
        "savefig.dpi": 130,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    }
    buffer = io.StringIO()
    with paper_style(), mpl.rc_context(style):
        panel.draw(view).savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor").replace(OKABE_ITO[0].lower(), "var(--blue)")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Identifiers are unique in a figure; those of glyphs would meet in the page.
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{panel.name}-", svg)
    width = float(re.search(r'width="([\d.]+)pt"', svg)[1])  # type: ignore[index]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg))
    return svg.replace("<svg", f'<svg style="max-width: {1.7 * width:.0f}px"', 1)


def _render(record: StudyRecord, view: View | None, sections: list[dict[str, Any]]) -> str:
    study = record.study
    num_done = sum(state.state == "done" for state in record.states)
    common: dict[str, Any] = {
        "title": "Does a larger kernel see further, and does it see shape?",
        "question": _question(study, measured=view is not None and view.has("cue_conflict_shape_bias")),
        "command": record.command,
        "states": [] if num_done == len(record.states) else record.states,
        "num_done": num_done,
    }
    if view is None:
        return rendered(_TEMPLATE, **common, finished=False, summary="No network is trained yet.")
    sequential = study.until_width is not None
    table = view.table
    groups: list[dict[str, Any]] = []
    if len(set(table["kernel"])) > 1:
        groups = [
            {
                "label": label,
                "findings": findings(rows, sequential=sequential),
                "power": power_text(rows),
                "associations": association_rows(rows),
            }
            for label, rows in settings_of(table)
            if len(set(rows["kernel"])) > 1
        ]
    num_tests = sum(f.trend.test != "none" for group in groups for f in group["findings"])
    kernels = ", ".join(map(str, record.kernels))
    what = "generated images with two cues" if study.data is None else f"the images of {Path(study.data).name}"
    num_seeds = table["seed"].nunique()
    return rendered(
        _TEMPLATE,
        **common,
        finished=True,
        summary=(
            f"{len(record.results)} RepLKNets with kernels of {kernels} pixels, trained on {what} by one recipe with "
            f"{num_seeds} seed{'s' * (num_seeds != 1)} and measured alike."
        ),
        groups=groups,
        warnings=warnings_of(table, chance=1 / len(record.results[0].classes)),
        num_tests=num_tests,
        chance_of_any=round(100 * chance_of_any(num_tests)),
        num_seeds=num_seeds,
        until_width=study.until_width,
        setting=_setting(record),
        sections=sections,
        columns=["kernel", "small kernel", "shortcut", "seeds", *(measure.heading for measure in _columns(table))],
        rows=_rows(view),
        has_people=bool(view.people),
        environment=sorted(record.results[0].environment.items()),
    )


def _question(study: Study, *, measured: bool) -> str:
    """What is asked, and whether real stimuli can answer of shape."""
    text = (
        "RepLKNet's authors report that a few very large kernels give a network a far larger effective receptive field "
        "and a higher shape bias than small ones. Here the networks differ in nothing but the size of their large "
        "depthwise kernels."
    )
    if study.data is not None:
        how = "is measured on the real stimuli alone" if measured else "is not measured"
        return f"{text} Shape bias {how}: that takes images with two cues."
    strengths = (
        "one of the two cues, drawn at random, is weakened by a random part, so that neither can be relied on alone"
        if study.train_balance is None
        else f"the balance of the cues is always {study.train_balance:g}"
    )
    where = "the whole image" if study.texture_region == "image" else "the figure only"
    return (
        f"{text} Each of twelve classes has an outline and a texture, which covers {where} and keeps its order over a "
        f"few periods only, so that it is a local cue. In training both tell the same class; {strengths}. In the test "
        "they tell different classes."
    )


def _setting(record: StudyRecord) -> list[tuple[str, str]]:
    study, recipe = record.study, record.study.recipe
    capped = [k for k in record.kernels if len(set(study.kernel_sizes(k))) > 1]
    sizes = "; ".join(f"{k}: {'-'.join(map(str, study.kernel_sizes(k)))}" for k in record.kernels)
    rows = [
        (
            "network",
            f"RepLKNet, {'-'.join(map(str, study.layers))} pairs of blocks, width {'-'.join(map(str, study.channels))}",
        ),
        ("kernels by stage", sizes),
    ]
    if capped:
        rows.append(
            ("", "capped at twice the side of the stage's map minus 1: further taps would never meet the image")
        )
    small = ", ".join(f"{k}x{k}" if k else "none" for k in sorted({r.cell.small_kernel for r in record.results}))
    rows.append(("small kernel in parallel", small))
    rows.append(
        (
            "identity shortcut",
            " and ".join("with" if s else "without" for s in sorted({r.cell.shortcut for r in record.results})),
        )
    )
    first = record.results[0]
    source = "generated" if study.data is None else Path(study.data).name
    amount = f"{study.num_train} generated" if study.data is None else source
    rows.append(("training images", f"{amount}, {study.size} x {study.size} pixels, {len(first.classes)} classes"))
    rows.append(("validation images", str(first.num_val)))
    rows.append(
        (
            "recipe",
            f"AdamW, {recipe.steps} steps of {recipe.batch_size} images, peak rate {recipe.learning_rate:g}, warm-up "
            f"{100 * recipe.warmup:g} %, cosine, weight decay {recipe.weight_decay:g}, label smoothing "
            f"{recipe.label_smoothing:g}, drop path {recipe.drop_path_rate:g}, augmentation {recipe.augmentation}, "
            f"{'no moving average' if recipe.ema_decay is None else f'moving average {recipe.ema_decay:g}'}",
        )
    )
    rows.append(("receptive fields", f"{study.num_erf} images of {study.erf_size} pixels, raw gradient magnitude"))
    if study.data is None:
        rows.append(("conflict images", f"{study.num_conflict} scenes at each of {len(study.balances)} balances"))
    return rows


def _columns(table: pd.DataFrame) -> list[Measure]:
    return shown(REPORTED, table)


def _rows(view: View) -> list[list[str]]:
    table, people = view.table, view.people_table
    rows = []
    for (kernel, small, shortcut), own in table.groupby(["kernel", "small_kernel", "shortcut"], sort=False):
        row = [str(kernel), str(small or "none"), "yes" if shortcut else "no", str(len(own))]
        rows.append(row + [summary_text(own[measure.name].tolist(), measure) for measure in _columns(table)])
    if len(people):
        values = [people[measure.name].tolist() if measure.name in people else [] for measure in _columns(table)]
        cells = [summary_text(given, measure) for given, measure in zip(values, _columns(table), strict=True)]
        rows.append(["people", "", "", str(len(people)), *cells])
    return rows
