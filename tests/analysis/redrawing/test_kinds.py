"""Every kind of figure from saved results, at the width of a column and of a page."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

import analysis
from analysis import ErfResult, ShapeBiasResult
from analysis.figures import axes_or_new, draw_intervals, ink_on, new_axes, paper_style
from analysis.receptive_field.plots import plot_erf, plot_radial
from analysis.recognition.evaluation import EvaluationResult
from analysis.redrawing.kinds import Look, draw_saved, kinds_of
from analysis.redrawing.saved import Saved, read_saved
from analysis.runs.results import ResultError
from analysis.shape_bias.categories import CATEGORIES
from analysis.shape_bias.plots import plot_confusion, plot_shape_bias
from analysis.study.plots import plot_psychometric
from analysis.study.record import save_study
from analysis.study.sweeping import run_study
from tests.analysis.redrawing.boxes import faults
from tests.analysis.shape_bias.observers import observer
from tests.analysis.study.test_families import SMALL
from tests.cli.command import run

WIDTHS = (3.4, 7.0)
LONG = "some_library:a_network_with_a_rather_long_name.in22k_ft_in1k"


def field(name: str, layer: str = "last feature map", *, size: int = 32) -> ErfResult:
    torch.manual_seed(len(name))
    network = nn.Sequential(nn.Conv2d(3, 4, 5, padding=2), nn.ReLU(), nn.Conv2d(4, 4, 9, padding=4))
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    return replace(analysis.effective_receptive_field(network, images, name=name), layer=layer)


def answers(name: str, share: float) -> ShapeBiasResult:
    """Of all pairs of the 16 categories, each once."""
    generator = np.random.default_rng(len(name))
    pairs = [(shape, texture) for shape in CATEGORIES for texture in CATEGORIES]
    chosen = generator.choice(3, len(pairs), p=[share, 0.8 - share, 0.2])
    return observer(
        [
            (f"{shape}{1 + index % 3}-{texture}{1 + index % 2}", (shape, texture, "oven")[chosen[index]])
            for index, (shape, texture) in enumerate(pairs)
        ],
        name=name,
    )


def evaluation() -> EvaluationResult:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 6)
    best = np.stack([np.where(generator.random(60) < 0.7, labels, (labels + 1) % 10), (labels + 2) % 10], 1)
    names = tuple(f"{number}.png" for number in range(60))
    return EvaluationResult(
        model=LONG, classes=tuple(f"class {n}" for n in range(10)), images=names, labels=labels, best=best, seconds=1.0
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("results")
    for name, layer in (("small", "0"), ("small", "last feature map"), (LONG, "0"), (LONG, "last feature map")):
        result = field(name, layer)
        result.save(root / "fields" / re.sub(r"\W", "_", f"{name} {layer}"))
    for index, name in enumerate(("first", "second network", LONG)):
        answers(name, 0.3 + 0.01 * index).save(root / "bias" / f"{index}")
    for index in range(3):
        answers(f"subject-{index:02d}", 0.7 - 0.05 * index).save(root / "bias" / "people" / f"{index}")
    cells: dict[str, Any] = {f"{cue}_{name}": 0.1 for cue in ("shape", "texture") for name in ("low", "high")}
    rows = [
        {"observer": name, "stimuli": kind, "shape_sensitivity": 0.2, "texture_sensitivity": 0.3 + 0.1 * index, **cells}
        for kind in ("cue conflicts", "single cues")
        for index, name in enumerate(("first", LONG))
    ]
    pd.DataFrame(rows).to_csv(root / "bias" / "sensitivity.csv", index=False)
    evaluation().save(root / "accuracy")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A study of few images, a network with cropped kernels, and a comparison, by the commands themselves."""
    root = tmp_path_factory.mktemp("trained")
    study = (
        "ablate train --preset quick --kernels 3,7 --seeds 2 --size 32 --layers 1,1 --channels 4,8 --train-images 24 "
        "--val-images 12 --conflict-images 12 --balances -1.0,0.0,1.0 --erf-images 1 --steps 2 --batch-size 4 --out"
    )
    run(study, root / "study")
    run_study(SMALL, root / "families")
    save_study(SMALL, "replknet study", root / "families")
    run("ablate posthoc replknet_nano_k3 --kernels 1 --num-images 1 --size 64 --out", root / "posthoc")
    run("data synthetic --kind conflict --num-images 24 --to", root / "conflict")
    compare = "compare replknet_nano_k3 Renamed=replknet_nano_k3 --size 64 --num-images 1 --stimuli"
    run(compare, root / "conflict", "--out", root / "compare")
    yield {name: root / name for name in ("study", "families", "posthoc", "compare")}
    shutil.rmtree(root)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("fields", {"erf", "contribution", "radial", "growth"}),
        ("bias", {"shape-bias", "categories", "pairs", "confusion", "consistency", "sensitivity"}),
        ("accuracy", {"confusion"}),
    ],
)
def test_no_text_of_measured_results_is_on_another(
    folders: dict[str, Path], name: str, kinds: set[str], width: float
) -> None:
    check(folders[name], kinds, width)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("study", {"erf", "erf-untrained", "radial", "psychometric", "curves", "area", "accuracy", "coverage"}),
        ("families", {"erf", "psychometric", "curves", "area", "erf-and-bias"}),
        ("posthoc", {"erf", "posthoc"}),
        ("compare", {"erf", "compare", "shape-bias", "pairs"}),
    ],
)
def test_no_text_of_trained_networks_is_on_another(
    trained: dict[str, Path], name: str, kinds: set[str], width: float
) -> None:
    check(trained[name], kinds, width)


def check(folder: Path, kinds: set[str], width: float) -> None:
    saved = read_saved([folder])
    assert set(kinds_of(saved)) >= kinds
    for kind in kinds_of(saved):
        figure = draw_saved(saved, kind, Look(width=width))
        assert figure.get_figwidth() == width
        assert faults(figure) == [], kind


def test_the_boxes_are_measured() -> None:
    """The measure itself finds a text on another, one outside, one too small."""
    figure = Figure(figsize=(3, 3))
    figure.text(0.5, 0.5, "one")
    figure.text(0.51, 0.5, "two")
    figure.text(0.98, 0.1, "beyond")
    figure.text(0.1, 0.1, "tiny", fontsize=5)
    assert sorted(faults(figure)) == ["'beyond' leaves the figure", "'one' and 'two' overlap", "'tiny' has 5 points"]


def test_results_are_found_in_the_order_of_their_run(trained: dict[str, Path]) -> None:
    saved = read_saved([trained["compare"]])
    assert [network.name for network in saved.networks] == ["replknet_nano_k3", "Renamed"]  # not of the alphabet
    assert [result.model for result in saved.fields] == ["replknet_nano_k3", "Renamed"]
    assert read_saved([trained["posthoc"]]).variants[0].variant.name == "whole"
    fields = read_saved([trained["study"]]).fields
    assert [result.model for result in fields] == ["kernel 3, seed 0", "kernel 7, seed 0"]
    both = read_saved([trained["posthoc"], trained["compare"]])
    assert len(both.fields) == len(both.variants) + 2


def test_nothing_is_counted_twice(trained: dict[str, Path], tmp_path: Path) -> None:
    study = trained["study"]
    cell = next((study / "cells").iterdir())
    link = tmp_path / "link"
    link.symlink_to(study)
    for folders in ([study, cell], [cell, study], [cell, cell], [study, link]):
        with pytest.raises(ResultError, match=r"results='.*': is (given twice|in .*, which is given, too)"):
            read_saved(folders)


def test_a_number_may_be_missing(tmp_path: Path) -> None:
    """As the size of images for a network that takes any."""
    (tmp_path / "sensitivity.csv").write_text("observer,input_size\na,224.0\nb,\n")
    (table,) = read_saved([tmp_path]).sensitivity
    assert list(table["input_size"].isna()) == [False, True]


def test_runs_leave_and_link_their_texts(trained: dict[str, Path]) -> None:
    run("report", trained["study"])
    for name, page in (("study", "report.html"), ("posthoc", "index.html"), ("compare", "report.html")):
        folder = trained[name]
        outputs = json.loads((folder / "run.json").read_text())["outputs"]
        assert {"methods.txt", "references.bib"} <= set(outputs)
        assert "replknet" in (folder / "methods.txt").read_text()
        assert "{ding2022replknet," in (folder / "references.bib").read_text()
        source = (folder / page).read_text()
        assert "./methods.txt" in source and "./references.bib" in source


def test_people_are_kept_with_the_answers_of_networks(trained: dict[str, Path], tmp_path: Path) -> None:
    stimuli, humans, out = trained["compare"].parent / "conflict", tmp_path / "humans", tmp_path / "out"
    known = read_saved([trained["compare"]]).observers[0]
    humans.mkdir()
    for name in ("a", "b"):
        analysis.write_responses(replace(known, observer=name), humans / f"{name}.csv")
    analysis.write_responses(replace(known, observer="own"), tmp_path / "own.csv")
    run("shape-bias replknet_nano_k3", tmp_path / "own.csv", "--stimuli", stimuli, "--humans", humans, "--out", out)
    saved = read_saved([out])
    assert [result.observer for result in saved.observers] == ["replknet_nano_k3", "own"]
    assert [person.observer for person in saved.people] == ["a", "b"]
    assert saved.people[0].responses == known.responses
    assert "consistency" in kinds_of(saved)


def test_a_wrong_kind_says_which_there_are(folders: dict[str, Path]) -> None:
    saved = read_saved([folders["fields"]])
    known = "erf, contribution, radial, growth"
    with pytest.raises(ValueError, match=rf"kind='radiall': expected one of .*: {known} \(did you mean radial\?\)"):
        draw_saved(saved, "radiall")
    for kind, needs in (
        ("shape-bias", "answers to images with a conflict of shape and texture"),
        ("compare", "networks with both a receptive field and a shape bias"),
    ):
        with pytest.raises(ValueError, match=f"kind='{kind}': needs {needs}, which these results do not .*: {known}$"):
            draw_saved(saved, kind)
    two = pd.DataFrame(columns=["kernel"])
    with pytest.raises(ValueError, match="kind='sensitivity': needs the sensitivities of one run, which"):
        draw_saved(replace(saved, sensitivity=(two, two)), "sensitivity")
    for look, message in (
        (Look(width=float("nan")), "width=nan: expected 1.5 to 20 inches"),
        (Look(cmap="virids"), "cmap='virids': expected a colour map of matplotlib, such as viridis"),
        (Look(width=100), "width=100: expected 1.5 to 20 inches"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            draw_saved(saved, "erf", look)
    with pytest.raises(ValueError, match=r"cmap='viridis': goes with kinds that have one \(erf\)"):
        draw_saved(saved, "radial", Look(cmap="viridis"))
    with pytest.raises(ValueError, match="centered=True: goes with kind='erf'"):
        draw_saved(saved, "radial", Look(centered=True))


def test_a_font_that_is_not_installed_is_refused_with_near_ones() -> None:
    for asked, near in (("Times", "STIXGeneral"), ("DejaVu Sanz", "DejaVu Sans"), ("dejavu serif", "DejaVu Serif")):
        with (
            pytest.raises(ValueError, match=f"font='{asked}': is not installed here; near ones are .*{near}"),
            paper_style(font=asked),
        ):
            pytest.fail("the style began")
    with paper_style(font="STIXGeneral"):
        assert new_axes().set_title("x").get_fontname() == "STIXGeneral"


@pytest.mark.parametrize("form", ["pdf", "svg"])
def test_the_command_writes_what_was_asked_for(folders: dict[str, Path], tmp_path: Path, form: str) -> None:
    out = tmp_path / "new" / f"figure.{form}"
    run(
        "plot",
        folders["fields"],
        ["--kind", "erf", "--width", "3", "--font", "STIXGeneral", "--cmap", "viridis", "--centered"],
        code=2,
    )
    words = "--kind erf --width 3 --font STIXGeneral --cmap viridis --centered --out"
    run("plot", folders["fields"], *words.split(), out)
    content = out.read_bytes()
    if form == "pdf":
        assert b"/MediaBox [ 0 0 216 " in content  # 3 inches
        assert b"/FontFile2" in content and b"STIXGeneral" in content  # embedded, whole letters
        assert b"/Type3" not in content
    else:
        assert b"<text" not in content and b'width="216pt"' in content  # letters are paths
    run("plot", folders["fields"], *words.split(), out, code=2)
    run("plot", folders["fields"], "--kind", "radial", "--overwrite", "--out", out)
    assert out.read_bytes() != content
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_results_draw_themselves(folders: dict[str, Path]) -> None:
    saved = read_saved([folders["fields"], folders["bias"], folders["accuracy"]])
    for result in (saved.fields[0], saved.observers[0], saved.evaluations[0]):
        for kind in result.PLOTS:
            ax = axes_or_new(None)
            assert result.plot(kind, ax=ax) is ax
            assert ax.has_data()
        with pytest.raises(ValueError, match=f"kind='no': expected {', '.join(result.PLOTS)}"):
            result.plot("no")
    ax = saved.fields[0].plot(cmap="viridis")
    assert ax.images[0].get_cmap().name == "viridis"


# What figures show ------------------------------------------------------------------------------------------------


def test_compared_maps_share_one_bar_and_a_legend(folders: dict[str, Path]) -> None:
    saved = read_saved([folders["fields"]])
    figure = draw_saved(saved, "erf", Look(width=7))
    assert len([ax for ax in figure.axes if ax.get_label() == "<colorbar>"]) == 1
    (legend,) = figure.legends
    named = [text.get_text() for text in legend.get_texts()]
    assert named == ["square with 50 % of the gradient", "square with 99 % of the gradient"]
    styles = [line.get_linestyle() for line in legend.get_lines()]
    assert styles[0] == "-" and styles[1] == "--"
    curves = plot_radial([field("net", "last_conv"), field("net")])
    assert [line.get_label() for line in curves.lines] == ["net, last_conv", "net, last feature map"]


def test_squares_are_told_from_any_map() -> None:
    """White with a dark edge: contrast of 3 to 1 or more with the one or the other, whatever is behind."""
    square = next(patch for patch in plot_erf(field("net")).patches if isinstance(patch, Rectangle))
    assert square.get_edgecolor()[:3] == (1, 1, 1)
    (halo,) = square.get_path_effects()
    dark = (0x30 / 255 / 1.055 + 0.055 / 1.055) ** 2.4
    assert vars(halo)["_gc"]["foreground"] == "#303030"
    assert all(max(1.05 / (behind + 0.05), (behind + 0.05) / (dark + 0.05)) > 3 for behind in np.linspace(0, 1, 101))


def test_a_centred_map_has_the_unit_in_its_middle() -> None:
    result = field("net")
    ax = plot_erf(result, centered=True)
    assert sum(ax.get_xlim()) == pytest.approx(0) and sum(ax.get_ylim()) == pytest.approx(0)
    square = next(patch for patch in ax.patches if isinstance(patch, Rectangle))
    middle = [square.get_x() + square.get_width() / 2, square.get_y() + square.get_height() / 2]
    assert middle == pytest.approx([0, 0])
    left, right, bottom, top = ax.images[0].get_extent()
    assert (left, top) == (-0.5 - result.center[1], -0.5 - result.center[0])
    assert (right - left, bottom - top) == (32, 32)


def test_points_that_would_cover_each_other_are_apart() -> None:
    same = answers("first", 0.4)
    ax = plot_shape_bias([same, replace(same, observer="second"), replace(same, observer="third")])
    heights = [np.asarray(line.get_ydata()) for line in ax.lines if line.get_label() in ("first", "second", "third")]
    assert np.diff(heights, axis=0) == pytest.approx(0.24)  # in the order of the legend
    assert np.mean(heights, axis=0) == pytest.approx(np.arange(16))
    alone = plot_shape_bias([same]).lines
    own = next(np.asarray(line.get_ydata()) for line in alone if line.get_label() == "first")
    assert own.tolist() == list(range(16))


def test_the_bar_at_all_images_is_explained() -> None:
    with paper_style():
        ax = plot_shape_bias([answers("net", 0.4)], humans=[answers("a", 0.7), answers("b", 0.6)], cluster="shape")
    legend: Any = ax.get_legend()
    named = [text.get_text() for text in legend.get_texts()]
    assert named[2:] == [
        "all images: value",
        "all images: 95 % interval (shape)",
        "all images: lowest to highest of humans",
    ]


@pytest.mark.parametrize(
    ("kind", "label"), [("confusion", "% of a row's images, square-root scale"), ("pairs", "shape bias")]
)
def test_maps_of_several_observers_share_a_scale_and_a_labelled_bar(
    folders: dict[str, Path], kind: str, label: str
) -> None:
    figure = draw_saved(read_saved([folders["bias"]]), kind, Look(width=7))
    images = [image for ax in figure.axes for image in ax.images]
    assert len(images) == 3
    assert len({(type(image.norm), image.norm.vmin, image.norm.vmax) for image in images}) == 1
    assert [ax.get_ylabel() for ax in figure.axes if ax.get_label() == "<colorbar>"] == [label]


def test_a_confusion_shows_rare_answers() -> None:
    norm: Any = plot_confusion(answers("net", 0.4)).images[0].norm
    assert (norm.vmin, norm.vmax, norm(25)) == (0, 100, 0.5)  # the square root
    assert (ink_on("white"), ink_on("#00224E"), ink_on("yellow")) == ("black", "white", "black")


def test_intervals_that_leave_the_axes_end_in_an_arrow() -> None:
    ax = new_axes()
    drawn = draw_intervals(ax, [1, 2, 3, 4, 5], [0, -5, 0.5, np.nan, 2], [0.5, 5, 3, 1, 3], color="red")
    ax.set(xlim=(0, 6), ylim=(0, 1))
    assert drawn.cut_ends() == [(2, 0, "v"), (2, 1, "^"), (3, 1, "^"), (5, 1, "^"), (5, 1, "^")]
    ax.set_ylim(1, 0)
    assert drawn.cut_ends()[0] == (2, 0, "^")
    across = draw_intervals(ax, 0.5, -1, 9, horizontal=True, color="red")
    ax.set_xlim(0, 6)
    assert across.cut_ends() == [(0, 0.5, "<"), (6, 0.5, ">")]


def test_seeds_are_lines_or_a_band(trained: dict[str, Path]) -> None:
    cells = read_saved([trained["study"]]).cells
    ax = plot_psychometric(cells)
    assert len([line for line in ax.lines if line.get_linewidth() == 0.5]) == 4 and not ax.collections
    many = [replace(cell, cell=replace(cell.cell, seed=seed)) for cell in cells for seed in range(3)]
    ax = plot_psychometric(many)
    assert len(ax.collections) == 2 and not [line for line in ax.lines if line.get_linewidth() == 0.5]
    legend: Any = ax.get_legend()
    assert " ".join(legend.get_title().get_text().split()) == (
        "middle half of the seeds; vertical marks: points of subjective equality"
    )


def test_nothing_is_measured_anew(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Module, "__call__", lambda *_: pytest.fail("a network ran"))
    saved = read_saved([folders["fields"]])
    assert isinstance(saved, Saved) and draw_saved(saved, "erf").axes


def test_a_long_legend_takes_no_room_from_the_axes(trained: dict[str, Path]) -> None:
    """Three families of two kernels: six lines under the axes; drawn again, the figure is as it was."""
    record = read_saved([trained["study"]]).studies[0]
    families = [
        replace(own, cell=replace(own.cell, family=name))
        for name in ("replknet", "unireplknet", "slak")
        for own in record.results
    ]
    several = Saved(studies=(replace(record, results=tuple(families)),), cells=tuple(families))
    for kind in ("psychometric", "curves", "area"):
        figure = draw_saved(several, kind, Look(width=3.4))
        assert faults(figure) == [], kind
        (ax,) = figure.axes
        first = ax.get_position()
        assert first.height * figure.get_figheight() > 1.6, kind
        figure.draw_without_rendering()
        assert ax.get_position().bounds == pytest.approx(first.bounds, abs=0.01), kind
