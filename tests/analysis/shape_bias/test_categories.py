from pathlib import Path

import numpy as np
import pytest

from analysis.images.imagenet import imagenet_classes
from analysis.shape_bias.categories import AGGREGATIONS, CATEGORIES, IMAGENET, LabelMapping, mapping_of_classes

ANIMALS = LabelMapping.from_dict({0: "cat", 3: "dog", 1: "dog"}, num_classes=5)


def test_the_imagenet_mapping_has_the_published_sizes() -> None:
    published = (1, 4, 2, 49, 5, 7, 3, 6, 4, 3, 109, 2, 2, 1, 1, 8)  # Geirhos et al. 2019
    assert dict(zip(CATEGORIES, published, strict=True)) == {name: len(own) for name, own in IMAGENET.indices}
    assert sum(published) == 207
    assert IMAGENET.categories == tuple(sorted(CATEGORIES))


def test_scores_by_hand() -> None:
    probabilities = np.array([[0.2, 0.3, 0.35, 0.1, 0.05]])
    logits = np.log(probabilities) + 7.0  # softmax does not see the constant
    expected = {
        "mean-probability": (0.2, 0.2),
        "sum-probability": (0.2, 0.4),
        "max-probability": (0.2, 0.3),
        "mean-logit": (np.log(0.2) + 7, (np.log(0.3) + np.log(0.1)) / 2 + 7),
    }
    for aggregation in AGGREGATIONS:
        np.testing.assert_allclose(ANIMALS.scores(logits, aggregation)[0], expected[aggregation], rtol=1e-12)
    answers = {aggregation: ANIMALS.decide(logits, aggregation)[0] for aggregation in AGGREGATIONS}
    assert answers["sum-probability"] == answers["max-probability"] == "dog"
    assert answers["mean-logit"] == "cat"


def test_ties() -> None:
    logits = np.zeros((1, 5))
    assert ANIMALS.decide(logits) == ("cat",)
    assert ANIMALS.decide(logits, tie="none") == ("na",)
    assert ANIMALS.decide(np.array([[0.0, 1.0, 0.0, 1.0, 0.0]]), tie="none") == ("dog",)


def test_chosen_categories_alone() -> None:
    """The outputs of the others still take part in the softmax, and the mean is over a category's own outputs."""
    mapping = LabelMapping.from_dict({0: "cat", 1: "dog", 2: "dog", 3: "oven"}, num_classes=5)
    logits = np.log(np.array([[0.1, 0.2, 0.1, 0.5, 0.1], [0.3, 0.0625, 0.0625, 0.5, 0.075]]))
    assert mapping.decide(logits) == ("oven", "oven")
    chosen = mapping.of_categories(("dog", "cat"))
    assert (chosen.categories, chosen.num_classes) == (("cat", "dog"), 5)
    np.testing.assert_allclose(chosen.scores(logits), [[0.1, 0.15], [0.3, 0.0625]])
    assert chosen.decide(logits) == ("dog", "cat")
    assert mapping.of_categories(mapping.categories) == mapping
    for wrong in (("cat", "cow"), ("cat", "cat"), ()):
        with pytest.raises(
            ValueError, match=f"categories={','.join(wrong)}: expected different ones of cat, dog, oven"
        ):
            mapping.of_categories(wrong)


def test_many_categories_are_not_all_listed() -> None:
    mapping = LabelMapping.from_dict({index: f"kind{index:03}" for index in range(1000)})
    with pytest.raises(ValueError, match=r"kind015, \.\.\. \(1000 in all\)") as raised:
        mapping.check_stimuli(["cat1-dog1.png"], ["cat"], ["dog"])
    assert "kind016" not in str(raised.value)


def test_a_logit_that_is_not_finite_decides_nothing() -> None:
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="logits: some are not finite"):
            ANIMALS.decide(np.array([[0.0, 1.0, value, 1.0, 0.0]]))


def test_a_mapping_is_validated() -> None:
    for indices, message in (
        ((("cat", (0,)), ("dog", (0,))), "class index 0 belongs to 'cat' and to 'dog'"),
        ((("cat", ()),), "'cat' has no class index"),
        ((("cat", (-1,)),), "class index -1"),
        ((("cat", (5,)),), "class index 5 of 'cat': expected at least 0 and below 5"),
        ((("dog", (0,)), ("cat", (1,))), "alphabetical"),
        ((), "alphabetical"),
    ):
        with pytest.raises(ValueError, match=message):
            LabelMapping(indices, num_classes=5)
    with pytest.raises(ValueError, match="10 outputs; the label mapping expects 1000"):
        IMAGENET.scores(np.zeros((1, 10)))
    with pytest.raises(ValueError, match="3 outputs; the label mapping expects more than 3"):
        LabelMapping.from_dict({3: "cat"}).scores(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="aggregation='median'"):
        ANIMALS.scores(np.zeros((1, 5)), "median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tie='last'"):
        ANIMALS.decide(np.zeros((1, 5)), tie="last")  # type: ignore[arg-type]


def test_classes_of_image_folders_are_categories_by_a_table_of_names() -> None:
    found = mapping_of_classes(("Aeroplane", "pickup_truck", "deer", "truck", "ships"))
    assert found == LabelMapping((("airplane", (0,)), ("truck", (1, 3))), num_classes=5)
    assert mapping_of_classes([wordnet_id for wordnet_id, _ in imagenet_classes()]) is IMAGENET
    with pytest.raises(ValueError, match=r"classes=automobile, deer: expected two .*, ship, found automobile"):
        mapping_of_classes(("automobile", "deer"))
    with pytest.raises(ValueError, match=r"classes=car, automobile: expected two .*, found car"):
        mapping_of_classes(("car", "automobile"))
    with pytest.raises(ValueError, match="found none"):
        mapping_of_classes(("ring", "star"))


def test_a_mapping_from_csv(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("category,class_index\ndog,3\ncat,0\ndog,1\n")
    assert LabelMapping.from_csv(path, num_classes=5) == ANIMALS
    for text, message in (
        ("class,category\n0,cat\n", "no column class_index; expected class_index,category"),
        ("class_index,category\n0,cat\n0,dog\n", "line 3: class index 0 was given before"),
        ("class_index,category\nzero,cat\n", "line 2: expected a class index and a category"),
        ("class_index,category\n1\n", "line 2: 1 of 2 fields"),
        ("class_index,category\n1,\n", "line 2: expected a class index and a category, not '1' and ''"),
        (f"class_index,category\n{'9' * 5000},cat\n", "line 2: expected a class index"),
        ("class_index,category\n-1,cat\n", "line 2: expected a class index"),
        (f"class_index,category\n1,{'x' * 200_000}\n", "line 2: no CSV"),
        ("class_index,category\n", "names no category"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            LabelMapping.from_csv(path)
