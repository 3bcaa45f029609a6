import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analysis import load_model
from analysis.shape_bias.categories import MAPPING
from analysis.study.design import preset
from analysis.study.materials import materials_for
from analysis.study.record import save_study
from tests.analysis.shape_bias.observers import write_stimuli
from tests.analysis.training.test_loop import make_folder
from tests.cli.command import run

TRAIN = (
    "ablate train --preset quick --kernels 3,5 --seeds 1 --steps 4 --batch-size 8 --layers 1,1 --channels 4,8 "
    "--train-images 24 --erf-images 1 --out"
)


def test_train_then_report_then_more_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    run(TRAIN, out)
    assert {path.name for path in (out / "cells").iterdir()} == {"k3_small3_seed0", "k5_small3_seed0"}
    run("report", out)
    printed, told = capsys.readouterr()
    assert "warning: 2 of 2 networks are less than twice as accurate as guessing (8.3 %)" in told
    assert "No answer: no result of 1 seed with 2 kernels could be significant." in printed
    assert f"report: {out / 'report.html'}" in printed
    run(TRAIN.replace("--seeds 1", "--seeds 2"), out)
    assert "2 of 4 cells were finished before" in capsys.readouterr().err
    run(TRAIN.replace("--steps 4", "--steps 5"), out, code=2)
    assert "differs in recipe" in capsys.readouterr().err
    assert len(list((out / "cells").iterdir())) == 4
    # The page takes what is there, whatever the last command added.
    run(TRAIN.replace("--kernels 3,5", "--kernels 7"), out)
    run("report", out)
    assert sorted(pd.read_csv(out / "study.csv")["kernel"]) == [3, 3, 5, 5, 7]
    run(TRAIN.replace("--batch-size 8", "--batch-size 1000"), tmp_path / "new", code=2)
    assert not (tmp_path / "new").exists()


def test_a_sequence_of_seeds_stays_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No command turns seeds that were added until an interval was narrow into a number fixed before."""
    save_study(replace(preset("quick"), num_seeds=7, until_width=0.2), "", tmp_path / "out")
    for line in ("study --preset quick --seeds 7 --out", "ablate train --preset quick --out"):
        run(line, tmp_path / "out", code=2)
        assert "expected replknet study --until-width 0.2, as before" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"study.json"}


def test_a_preset_that_was_left_out_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    earlier = preset("quick")
    save_study(replace(earlier, recipe=replace(earlier.recipe, steps=7)), "", tmp_path / "out")
    for line, known in (("study --steps 7 --out", True), ("ablate train --steps 7 --size 48 --out", False)):
        run(line, tmp_path / "out", code=2)
        assert ("--preset quick would be that of the earlier run" in capsys.readouterr().err) == known


def test_study_on_an_image_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "data")
    command = "study --preset quick --kernels 3 --seeds 1 --steps 2 --data"
    run(command, tmp_path / "data", "--out", tmp_path / "out", code=2)
    assert "batch_size=32: there are only 6 training images" in capsys.readouterr().err
    for index in range(3, 20):
        for name in ("cat", "dog"):
            source = tmp_path / "data" / "train" / name / "0.png"
            (source.parent / f"{index}.png").write_bytes(source.read_bytes())
    run(command, tmp_path / "data", "--out", tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "study.csv")
    assert table["shape_bias"].isna().all()
    assert "shape bias" not in capsys.readouterr().out
    assert "Shape bias is not measured" in (tmp_path / "out" / "report.html").read_text()
    # Stimuli are shown to what is trained, whatever network it is.
    stimuli = write_stimuli(tmp_path / "cues", ["cat1-dog1", "dog1-cat1", "dog2-dog1", "bear1-cat1"])
    run(command, tmp_path / "data", "--stimuli", stimuli, "--out", tmp_path / "out")
    printed = capsys.readouterr()
    assert "1 of 1 cells were finished before" in printed.err
    assert "shape bias, real stimuli" in " ".join(printed.out.split())
    table = pd.read_csv(tmp_path / "out" / "study.csv")
    assert table["cue_conflict_images"].tolist() == [2]
    assert "Shape bias is measured on the real stimuli alone" in (tmp_path / "out" / "report.html").read_text()
    run(command, tmp_path / "data", "--stimuli", tmp_path / "data", "--out", tmp_path / "out", code=2)
    assert "no file named <shape><i>-<texture><j>.<ext>" in capsys.readouterr().err


def test_posthoc(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = "ablate posthoc replknet_nano_k31 --kernels 3 --no-stages --num-images 1 --size 64 --out"
    run(command, out)
    printed = capsys.readouterr().out
    assert "crop3" in printed
    table = pd.read_csv(out / "posthoc.csv")
    assert list(table["variant"]) == ["whole", "crop3", "whole_nosmall"]
    whole, cropped, _ = table["accuracy"].to_list()
    assert whole > 0.8
    assert whole > cropped
    assert pd.read_csv(out / "energy.csv")["stage"].max() == 4
    assert (out / "posthoc.png").stat().st_size > 1000
    methods, page = (out / "methods.txt").read_text(), (out / "index.html").read_text()
    for words in (
        "600 images generated like those of its training, but others",
        "264 stimuli (generated, conflict, seed 3, balance 0.0)",
        "cropK: of the large kernels only the central K x K taps, the others zero",
        "_nosmall: without the small kernels parallel to the large ones",
    ):
        assert words in methods and words in page
    assert "_stageN" not in methods
    assert "[" not in methods and "Brackets" not in methods
    run(command, out)
    run("ablate posthoc torch.nn:Identity --out", out, code=2)


def test_generated_stimuli_are_answered_by_the_shipped_networks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stimuli = tmp_path / "stimuli"
    run("data synthetic --num-images 132 --to", stimuli)
    assert "(132 written now)" in capsys.readouterr().out
    run("shape-bias replknet_nano_k3 replknet_nano_k31 --cluster image --stimuli", stimuli, "--out", tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "shape_bias.csv")
    assert list(table["observer"]) == ["replknet_nano_k3", "replknet_nano_k31"]
    assert (table["coverage"] > 0.7).all()
    shutil.copytree(stimuli, tmp_path / "data" / "val")
    found = materials_for(
        load_model("replknet_nano_k31"), data=tmp_path / "data", stimuli=stimuli, size=32, num_images=1
    )
    assert found.mapping == MAPPING


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("study --preset fast --out X", "preset='fast': expected one of quick, standard, full"),
        ("study --kernels 4 --out X", "kernels=(4,): expected odd numbers of at least 3"),
        ("study --data nowhere --out X", "data='nowhere': no such folder"),
        ("ablate train --shortcut maybe --out X", "--shortcut=maybe: expected with, without or both"),
        ("ablate train --train-balance much --out X", "--train-balance=much"),
        ("ablate train --small-kernels 5 --out X", "small_kernel=5: expected at most the smallest"),
        ("ablate train --texture-region all --out X", "--texture-region='all': expected one of image, figure"),
        ("report nowhere", "directory='nowhere': holds no study.json"),
        ("data synthetic --kind both --to X", "kind='both': expected one of"),
        ("ablate posthoc replknet_nano_k31 --kernels 2 --out X", "--kernels=2: expected an odd positive number"),
    ],
)
def test_errors_are_one_line(
    command: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run(command, code=2)
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "X").exists()
