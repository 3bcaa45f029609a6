"""One self-contained HTML page of networks beside each other, with its figures and its table."""

from os import PathLike
from pathlib import Path
from typing import Any

from analysis.pages.page import Section, Table, rendered, write_page
from analysis.runs.methods import PAPER, Methods, counted, software, warned, write_methods
from analysis.runs.tables import write_table
from analysis.runs.writing import clear_leftovers, replacing
from analysis.shape_bias.comparing import guessing_text
from analysis.study.compared.panels import SECTIONS, ComparisonView, drawn_of, panels_of
from analysis.study.compared.result import COMPARED, REPORTED, Comparison
from analysis.study.compared.verdict import field_and_bias, measured_text, people_text, warnings_of_networks
from analysis.study.measures import cell_text
from analysis.study.methods import comparison_methods
from analysis.study.report import FIGURES, REPORT, drawn

TABLE = "compare.csv"
_CLAIM = "RepLKNet's authors report that networks with a larger effective receptive field have a higher shape bias."
_SETTING = (
    "Here networks that are trained already are measured, each quantity on the same images. They differ in more than "
    "their fields (training data, recipe, size): what goes together need not be cause and effect."
)


def write_comparison(
    comparison: Comparison, directory: str | PathLike[str], *, command: str = "", told: Methods | None = None
) -> Path:
    """Write the table, every figure as PNG and PDF, a text on the methods, and `report.html` into a folder.

    Args:
        comparison: Of `compare_networks`.
        directory: For them.
        command: What makes the page again, shown on it.
        told: What the networks are, for the text on the methods.

    Returns:
        The path of the page.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name in (REPORT, TABLE, *PAPER):
        clear_leftovers(directory, of=name)
    clear_leftovers(directory / FIGURES)
    view = ComparisonView(comparison)
    with replacing(directory / TABLE) as path:
        write_table(comparison.table, path)
    methods = (
        comparison_methods(comparison)
        + warned(warnings_of_networks(comparison, with_reasons=False))
        + (told or Methods((), ()))
    )
    methods += software(network.environment for network in comparison.networks)
    write_methods(methods, lambda name: replacing(directory / name))
    panels = panels_of(view)
    sections, maps = drawn(panels, SECTIONS, view, directory / FIGURES)
    figures = [f"{FIGURES}/{panel.name}.pdf" for panel in panels if view.has(panel.needs)]
    return write_page(directory / REPORT, _render(comparison, command, sections, maps, [TABLE, *PAPER, *figures]))


def _render(
    comparison: Comparison, command: str, sections: list[Section], maps: list[dict[str, Any]], files: list[str]
) -> str:
    networks, table = comparison.networks, comparison.table
    names = [name for name in REPORTED if table[name].notna().any()]
    rows = [
        [row["network"], str(row["input_size"]), *(cell_text(row, COMPARED[name]) for name in names)]
        for row in table.to_dict("records")
    ]
    answer = field_and_bias(table) if table["shape_bias"].notna().any() else None
    measured = measured_text(comparison)
    return rendered(
        "compared.html.j2",
        title=answer.question if answer else f"{measured[0].upper()}{measured[1:]} of trained networks",
        summary=f"{len(networks)} network{'s' * (len(networks) != 1)}.",
        question=f"{_CLAIM} {_SETTING}" if answer else _SETTING,
        command=command,
        states=[],
        num_done=len(networks),
        finished=True,
        families=None,
        drawn=drawn_of(ComparisonView(comparison)),
        with_people=bool(comparison.people),
        groups=[{"label": "", "findings": [answer], "power": "", "associations": []}] if answer else [],
        warnings=warnings_of_networks(comparison),
        setting=_setting(comparison),
        sections=sections,
        files=files,
        package="analysis.study",
        data={"maps": maps, "points": _points(comparison, names)},
        scripts=["maps", "points"],
        table=Table(columns=["network", "input (px)", *(COMPARED[name].heading for name in names)], rows=rows),
        environment=sorted(networks[0].environment.items()),
    )


def _points(comparison: Comparison, names: list[str]) -> dict[str, Any]:
    """Every network with its measures, for the script `points`."""
    rows = comparison.table.to_dict("records")
    items = [
        {"name": row["network"], "group": row["architecture"]}
        | {"values": {name: COMPARED[name].scale * row[name] for name in names}}
        for row in rows
    ]
    axes = [{"name": name, "label": COMPARED[name].label or COMPARED[name].heading} for name in names]
    y = next(name for name in ("shape_bias", "accuracy", "erf_area_0.5", *names) if name in names)
    x = next((name for name in ("erf_area_0.5", "parameters", *names) if name in names and name != y), y)
    return {"items": items, "means": [], "measures": axes, "x": x, "y": y}


def _setting(comparison: Comparison) -> list[tuple[str, str]]:
    rows = []
    field = next((network.erf for network in comparison.networks if network.erf is not None), None)
    if field is not None:
        size = " x ".join(map(str, field.map_size))
        rows.append(
            ("receptive fields", f"{counted(len(field.images), 'image')}, {size} pixels; {field.image_source}; raw map")
        )
    bias = next((network.shape_bias for network in comparison.networks if network.shape_bias is not None), None)
    if bias is not None:
        how = bias.headline()["options"]
        rows.append(("stimuli", f"{len(bias.stimuli)}, of which {bias.num_images} count; {bias.source}; {how}"))
        rows.append(("by chance", guessing_text([own.shape_bias for own in comparison.networks if own.shape_bias])))
    people = people_text(comparison)
    if people:
        rows.append(("people", people))
    labelled = next((network.evaluation for network in comparison.networks if network.evaluation is not None), None)
    if labelled is not None:
        rows.append(("accuracy", f"{len(labelled.images)} images; {labelled.settings.get('data', '')}"))
    rows.append(
        (
            "cost",
            "one image of the network's own size at a time; of networks of this project, parameters and multiply-"
            "accumulates with kernels merged, times with all that can be; in turn, not side by side",
        )
    )
    return rows
