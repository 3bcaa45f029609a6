import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.runs.results import ResultError
from analysis.study import record, report
from analysis.study.design import CAP
from analysis.study.measures import MEASURES
from analysis.study.methods import study_methods
from analysis.study.plots import plot_by_kernel
from analysis.study.result import by_kernel
from analysis.study.sweeping import run_study
from analysis.study.verdict import findings, summary_text, warnings_of
from tests.analysis.study.test_running import TINY


def table(bias: list[list[float]], area: list[list[float]], kernels: tuple[int, ...] = (3, 7, 13, 31)) -> pd.DataFrame:
    rows = [
        {
            "kernel": kernel,
            "seed": seed,
            "shape_bias": bias[seed][index],
            "pse": bias[seed][index] - 0.5,
            "erf_area_0.5": area[seed][index],
            "untrained_erf_area_0.5": 0.1,
            "erf_area_0.99": 0.5,
            "accuracy": 0.9,
            "coverage": 0.9,
            "pse_at_border": False,
            "family": "replknet",
            "small_kernel": 3,
            "shortcut": True,
        }
        for seed in range(len(bias))
        for index, kernel in enumerate(kernels)
    ]
    return pd.DataFrame(rows)


RISING = [[0.1, 0.2, 0.3, 0.4], [0.12, 0.21, 0.33, 0.41], [0.1, 0.22, 0.3, 0.45]]
FALLING = [row[::-1] for row in RISING]
MIXED = [RISING[0], FALLING[0], [0.2, 0.4, 0.1, 0.3]]


def answers(bias: list[list[float]], area: list[list[float]]) -> dict[str, str]:
    return {finding.question: finding.answer for finding in findings(table(bias, area))}


def test_verdict_follows_the_statistics() -> None:
    found = answers(bias=RISING, area=RISING)
    assert found["Does a larger kernel see further?"].startswith("Yes")
    assert found["Does it see shape?"].startswith("Yes")
    assert found["Is it more accurate?"] == "No evidence of a trend."
    found = answers(bias=FALLING, area=MIXED)
    assert found["Does a larger kernel see further?"] == "No evidence of a trend."
    assert found["Does it see shape?"].startswith("The opposite")
    assert found["Does a weaker shape still win?"].startswith("The opposite")


def test_verdict_gives_the_numbers() -> None:
    (finding, *_) = findings(table(bias=RISING, area=RISING))
    assert "10.7 % at 3" in finding.detail
    assert "+31.3 percentage points [+" in finding.detail
    assert "over 3 seeds" in finding.detail
    assert "p = 0.00014" in finding.detail


def test_one_seed_is_no_answer() -> None:
    found = {f.question: f for f in findings(table(bias=RISING[:1], area=RISING[:1]))}
    assert found["Does it see shape?"].answer.startswith("No answer")
    assert "+0.30 over 1 seed." in found["Does it see shape?"].detail


def test_a_study_without_two_cues_says_nothing_of_shape() -> None:
    rows = table(bias=RISING, area=RISING).assign(shape_bias=np.nan)
    assert not [finding for finding in findings(rows) if "shape" in finding.question]
    assert warnings_of(rows, chance=0.1) == []


def test_warnings() -> None:
    rows = table(bias=RISING, area=RISING)
    assert warnings_of(rows, chance=0.1) == []
    weak = rows.assign(accuracy=0.15, coverage=0.2, shape_bias=0.01)
    weak["erf_area_0.99"] = 0.95
    notes = warnings_of(weak, chance=0.1)
    assert len(notes) == 4
    assert "12 of 12 networks" in notes[0]
    assert "12 of 12 networks answered fewer than half of the conflict images with either cue" in notes[1]
    assert "(kernel 3, 7, 13, 31; coverage down to 20 %)" in notes[1]
    assert "(kernel 3, 7, 13, 31): gradient beyond the border is cut off" in notes[3]


def test_a_point_of_subjective_equality_beyond_the_balances_is_told() -> None:
    rows = table(bias=RISING, area=RISING)
    rows["pse_at_border"] = (rows["seed"] == 0) & (rows["kernel"] > 7)
    (note,) = warnings_of(rows, chance=0.1)
    assert "of 2 of 12 networks (kernel 13, 31) lies beyond the balances that were shown" in note


def test_a_warning_names_the_families_it_is_of() -> None:
    rows = pd.concat(
        [table(bias=RISING, area=RISING).assign(family=name) for name in ("replknet", "slak")], ignore_index=True
    )
    rows.loc[(rows["family"] == "slak") & (rows["kernel"] < 13), "erf_area_0.99"] = 0.95
    (note,) = warnings_of(rows, chance=0.1)
    assert "nine tenths of the image or more (SLaK, kernel 3, 7): " in note


def test_a_summary_is_a_mean_with_its_interval_or_a_median() -> None:
    assert summary_text([0.1, 0.2, 0.3], MEASURES["accuracy"]) == "20.0 [0.0, 44.8]"
    assert summary_text([0.5], MEASURES["shape_bias"]) == "0.50"
    assert summary_text([np.nan], MEASURES["shape_bias"]) == "-"
    assert summary_text([-0.5, 0.5], MEASURES["pse"]) == "0.00 [-1.00, 1.00]"
    assert summary_text([np.nan, 0.0021, np.nan], MEASURES["seconds_per_step"]) == "2 (1 of 3 seeds)"
    assert summary_text([0.25, 0.25, np.nan], MEASURES["pse"]) == "0.25 [0.25, 0.25] (2 of 3 seeds)"
    assert summary_text([0.25, 0.25], MEASURES["pse"]) == "0.25 [0.25, 0.25]"
    assert summary_text([np.nan], MEASURES["seconds_per_step"]) == "-"


def test_intervals_end_at_what_is_possible() -> None:
    rows = table(bias=[[0.0, 1.0], [1.0, 0.0]], area=[[0.5, 0.9], [0.9, 0.9]], kernels=(3, 31)).assign(
        ratio=[1, 2, 3, 4]
    )
    assert by_kernel(rows, "erf_area_0.5").ends.tolist() == [[0.0, 1.0], pytest.approx([0.9, 0.9])]
    assert by_kernel(rows, "pse").ends.tolist() == [[-1.0, 1.0]] * 2
    assert by_kernel(rows, "ratio").ends.min() < 0  # a user's own column
    ax = plot_by_kernel(rows.assign(family="replknet", shortcut=True, small_kernel=3), [("shape_bias", "")])
    (drawn,) = ax.collections
    assert [np.asarray(path.vertices)[:, 1].tolist() for path in drawn.get_paths()] == [[0.0, 1.0]] * 2
    found = {finding.question: finding.detail for finding in findings(rows)}
    assert "+20.0 percentage points [-100.0, +100.0]" in found["Does a larger kernel see further?"]
    assert "+0.00 [-1.00, +1.00]" in found["Does it see shape?"]
    assert "+0.00 [-2.00, +2.00]" in found["Does a weaker shape still win?"]
    assert summary_text([2.0, 3.0], MEASURES["macs"]) == "0.00"


def test_seeds_that_lack_a_value_are_told() -> None:
    for lacking in (1, 2):
        text = f"without {lacking} of 3 seeds, which lack a value at some kernel."
        rows = table(bias=RISING, area=RISING)
        rows.loc[(rows["seed"] < lacking) & (rows["kernel"] == 3), "pse"] = np.nan
        (found,) = (
            finding.detail for finding in findings(rows) if finding.question == "Does a weaker shape still win?"
        )
        assert found.endswith(text)


def test_no_line_joins_the_mean_of_some_seeds_with_that_of_all() -> None:
    rows = table(bias=RISING, area=RISING).assign(family="replknet", shortcut=True, small_kernel=3)
    rows.loc[(rows["seed"] == 0) & (rows["kernel"] == 7), "pse"] = np.nan
    ax = plot_by_kernel(rows, [("pse", "")])
    joined, hollow = (line for line in ax.lines if line.get_markersize() == 5)
    means = rows.groupby("kernel")["pse"].mean().to_numpy()
    assert np.isnan(np.asarray(joined.get_ydata())).tolist() == [False, True, False, False]
    assert joined.get_linestyle() != "None" and hollow.get_linestyle() == "None"
    assert (np.asarray(hollow.get_xdata()).tolist(), hollow.get_markerfacecolor()) == ([7], "white")
    assert np.asarray(hollow.get_ydata()) == pytest.approx(means[1:2])


def test_equal_differences_are_no_answer() -> None:
    equal = [[0.25, 0.5], [0.5, 0.75]]
    found = {f.question: f for f in findings(table(bias=equal, area=equal, kernels=(3, 31)))}["Does it see shape?"]
    assert found.answer.startswith("No answer: the seeds differ by the same amount")
    assert "nan" not in found.detail


class Page(HTMLParser):
    """Tags that must be closed, and everything that would be fetched."""

    void = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.identifiers: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.void:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and value:
                self.links.append(value)
            if name == "id" and value:
                self.identifiers.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.void:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("report")
    run_study(replace(TINY, num_seeds=1), directory)
    failed = directory / "cells" / "k5_small3_seed7"
    failed.mkdir()
    (failed / "error.txt").write_text("Traceback\nRuntimeError: <b>no luck</b>\n")
    record.save_study(TINY, "replknet study --out X", directory)
    report.write_report(directory)
    return directory


def test_page_is_whole_and_self_contained(study: Path) -> None:
    source = (study / "report.html").read_text()
    page = Page()
    page.feed(source)
    assert page.open == []
    files = [link for link in page.links if link.startswith("./")]
    assert {"./study.csv", "./figures/area.pdf", "./cells/k3_small3_seed0/"} <= set(files)
    assert all((study / link).exists() for link in files)
    outside = [link for link in page.links if not link.startswith(("#", "data:", "./"))]
    assert all(link.startswith("https://arxiv.org/abs/") for link in outside)
    assert len(page.identifiers) == len(set(page.identifiers))
    targets = {link.removeprefix("#") for link in page.links if link.startswith("#")}
    targets |= set(re.findall(r"url\(#([^)]+)\)", source))
    assert targets <= set(page.identifiers)
    assert source.count("<svg") == source.count("<figure")
    assert "prefers-color-scheme: dark" in source
    assert "@media print" in source
    assert "replknet study --out X" in page.text
    assert "No answer: no result of 1 seed with 2 kernels could be significant." in page.text
    assert "<b>no luck</b>" in page.text  # escaped: text, not a tag
    assert "#010203" not in source
    assert "currentColor" in source


def test_the_page_and_the_methods_tell_the_same(study: Path) -> None:
    page, methods = Page(), (study / "methods.txt").read_text()
    page.feed((study / "report.html").read_text())
    found = record.load_study(study)
    warnings = warnings_of(pd.read_csv(study / "study.csv"), chance=1 / 12)
    assert warnings and found.chance == 1 / 12
    assert all(words in methods and words in page.text for words in warnings)
    assert CAP not in methods and CAP not in page.text
    small = study_methods(replace(found, study=replace(found.study, size=16, texture_scale=2.0)))
    assert f"kernels of 3 and 5 pixels (5: 5-3 by stage, {CAP})" in small.paragraphs[0]
    assert "intervals end at what is possible" in page.text and "Brackets" not in methods  # one seed
    again = tuple(replace(own, cell=replace(own.cell, seed=own.cell.seed + 1)) for own in found.results)
    several = replace(found, results=(*found.results, *again))
    assert "Brackets after means and differences are Student's" in study_methods(several).paragraphs[0]
    assert "those at balance 0, with both cues full" in page.text and "S / (S + T) at balance 0" in methods


def test_figures_and_table_are_files(study: Path) -> None:
    table = pd.read_csv(study / "study.csv")
    assert list(table["kernel"]) == [3, 5]
    assert table["accuracy"].between(0, 1).all()
    names = {path.stem for path in (study / "figures").iterdir()}
    assert names >= {"area", "shape_bias", "psychometric", "erf_trained", "erf_untrained", "stimuli", "macs"}
    assert all(
        (study / "figures" / f"{name}.{suffix}").stat().st_size > 1000 for name in names for suffix in ("png", "pdf")
    )
    assert (study / "figures" / "area.pdf").read_bytes().startswith(b"%PDF")


def test_wrong_folders_are_named(tmp_path: Path, study: Path) -> None:
    with pytest.raises(ResultError, match=r"holds no study\.json"):
        report.write_report(tmp_path)
    (tmp_path / "study.json").write_text("[]")
    with pytest.raises(ResultError, match="unreadable"):
        report.write_report(tmp_path)
    found = record.load_study(study)
    assert found.study == TINY
    assert found.kernels == [3, 5]
    failed = next(state for state in found.states if state.state == "failed")
    assert (failed.cell, failed.line) == ("k5_small3_seed7", "RuntimeError: <b>no luck</b>")


def test_a_study_without_a_finished_cell_has_a_page_that_says_so(tmp_path: Path) -> None:
    record.save_study(TINY, "replknet study", tmp_path)
    page = report.write_report(tmp_path).read_text()
    assert "0 of 4 networks are trained and measured." in page
    assert page.count("<td>missing</td>") == 4
    assert [path.name for path in tmp_path.iterdir() if path.name != "study.json"] == ["report.html"]
