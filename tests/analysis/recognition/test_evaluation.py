import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from analysis import ErfResult, EvaluationResult, ResultError, evaluate, labelled_files
from analysis.images.imagenet import imagenet_classes
from analysis.images.labelled import DataError
from analysis.recognition.page import evaluation_page
from tests.analysis.recognition.test_prediction import COLOURS
from tests.networks import efficientnet_lite0

RGB = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten images of pure colour in folders of classes; the network answers with the colour."""
    shown = {
        "red": ["red", "red", "red", "blue"],
        "green": ["green", "green", "red"],
        "blue": ["blue", "blue", "green"],
    }
    for name, colours in shown.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for index, colour in enumerate(colours):
            Image.new("RGB", (40, 40), RGB[colour]).save(tmp_path / "data" / name / f"{index}.png")
    return tmp_path / "data"


def test_accuracy_and_confusion_counted_by_hand(data: Path) -> None:
    (data / "red" / "9.png").write_bytes(b"broken")
    result = evaluate(COLOURS, data)
    assert (result.num_correct(), len(result.labels), result.accuracy()) == (7, 10, 0.7)
    assert result.accuracy(5) == 1.0
    assert result.skipped == (("red/9.png", "corrupt"),)
    table = result.confusion()
    assert table.loc["red"].to_dict() == {"red": 3, "green": 0, "blue": 1}
    assert table.loc["green"].to_dict() == {"red": 1, "green": 2, "blue": 0}
    assert table.loc["blue"].to_dict() == {"red": 0, "green": 1, "blue": 2}
    by_class = result.by_class().set_index("class")["top1"].to_dict()
    assert by_class == {"red": 0.75, "green": pytest.approx(2 / 3), "blue": pytest.approx(2 / 3)}
    # The best five of three classes tell nothing.
    assert result.tops == (1,)
    assert not {"top5", "in_top5"} & {*result.by_class(), *result.decisions(), *result.headline()}
    wrong = result.decisions().query("not correct")
    assert list(wrong["image"]) == ["blue/2.png", "green/2.png", "red/3.png"] or set(wrong["image"]) == {
        "blue/2.png",
        "green/2.png",
        "red/3.png",
    }
    # Wilson's interval in its closed form.
    z, n, p = stats.norm.ppf(0.975), 10, 0.7
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = [(centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)]
    assert result.interval() == pytest.approx(expected, abs=1e-12)


def test_saved_and_read_again(data: Path, tmp_path: Path) -> None:
    result = evaluate(COLOURS, data, batch_size=3, num_workers=2)
    result.save(tmp_path / "out")
    again = EvaluationResult.load(tmp_path / "out")
    assert again.images == result.images
    assert np.array_equal(again.best, result.best)
    assert again.settings["data"] == str(data)
    device = {**result.settings, "gpu": "one of them"}
    page = evaluation_page([replace(result, settings=device), replace(result, model="other")], command="", files=[])
    assert f"gpu, {result.model}" in page
    with pytest.raises(FileExistsError):
        result.save(tmp_path / "out")
    with pytest.raises(ResultError, match="expected a result of kind 'effective receptive field'"):
        ErfResult.load(tmp_path / "out")


def test_an_interrupted_run_goes_on_where_it_was(data: Path, tmp_path: Path) -> None:
    whole, partial = evaluate(COLOURS, data, batch_size=2), tmp_path / "partial.npz"

    def stop(done: int, total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(COLOURS, data, batch_size=2, partial=partial, progress=stop)
    seen: list[int] = []
    resumed = evaluate(COLOURS, data, batch_size=2, partial=partial, progress=lambda done, total: seen.append(done))
    assert seen == [6, 8, 10]
    assert np.array_equal(resumed.best, whole.best)
    assert resumed.images == whole.images
    assert not partial.exists()
    # A state of other data is not taken for this one's.
    with pytest.raises(KeyboardInterrupt):
        evaluate(COLOURS, data, batch_size=2, partial=partial, progress=stop)
    Image.new("RGB", (60, 40)).save(data / "blue" / "0.png")
    evaluate(COLOURS, data, batch_size=2, partial=partial, progress=lambda done, total: seen.append(done))
    assert seen[3:] == [0, 2, 4, 6, 8, 10]


def test_classes_are_matched_by_name_wordnet_id_number_or_order(data: Path, tmp_path: Path) -> None:
    assert labelled_files(data, COLOURS.classes).rule == "by the names of the folders"
    ids = imagenet_classes()
    names = [name for _, name in ids]
    imagenet = tmp_path / "val"
    for index in (0, 207, 999):
        shutil.copytree(data / "red", imagenet / ids[index][0])
    assert set(labelled_files(imagenet, names).labels) == {0, 207, 999}
    shutil.copytree(data / "red", imagenet / "5")
    assert set(labelled_files(imagenet, names).labels) == {0, 5, 207, 999}
    shutil.copytree(data / "red", imagenet / "nobody")
    with pytest.raises(DataError, match="the folder 'nobody' is no class of the model; expected names such as tench"):
        labelled_files(imagenet, names)
    for old, new in (("red", "x"), ("green", "y"), ("blue", "z")):
        (data / old).rename(data / new)
    ordered = labelled_files(data, COLOURS.classes)
    assert "sorted order" in ordered.rule
    assert [ordered.labels[index] for index in (0, -1)] == [0, 2]
    assert ordered.classes == COLOURS.classes
    assert labelled_files(data, ("class 0", "class 1", "class 2")).classes == ("x", "y", "z")


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("crane", "134 (crane, n02012849) or 517 (crane, n03126707)"),
        ("maillot", "638 (maillot, n03710637) or 639 (maillot, tank suit, n03710721)"),
    ],
)
def test_a_name_of_two_classes_is_refused_with_both(data: Path, tmp_path: Path, name: str, outputs: str) -> None:
    names = [name for _, name in imagenet_classes()]
    (tmp_path / "labels.csv").write_text(f"red/0.png,{name}\n")
    shutil.copytree(data / "red", tmp_path / "val" / name)
    message = f"{name!r} may be output {outputs}; expected its WordNet id"
    for arguments, place in (
        ((tmp_path / "val", names), "the folder "),
        ((data, names, tmp_path / "labels.csv"), "line 1: the class "),
    ):
        with pytest.raises(DataError, match=re.escape(place + message)):
            labelled_files(*arguments[:2], labels=arguments[2] if len(arguments) > 2 else None)
    first, second = (int(part.split()[0]) for part in outputs.split("or "))
    (tmp_path / "val" / name).rename(tmp_path / "val" / imagenet_classes()[first][0])
    shutil.copytree(data / "red", tmp_path / "val" / str(second))
    assert set(labelled_files(tmp_path / "val", names).labels) == {first, second}


def test_names_twice_in_other_classes_and_ids_that_are_no_imagenets(data: Path) -> None:
    with pytest.raises(
        DataError, match=r"'red' may be output 0 \(red\) or 2 \(red\); expected the number of the output"
    ):
        labelled_files(data, ["red", "green", "red", "blue"])
    # A thousand other classes have no WordNet ids.
    (data / "red").rename(data / "n01440764")
    with pytest.raises(DataError, match="the folder 'n01440764' is no class"):
        labelled_files(data, ["green", "blue", *(f"kind {index}" for index in range(998))])


def test_a_labels_file(data: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("red/0.png,red\nred/3.png,2\n\ngreen/0.png,green\n")
    result = evaluate(COLOURS, data, labels=table)
    assert result.accuracy() == 1.0
    for line, message in (
        ("red/0.png,pink", "line 1 is 'red/0.png,pink'; expected file,class with a class such as red, green, blue"),
        ("red/7.png,red", "line 1 names .*red/7.png: no such file"),
        ("", "names no file"),
    ):
        table.write_text(line)
        with pytest.raises(DataError, match=message):
            evaluate(COLOURS, data, labels=table)
    with pytest.raises(FileNotFoundError, match="labels="):
        evaluate(COLOURS, data, labels=tmp_path / "none.csv")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        evaluate(COLOURS, tmp_path / "none")


def test_a_real_classifier_on_photographs(shared: Path, tmp_path: Path) -> None:
    for photo in sorted((shared / "data" / "photos").iterdir()):
        folder = tmp_path / photo.name.split("_")[0]
        folder.mkdir(exist_ok=True)
        shutil.copy(photo, folder)
    loaded: Any = efficientnet_lite0()
    result = evaluate(loaded, tmp_path)
    assert len(result.labels) == 48
    assert result.accuracy() > 0.6
    assert result.accuracy(5) > 0.9
    assert result.images_per_second > 0


def test_a_labels_file_as_programs_write_it(data: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    rows = "red/0.png,red\nblue/0.png,blue\n"
    for text, encoding in (
        (rows, "utf-8-sig"),
        (f"file,class\n{rows}", "utf-8"),
        (f"image_id,Category\r\n{rows}", "utf-8-sig"),
        (f'\n"red/0.png", "red"\n{data}/blue/0.png,2\n', "utf-8"),
    ):
        table.write_bytes(text.encode(encoding))
        found = labelled_files(data, COLOURS.classes, labels=table)
        assert (found.names, found.labels) == (("red/0.png", "blue/0.png"), (0, 2))
    table.write_text(rows + "red/0.png,blue\n")
    with pytest.raises(DataError, match=r"line 3 names 'red/0\.png', which was named before"):
        labelled_files(data, COLOURS.classes, labels=table)
    # A first line that could be an image is none to leave out.
    table.write_text("red/9.png,rde\n" + rows)
    with pytest.raises(DataError, match=r"line 1 is 'red/9\.png,rde'"):
        labelled_files(data, COLOURS.classes, labels=table)
    table.write_bytes(rows.encode("utf-16"))
    with pytest.raises(ValueError, match=r"labels\.csv': expected text in UTF-8, not UTF-16"):
        labelled_files(data, COLOURS.classes, labels=table)


def test_a_folder_may_have_any_synonym_that_no_other_class_has(data: Path, tmp_path: Path) -> None:
    names = [name for _, name in imagenet_classes()]
    imagenet = tmp_path / "val"
    # Numbers of classes from the published list of ImageNet-1K.
    for name, index in (("robin", 15), ("Turdus migratorius", 15), ("goldfish", 1)):
        shutil.copytree(data / "red", imagenet / name)
        assert set(labelled_files(imagenet, names).labels) == {index}
        shutil.rmtree(imagenet)
    for name, reason in (
        ("panther", "'panther' may be output 286 .* or 290 "),  # of the cougar's synonyms, and of the jaguar's
        ("robyn", r"'robyn' is no class of the model.*\(1000 in all\); or labels=FILE"),
    ):
        shutil.copytree(data / "red", imagenet / name)
        with pytest.raises(DataError, match=reason) as raised:
            labelled_files(imagenet, names)
        assert len(str(raised.value)) < 400
        shutil.rmtree(imagenet)


def test_what_is_not_evaluated_is_told(data: Path) -> None:
    shutil.copy(data / "red" / "0.png", data / "alone.png")
    shutil.copytree(data / "red", data / ".ipynb_checkpoints")
    (data / "red" / "notes.txt").write_text("no image")
    result = evaluate(COLOURS, data)
    assert len(result.images) == 10
    assert result.skipped == (("alone.png", "in no folder of a class"), ("red/notes.txt", "not an image"))
