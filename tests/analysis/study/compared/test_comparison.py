"""Networks whose field and whose every answer is known."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from torch import Tensor, nn

from analysis import (
    Comparison,
    LoadedModel,
    ShapeBiasResult,
    StimulusSet,
    compare_networks,
    load_images,
    paper_style,
    plot_networks,
    write_comparison,
)
from analysis.images.stimuli import parse_stimulus
from analysis.study.compared.verdict import field_and_bias, warnings_of_networks
from tests.analysis.study.test_report import Page

SIDE = 20
CLASSES = ("bird", "cat", "dog")
NAMES = tuple(
    f"{shape}{i}-{texture}{j}.png"
    for shape in CLASSES
    for i in (1, 2)
    for texture in CLASSES
    for j in (1, 2)
    if shape != texture or (i, j) == (1, 1)
)
"""24 with a conflict, 3 without."""


class Reader(nn.Module):
    """Sums squares of `kernel` pixels, and names the shape of the first stimuli, the texture of the others.

    A stimulus says in its first pixel which number, which shape and which texture it has.
    """

    def __init__(self, kernel: int, num_shape: int, outputs: int = 3) -> None:
        super().__init__()
        self.field = nn.Conv2d(3, 1, kernel, padding=kernel // 2, bias=False)
        nn.init.ones_(self.field.weight)
        self.num_shape, self.outputs, self.calls = num_shape, outputs, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        number, shape, texture = (255 * images[:, :, 0, 0]).round().long().T
        answer = torch.where(number < self.num_shape, shape, texture) % self.outputs
        logits: Tensor = nn.functional.one_hot(answer, self.outputs)
        nothing: Tensor = 0 * self.field(images).mean((1, 2, 3))
        return logits + nothing[:, None]


def reader(name: str, kernel: int, num_shape: int, outputs: int = 3, **changes: Any) -> LoadedModel:
    module = Reader(kernel, num_shape, outputs)
    known: dict[str, Any] = {"classes": CLASSES, "input_size": SIDE, "crop": 1.0} | changes
    return LoadedModel(name=name, module=module, mean=(0.0,) * 3, std=(1.0,) * 3, **known)


def stimuli() -> StimulusSet:
    parts = [parse_stimulus(name) for name in NAMES]
    conflicts = iter(range(len(NAMES)))
    arrays = []
    for shape, _, texture, _ in parts:
        pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
        number = next(conflicts) if shape != texture else 99
        pixels[0, 0] = (number, CLASSES.index(shape), CLASSES.index(texture))
        arrays.append(pixels)
    shapes, shape_exemplars, textures, texture_exemplars = zip(*parts, strict=True)
    return StimulusSet(
        source="made",
        names=NAMES,
        hashes=NAMES,
        arrays=tuple(arrays),
        shapes=shapes,
        shape_exemplars=shape_exemplars,
        textures=textures,
        texture_exemplars=texture_exemplars,
    )


def person(name: str, right: int) -> ShapeBiasResult:
    """Names the shape of all stimuli but the last ones."""
    shown = stimuli()
    answers = [shape if index < right else "na" for index, shape in enumerate(shown.shapes)]
    columns = {key: getattr(shown, key) for key in ("shapes", "textures", "shape_exemplars", "texture_exemplars")}
    return ShapeBiasResult(observer=name, stimuli=NAMES, responses=tuple(answers), categories=CLASSES, **columns)


def options(**changes: Any) -> dict[str, Any]:
    return {"images": load_images(size=SIDE, num_images=2), "stimuli": stimuli()} | changes


def five() -> list[LoadedModel]:
    return [reader(f"network {kernel}", kernel, 4 * index) for index, kernel in enumerate((1, 3, 5, 7, 9), 1)]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    folder = tmp_path_factory.mktemp("compared")
    people = [person("first", 27), person("second", 20)]
    comparison = compare_networks(five(), folder, **options(people=people))
    write_comparison(comparison, folder, command="replknet compare A B")
    return comparison, folder


def test_every_value_is_the_known_one(compared: tuple[Comparison, Path]) -> None:
    table = compared[0].table
    assert list(table["network"]) == [f"network {kernel}" for kernel in (1, 3, 5, 7, 9)]
    for threshold in (0.2, 0.3, 0.5, 0.99):  # a box of equal gradients
        areas = [threshold * kernel**2 / SIDE**2 for kernel in (1, 3, 5, 7, 9)]
        assert table[f"erf_area_{threshold}"].to_list() == pytest.approx(areas)
    assert table["shape_bias"].to_list() == pytest.approx([number / 24 for number in (4, 8, 12, 16, 20)])
    assert (table["coverage"] == 1).all()
    assert (table["congruent_accuracy"] == 1).all()
    assert (table["shape_bias_low"] < table["shape_bias"]).all()
    assert (table["shape_bias"] < table["shape_bias_high"]).all()
    assert table["parameters"].to_list() == [3 * kernel**2 for kernel in (1, 3, 5, 7, 9)]
    assert table["macs"].to_list() == [3 * kernel**2 * SIDE**2 for kernel in (1, 3, 5, 7, 9)]
    assert (table["inference_ms"] > 0).all()
    assert table["accuracy"].isna().all()
    assert (table["missing"] == "evaluation: no labelled images were given").all()
    # With the person who is always right the agreement is that of chance; the other one is wrong in the last 7 of 27.
    network = compared[0].networks[-1].shape_bias
    assert network is not None
    right, other = network.columns["correct"], np.arange(27) < 20
    expected = right.mean() * 20 / 27 + (1 - right.mean()) * 7 / 27
    kappa = ((right == other).mean() - expected) / (1 - expected)
    assert table["consistency"].iloc[-1] == pytest.approx((0 + kappa) / 2)
    assert set(table["people"]) == {2}


def test_the_answer(compared: tuple[Comparison, Path]) -> None:
    found = field_and_bias(compared[0].table)
    assert found.answer == "Among these networks they go together: the larger the field, the more shape bias."
    assert [found.trend.tau, found.trend.num] == pytest.approx([1, 5])
    assert "p = 0.017" in found.detail
    assert "5 networks have to show at least 1.00 to be significant" in found.detail
    assert "these are of 1 architecture (Reader 5), and relatives are not independent" in found.detail
    table = compared[0].table
    reverse = table.assign(shape_bias=table["shape_bias"].to_numpy()[::-1], architecture=list("abcde"))
    assert field_and_bias(reverse).answer.startswith("The opposite")
    assert "relatives" not in field_and_bias(reverse).detail
    four = field_and_bias(table.iloc[:4])
    assert four.answer == "No answer: no order of 4 networks could be significant."
    assert "of which an order could be significant is 5" in four.detail
    mixed = table.assign(shape_bias=[0.5, 0.2, 0.4, 0.1, 0.3])
    assert field_and_bias(mixed).answer == "No evidence that the two go together."
    missing = field_and_bias(table.assign(shape_bias=[0.5, np.nan, 0.4, 0.1, 0.3]))
    assert missing.detail.endswith("without network 3, of which one of the two is missing.")
    assert field_and_bias(table.assign(shape_bias=np.nan)).answer.startswith("No answer: no network has both")
    assert field_and_bias(table.assign(shape_bias=0.5)).answer.startswith("No answer: one of the two is the same")


def test_page_figures_and_table(compared: tuple[Comparison, Path]) -> None:
    _, folder = compared
    page = Page()
    source = (folder / "report.html").read_text()
    page.feed(source)
    assert page.open == []
    assert all(link.startswith(("#", "data:", "./", "https://arxiv.org/abs/")) for link in page.links)
    assert len(page.identifiers) == len(set(page.identifiers))
    assert source.count("<svg role=") == 3  # figures; the fields are maps, one of each network
    assert source.count("<svg viewBox=") == len(compared[0].networks)
    for text in ("replknet compare A B", "Among these networks they go together", "0.17 [", "noise ceiling"):
        assert text in page.text
    assert "seed" not in re.sub(r"<script.*?</script>", "", source, flags=re.DOTALL)
    names = {path.name for path in (folder / "figures").iterdir()}
    stems = ("area_and_bias", "by_category", "contribution", "erf")
    assert names == {f"{stem}.{suffix}" for stem in stems for suffix in ("png", "pdf")}
    methods = (folder / "methods.txt").read_text()
    assert "Kendall's rank correlation of the area with half of the gradient and the shape bias +1.00 [" in methods
    assert "kendall1938rank" in (folder / "references.bib").read_text()
    table = pd.read_csv(folder / "compare.csv")
    assert table["erf_area_0.5"].to_list() == pytest.approx([kernel**2 / 800 for kernel in (1, 3, 5, 7, 9)])


def test_what_a_network_cannot_do_is_missing_and_the_rest_is_there(tmp_path: Path) -> None:
    class Failing(Reader):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) == 8:
                raise RuntimeError("no luck")
            return super().forward(images)

    models = [
        reader("good", 3, 12),
        reader("ten classes", 3, 12, 10, classes=tuple("abcdefghij")),
        reader("ten outputs", 3, 12, 10, classes=()),
        replace(reader("failing", 3, 12), module=Failing(3, 12)),
        replace(reader("vectors", 3, 12), module=nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 3))),
    ]
    for name in CLASSES:
        (tmp_path / "data" / name).mkdir(parents=True)
        pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
        pixels[0, 0] = (0, CLASSES.index(name), 0)
        Image.fromarray(pixels).save(tmp_path / "data" / name / "a.png")
    comparison = compare_networks(models, tmp_path / "out", **options(data=tmp_path / "data", batch_size=8))
    table = comparison.table.set_index("network")
    assert table["shape_bias"].notna().to_list() == [True, False, False, False, True]
    assert table["erf_area_0.5"].notna().to_list() == [True, True, True, True, False]
    assert table["accuracy"].notna().to_list() == [True, False, False, True, True]
    assert table.loc["good", "accuracy"] == 1.0
    assert table["macs"].notna().all()
    said = "\n".join(warnings_of_networks(comparison))
    assert (
        "No shape bias of ten classes: the classes are a, b, c, ... (10 in all); the stimuli also show others, bird"
        in said
    )
    assert "can be answered" not in said
    assert "No shape bias of ten outputs: model: ten outputs gives 10 outputs; the label mapping expects 1000" in said
    assert "No shape bias of failing: " in said
    assert "no luck" in said
    assert "No receptive field of vectors: " in said
    assert "No accuracy of ten classes" in said
    page = write_comparison(comparison, tmp_path / "out").read_text()
    assert "no luck" in page
    assert ">100.0 [" in page


def test_a_field_that_fills_the_image_is_told_as_in_a_study(compared: tuple[Comparison, Path]) -> None:
    full = compare_networks([reader("wide", 21, 1)], compared[1] / "wide", **options())
    said = "\n".join(warnings_of_networks(full))
    assert "takes nine tenths of the image or more (wide): gradient beyond the border is cut off" in said


def test_without_stimuli_nobody_asks_for_shape(tmp_path: Path) -> None:
    comparison = compare_networks([reader("a", 3, 12), reader("b", 5, 6)], tmp_path, **options(stimuli=None))
    source = write_comparison(comparison, tmp_path / "out").read_text()
    page = source.partition("<body>")[2].partition("<script")[0]
    assert "<h1>Receptive field and cost of trained networks</h1>" in page
    assert "No shape bias: no stimuli were given." in page
    assert '"x":"parameters","y":"erf_area_0.5"' in source
    assert page.lower().count("shape bias") == 1
    assert "Kendall" not in page


def test_a_finished_measurement_is_not_made_again(tmp_path: Path) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if what == "network 3, shape bias":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare_networks(five()[:2], tmp_path, **options(progress=stop))
    told: list[str] = []
    first = compare_networks(five()[:2], tmp_path, **options(progress=lambda done, total, what: told.append(what)))
    assert set(told) == {"network 3, shape bias"}
    told.clear()
    again = compare_networks(five()[:3], tmp_path, **options(progress=lambda done, total, what: told.append(what)))
    assert set(told) == {"network 5, receptive field", "network 5, shape bias"}
    pd.testing.assert_frame_equal(first.table, again.table.iloc[:2])


def test_other_weights_or_images_are_refused_or_replaced(tmp_path: Path) -> None:
    compare_networks([reader("a", 3, 12)], tmp_path, **options())
    other = reader("a", 3, 12)
    with torch.no_grad():
        assert isinstance(other.module, Reader)
        other.module.field.weight[..., 0] = 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for models, changed, what in (
        ([other], {}, "differs in weights"),
        ([reader("a", 3, 12)], {"images": load_images(size=SIDE, num_images=3)}, "differs in images"),
        ([reader("a", 3, 12)], {"stimuli": None}, "another measurement"),
    ):
        with pytest.raises(ValueError, match=what):
            compare_networks(models, tmp_path, **options(**changed))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    told: list[str] = []
    changed = options(images=load_images(size=SIDE, num_images=3), progress=lambda *done: told.append(done[2]))
    found = compare_networks([reader("a", 3, 12)], tmp_path, overwrite=True, **changed)
    assert set(told) == {"a, receptive field"}  # the answers to the same stimuli are kept
    assert found.table["erf_images"].to_list() == [3]
    found = compare_networks([other], tmp_path, overwrite=True, **options())
    assert found.networks[0].erf is not None
    assert np.count_nonzero(found.networks[0].erf.mean_map) == 6


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    untrained = replace(reader("new", 3, 12), initial="own initialisation")
    strangers = replace(person("p", 3), stimuli=tuple(f"x{name}" for name in NAMES))
    for models, changed, message in (
        ([reader("a", 3, 1), reader("a", 5, 1)], {}, "different names, not a, a"),
        ([], {}, "not none"),
        ([untrained], {}, "new is not trained"),
        ([reader("a", 3, 1)], {"stimuli": None, "people": [person("p", 3)]}, "people: go with stimuli only"),
        ([reader("a", 3, 1)], {"people": [strangers]}, "have seen none"),
        ([LoadedModel(name="v", module=nn.Flatten(), input_size=SIDE)], {}, "nothing could be measured; v: "),
    ):
        with pytest.raises(ValueError, match=message):
            compare_networks(models, tmp_path, **options(**changed))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        compare_networks([reader("a", 3, 1)], tmp_path, **options(data=tmp_path / "none"))


@pytest.mark.parametrize("height", [3.1, 4.5])
def test_names_stand_beside_their_points_and_none_on_another(height: float) -> None:
    bias = [0.5] * 9 + [0.9, 0.98, 0.99, 1.0, 0.0, 0.01]
    table = pd.DataFrame({"network": [f"network {i}" for i in range(15)], "architecture": "a", "shape_bias": bias})
    area = np.linspace(0.1, 0.9, 15)
    table = table.assign(**{"erf_area_0.5": area, "erf_area_0.5_low": area - 0.05, "erf_area_0.5_high": area + 0.05})
    table = table.assign(shape_bias_low=table["shape_bias"] - 0.1, shape_bias_high=table["shape_bias"] + 0.1)
    table = pd.concat([table, table[-1:].assign(network="without", shape_bias=np.nan)])
    figure = Figure(figsize=(4, height), layout="constrained")
    with paper_style():
        ax = plot_networks(table, ax=figure.add_subplot())
        figure.draw_without_rendering()
    texts = {text.get_text(): Text.get_window_extent(text) for text in ax.texts}  # without the line to the point
    assert set(texts) == {f"network {i}" for i in range(15)}
    boxes = sorted(texts.values(), key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 for low, high in pairwise(boxes))
    assert all(box.y0 >= 0 and box.y1 <= figure.bbox.height and box.x1 <= figure.bbox.width for box in boxes)
    assert all(box.x0 >= ax.bbox.x1 for box in boxes)
    assert texts["network 13"].y0 < texts["network 14"].y0 < texts["network 0"].y0 < texts["network 12"].y0
    drawn = [np.asarray(line.get_xydata()) for line in ax.lines]
    points = {tuple(place[0]) for place in drawn if len(place) == 1}
    assert points == {(100 * x, y) for x, y in zip(area, bias, strict=True)}
