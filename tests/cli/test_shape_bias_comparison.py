"""`replknet shape-bias`: which images and categories observers are compared on."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import LoadedModel, ShapeBiasResult, read_responses, write_responses
from analysis.images.imagenet import imagenet_classes
from tests.analysis.shape_bias.observers import observer, write_stimuli
from tests.cli.command import run
from tests.cli.test_shape_bias import KINDS, MODEL, NAMES, Thousand, ten_classes

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def stimuli(tmp_path: Path) -> Path:
    return write_stimuli(tmp_path / "stimuli", NAMES)


@pytest.fixture
def everyman(tmp_path: Path) -> Path:
    """Two people who saw many more images, of four categories; the second missed one that the network sees."""
    folder = tmp_path / "everyman"
    folder.mkdir()
    kinds = (*KINDS, "boat")
    names = [f"{shape}{i}-{texture}{i}" for shape in kinds for texture in kinds for i in (1, 2, 3)]
    shapes = [(name, "boat" if name == "cat1-dog1" else name.split("-")[0][:-1]) for name in names]
    textures = [(name, name.split("-")[1][:-1]) for name in names if name != "oven2-cat2"]
    write_responses(observer(shapes, name="by-shape"), folder / "1.csv")
    write_responses(observer(textures, name="by-texture"), folder / "2.csv")
    return folder


def test_everyone_is_compared_on_the_common_images(
    stimuli: Path, everyman: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    run("shape-bias", MODEL, "--stimuli", stimuli, "--humans", everyman, "--out", out)
    table = pd.read_csv(out / "shape_bias.csv").set_index("observer")
    assert table["num_common"].tolist() == [17] * 3
    assert table["num_seen"].tolist() == [18, 48, 47]
    assert table["num_images"].tolist() == [11] * 3  # six of the 17 have no conflict
    assert list(table.loc["by-shape", ["num_shape", "num_texture", "num_neither"]]) == [10, 0, 1]
    assert list(table.loc["by-texture", ["num_shape", "num_texture", "num_neither"]]) == [0, 11, 0]
    assert table["accuracy"].tolist()[1:] == pytest.approx([16 / 17, 6 / 17])
    for name in ("by_shape", "by_texture", "pairs"):
        assert pd.read_csv(out / f"{name}.csv").groupby("observer")["num_images"].sum().tolist() == [11] * 3
    assert set(pd.read_csv(out / "consistency.csv")["num_images"]) == {17}
    decisions = pd.read_csv(out / "decisions.csv")
    assert decisions.groupby("observer")["stimulus"].nunique().tolist() == [17] * 3
    assert "oven2-cat2.png" not in set(decisions["stimulus"])
    # The network's numbers are those of its own answers to these images; what is saved is whole.
    whole = ShapeBiasResult.load(out / "thousand")
    assert len(whole.stimuli) == 18
    without = whole.restricted([name for name in whole.stimuli if name != "oven2-cat2.png"])
    assert table.loc["thousand", "num_shape"] == without.num_shape
    assert len(read_responses(out / "raw-responses" / "cue-conflict_thousand_session_1.csv").stimuli) == 18
    printed = capsys.readouterr()
    for text in ("17 of 18", "17 of 48", "17 of 47"):
        assert text in printed.out
    assert "Everyone is compared on the 17 images that all have seen." in printed.err
    assert "left out: thousand 1 of 18; by-shape 31 of 48; by-texture 30 of 47" in printed.err
    # People of these images alone change nothing; neither does a network alone.
    run("shape-bias", MODEL, "--stimuli", stimuli, "--out", tmp_path / "alone")
    assert "Everyone" not in capsys.readouterr().err
    alone = pd.read_csv(tmp_path / "alone" / "shape_bias.csv").iloc[0]
    summary = whole.summary()
    assert {name: alone[name] for name in summary} == summary
    assert (alone["num_common"], alone["num_seen"]) == (18, 18)


def test_chosen_categories_restrict_stimuli_answers_and_people(
    stimuli: Path, everyman: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    arguments = ("shape-bias", MODEL, "--stimuli", stimuli, "--humans", everyman, "--categories", " oven,cat")
    calls = Thousand.calls
    run(*arguments, "--out", out)
    assert Thousand.calls == calls + 9  # eight images, and the black one that asks whether the model fits
    decisions = pd.read_csv(out / "decisions.csv")
    own = decisions[decisions["observer"] == "thousand"].set_index("stimulus")
    assert set(own["response"]) <= {"cat", "oven"}
    saved = ShapeBiasResult.load(out / "thousand")
    assert len(saved.stimuli) == 8 and saved.categories == ("cat", "oven")
    # By hand: softmax over all outputs, means over the six classes of cats and the one of ovens.
    assert saved.logits is not None
    shares = np.exp(saved.logits.astype(float))
    ovens = shares[:, 766] > shares[:, 281:287].mean(1)
    assert list(saved.responses) == ["oven" if is_oven else "cat" for is_oven in ovens]
    for name in ("index.html", "methods.txt"):
        text = (out / name).read_text()
        assert "Too few of the images without conflict are named correctly (thousand " in text, name
        assert "that shape bias means little." in text, name
    for name, is_oven in zip(saved.stimuli, ovens, strict=True):
        if name != "oven2-cat2.png":
            assert own.loc[name, "response"] == ("oven" if is_oven else "cat")
    table = pd.read_csv(out / "shape_bias.csv").set_index("observer")
    assert table["num_seen"].tolist() == [8, 12, 11]
    assert table["num_common"].tolist() == [7] * 3
    assert list(table.loc["by-shape", ["num_shape", "num_texture", "num_neither"]]) == [3, 0, 0]
    assert set(pd.read_csv(out / "confusion.csv").columns) == {"observer", "shape", "cat", "oven", "na"}
    capsys.readouterr()
    unknown, twice = "=cat,cow: expected different ones of airplane, bear", "='cat,cat': expected different names"
    for wrong, message in (("cat,cow", unknown), ("cat,cat", twice), ("", "='': expected a value")):
        run(*arguments[:-1], wrong, "--out", tmp_path / "other", code=2)
        error = capsys.readouterr().err
        assert f"--categories{message}" in error
    run(*arguments[:-1], "cat,car", "--out", tmp_path / "other")
    assert set(pd.read_csv(tmp_path / "other" / "shape_bias.csv")["num_images"]) == {0}
    run(*arguments[:-1], "bear,bird", "--out", tmp_path / "third", code=2)
    assert "none has shape and texture among bear, bird" in capsys.readouterr().err


def test_chosen_categories_answer_from_saved_logits_of_all(stimuli: Path, tmp_path: Path) -> None:
    arguments = ("shape-bias", MODEL, "--stimuli", stimuli, "--out")
    run(*arguments, tmp_path / "out")
    saved = {path.name: path.read_bytes() for path in (tmp_path / "out" / "thousand").iterdir()}
    calls = Thousand.calls
    chosen = ("--categories", "cat,dog", "--tie", "none")
    run(*arguments, tmp_path / "out", *chosen, code=2)
    run(*arguments, tmp_path / "out", *chosen, "--overwrite")
    assert Thousand.calls == calls
    assert {path.name: path.read_bytes() for path in (tmp_path / "out" / "thousand").iterdir()} == saved
    run(*arguments, tmp_path / "new", *chosen)
    assert Thousand.calls == calls + 9
    for name in ("shape_bias", "decisions", "confusion"):
        assert (tmp_path / "out" / f"{name}.csv").read_text() == (tmp_path / "new" / f"{name}.csv").read_text()
    run(*arguments, tmp_path / "out", "--overwrite")
    assert Thousand.calls == calls + 9
    assert pd.read_csv(tmp_path / "out" / "shape_bias.csv")["num_images"].tolist() == [12]


def test_people_of_other_categories_beside_a_network_with_labels(tmp_path: Path, capsys: Capture) -> None:
    kinds = ("lion", "wolf")
    names = [f"{shape}{i}-{texture}{i}" for shape in kinds for texture in kinds for i in (1, 2)]
    folder = write_stimuli(tmp_path / "own", names)
    (tmp_path / "people").mkdir()
    answers = [(name, name.split("-")[0][:-1]) for name in (*names, "lion1-fox1", "fox1-wolf1")]
    answers[2] = (answers[2][0], "fox")  # lion1-wolf1
    write_responses(observer(answers, name="ann"), tmp_path / "people" / "ann.csv")
    labels = tmp_path / "labels.csv"
    labels.write_text("class_index,category\n0,lion\n1,wolf\n")
    model = "tests.cli.test_shape_bias:ten_classes"
    arguments = ("shape-bias", model, "--stimuli", folder, "--humans", tmp_path / "people")
    run(*arguments, "--labels", labels, "--out", tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "shape_bias.csv").set_index("observer")
    assert table["num_common"].tolist() == table["num_seen"].tolist() == [8, 8]
    assert list(table.loc["ann", ["num_shape", "num_texture", "num_neither"]]) == [3, 0, 1]
    confusion = pd.read_csv(tmp_path / "out" / "confusion.csv")
    assert confusion.columns.tolist() == ["observer", "shape", "lion", "wolf", "fox", "na"]
    assert confusion.iloc[2].tolist() == ["ann", "lion", 3, 0, 1, 0]
    assert confusion.iloc[0]["fox"] == 0
    errors = capsys.readouterr().err
    assert "images of other categories are left out: ann 2 of 10" in errors
    assert "answers outside the categories count as neither (fox 1): ann 1 of 8" in errors
    # Without the labels: the way out is named as an option. Recorded responses alone need none.
    run(*arguments, "--out", tmp_path / "none", code=2)
    error = capsys.readouterr().err
    assert "unknown category 'lion'" in error and "--labels" in error and "--categories" in error
    cats = write_stimuli(tmp_path / "cats", ["cat1-dog1"])
    run("shape-bias", model, "--stimuli", cats, "--out", tmp_path / "none", code=2)
    assert "10 outputs; the label mapping expects 1000; --labels" in capsys.readouterr().err
    run("shape-bias", tmp_path / "people" / "ann.csv", "--out", tmp_path / "recorded")
    page = (tmp_path / "recorded" / "index.html").read_text()
    assert "ties:" not in page  # nothing was decided
    assert pd.read_csv(tmp_path / "recorded" / "shape_bias.csv")["num_neither"].tolist() == [1]


def test_stimuli_that_a_network_skips_are_left_out_for_everyone(stimuli: Path, tmp_path: Path) -> None:
    (stimuli / "cat" / "cat1-dog1.png").write_bytes(b"no image")
    write_responses(observer([(name, "cat") for name in NAMES], name="cat-sayer"), tmp_path / "cats.csv")
    run("shape-bias", MODEL, tmp_path / "cats.csv", "--stimuli", stimuli, "--out", tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "shape_bias.csv")
    assert table["num_common"].tolist() == [17, 17] and table["num_seen"].tolist() == [17, 18]
    # Of twelve conflicts four show a cat and four wear one; one of the cats is no image.
    assert table[["num_shape", "num_texture", "num_neither"]].to_numpy()[1].tolist() == [3, 4, 4]
    assert pd.read_csv(tmp_path / "out" / "comparisons.csv")["num_images"].tolist() == [11]


def named_thousand() -> LoadedModel:
    names = tuple(name for _, name in imagenet_classes())
    return LoadedModel(name="named", module=Thousand(), input_size=16, classes=names)


def default_labels() -> LoadedModel:
    return LoadedModel(
        name="labels", module=Thousand(), input_size=16, classes=tuple(f"LABEL_{i}" for i in range(1000))
    )


def twice() -> LoadedModel:
    return LoadedModel(name="twice", module=ten_classes(), input_size=16, classes=("cat", *"bcdefghi", "cat"))


def test_a_table_of_labels_is_of_networks_with_the_same_classes(tmp_path: Path, capsys: Capture) -> None:
    """Outputs of another network would be called by names that are not theirs."""
    folder = write_stimuli(tmp_path / "own", ["lion1-wolf1", "wolf1-lion1", "lion2-wolf2"])
    for name, text in {
        "ten": "0,lion\n1,wolf\n",
        "twice": "1,lion\n0,wolf\n9,wolf\n",
        "fox": "0,lion\n1,fox\n",
    }.items():
        (tmp_path / f"{name}.csv").write_text(f"class_index,category\n{text}")
    command = ("shape-bias", "T=tests.cli.test_shape_bias:ten_classes", "W=tests.cli.test_shape_bias_comparison:twice")
    arguments = (*command, "--stimuli", folder, "--out", tmp_path / "out")
    run(*arguments, "--labels", tmp_path / "ten.csv", code=2)
    said = capsys.readouterr().err
    assert "T, W have different classes (as far as they tell: T names none); pass --labels NAME=FILE of each" in said
    run(*arguments, "--labels", f"T={tmp_path / 'ten.csv'}", "--labels", f"W={tmp_path / 'fox.csv'}", code=2)
    assert "T has the categories lion, wolf, W fox, lion; expected the same of all" in capsys.readouterr().err
    run(*arguments, "--labels", f"T={tmp_path / 'ten.csv'}", "--labels", f"W={tmp_path / 'twice.csv'}")
    told = capsys.readouterr().err
    assert "W: by the labels its own classes stand for others: b for lion, cat for wolf, cat for wolf" in told
    kept = {name: ShapeBiasResult.load(tmp_path / "out" / name) for name in "TW"}
    assert {name: own.mapping.indices for name, own in kept.items() if own.mapping is not None} == {
        "T": (("lion", (0,)), ("wolf", (1,))),
        "W": (("lion", (1,)), ("wolf", (0, 9))),
    }
    methods = (tmp_path / "out" / "methods.txt").read_text()
    assert (
        "of equal scores the first counts. The classes of the categories are, of T, the outputs 0 for lion and 1 for "
        "wolf. The classes of the categories are, of W, the outputs 1 for lion and 0, 9 for wolf. The images went in "
        "at their own size (T) and 16 pixels (W). Shape bias is"
    ) in methods
    assert "parameters (tests.cli.test_shape_bias:ten_classes)." in methods


def test_the_mapping_of_a_network_is_by_the_names_of_its_classes(
    stimuli: Path, tmp_path: Path, capsys: Capture
) -> None:
    here = "tests.cli.test_shape_bias_comparison"
    run("shape-bias", MODEL, f"{here}:named_thousand", "--stimuli", stimuli, "--out", tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "shape_bias.csv")
    assert table["num_shape"][0] == table["num_shape"][1]
    for model, message in (
        ("default_labels", "unknown category 'cat'; expected one of LABEL_0, LABEL_1, "),
        ("twice", "twice calls several outputs 'cat' (0, 9); pass --labels"),
    ):
        run("shape-bias", f"{here}:{model}", "--stimuli", stimuli, "--out", tmp_path / "none", code=2)
        error = capsys.readouterr().err
        assert message in error and "--labels" in error
