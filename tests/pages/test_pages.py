"""Every page in a real browser: what is under the mouse, sliders, pickers, clicks, colours, widths, print."""

import json
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.images.synthetic.sets import SyntheticImages, save_stimuli
from analysis.pages.drawing import Drawing
from analysis.receptive_field.page import erf_page
from analysis.receptive_field.plots import plot_contribution
from analysis.receptive_field.result import ErfResult
from analysis.shape_bias.comparing import consistency_table
from analysis.shape_bias.page import shape_bias_page
from analysis.shape_bias.result import ShapeBiasResult
from analysis.study import record, report
from analysis.study.sweeping import run_study
from tests.analysis.study.test_running import TINY
from tests.cli.command import run
from tests.pages.browser import Tab, browsing

NAMES = ("erf", "shape-bias", "evaluate", "posthoc", "study", "compare")


@dataclass(frozen=True)
class Made:
    """The folders of results with pages."""

    folder: Path

    def page(self, name: str) -> Path:
        return self.folder / name / ("report.html" if name in ("study", "compare") else "index.html")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("pages")
    save_stimuli(SyntheticImages(kind="congruent", num_images=12, seed=1), folder / "congruent")
    save_stimuli(SyntheticImages(kind="conflict", num_images=24, seed=1), folder / "conflict")
    _people(folder)
    networks, small = "replknet_nano_k3 replknet_nano_k31", "--size 64 --num-images 2"
    people = f"--stimuli {folder}/conflict --humans {folder}/people"
    run(f"erf {networks} {small} --layers last,stages.1 --out {folder}/erf")
    run(f"shape-bias {networks} {people} --out {folder}/shape-bias")
    run(f"evaluate replknet_nano_k3 --data {folder}/congruent --out {folder}/evaluate")
    run(f"ablate posthoc replknet_nano_k31 --kernels 3,5 --no-stages --num-images 1 --size 64 --out {folder}/posthoc")
    run(f"compare {networks} {small} {people} --out {folder}/compare")
    run_study(replace(TINY, num_seeds=2), folder / "study")
    record.save_study(replace(TINY, num_seeds=2), "replknet study --out X", folder / "study")
    report.write_report(folder / "study")
    return Made(folder)


def _people(folder: Path) -> None:
    (folder / "people").mkdir()
    stimuli = sorted(path.name for path in (folder / "conflict").rglob("*.png"))
    for number in range(2):
        lines = ["subj,session,trial,rt,object_response,category,condition,imagename"]
        for index, name in enumerate(stimuli):
            shape, texture = re.findall(r"([a-z]+)\d+", name)[:2]
            answer = texture if index % 4 == number else shape
            lines.append(f"p{number},1,{index},NaN,{answer},{shape},0,{index:04}_a_{name}")
        (folder / "people" / f"p{number}.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browsing(tmp_path_factory.mktemp("profile")) as found:
        yield found


def field(made: Made, index: int) -> ErfResult:
    """The result behind a map of the page of receptive fields."""
    names = [
        f"{model}-{layer}" for model in ("replknet_nano_k3", "replknet_nano_k31") for layer in ("last", "stages.1")
    ]
    found = [ErfResult.load(path.parent) for path in sorted((made.folder / "erf").glob("*/result.json"))]
    model, layer = names[index].rsplit("-", 1)
    return next(own for own in found if own.model == model and own.layer.startswith(layer))


# All pages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [1280, 420])
@pytest.mark.parametrize("dark", [False, True])
def test_a_page_asks_nothing_of_anybody_and_has_no_error(
    made: Made, tab: Tab, name: str, width: int, dark: bool
) -> None:
    tab.open(made.page(name), width=width, dark=dark)
    assert tab.complaints == []
    assert tab.requests == [made.page(name).resolve().as_uri()]
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")


@pytest.mark.parametrize("name", NAMES)
def test_a_narrow_page_has_no_small_label_and_does_not_scroll_sideways(made: Made, tab: Tab, name: str) -> None:
    tab.open(made.page(name), width=420)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 420
    smallest = tab.evaluate(
        "Math.min(...[...document.querySelectorAll('svg text')].map((text) => {"
        "const scale = text.getScreenCTM(); return parseFloat(getComputedStyle(text).fontSize)"
        " * Math.hypot(scale.a, scale.b); }), 99)"
    )
    assert smallest >= 9
    assert (
        tab.evaluate(
            "Math.min(...[...document.querySelectorAll('p, td, th, li')].map("
            "(own) => parseFloat(getComputedStyle(own).fontSize)))"
        )
        >= 9
    )
    lefts = tab.evaluate(
        "[...new Set([...document.querySelectorAll('.row > figure')].map("
        "(figure) => Math.round(figure.getBoundingClientRect().left)))]"
    )
    assert len(lefts) <= 1  # panels stack


@pytest.mark.parametrize("name", NAMES)
def test_a_page_without_scripts_shows_its_figures_and_tables(made: Made, tab: Tab, name: str) -> None:
    tab.open(made.page(name), script=False)  # those of the page, not those of the test
    shown = tab.evaluate(
        "[...document.querySelectorAll('table.data, .drawing > svg, figure.map')].map((own) => own.checkVisibility())"
    )
    assert any(shown)
    assert tab.evaluate("document.querySelectorAll('.controls, button').length") == 0
    hidden = tab.evaluate(
        "['points', 'answers', 'classes'].map((id) => document.getElementById(id)).filter("
        "(own) => own && own.checkVisibility()).length"
    )
    assert hidden == 0


@pytest.mark.parametrize("name", NAMES)
def test_contents_links_and_figures_have_names(made: Made, tab: Tab, name: str) -> None:
    tab.open(made.page(name))
    links = tab.evaluate(
        "[...document.querySelectorAll('nav a')].map("
        "(link) => document.querySelector(link.getAttribute('href')).textContent === link.textContent)"
    )
    assert len(links) > 3
    assert all(links)
    files = tab.evaluate("[...document.querySelectorAll('.files a')].map((link) => link.getAttribute('href'))")
    assert any(link.endswith(".csv") for link in files)
    assert all((made.page(name).parent / link).exists() for link in files)
    figures = tab.evaluate(
        "[...document.querySelectorAll('svg[role=img]')].map("
        "(svg) => svg.querySelector(':scope > title')?.textContent ?? '')"
    )
    assert all(figures)
    pages = tab.text("main")
    assert re.search(r"page made\s*\d{4}-\d\d-\d\dT", pages)
    assert len(re.findall(r"\btorch\b", pages.partition("page made")[2])) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_page_prints_on_a4(made: Made, tab: Tab, name: str) -> None:
    tab.open(made.page(name))
    content = tab.printed()
    assert content.startswith(b"%PDF")
    sides = {tuple(map(float, box.split())) for box in re.findall(rb"/MediaBox \[([^\]]*)\]", content)}
    for _, _, width, height in sides:
        assert (width, height) == pytest.approx((595.3, 841.9), abs=1)
    hints = "[...document.querySelectorAll('[data-hint]')].map((own) => own.checkVisibility())"
    assert tab.evaluate(hints) == [True] * (name in ("shape-bias", "study", "compare"))
    tab.send("Emulation.setEmulatedMedia", media="print")
    assert not any(tab.evaluate(hints))
    hidden = "[...document.querySelectorAll('select')].filter((own) => !own.checkVisibility()).map((own) => own.name)"
    # What is chosen is read; the order of images once there are some.
    assert tab.evaluate(hidden) == ["sort"] * (name == "shape-bias")


# Receptive fields -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["raw", "log"])
def test_the_page_computes_the_areas_that_python_does(made: Made, tab: Tab, scale: str) -> None:
    tab.open(made.page("erf"))
    thresholds = [0.01, 0.2, 0.3, 0.5, 0.7, 0.99, 0.999, *np.random.default_rng(0).uniform(0.001, 0.999, 40)]
    for index in range(4):
        result = field(made, index)
        for threshold in thresholds:
            call = f"(replknet.maps[{index}], {float(threshold)!r}, {json.dumps(scale)})"
            assert tab.evaluate(f"replknet.areaRatio{call}") == result.area_ratio(threshold, scale)  # type: ignore[arg-type]
            square = tab.evaluate(f"replknet.square{call}")
            assert square == pytest.approx(result.square(threshold, scale), abs=1e-6)  # type: ignore[arg-type]


def test_the_page_computes_the_official_measure(made: Made, tab: Tab, tmp_path: Path) -> None:
    official = replace(field(made, 0), protocol="official")
    (tmp_path / "index.html").write_text(erf_page([official], [], command="replknet erf", files=[]))
    tab.open(tmp_path / "index.html")
    for threshold in (0.2, 0.5, 0.61, 0.99):
        call = f"(replknet.maps[0], {threshold}, 'raw')"
        assert tab.evaluate(f"replknet.areaRatio{call}") == official.area_ratio(threshold)
        assert tab.evaluate(f"replknet.square{call}") == list(official.square(threshold))


def test_values_and_contributions_are_those_of_the_map(made: Made, tab: Tab) -> None:
    tab.open(made.page("erf"))
    result = field(made, 1)
    shares = result.contribution_curve()[1]
    for row, column in ((0, 0), (31, 32), (40, 10), (63, 63), (5, 60)):
        value = tab.evaluate(f"replknet.value(replknet.maps[1], {row}, {column})")
        expected = result.mean_map[row, column] / result.mean_map.max()
        assert value == (pytest.approx(expected, rel=2e-4) if expected >= 1e-8 else 0)
        ring = int(2 * max(abs(row - result.center[0]), abs(column - result.center[1])))
        assert tab.evaluate(f"replknet.contribution(replknet.maps[1], {row}, {column})") == shares[ring]


def test_the_pointer_tells_position_value_and_contribution(made: Made, tab: Tab) -> None:
    tab.open(made.page("erf"))
    tab.point("figure[data-map='0'] svg", 0.5 + 0.25 / 64, 0.25 + 0.25 / 64)
    tab.wait_for("document.querySelector(\"figure[data-map='0'] output\").textContent.includes('maximum')")
    said = tab.text("figure[data-map='0'] output")
    result = field(made, 0)
    share = 100 * result.contribution_curve()[1][int(2 * abs(16 - result.center[0]))]
    assert said.startswith("x 32, y 16: ")
    assert f"holds {share:.1f} %" in said


def test_the_slider_redraws_the_square_and_its_area(made: Made, tab: Tab) -> None:
    tab.open(made.page("erf"))
    before = tab.place_of("figure[data-map='0'] rect.over")[2]
    tab.choose("input[name=threshold]", "80")
    result = field(made, 0)
    assert f"80 % in {100 * result.area_ratio(0.8):.2f} %" in tab.text("figure[data-map='0'] figcaption")
    side = float(tab.evaluate("document.querySelector(\"figure[data-map='0'] rect.over\").getAttribute('width')"))
    assert side == pytest.approx(result.square(0.8)[3], abs=1e-6)
    assert tab.place_of("figure[data-map='0'] rect.over")[2] > before
    assert tab.evaluate("document.querySelector('input[name=percent]').value") == "80"
    tab.choose("select[name=scale]", "log")
    tab.choose("input[name=percent]", "33.3")
    expected = f"33.3 % in {100 * result.area_ratio(0.333, 'log'):.2f} %"
    assert expected in tab.text("figure[data-map='0'] figcaption")


def test_model_and_layer_are_picked(made: Made, tab: Tab) -> None:
    tab.open(made.page("erf"))
    shown = "[...document.querySelectorAll('figure.map')].filter((own) => own.checkVisibility()).length"
    assert tab.evaluate(shown) == 4
    tab.choose("select[name=model]", "replknet_nano_k31")
    assert tab.evaluate(shown) == 2
    tab.choose("select[name=layer]", "stages.1")
    assert tab.evaluate(shown) == 1
    assert "replknet_nano_k31, stages.1" in tab.text("figure.map:not([hidden])")


# Tables -----------------------------------------------------------------------------------------------------------


def test_a_table_is_sorted_and_its_columns_are_chosen(made: Made, tab: Tab) -> None:
    tab.open(made.page("evaluate"))
    table = "[...document.querySelectorAll('table.data')].find((own) => own.tHead.textContent.includes('images'))"
    column = f"[...{table}.tBodies[0].rows].map((row) => parseFloat(row.cells[2].textContent))"
    for pressed, order in ((1, False), (2, True)):
        tab.evaluate(f"{table}.tHead.rows[0].cells[2].querySelector('button').click()")
        values = tab.evaluate(column)
        assert values == sorted(values, reverse=order), pressed
    tab.open(made.page("study"))
    tab.evaluate("document.querySelector('details.columns input').click()")
    cells = tab.evaluate(
        "[...document.querySelectorAll('details.columns + .scroll tr')].map((row) => row.cells[1].checkVisibility())"
    )
    assert cells
    assert not any(cells)


def test_a_wide_table_scrolls_and_shows_that_it_does(made: Made, tab: Tab) -> None:
    tab.open(made.page("study"), width=420)
    table = "[...document.querySelectorAll('.scroll')].at(-1)"
    assert tab.evaluate(f"{table}.scrollWidth > {table}.clientWidth")
    assert "gradient" in tab.evaluate(f"getComputedStyle({table}).backgroundImage")


def test_a_class_shows_what_it_was_taken_for(made: Made, tab: Tab) -> None:
    decisions = pd.read_csv(made.folder / "evaluate" / "decisions.csv")
    tab.open(made.page("evaluate"))
    names = tab.evaluate("data.classes.map((own) => own.name)")
    for index, name in enumerate(names):
        tab.choose("select[name=class]", str(index))
        rows = tab.evaluate("[...document.querySelectorAll('#classes td:first-child')].map((own) => own.textContent)")
        expected = set(decisions[decisions["class"] == name]["answer"])
        assert {row.removesuffix(" (right)") for row in rows} == expected


# Shape bias -------------------------------------------------------------------------------------------------------


def test_a_pair_shows_its_stimuli_with_everybodys_answers(made: Made, tab: Tab) -> None:
    decisions = pd.read_csv(made.folder / "shape-bias" / "decisions.csv", keep_default_na=False)
    own = decisions[decisions["observer"] == "replknet_nano_k3"]
    shape, texture = own.iloc[0][["shape", "texture"]]
    chosen = own[(own["shape"] == shape) & (own["texture"] == texture)]
    tab.open(made.page("shape-bias"))
    selector = f".pairs button[aria-label='shape {shape}, texture {texture}']"
    tab.point(selector)
    counts = chosen["decision"].value_counts()
    said = tab.text("#answers output")
    assert f": {len(chosen)} image{'s' * (len(chosen) > 1)}; " in said
    assert f"shape {counts.get('shape', 0)}, texture {counts.get('texture', 0)}" in said
    tab.point(selector, click=True)
    shown = tab.evaluate("[...document.querySelectorAll('.stimuli b')].map((own) => own.textContent)")
    assert sorted(shown) == sorted(chosen["stimulus"])
    tab.wait_for("[...document.querySelectorAll('.stimuli img')].every((own) => own.naturalWidth === 64)")
    first = tab.text(".stimuli li")
    assert f"replknet_nano_k3: {chosen.iloc[0]['response']}" in first
    assert "people: " in first
    assert tab.requests == [made.page("shape-bias").resolve().as_uri()]


def test_a_category_of_shapes_and_its_counts(made: Made, tab: Tab) -> None:
    result = ShapeBiasResult.load(made.folder / "shape-bias" / "replknet_nano_k31")
    tab.open(made.page("shape-bias"))
    tab.choose("select[name=observer]", "1")
    for row in result.by_category().to_dict("records"):
        counts = tab.evaluate(f"replknet.counts({json.dumps(row['shape'])}, null)")
        assert counts == {name: row[f"num_{name}"] for name in ("shape", "texture", "neither")}
    name = result.shapes[0]
    tab.point(f".pairs button[aria-label='shape {name}']", click=True)
    assert tab.evaluate("document.querySelectorAll('.stimuli li').length") == result.shapes.count(name)
    tab.choose("select[name=sort]", "most different answers")
    assert tab.evaluate("document.querySelectorAll('.stimuli li').length") == result.shapes.count(name)


def test_observers_are_ranked_beside_chance(made: Made, tab: Tab) -> None:
    """Networks and people, by the mean of the consistencies with people that the table has."""
    known = pd.read_csv(made.folder / "shape-bias" / "consistency.csv")
    tab.open(made.page("shape-bias"))
    table = "[...document.querySelectorAll('table.data')].find((own) => own.tHead.textContent.includes('rankmean'))"
    rows = tab.evaluate(f"[...{table}.tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.textContent))")
    means = known.groupby("first")["kappa"].mean().sort_values(ascending=False)
    assert [row[1] for row in rows] == ["1", "2", "3", "4"]
    assert [row[2] for row in rows] == [f"{mean:.3f}" for mean in means]
    assert {row[0] for row in rows} == set(means.index)
    text = tab.text("main")
    assert "guessing among 12 categories gives coverage 16.7 %, shape bias 0.5 and 8.33 % answered" in text
    assert "0 is chance" in text


def test_intervals_are_shown_by_cluster(made: Made, tab: Tab) -> None:
    result = ShapeBiasResult.load(made.folder / "shape-bias" / "replknet_nano_k3")
    tab.open(made.page("shape-bias"))
    for cluster in ("image", "shape", "texture", "two-way"):
        low, high = result.confidence_interval(cluster)
        assert f"[{low:.3f}, {high:.3f}]" in tab.text("main")


# Studies and comparisons ------------------------------------------------------------------------------------------


def test_a_study_is_explored_by_measure_and_seed(made: Made, tab: Tab) -> None:
    table = pd.read_csv(made.folder / "study" / "study.csv")
    tab.open(made.page("study"))
    tab.choose("select[name=y]", "erf_area_0.5")
    assert tab.evaluate("document.querySelectorAll('.dot').length") == len(table)
    row = table.iloc[0]
    tab.point(f".dot[data-name='{row['cell']}']")
    said = tab.text("#points output")
    assert said.startswith(f"{row['cell']}: ")
    assert f"{100 * row['erf_area_0.5']:.4g}" in said
    tab.choose("#points select[name=seed]", str(table["seed"].iloc[0]))
    assert tab.evaluate("document.querySelectorAll('.dot').length") == table["kernel"].nunique()
    link = tab.evaluate("document.querySelector('.points a').getAttribute('href')")
    assert (made.folder / "study" / link / "cell.json").is_file()


def test_receptive_fields_of_another_seed_are_picked(made: Made, tab: Tab) -> None:
    first, second = sorted(set(pd.read_csv(made.folder / "study" / "study.csv")["seed"]))
    tab.open(made.page("study"))
    shown = "[...document.querySelectorAll('figure.map')].filter((own) => own.checkVisibility())"
    assert all(f"seed {first}" in text for text in tab.evaluate(f"{shown}.map((own) => own.textContent)"))
    tab.choose("#map-controls select[name=seed]", str(second))
    texts = tab.evaluate(f"{shown}.map((own) => own.textContent)")
    assert texts
    assert all(f"seed {second}" in text for text in texts)


def test_networks_of_a_comparison_are_dots_with_names(made: Made, tab: Tab) -> None:
    tab.open(made.page("compare"))
    tab.point(".dot[data-name='replknet_nano_k31']")
    assert tab.text("#points output").startswith("replknet_nano_k31: ")
    names = "[...document.querySelectorAll('.points .name')].map((own) => own.textContent)"
    assert tab.evaluate(names) == ["replknet_nano_k3", "replknet_nano_k31"]
    axes = "[...document.querySelectorAll('#points select')].map((own) => own.value)"
    assert tab.evaluate(axes) == ["shape_bias", "erf_area_0.5"]


# Names of users ---------------------------------------------------------------------------------------------------

NAME = "</title></script><svg onload='hurt=1'>\"&$x$"
HOSTILE = f"{NAME}<script>hurt=1</script><img src=x onerror='hurt=1'>]]>"


def test_names_are_text_and_nothing_else(made: Made, tab: Tab, tmp_path: Path) -> None:
    result = replace(field(made, 0), model=NAME, layer="last", image_source=HOSTILE)
    curves: Any = plot_contribution
    drawing = Drawing(name="contribution", caption=HOSTILE, draw=lambda: curves([result]).get_figure(root=True))
    page = erf_page([result, field(made, 1)], [drawing], command=HOSTILE, files=["a/<b>#?.csv", "javascript:1.csv"])
    bias = ShapeBiasResult.load(made.folder / "shape-bias" / "replknet_nano_k3")
    names = tuple(f"{HOSTILE}{index}" for index in range(len(bias.stimuli)))
    bias = replace(bias, observer=HOSTILE, stimuli=names, source=HOSTILE)
    summary = {**bias.summary(), "num_common": len(names), "num_seen": len(names)}
    other = shape_bias_page(
        [bias],
        [bias],
        [summary, summary],
        [],
        consistency=consistency_table([bias], [replace(bias, observer="p")]),
        sensitivity=pd.DataFrame(),
        stimuli=None,
        command=HOSTILE,
        files=[],
    )
    for number, source in enumerate((page, other)):
        path = tmp_path / f"{number}.html"
        path.write_text(source, encoding="utf-8")
        tab.open(path)
        if number:
            tab.point(".pairs tbody th button", click=True)
            assert HOSTILE in tab.text(".stimuli b")
        assert tab.evaluate("window.hurt") is None
        assert tab.complaints == []
        assert tab.requests == [path.resolve().as_uri()]
        assert HOSTILE in tab.text("main pre")
        assert tab.evaluate("document.querySelectorAll('script').length") == 2
        assert tab.evaluate("document.querySelectorAll('img[src=x], svg[onload]').length") == 0
    tab.open(tmp_path / "0.html")
    assert NAME in tab.evaluate(
        "[...document.querySelectorAll('.drawing text')].map((own) => own.textContent).join(' ')"
    )
    links = tab.evaluate("[...document.querySelectorAll('.files a')].map((link) => link.protocol)")
    assert links == ["file:", "file:"]


def test_a_script_that_gets_into_a_page_does_not_run(made: Made, tab: Tab, tmp_path: Path) -> None:
    """The page allows its own script alone, should the escaping ever fail."""
    source = made.page("erf").read_text().replace("</main>", "<script>window.hurt=1</script></main>")
    (tmp_path / "index.html").write_text(source)
    tab.open(tmp_path / "index.html")
    assert tab.evaluate("window.hurt") is None
    assert tab.evaluate("replknet.maps.length") == 4


# Again ------------------------------------------------------------------------------------------------------------


def test_the_same_result_is_the_same_page_but_for_the_date(made: Made) -> None:
    pages = []
    for _ in range(2):
        results = [field(made, index) for index in range(2)]
        page = erf_page(results, [], command="replknet erf", files=["erf.csv"])
        pages.append(re.sub(r"<time.*?</time>", "", page))
    assert pages[0] == pages[1]
    path = made.page("study")
    before = re.sub(r"<time.*?</time>", "", path.read_text())
    report.write_report(path.parent)
    assert re.sub(r"<time.*?</time>", "", path.read_text()) == before


def test_a_version_is_told_twice_only_where_it_is_another(made: Made) -> None:
    result = replace(field(made, 0), environment={"torch": "0.1", "python": platform.python_version(), "device": "cpu"})
    again = erf_page([result], [], command="replknet erf", files=[]).partition("<dt>versions</dt>")[2]
    assert re.findall(r"<dt>(.*?)</dt>", again) == ["device", "torch when measured"]
    assert f"python {platform.python_version()}" in again


def test_pages_stay_small(made: Made) -> None:
    for name in ("erf", "shape-bias", "evaluate", "posthoc", "compare"):
        assert made.page(name).stat().st_size < 1_500_000, name
