"""One self-contained HTML page of a kernel-size study, with its figures and its table."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from analysis.pages.drawing import Drawing, save_drawings, shown_drawings
from analysis.pages.page import Section, Table, rendered, write_page
from analysis.receptive_field.page import map_groups
from analysis.runs.methods import PAPER, joined, software, write_methods
from analysis.runs.tables import write_table
from analysis.runs.writing import clear_leftovers, replacing
from analysis.study.association import association_rows
from analysis.study.budget import BUDGETS, TOLERANCE
from analysis.study.design import CAP, REFERENCE, Study, has_choice
from analysis.study.families import COLUMNS, architecture_text, family_differences
from analysis.study.measures import REPORTED, Measure, shown
from analysis.study.methods import study_methods
from analysis.study.panels import PANELS, SECTIONS, Panel, View
from analysis.study.posthoc import has_small_branch
from analysis.study.record import STUDY_FILE, StudyRecord, load_study
from analysis.study.result import by_kernel, settings_of, study_table
from analysis.study.verdict import chance_of_any, findings, power_text, summary_text, warnings_of
from replknet.networks import build, family_named

REPORT = "report.html"
TABLE = "study.csv"
FIGURES = "figures"
_TEMPLATE = "report.html.j2"
_PACKAGE = "analysis.study"


def write_report(directory: str | PathLike[str]) -> Path:
    """Write the table, every figure as PNG and PDF, a text on the methods, and `report.html` into a study's folder.

    Of a study that is not finished, the page shows what there is and names the rest; while no cell is finished, it is
    the only file.

    Returns:
        The path of the page.

    Raises:
        ResultError: If the folder holds no study, or a file is damaged.
    """
    directory = Path(directory)
    record = load_study(directory)
    for name in (REPORT, TABLE, *PAPER):
        clear_leftovers(directory, of=name)
    clear_leftovers(directory / FIGURES)
    if not record.results:
        return write_page(directory / REPORT, _render(record, None, [], [], [STUDY_FILE]))
    table = study_table(record.results)
    view = View(record, table)
    with replacing(directory / TABLE) as path:
        write_table(table, path)
    sections, maps = drawn(PANELS, SECTIONS, view, directory / FIGURES)
    environments = (result.environment for result in record.results)
    write_methods(study_methods(record) + software(environments), lambda name: replacing(directory / name))
    figures = [f"{FIGURES}/{panel.name}.pdf" for panel in PANELS if view.has(panel.needs)]
    files = [TABLE, STUDY_FILE, *PAPER, *figures, *(f"cells/{result.cell.name}/" for result in record.results)]
    return write_page(directory / REPORT, _render(record, view, sections, maps, files))


def drawn(
    panels: Sequence[Panel], sections: Mapping[str, Callable[[Any], str]], view: Any, folder: Path
) -> tuple[list[Section], list[dict[str, Any]]]:
    """Write the figures of a report as PNG and PDF.

    Args:
        panels: The figures; those for which the view has what they need.
        sections: Title and text of each.
        view: What the panels show.
        folder: For the files.

    Returns:
        The sections of the page that have some, and the numbers of the receptive fields in them.
    """
    own = [panel for panel in panels if view.has(panel.needs)]
    drawings = {
        panel.name: Drawing(name=panel.name, caption=panel.caption, draw=lambda panel=panel: panel.draw(view))  # type: ignore[misc]
        for panel in own
    }
    save_drawings(list(drawings.values()), lambda name: replacing(folder / name))
    fields = [panel for panel in own if panel.maps is not None]
    groups, numbers = map_groups([(panel.caption, panel.maps(view)) for panel in fields if panel.maps is not None])
    shown: list[Section] = []
    for title, text in sections.items():
        of_section = [panel for panel in own if panel.section == title]
        figures = [panel for panel in of_section if panel.maps is None]
        if of_section:
            section = Section(
                title=title,
                text=text(view),
                explorer="points" if not shown else "",
                maps=[group for panel, group in zip(fields, groups, strict=True) if panel.section == title],
                figures=shown_drawings([drawings[panel.name] for panel in figures]),
                columns=not any(panel.wide for panel in figures),
            )
            shown.append(section)
    return shown, numbers


def _render(
    record: StudyRecord, view: View | None, sections: list[Section], maps: list[dict[str, Any]], files: list[str]
) -> str:
    study = record.study
    num_done = sum(state.state == "done" for state in record.states)
    common: dict[str, Any] = {
        "title": "Does a larger kernel see further, and does it see shape?",
        "question": _question(
            study,
            alone=study.families == (REFERENCE,) if view is None else set(view.table["family"]) == {REFERENCE},
            measured=view is not None and view.has("cue_conflict_shape_bias"),
        ),
        "command": record.command,
        "states": [] if num_done == len(record.states) else record.states,
        "num_done": num_done,
        "files": files,
        "package": _PACKAGE,
    }
    if view is None:
        return rendered(_TEMPLATE, **common, finished=False, summary="No network is trained yet.", environment=[])
    sequential = study.until_width is not None
    table = view.table
    groups: list[dict[str, Any]] = []
    if len(set(table["kernel"])) > 1:
        groups = [
            {
                "label": label,
                "findings": findings(rows, sequential=sequential),
                "power": power_text(rows, sequential=sequential),
                "associations": association_rows(rows),
            }
            for label, rows in settings_of(table)
            if len(set(rows["kernel"])) > 1
        ]
    differences = family_differences(table, sequential=sequential)
    num_tests = sum(f.trend.test != "none" for group in groups for f in group["findings"])
    num_tests += sum(found.overall.test != "none" for found in differences)
    kernels = ", ".join(map(str, record.kernels))
    what = "generated images with two cues" if study.data is None else f"the images of {Path(study.data).name}"
    num_seeds = table["seed"].nunique()
    return rendered(
        _TEMPLATE,
        **common,
        finished=True,
        summary=(
            f"{len(record.results)} {_networks(list(view.families))} with kernels of {kernels} pixels, trained on "
            f"{what} by one recipe with {num_seeds} seed{'s' * (num_seeds != 1)} and measured alike."
        ),
        groups=groups,
        families=Table(columns=COLUMNS, rows=[found.row() for found in differences]) if differences else None,
        warnings=warnings_of(table, chance=record.chance),
        num_tests=num_tests,
        chance_of_any=round(100 * chance_of_any(num_tests)),
        num_seeds=num_seeds,
        until_width=study.until_width,
        setting=_setting(view),
        sections=sections,
        data={
            "maps": maps,
            "first": {"seed": view.first[0].cell.seed, "weights": "trained"},
            "points": _points(table),
        },
        scripts=["maps", "points"],
        table=Table(
            columns=[
                *(("family", "widths") if len(view.families) > 1 else ()),
                *("kernel", "small kernel", "shortcut", "seeds"),
                *(measure.heading for measure in _columns(table)),
            ],
            rows=_rows(view),
        ),
        has_people=bool(view.people),
        environment=sorted(record.results[0].environment.items()),
    )


def _networks(families: list[str]) -> str:
    """The families of a study, in words."""
    return f"{families[0]}s" if len(families) == 1 else f"networks ({', '.join(families)})"


def _question(study: Study, *, alone: bool, measured: bool) -> str:
    """What is asked, of RepLKNets alone or not, and whether real stimuli can answer of shape."""
    text = (
        "RepLKNet's authors report that a few very large kernels give a network a far larger effective receptive field "
        "and a higher shape bias than small ones. Here the networks "
    )
    if alone:
        text += "differ in nothing but the size of their large depthwise kernels."
    else:
        text += (
            "of a family differ in the size of their large depthwise kernels, and by as much in width as an equal cost "
            "of the families at each kernel takes; all are trained and measured alike."
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
        f"few periods only, so that it is a local cue. In training both tell the same class; {strengths}. For the "
        "shape bias they tell different classes."
    )


def _setting(view: View) -> list[tuple[str, str]]:
    record = view.record
    study, recipe = record.study, record.study.recipe
    rows = [*_network_rows(view), ("kernels by stage", study.sizes_text(record.kernels))]
    if study.capped_kernels(record.kernels):
        rows.append(("", CAP))
    cells = [result.cell for result in record.results]
    smalls = sorted({cell.small_kernel for cell in cells if has_choice(cell.family, "small_kernel")})
    if smalls:
        names = joined(
            dict.fromkeys(family_named(own.family).name for own in cells if has_choice(own.family, "small_kernel"))
        )
        whose = f"; of {names}, where the table has it" if len(view.families) > 1 else ""
        rows.append(("small kernel in parallel", ", ".join(f"{k}x{k}" if k else "none" for k in smalls) + whose))
    shortcuts = sorted({cell.shortcut for cell in cells if has_choice(cell.family, "shortcut")})
    if shortcuts:
        rows.append(("identity shortcut", " and ".join("with" if s else "without" for s in shortcuts)))
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
            f"gradients no longer than {recipe.max_gradient_norm:g}, "
            f"{'no moving average' if recipe.ema_decay is None else f'moving average {recipe.ema_decay:g}'}",
        )
    )
    rows.append(("receptive fields", f"{study.num_erf} images of {study.erf_size} pixels, raw gradient magnitude"))
    if study.data is None:
        rows.append(("conflict images", f"{study.num_conflict} scenes at each of {len(study.balances)} balances"))
        rows.append(("", "shape bias and coverage: those at balance 0, with both cues full; PSE: all of them"))
    return rows


def _network_rows(view: View) -> list[tuple[str, str]]:
    """What the networks of each family are, and what is equal in them."""
    rows = []
    for name, results in view.families.items():
        own = family_named(name)
        rows.append(("network", f"{name}, {architecture_text(name, results, view.record.study.layers)}"))
        if own.key != REFERENCE:
            budget = results[0].settings.get("budget")
            text = (
                f"its {BUDGETS.get(str(budget), budget)} with kernels merged are within {100 * TOLERANCE:g} % of those"
            )
            rows.append(("", f"{text} of the RepLKNet of the same kernel, by a factor on all widths"))
        left_out = [kernel for kernel in view.record.kernels if own.sides and kernel not in own.sides]
        if left_out:
            rows.append(("", f"none with kernels of {', '.join(map(str, left_out))}, which the family does not have"))
    return rows


def _points(table: pd.DataFrame) -> dict[str, Any]:
    """Every cell with its measures, and their means by kernel, for the script `points`."""
    measures = _columns(table)
    items, means = [], []
    for label, rows in settings_of(table):
        for row in rows.to_dict("records"):
            values = {measure.name: measure.scale * row[measure.name] for measure in measures}
            items.append(
                {"name": row["cell"], "file": f"cells/{row['cell']}/", "group": label, "seed": row["seed"]}
                | {"values": {"kernel": row["kernel"], **values}}
            )
        for measure in measures:
            found = by_kernel(rows, measure.name)
            ends = measure.scale * found.ends
            points = zip(found.kernels, (measure.scale * found.means).tolist(), ends.tolist(), strict=True)
            means.append({"group": label, "measure": measure.name, "points": [[k, m, *end] for k, m, end in points]})
    axes = [{"name": measure.name, "label": measure.label or measure.heading} for measure in measures]
    kernel = {"name": "kernel", "label": "kernel size (pixels of the stage's map)", "log": True}
    return {"items": items, "means": means, "measures": [kernel, *axes], "x": "kernel", "y": axes[0]["name"]}


def _columns(table: pd.DataFrame) -> list[Measure]:
    return shown(REPORTED, table)


def _has_small(study: Study, name: str, view: View) -> bool:
    """Whether a cell's network has parallel small kernels; some families have none beside others of that size."""
    result = next(own for own in view.record.results if own.cell.name == name)
    with torch.device("meta"):
        network = build(study.config(result.cell, len(result.classes)))
    return has_small_branch(network)


def _rows(view: View) -> list[list[str]]:
    table, people = view.table, view.people_table
    rows = []
    several = len(view.families) > 1
    settings = ["family", "kernel", "small_kernel", "shortcut"]
    for (family, kernel, small, shortcut), own in table.groupby(settings, sort=False):
        row = [family_named(str(family)).name, own["widths"].iloc[0]] if several else []
        beside = small if _has_small(view.record.study, own["cell"].iloc[0], view) else "none"
        row += [str(kernel), str(beside), "yes" if shortcut else "no", str(len(own))]
        rows.append(row + [summary_text(own[measure.name].tolist(), measure) for measure in _columns(table)])
    if len(people):
        values = [people[measure.name].tolist() if measure.name in people else [] for measure in _columns(table)]
        cells = [
            summary_text(given, measure, of="people") for given, measure in zip(values, _columns(table), strict=True)
        ]
        rows.append(["people", *[""] * (4 if several else 2), str(len(people)), *cells])
    return rows
