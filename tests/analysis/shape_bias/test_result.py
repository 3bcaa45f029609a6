import csv
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import (
    LabelMapping,
    ResultError,
    ShapeBiasOptions,
    ShapeBiasResult,
    compare_shape_bias,
    consistency_table,
    error_consistency,
    human_reference,
    read_observers,
    read_responses,
    write_responses,
)
from analysis.shape_bias.comparing import common_images, guessing_text, pooled_by_category
from analysis.shape_bias.result import CLUSTERS
from tests.analysis.shape_bias.observers import crossed, observer

SEVEN = observer(
    [
        ("cat1-elephant1", "cat"),
        ("cat2-elephant1", "elephant"),
        ("cat3-dog1", "cat"),
        ("dog1-cat1", "cat"),
        ("dog2-cat2", "oven"),
        ("dog3-elephant2", "na"),
        ("dog4-dog5", "dog"),  # no conflict
    ]
)


def test_counts_by_hand() -> None:
    assert (SEVEN.num_images, SEVEN.num_shape, SEVEN.num_texture, SEVEN.num_neither) == (6, 2, 2, 2)
    assert SEVEN.shape_bias == 0.5
    assert SEVEN.coverage == pytest.approx(4 / 6)
    assert SEVEN.congruent_accuracy == 1.0
    assert SEVEN.accuracy == pytest.approx(3 / 7)
    by_shape = SEVEN.by_category().set_index("shape")
    counts = by_shape[["num_images", "num_shape", "num_texture", "num_neither"]]
    assert counts.to_numpy().tolist() == [[3, 2, 1, 0], [3, 0, 1, 2]]
    assert by_shape["shape_bias"].tolist() == pytest.approx([2 / 3, 0.0])
    by_texture = SEVEN.by_category("texture").set_index("texture")
    assert by_texture["num_images"].to_dict() == {"cat": 2, "dog": 1, "elephant": 3}
    rows = SEVEN.pair_map().itertuples(index=False)
    pairs = {(row.shape, row.texture): (row.num_images, row.num_shape, row.num_texture) for row in rows}
    assert pairs == {
        ("cat", "dog"): (1, 1, 0),
        ("cat", "elephant"): (2, 1, 1),
        ("dog", "cat"): (2, 0, 1),
        ("dog", "elephant"): (1, 0, 0),
    }
    assert SEVEN.pair_map()["shape_bias"].isna().tolist() == [False, False, False, True]
    confusion = SEVEN.confusion()
    assert confusion.to_numpy().sum() == 7
    assert (confusion.loc["dog", "na"], confusion.loc["dog", "dog"], confusion.loc["cat", "elephant"]) == (1, 1, 1)
    decisions = SEVEN.decisions()["decision"].tolist()
    assert decisions == ["shape", "texture", "shape", "texture", "neither", "neither", "correct"]


def test_estimators_and_congruent_images_by_hand() -> None:
    assert SEVEN.with_options(estimator="category-mean").shape_bias == pytest.approx(1 / 3)
    assert SEVEN.with_options(estimator="category-median").shape_bias == pytest.approx(1 / 3)
    included = SEVEN.with_options(congruent="include")
    number = len(SEVEN.categories)
    whole = f"coverage {200 / number:.3g} %, shape bias 0.5 and {100 / number:.3g} % answered with the shape"
    assert guessing_text([SEVEN]) == f"guessing among {number} categories gives {whole}"
    assert f"coverage {100 * 13 / 7 / number:.3g} %, shape bias {7 / 13:.3g} and" in guessing_text([included])
    congruent = SEVEN.restricted(["dog4-dog5.png"])
    assert guessing_text([congruent]) == (
        f"guessing among {number} categories gives {100 / number:.3g} % answered with the shape"
    )
    assert (included.num_images, included.num_shape, included.num_texture) == (7, 3, 2)
    assert included.shape_bias == pytest.approx(3 / 5)
    for wrong in ({"estimator": "mode"}, {"congruent": "half"}, {"aggregation": "x"}, {"tie": "bogus"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SEVEN.with_options(**wrong)
    with pytest.raises(ValueError, match="colour='red': no such option"):
        SEVEN.with_options(colour="red")
    with pytest.raises(ValueError, match="by='colour'"):
        SEVEN.by_category("colour")  # type: ignore[arg-type]


def test_an_undefined_ratio_is_nan() -> None:
    nobody = observer([("cat1-dog1", "na"), ("dog1-cat1", "oven")])
    assert np.isnan(nobody.shape_bias)
    assert nobody.coverage == 0.0
    assert np.isnan(nobody.confidence_interval()).all()
    edges = observer([("cat1", "cat"), ("dog1", "cat")])
    assert (edges.num_images, edges.accuracy) == (0, 0.5)
    assert np.isnan([edges.shape_bias, edges.coverage, edges.congruent_accuracy]).all()
    assert edges.decisions()["decision"].tolist() == ["correct", "wrong"]


def test_options_decide_anew_from_logits() -> None:
    mapping = LabelMapping.from_dict({0: "cat", 1: "dog", 2: "dog"})
    logits = np.log(np.array([[0.4, 0.3, 0.3], [0.2, 0.5, 0.3]], dtype=np.float32))
    seen = observer([("cat1-dog1", "na"), ("dog1-cat1", "na")], categories=("cat", "dog"))
    result = replace(seen, logits=logits, mapping=mapping)
    assert result.with_options(aggregation="mean-probability").responses == ("cat", "dog")
    assert result.with_options(aggregation="sum-probability").responses == ("dog", "dog")
    swapped = result.with_mapping(LabelMapping.from_dict({0: "dog", 1: "cat"}))
    assert swapped.responses == ("dog", "cat")
    with pytest.raises(ValueError, match="unknown category 'dog'"):
        result.with_mapping(LabelMapping.from_dict({0: "cat"}))
    with pytest.raises(ValueError, match="only the responses"):
        SEVEN.with_mapping(mapping)


def test_intervals_against_the_normal_approximation() -> None:
    """Independent images: the standard error of a share; whole exemplars that answer alike: of a share of exemplars."""
    generator = np.random.default_rng(1)
    alike = generator.random(250) < 0.3
    z = 1.959964
    share = alike.mean()
    by_shape = observer([(n, "cat" if alike[int(n.split("-")[0][3:])] else "elephant") for n, _ in crossed(250, 4)])
    texture_of = [int(name.split("elephant")[1]) for name, _ in crossed(4, 250)]
    answers = ["cat" if alike[texture] else "elephant" for texture in texture_of]
    by_texture = observer([(name, answer) for (name, _), answer in zip(crossed(4, 250), answers, strict=True)])
    half_width = z * np.sqrt(share * (1 - share) / 250)
    for result, cluster in ((by_shape, "shape"), (by_texture, "texture"), (by_shape, "two-way")):
        low, high = result.confidence_interval(cluster)  # type: ignore[arg-type]
        assert (high - low) / 2 == pytest.approx(half_width, rel=0.08)
        assert (high + low) / 2 == pytest.approx(share, abs=0.01)
    # The other factor does not matter to this observer, and single images look too certain.
    assert np.ptp(by_shape.confidence_interval("texture")) == pytest.approx(0, abs=1e-12)
    low, high = by_shape.confidence_interval("image")
    assert (high - low) / 2 == pytest.approx(z * np.sqrt(share * (1 - share) / 1000), rel=0.08)
    narrow = by_shape.confidence_interval("shape", confidence=0.5)
    assert np.ptp(narrow) / 2 == pytest.approx(half_width * 0.674490 / z, rel=0.1)


def test_one_cluster_gives_no_interval() -> None:
    result = observer([(f"cat{i}-dog1", "cat" if i % 2 else "dog") for i in range(8)])
    assert np.isnan(result.confidence_interval("texture")).all()
    assert np.isnan(result.confidence_interval("two-way")).all()
    assert not np.isnan(result.confidence_interval("shape")).any()


def test_intervals_are_reproducible_and_checked() -> None:
    for cluster in CLUSTERS:
        assert SEVEN.confidence_interval(cluster, seed=3) == SEVEN.confidence_interval(cluster, seed=3)
    for changes in ({"cluster": "dog"}, {"confidence": 1.0}, {"num_resamples": 0}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            SEVEN.confidence_interval(**changes)


def test_paired_difference() -> None:
    """Two observers that agree on almost every image differ far more surely than two unpaired shares would."""
    names = crossed(40, 25)
    generator = np.random.default_rng(0)
    first = ["cat" if value else "elephant" for value in generator.random(1000) < 0.5]
    second = ["elephant" if index % 20 == 0 else answer for index, answer in enumerate(first)]
    a = observer([(name, answer) for (name, _), answer in zip(names, first, strict=True)], name="a")
    b = observer([(name, answer) for (name, _), answer in zip(names, second, strict=True)], name="b")
    found = compare_shape_bias(a, b, cluster="image")
    changed = sum(x != y for x, y in zip(first, second, strict=True)) / 1000
    assert found.difference == pytest.approx(changed)
    half_width = 1.959964 * np.sqrt(changed * (1 - changed) / 1000)
    assert (found.high - found.low) / 2 == pytest.approx(half_width, rel=0.08)
    assert found.p_value < 0.001
    same = compare_shape_bias(a, a)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    reverse = compare_shape_bias(b, a, cluster="image")
    assert (reverse.difference, reverse.low) == (-found.difference, -found.high)
    with pytest.raises(ValueError, match="no image in common"):
        compare_shape_bias(a, observer([("dog1-cat1", "dog")]))


def test_the_p_value_is_uniform_without_a_difference() -> None:
    """Two observers that answer alike but at random: one test in ten at a level of one in ten."""
    names = [name for name, _ in crossed(200, 1)]
    generator = np.random.default_rng(5)
    p_values = []
    for _ in range(200):
        answers = np.where(generator.random((2, 200)) < 0.4, "cat", "elephant")
        a, b = (observer(list(zip(names, row.tolist(), strict=True))) for row in answers)
        p_values.append(compare_shape_bias(a, b, cluster="image", num_resamples=400).p_value)
    assert 0.04 < np.mean(np.array(p_values) < 0.1) < 0.17


def test_error_consistency_by_hand() -> None:
    names = [f"cat{index}-dog{index}" for index in range(10)]
    first = observer(list(zip(names, ["cat"] * 6 + ["dog"] * 4, strict=True)), name="first")
    second = observer(list(zip(names, ["cat"] * 4 + ["oven"] * 4 + ["cat"] * 2, strict=True)), name="second")
    found = error_consistency(first, second)
    # Both right 4, both wrong 2; accuracies 0.6 and 0.6.
    assert found.observed == pytest.approx(0.6)
    assert found.expected == pytest.approx(0.52)
    assert found.kappa == pytest.approx(0.08 / 0.48)
    assert found.low <= found.kappa <= found.high
    assert error_consistency(first, first).kappa == pytest.approx(1)
    always = observer([(name, "cat") for name in names])
    assert np.isnan(error_consistency(always, always).kappa)
    # Images that only one has seen do not count, in whatever order.
    part = observer(list(zip(names[:8:-1], ["cat"], strict=True)))
    assert error_consistency(first, part).num_images == 1


def test_common_images_by_hand() -> None:
    first = observer(
        [("dog1-cat1", "dog"), ("cat1-dog1", "dog"), ("cat2-dog1", "cat"), ("oven1-cat1", "na")], name="first"
    )
    second = observer([("cat1-dog1", "cat"), ("dog1-cat1", "cat"), ("cat2-dog1", "oven"), ("car1-cat1", "car")])
    third = observer([("cat2-dog1", "cat"), ("dog1-cat1", "dog"), ("truck1-truck2", "truck"), ("oven1-cat1", "cat")])
    common = common_images([first, second, third])
    assert {result.stimuli for result in common} == {("dog1-cat1.png", "cat2-dog1.png")}
    assert [result.responses for result in common] == [("dog", "cat"), ("cat", "oven"), ("dog", "cat")]
    assert [(own.num_shape, own.num_texture, own.num_neither) for own in common] == [(2, 0, 0), (0, 1, 1), (2, 0, 0)]
    # What everyone has seen already is left as it is, and the results themselves always are.
    assert common_images([first])[0] is common_images([first, first])[1] is first
    assert len(first.stimuli) == 4
    with pytest.raises(ValueError, match="first and someone and nobody: no image in common"):
        common_images([first, second, observer([("car1-cat1", "car")], name="nobody")])


def test_a_part_of_a_result_stands_for_no_other_logits() -> None:
    hashes = tuple("abcdefg")
    whole = replace(SEVEN, image_hashes=hashes, fingerprint="of all seven")
    part = whole.restricted(SEVEN.stimuli[2::-2])
    assert (part.image_hashes, part.fingerprint, part.stimuli) == (("c", "a"), "", (SEVEN.stimuli[2], SEVEN.stimuli[0]))
    assert whole.restricted(SEVEN.stimuli) is whole


def test_chosen_categories_of_a_person_by_hand() -> None:
    """Images of an elephant's texture drop out; "oven", once an answer like others, is none of the two any more."""
    chosen = SEVEN.with_categories(("dog", "cat"))
    assert chosen.stimuli == tuple(f"{name}.png" for name in ("cat3-dog1", "dog1-cat1", "dog2-cat2", "dog4-dog5"))
    assert chosen.responses == ("cat", "cat", "oven", "dog")
    assert (chosen.num_images, chosen.num_shape, chosen.num_texture, chosen.num_neither) == (3, 1, 1, 1)
    assert chosen.confusion().columns.tolist() == ["cat", "dog", "oven", "na"]
    assert list(chosen.confusion().loc["dog"]) == [1, 1, 1, 0]
    assert chosen.decisions()["decision"].tolist() == ["shape", "texture", "neither", "correct"]
    edges = observer([("cat1", "cat"), ("dog1", "oven"), ("oven1", "oven")]).with_categories(("cat", "dog"))
    assert (edges.stimuli, edges.accuracy) == (("cat1.png", "dog1.png"), 0.5)
    with pytest.raises(ValueError, match="categories=cat,cow: expected different ones of airplane, bear"):
        SEVEN.with_categories(("cat", "cow"))
    with pytest.raises(ValueError, match="categories=oven: no image of someone has shape and texture among them"):
        SEVEN.with_categories(("oven",))


def test_chosen_categories_decide_anew_from_logits() -> None:
    mapping = LabelMapping.from_dict({0: "cat", 1: "dog", 2: "oven"})
    logits = np.log(np.array([[0.3, 0.2, 0.5], [0.2, 0.3, 0.5], [0.1, 0.1, 0.8]], dtype=np.float32))
    answers = [("cat1-dog1", "na"), ("dog1-cat1", "na"), ("oven1-cat1", "na")]
    whole = replace(observer(answers, categories=mapping.categories), logits=logits, mapping=mapping).with_options()
    assert whole.responses == ("oven", "oven", "oven")
    chosen = whole.with_categories(("cat", "dog"))
    assert (chosen.responses, chosen.categories, chosen.num_shape) == (("cat", "dog"), ("cat", "dog"), 2)
    assert chosen.logits is not None and chosen.logits.shape == (2, 3)
    assert chosen.with_options(tie="none").responses == ("cat", "dog")


def test_disagreement_about_an_image_is_refused() -> None:
    other = replace(SEVEN, shapes=("dog", *SEVEN.shapes[1:]))
    with pytest.raises(ValueError, match="different categories"):
        error_consistency(SEVEN, other)


def test_save_and_load(tmp_path: Path) -> None:
    mapping = LabelMapping.from_dict({0: "cat", 1: "dog", 2: "elephant", 3: "oven"}, num_classes=4)
    logits = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    result = replace(
        SEVEN, logits=logits, mapping=mapping, categories=mapping.categories, skipped=(("a.txt", "not an image"),)
    ).with_options(aggregation="mean-logit", estimator="category-mean")
    result.save(tmp_path / "result")
    loaded = ShapeBiasResult.load(tmp_path / "result")
    assert loaded.logits is not None
    np.testing.assert_array_equal(loaded.logits, logits)
    for name in ("stimuli", "responses", "options", "mapping", "skipped", "shapes", "texture_exemplars"):
        assert getattr(loaded, name) == getattr(result, name)
    assert loaded.shape_bias == result.shape_bias
    with pytest.raises(FileExistsError):
        result.save(tmp_path / "result")
    SEVEN.save(tmp_path / "person")
    assert ShapeBiasResult.load(tmp_path / "person").logits is None
    (tmp_path / "person" / "result.json").write_text("{}")
    with pytest.raises(ResultError):
        ShapeBiasResult.load(tmp_path / "person")
    with pytest.raises(ResultError, match="another length"):
        replace(SEVEN, responses=("cat",))


def test_every_observer_of_the_published_data(shared: Path) -> None:
    """Counts of an independent script, overall and by category (`reference/`)."""
    observers: dict[str, ShapeBiasResult] = {}
    for folder in ("cue-conflict-human", "cue-conflict-models"):
        observers |= {result.observer: result for result in read_observers(shared / "data" / folder)}
    assert len(observers) == 14
    # The published files of the people have the experiment's longer name.
    names = [Path(result.source).name for result in observers.values()]
    files = {name.replace("cue-conflict_", "style-transfer-512-nomask-experiment_") for name in names}
    with (shared / "reference" / "shape_bias_ground_truth_overall.csv").open() as file:
        rows = {row["subj"]: row for row in csv.DictReader(file) if row["file"] in files}
    with (shared / "reference" / "shape_bias_ground_truth_per_category.csv").open() as file:
        categories = [row for row in csv.DictReader(file) if row["file"] in files]
    assert set(rows) == set(observers)
    for name, row in rows.items():
        result = observers[name]
        counts = (result.num_images, result.num_shape, result.num_texture, result.num_neither)
        assert counts == tuple(int(row[key]) for key in ("n_conflict", "shape", "texture", "neither"))
        assert result.shape_bias == pytest.approx(float(row["shape_bias"]), abs=1e-6)
        mean = result.with_options(estimator="category-mean").shape_bias
        assert mean == pytest.approx(float(row["mean_over_categories"]), abs=1e-6)
        assert result.accuracy == pytest.approx(float(row["acc_all1280"]), abs=1e-6)
        assert result.congruent_accuracy == pytest.approx(int(row["congruent_correct"]) / int(row["congruent_n"]))
        decisions = result.decisions()
        assert (decisions["conflict"] & (decisions["response"] == "na")).sum() == int(row["na"])
    columns = ["shape", "num_shape", "num_texture", "num_images"]
    found = {
        (name, *row) for name, result in observers.items() for row in result.by_category()[columns].to_numpy().tolist()
    }
    assert len(categories) == 14 * 16
    assert found == {
        (row["subj"], row["category"], int(row["shape"]), int(row["texture"]), int(row["n"])) for row in categories
    }


def test_published_people_and_networks(shared: Path) -> None:
    """Values of `design/protocols.md`, section 3, computed by others."""
    humans = read_observers(shared / "data" / "cue-conflict-human")
    folder = shared / "data" / "cue-conflict-models"
    resnet = read_responses(folder / "style-transfer-512-nomask-experiment_resnet50_session-1.csv")
    pair = error_consistency(humans[0], humans[1])
    assert (pair.kappa, pair.observed, pair.expected) == pytest.approx((0.356786, 0.743750, 0.601610), abs=1e-6)
    reference = human_reference(humans)
    assert (reference.num_shape, reference.num_texture) == (9236, 398)
    assert reference.shape_bias == pytest.approx(0.9587, abs=5e-5)
    assert reference.kappa == pytest.approx(0.3311, abs=5e-5)
    agreement = consistency_table([resnet], humans)
    assert agreement["kappa"].mean() == pytest.approx(0.0674, abs=5e-5)
    # The 1280 images share 160 objects and 48 textures: fewer independent ones than images.
    assert set(agreement["cluster"]) == {"two-way"}
    over_images = consistency_table([resnet], humans, "image")
    widths = [(table["high"] - table["low"]).mean() for table in (agreement, over_images)]
    assert widths[0] > 1.3 * widths[1]
    low, high = reference.shape_bias_leave_one_out
    assert reference.shape_bias_range[0] < low < reference.shape_bias < high < reference.shape_bias_range[1]
    assert reference.kappa_leave_one_out[0] < reference.kappa < reference.kappa_leave_one_out[1]
    estimates = [
        resnet.with_options(estimator=name).shape_bias for name in ("pooled", "category-mean", "category-median")
    ]
    assert estimates == pytest.approx([0.2207, 0.1951, 0.1241], abs=5e-5)
    for cluster, published in {
        "image": (0.192, 0.251),
        "shape": (0.179, 0.266),
        "texture": (0.160, 0.298),
    }.items():
        assert resnet.confidence_interval(cluster) == pytest.approx(published, abs=0.006)  # type: ignore[arg-type]
    pooled = pooled_by_category(humans)
    assert (pooled["num_shape"].sum(), pooled["num_images"].sum()) == (9236, 12000)
    with pytest.raises(ValueError, match="at least two"):
        human_reference(humans[:1])


def test_published_people_on_three_categories(shared: Path) -> None:
    """Against counts that pandas makes of the files themselves."""
    kept = {"car", "cat", "dog"}
    for path in sorted((shared / "data" / "cue-conflict-human").glob("*.csv"))[:3]:
        rows = pd.read_csv(path, keep_default_na=False)
        names = rows["imagename"].str.extract(r"_([a-z]+)\d+-([a-z]+)\d+\.png$")
        rows = rows[names[0].isin(kept) & names[1].isin(kept)]
        names = names.loc[rows.index]
        conflict = names[0] != names[1]
        expected = [(conflict & (rows["object_response"] == names[cue])).sum() for cue in (0, 1)]
        found = read_responses(path).with_categories(sorted(kept))
        assert (len(found.stimuli), found.num_images) == (45, 30) == (len(rows), conflict.sum())
        assert [found.num_shape, found.num_texture] == expected
        assert found.accuracy == pytest.approx((rows["object_response"] == names[0]).mean())


def test_people_without_a_defined_value_do_not_hide_the_others() -> None:
    silent = observer([("cat1-dog1", "na"), ("dog1-cat1", "na")], name="silent")
    half = observer([("cat1-dog1", "cat"), ("dog1-cat1", "cat")], name="half")
    for people in ([silent, half], [half, silent]):
        reference = human_reference(people)
        assert reference.shape_bias_range == (0.5, 0.5)
        assert (reference.shape_bias, reference.shape_bias_leave_one_out) == (0.5, (0.5, 0.5))
    nothing = human_reference([silent, replace(silent, observer="mute")])
    assert np.isnan([nothing.shape_bias, nothing.kappa, *nothing.shape_bias_range, *nothing.kappa_leave_one_out]).all()


def test_options_are_validated() -> None:
    with pytest.raises(ValueError, match="estimator='mean'"):
        ShapeBiasOptions(estimator="mean")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["=cmd()", "-1", "-foo", "+a", "@b", "'=x", "a,b", 'say "no"', "two\nlines", "a\rb", "caf\u00e9"]
)
def test_raw_responses_come_back_whatever_the_observer_is_called(name: str, tmp_path: Path) -> None:
    made = observer([("cat1-dog2", "cat"), ("dog1-cat2", "na"), ("bear1-oven2", "oven")], name=name)
    write_responses(made, tmp_path / "a.csv")
    found = read_responses(tmp_path / "a.csv")
    assert found.observer == name
    assert dict(zip(found.stimuli, found.responses, strict=True)) == dict(
        zip(made.stimuli, made.responses, strict=True)
    )
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        assert not next(csv.DictReader(file))["subj"].startswith(("=", "+", "-", "@"))


HEADER = "subj,session,trial,rt,object_response,category,condition,imagename\n"
ROW = "ann,1,1,NaN,cat,cat,0,0001_x_cat1-dog1.png\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER + ROW.replace("NaN", "9" * 200_000), "line 2: no CSV"),
        (HEADER + ROW.replace("ann", '"ann'), "line 2: no CSV"),
        (HEADER + ROW.replace("ann", "a\0n"), "expected text in UTF-8"),
        (HEADER + ROW + ROW, "line 3: cat1-dog1.png was shown before"),
        (HEADER.replace("subj", "subj,subj") + "x," + ROW, "2 columns subj"),
        (HEADER.replace(",", ";") + ROW.replace(",", ";"), "no column subj"),
        (HEADER + ROW.replace("cat1-dog1.png", "cat1-d"), "line 2: stimulus 'cat1-d'"),
        (HEADER + ROW[:-10], "line 2: .*; is the file cut off"),
        (HEADER, "found none"),
        ("", "no column subj"),
    ],
)
def test_damaged_responses_are_one_line_with_file_and_number(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ValueError, match=rf"^responses='.*a\.csv'.*{message}") as raised:
        read_responses(tmp_path / "a.csv")
    assert len(str(raised.value)) < 400
    (tmp_path / "a.csv").unlink()
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError, match="a pipe, a socket or a device"):
        read_responses(tmp_path / "a.csv")


def test_a_bootstrap_draws_no_difference_twice() -> None:
    """Images that share no object and no texture are drawn once each, and one way that lies in the other not at all."""
    pairs = [(a, b) for a in ("cat", "dog", "oven", "bird") for b in ("cat", "dog", "oven", "bird") if a != b]
    alone = observer([(f"{a}{i}-{b}{i}", a if i % 4 else b) for i, (a, b) in enumerate(pairs)])
    assert alone.drawn_over("two-way") == alone.drawn_over("shape") == "image"
    low, high = alone.confidence_interval("two-way")
    # Nine of twelve by shape: the binomial distribution of draws.
    assert (low, high) == pytest.approx(stats.binom.ppf([0.025, 0.975], 12, 0.75) / 12)
    assert alone.summary()["cluster"] == "image"
    nested = observer([(f"{a}{i}-{b}1", a if i % 4 else b) for i, (a, b) in enumerate(pairs)])
    assert nested.drawn_over("two-way") == "texture"
    assert nested.confidence_interval("two-way") == nested.confidence_interval("texture")
    both = observer([(name, "cat") for name, _ in crossed(2, 2)])
    assert (SEVEN.drawn_over("image"), both.drawn_over("two-way")) == ("image", "two-way")
