"""The commands of daily work, through their entry point."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import replknet
from analysis import cli
from analysis.images.synthetic.sets import SyntheticImages, save_stimuli
from analysis.recognition.labels import labelled_files
from analysis.runs.tables import read_lines, write_table
from tests.cli.command import run
from tests.networks import tiny_model

WEIGHTS = Path(replknet.__file__).parent / "weights" / "replknet_nano_k31.safetensors"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated images in folders of their classes, and one broken file."""
    folder = tmp_path_factory.mktemp("images") / "congruent"
    save_stimuli(SyntheticImages(kind="congruent", num_images=24, seed=1), folder)
    (folder / "ring" / "broken.png").write_bytes(b"broken")
    return folder


def test_predict_as_table_json_and_csv(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("predict replknet_nano_k31", images / "ring", "--top", "2")
    printed = capsys.readouterr()
    assert printed.out.count("ring") >= 4
    assert "skipped" in printed.err
    assert "broken.png: corrupt" in printed.err
    run("predict replknet_nano_k31 --json --top 3", images / "ring")
    content = json.loads(capsys.readouterr().out)
    assert [len(item["predictions"]) for item in content] == [3, 3]
    assert content[0]["predictions"][0]["class"] == "ring"
    run("predict replknet_nano_k31 --csv", images / "ring")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "image,rank,class_index,class,score"
    assert len(lines) == 11


def test_names_that_a_spreadsheet_would_run_are_text_in_tables_and_come_back(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    written = {
        "=cmd().png": "'=cmd().png",
        "-1.png": "'-1.png",
        "@a.png": "'@a.png",
        "+b,c.png": "'+b,c.png",
        "\rx.png": "'\rx.png",
        "'=x.png": "''=x.png",
        "two\nlines.png": "two\nlines.png",
        'a"b-1.png': 'a"b-1.png',
    }
    for name in written:
        shutil.copy(min((images / "ring").glob("ring*")), name)
    run("predict replknet_nano_k31 --csv --top 1 .")
    printed = capsys.readouterr().out
    run("predict replknet_nano_k31 --top 1 --out best.csv .")
    with Path("best.csv").open(newline="") as file:
        assert file.read() == printed
    rows = list(csv.reader(io.StringIO(printed, newline="")))
    assert {row[0] for row in rows[1:]} == {*written.values()}
    Path("best.csv").write_text(printed, newline="")
    labels = [(line.cells[0], line.cells[3]) for line in read_lines("best.csv", "path")][1:]
    write_table(pd.DataFrame(labels, columns=["file", "class"]), "labels.csv")
    found = labelled_files(".", ["ring", "other"], labels="labels.csv")
    assert ({*found.names}, {*found.labels}) == ({*written}, {0})


def test_features_into_a_file(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "f.npz"
    run("features replknet_nano_k3 --stages 1,pooled --average", images, "--out", out)
    with np.load(out) as file:
        assert file["stage1"].shape == (24, 32)
        assert file["pooled"].shape == (24, 128)
        assert len(file["images"]) == 24
    more = tmp_path / "layers.npz"
    run("features replknet_nano_k3 --layers stages.0,last", images, "--out", more)
    with np.load(more) as file:
        assert set(file) == {"stages.0", "last", "images", "model"}
    run("features replknet_nano_k3 --layers 0 --stages 0", images, "--out", tmp_path / "none.npz", code=2)
    assert "--layers='0': the model has no such module" in capsys.readouterr().err
    before = out.read_bytes()
    run("features replknet_nano_k3", images, "--out", out, code=2)
    assert "exists already" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_the_working_day(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Evaluate, merge the file, look at it, evaluate again: the same accuracy."""
    out = tmp_path / "evaluation"
    run(f"evaluate {WEIGHTS} --confusion --data", images, "--out", out)
    first = capsys.readouterr()
    assert "24" in first.out
    assert "broken.png: corrupt" in first.err
    assert "classes matched by the names of the folders" in first.err
    assert len(pd.read_csv(out / "decisions.csv")) == 24
    assert pd.read_csv(out / "confusion.csv").shape[0] == 12
    run(f"evaluate {WEIGHTS} --data", images, "--out", out)  # from what is saved
    merged = tmp_path / "merged.safetensors"
    run(f"reparameterize {WEIGHTS}", merged)
    assert "314,556 parameters became 306,796" in capsys.readouterr().out
    run("info", merged)
    assert "re-parameterised, no batch norm" in capsys.readouterr().out
    again = tmp_path / "again"
    run("evaluate", merged, "--data", images, "--out", again)
    before, after = (pd.read_csv(folder / "decisions.csv") for folder in (out, again))
    pd.testing.assert_frame_equal(before, after)
    capsys.readouterr()
    run("evaluate", merged, "--data", images, "--out", out, code=2)
    assert "holds another run, which differs in model, weights, code; choose" in capsys.readouterr().err
    record = json.loads((out / "run.json").read_text())
    del record["schema_version"]
    (out / "run.json").write_text(json.dumps(record))
    run("evaluate", merged, "--data", images, "--out", out, code=2)
    message = capsys.readouterr().err
    assert (
        "differs in model, weights, code, and was made by a former version, which named the networks' code" in message
    )
    assert message.strip().count("\n") == 0


def test_convert_and_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "there.pth"
    run(f"convert {WEIGHTS}", there, "--to", "mmpretrain")
    run("info", there)
    assert "mmpretrain" in capsys.readouterr().out
    run("convert", there, tmp_path / "back.safetensors", "--to", "safetensors")
    state, back = (replknet.load_state_dict(path) for path in (WEIGHTS, tmp_path / "back.safetensors"))
    assert all(torch.equal(state[key], back[key]) for key in state)
    averaged, last = dict(state), {key: torch.zeros_like(value) for key, value in state.items()}
    torch.save({"model": last, "model_ema": averaged}, tmp_path / "both.pth")
    run("info", tmp_path / "both.pth")
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "averaging averaged weights under 'model_ema', the last ones under 'model'" in words
    broken = tiny_model().float().state_dict()
    broken["norm.weight"][:] = float("nan")
    torch.save(broken, tmp_path / "broken.pth")
    run("info", tmp_path / "broken.pth", code=1)
    assert "NaN in 1 of" in capsys.readouterr().out


def test_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    run("export replknet_nano_k3 --out", tmp_path / "n.onnx")
    printed = capsys.readouterr().out
    assert "tried with onnxruntime" in printed
    assert "1 x 3 x 32 x 32" in printed
    run("export replknet_nano_k3 --out", tmp_path / "n.pt2")
    assert "it refuses 1 x 3 x 32 x 32" in capsys.readouterr().out
    run("predict", tmp_path / "n.pt2", tmp_path / "n.onnx", code=2)
    assert "a program of torch.export, which may run code and write files; if you trust" in capsys.readouterr().err
    run("predict", tmp_path / "n.pt2", tmp_path / "n.onnx", "--trust", code=2)  # no image
    assert "none of 1 files is a usable image" in capsys.readouterr().err


BAD = [
    ("predict nobody IMAGES", "model='nobody': expected a RepLKNet"),
    ("predict replknet_nano_k3 nowhere.jpg", "images='nowhere.jpg': no such file or folder"),
    ("predict replknet_nano_k3 IMAGES --top 0", "Invalid value for '--top'"),
    ("predict replknet_nano_k3 IMAGES --json --csv", "--json, --csv: expected one of them"),
    ("predict replknet_nano_k3 IMAGES --device nowhere", "--device=nowhere: cannot be used here"),
    ("predict replknet_nano_k3 IMAGES --dtype int8", "--dtype=int8: expected one of float32"),
    ("predict nowhere.safetensors IMAGES", "model='nowhere.safetensors': no such file"),
    ("predict TEXT IMAGES", "not a readable weight file"),
    ("predict replknet_nano_k3 TEXT", "none of 1 files is a usable image"),
    ("predict replknet_31b.in1k_999 IMAGES", "model='replknet_31b.in1k_999': expected a RepLKNet"),
    ("predict hf:nowhere/none IMAGES", "model='hf:nowhere/none'"),
    ("predict no.such:thing IMAGES", "cannot be imported"),
    ("features replknet_nano_k3 IMAGES --stages 9 --out NEW.npz", "stages=[9]"),
    ("features replknet_nano_k3 IMAGES --stages nose --out NEW.npz", "--stages='nose': the model has no such module"),
    ("features replknet_nano_k3 IMAGES --out TEXT", "expected a name that ends in .npz"),
    ("evaluate replknet_nano_k3 --data nowhere", "data='nowhere': no such folder"),
    ("evaluate replknet_nano_k3 --data FOLDER", "expected a sub-folder for each class"),
    ("evaluate replknet_nano_k3 --data IMAGES --labels TEXT", "line 1 is 'no weights'"),
    ("evaluate replknet_nano_k3 --data IMAGES --confusion", "--confusion: goes with --out only"),
    ("evaluate replknet_nano_k3 --data IMAGES --out FOLDER", "holds files of something else"),
    ("features replknet_nano_k3 IMAGES --out /proc/f.npz", "cannot be written"),
    ("predict NEW.onnx IMAGES", "ONNX files are run by onnxruntime, not by this toolkit"),
    ("reparameterize WEIGHTS WEIGHTS --overwrite", "is the source itself"),
    ("predict replknet_nano_k3 IMAGES --seed -1", "--seed=-1: expected a whole number from 0"),
    ("info nowhere.pth", "model='nowhere.pth': no such file"),
    ("info TEXT", "not a readable weight file"),
    ("convert TEXT NEW.pth", "not a readable weight file"),
    ("convert WEIGHTS NEW.onnx", "expected a name that ends in .safetensors, .pth, .pt"),
    ("convert WEIGHTS NEW.pth --to keras", "to='keras': expected 'official' or 'mmpretrain'"),
    ("convert WEIGHTS NEW.pth --to safetensors", "expected a name that ends in .safetensors"),
    ("convert WEIGHTS TEXT", "exists already"),
    ("reparameterize WEIGHTS NEW.pth --level most", "--level=most: expected full or kernels"),
    ("reparameterize WEIGHTS NEW.pth --to mmpretrain", "no place for folded batch norms"),
    ("export replknet_nano_k3 --out NEW.tflite", "expected a name that ends in .onnx, .pt"),
    ("export replknet_nano_k3 --out NEW.onnx --format export", "ends like a file of format onnx"),
    ("export replknet_nano_k3 --out TEXT", "exists already"),
    ("data weights replknet_nano_k3", "no published weights; expected one of replknet_31b.in1k_224"),
    ("data weights replknet_31b.in1k_224 --url nowhere", "url='nowhere': expected an address such as https://"),
    ("frobnicate", "No such command 'frobnicate'"),
    ("predict", "Missing argument"),
]


@pytest.mark.parametrize(("command", "message"), BAD)
def test_a_bad_input_is_one_line_and_exit_code_2(
    command: str, message: str, images: Path, no_hub: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / ("text.pt" if command.startswith("export") else "text.pth")
    text.write_text("no weights")
    (tmp_path / "folder").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "folder" / "image.png")
    names = {"IMAGES": images, "TEXT": text, "FOLDER": tmp_path / "folder", "WEIGHTS": WEIGHTS}
    words = [str(names.get(word, word)).replace("NEW", str(tmp_path / "new")) for word in command.split()]
    run(words[0], *words[1:], code=2)
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if "━" not in line and line.strip()]
    assert line.startswith("replknet: ")
    assert message in line
    assert printed.out == ""
    assert text.read_text() == "no weights"
    assert not list(tmp_path.glob("new*"))


def test_every_command_is_in_the_list_with_its_own_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    run("--help")
    listed = " ".join(capsys.readouterr().out.split())
    for name, (module, summary) in cli.COMMANDS.items():
        assert name in listed
        run(name, "--help")
        own = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert summary.rstrip(".").split(",")[0] in own, (name, module)


def test_help_and_completion_wait_for_no_heavy_library() -> None:
    code = (
        "import sys; from analysis.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'numpy', 'pandas', 'matplotlib', 'timm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    module = subprocess.run([sys.executable, "-m", "replknet", "--help"], capture_output=True, text=True, check=True)
    assert "reparameterize" in module.stdout


def test_predictions_into_a_file(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("predict replknet_nano_k3", images / "ring", "--top", 2)
    run(*command, "--json")
    printed = capsys.readouterr().out
    run(*command, "--out", tmp_path / "best.json")
    assert (tmp_path / "best.json").read_text() == printed
    run(*command, "--out", tmp_path / "best.csv")
    assert set(pd.read_csv(tmp_path / "best.csv")["rank"]) == {1, 2}
    capsys.readouterr()
    run(*command, "--out", tmp_path / "best.csv", code=2)
    assert "choose another file, or --overwrite replaces it" in capsys.readouterr().err
    run(*command, "--out", tmp_path / "best.txt", code=2)
    assert "expected a name that ends in .json or .csv" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"best.json", "best.csv"}


NAMES = ("holiday [edited]/x.png", "[/b].png", "[red]a[/red].png", ":smile:.png", "[link=file:x]b.png", "{c}.png")


def test_names_are_printed_as_they_are(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing in brackets or between colons is a command to the printer: tables, bars, notes, errors."""
    ring = sorted((images / "ring").glob("ring*.png"))[0]
    for name in NAMES:
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ring, tmp_path / "p" / name)
    shutil.copy(ring, os.fsdecode(os.fsencode(tmp_path) + b"/p/caf\xe9.png"))
    (tmp_path / "p" / "[bold]:x:.png").write_bytes(b"broken")
    run("predict replknet_nano_k3 --top 1", tmp_path / "p")
    printed = capfd.readouterr()
    for name in (*NAMES, r"caf\xe9.png"):
        assert f"p/{name} " in printed.out
    assert "p/[bold]:x:.png: corrupt" in printed.err
    run("predict replknet_nano_k3 --top 1 --csv", tmp_path / "p")
    assert r"p/caf\xe9.png,1," in capfd.readouterr().out
    model = tmp_path / "[i]net:smile:.safetensors"
    shutil.copy(WEIGHTS, model)
    run("evaluate", model, "--data", images)
    printed = capfd.readouterr()
    assert model.stem in printed.out
    assert model.stem in printed.err  # the bar's
    run("predict replknet_nano_k3", tmp_path / "[/b]:smile:", code=2)
    assert "[/b]:smile:': no such file or folder" in capfd.readouterr().err


def test_many_skipped_files_are_told_in_one_line(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(images, tmp_path / "data")
    for index in range(1000):
        (tmp_path / "data" / "ring" / f"{index:04}.txt").touch()
    run("evaluate replknet_nano_k3 --data", tmp_path / "data")
    printed = capsys.readouterr().err
    assert "note: skipped, not an image: ring/0000.txt, ring/0001.txt, ring/0002.txt, ... (1000 in all)" in printed
    assert "note: skipped ring/broken.png: corrupt" in printed
    assert "ring/0999.txt" not in printed


def test_labels_is_named_where_it_is_the_way_out(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("evaluate replknet_nano_k3 --data", images / "ring", code=2)
    assert "expected a sub-folder for each class, or --labels FILE, a CSV of file,class" in capsys.readouterr().err
    (images / "val" / "bird").mkdir(parents=True)
    run("evaluate replknet_nano_k3 --data", images, code=2)
    assert "a CSV of file,class\n" in capsys.readouterr().err
    (images / "val" / "ring").mkdir()
    run("evaluate replknet_nano_k3 --data", images, code=2)
    assert f"a CSV of file,class; '{images / 'val'}' has them" in capsys.readouterr().err
