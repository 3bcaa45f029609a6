import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import replknet
from analysis import evaluate, load_model
from analysis.models.replknets import new_model
from tests.analysis.training.test_batches import picture
from tests.cli.command import run

ROOT = Path(__file__).parents[2]
SMALL = (
    "train replknet_nano_k3 --recipe finetune-384 --set image_size=32 --set batch_size=4 --set autocast= "
    "--set epochs=6 --set drop_path_rate=0.1"
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two classes that differ in brightness, eight images to train on and four to validate."""
    for part, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(("dark", "light")):
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.asarray(picture(index)) // 2 + 127 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "data"


def test_train_stop_go_on_and_use(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    run(SMALL, "--data", data, "--out", out, "--max-steps", "5")
    assert "5 of 12 steps" in capsys.readouterr().out
    assert (out / "checkpoint.pt").is_file()
    run(SMALL, "--data", data, "--out", out)
    run(SMALL, "--data", data, "--out", whole)
    stopped, straight = (load_model(str(folder / "network.safetensors")) for folder in (out, whole))
    for key, value in straight.module.state_dict().items():
        assert torch.equal(value, stopped.module.state_dict()[key]), key
    assert {path.name for path in out.iterdir()} == {
        "curve.csv",
        "network.safetensors",
        "run.json",
        "tensorboard",
        "training.json",
    }
    assert isinstance(stopped.module, replknet.RepLKNet)
    assert (stopped.classes, stopped.input_size, stopped.crop) == (("dark", "light"), 32, None)
    assert stopped.training["recipe"]["layer_decay"] == 0.7
    # The curve's accuracy is what evaluate says of the same files.
    curve = pd.read_csv(whole / "curve.csv")
    assert curve["step"].iloc[-1] == 12
    assert evaluate(straight, data / "val").accuracy() == curve["val_accuracy"].iloc[-1]
    assert json.loads((whole / "training.json").read_text())["steps_done"] == 12
    # Finished: nothing is trained again, and other settings are refused.
    capsys.readouterr()
    before = (out / "network.safetensors").read_bytes()
    run(SMALL, "--data", data, "--out", out)
    assert "note: finished before" in capsys.readouterr().err
    run(SMALL + " --set mixup=0.1", "--data", data, "--out", out, code=2)
    assert "differs in recipe" in capsys.readouterr().err
    assert (out / "network.safetensors").read_bytes() == before


def test_tensorboard_reads_the_curve(data: Path, tmp_path: Path) -> None:
    run(SMALL, "--data", data, "--out", tmp_path / "out", "--evaluate-every", "6")
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    curve = pd.read_csv(tmp_path / "out" / "curve.csv")
    shown = events.Scalars("train_loss")
    assert [event.step for event in shown] == curve["step"].tolist()
    assert [event.value for event in shown] == pytest.approx(curve["train_loss"].tolist(), rel=1e-6)
    assert [event.step for event in events.Scalars("val_accuracy")] == [6, 12]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_takes_effect_when_the_state_is_written(data: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "replknet", *SMALL.replace("epochs=6", "epochs=5000").split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--data", str(data), "--out", str(tmp_path / "out")],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    curve = tmp_path / "out" / "curve.csv"
    limit = time.monotonic() + 120
    try:
        while not curve.is_file():
            assert time.monotonic() < limit
            time.sleep(0.1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    said = "interrupted; the same command resumes" if number == signal.SIGINT else f"ended by {number.name}; the same"
    assert f"replknet: {said}" in errors
    assert "Traceback" not in errors
    state = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)
    assert state["loop"]["step"] >= pd.read_csv(curve)["step"].iloc[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--recipe finetune", "recipe='finetune': expected a .toml file or one of"),
        ("--set batch=3", "batch=3: no field of a recipe"),
        ("--set batch_size", "set='batch_size': expected name=value"),
        ("--set layer_decay=2", "layer_decay=2: expected a number in (0, 1]"),
        ("--device warp", "--device=warp: cannot be used here"),
        ("--kernel-sizes 4,4,4,4", "--kernel-sizes=(4, 4, 4, 4)"),
        ("--checkpoint nowhere.pth", "nowhere.pth"),
        ("--data nowhere", "nowhere"),
    ],
)
def test_wrong_options_are_one_line_and_leave_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, message: str
) -> None:
    run(SMALL, "--data", data, "--out", tmp_path / "out", *change.split(), code=2)
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()
    run(SMALL.replace("replknet_nano_k3", "resnet18"), "--data", data, "--out", tmp_path / "out", code=2)
    assert "a SLaK, timm:NAME or torchvision:NAME (did you mean timm:resnet18" in capsys.readouterr().err
    former = tmp_path / "former"
    former.mkdir()
    (former / "network.safetensors").touch()
    run(SMALL.replace("replknet_nano_k3", str(former)), "--data", data, "--out", tmp_path / "out", code=2)
    way = f"their architecture by name with --checkpoint '{former / 'network.safetensors'}'"
    assert way in capsys.readouterr().err
    run(SMALL, "--pretrained", "--checkpoint", "w.pth", "--data", data, "--out", tmp_path / "out", code=2)
    assert "--checkpoint='w.pth': expected none with --pretrained" in capsys.readouterr().err


def test_a_network_of_timm_and_shards(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import timm
    import webdataset
    from safetensors.torch import load_file

    (tmp_path / "shards" / "train").mkdir(parents=True)
    with webdataset.ShardWriter(str(tmp_path / "shards" / "train" / "%04d.tar"), maxcount=5, verbose=0) as writer:
        for number, path in enumerate(sorted((data / "train").rglob("*.png"))):
            writer.write({"__key__": f"{number}", "png": path.read_bytes(), "cls": int(path.parent.name == "light")})
    command = SMALL.replace("replknet_nano_k3", "timm:test_convnext").replace("layer", "layer")
    run(command, "--data", tmp_path / "shards", "--out", tmp_path / "out", "--max-steps", "2")
    assert "note: no validation: data=" in capsys.readouterr().err
    state = load_file(tmp_path / "out" / "network.safetensors")
    timm.create_model("test_convnext", num_classes=2).load_state_dict(state)


def test_weights_to_begin_with(tmp_path: Path) -> None:
    """A head of another size is replaced; everything else is loaded."""
    first = new_model("replknet_nano_k3", num_classes=12, seed=1).module
    torch.save(first.state_dict(), tmp_path / "weights.pth")
    same = new_model("replknet_nano_k3", num_classes=12, checkpoint=tmp_path / "weights.pth", seed=2)
    assert all(torch.equal(value, first.state_dict()[key]) for key, value in same.module.state_dict().items())
    assert same.notes == ()
    other = new_model("replknet_nano_k3", num_classes=5, checkpoint=tmp_path / "weights.pth")
    assert other.module.state_dict()["head.weight"].shape[0] == 5
    assert torch.equal(other.module.state_dict()["stem.0.conv.weight"], first.state_dict()["stem.0.conv.weight"])
    assert other.notes == ("weights.pth: its head has other classes; a new one is trained",)
    torch.save(replknet.reparameterize(first, level="kernels").state_dict(), tmp_path / "merged.pth")
    (tmp_path / "page.pth").write_text("<html>")
    for name, reason in (
        ("merged.pth", r"does not fit .*lkb_origin.* small kernel merged"),
        ("page.pth", "an HTML page"),
    ):
        with pytest.raises(replknet.CheckpointError, match=reason):
            new_model("replknet_nano_k3", num_classes=12, checkpoint=tmp_path / name)
    wide = new_model("replknet_nano_k3", num_classes=5, kernel_sizes=(5, 5, 3, 3), gradient_checkpointing=True).module
    assert isinstance(wide, replknet.RepLKNet)
    assert (wide.config.kernel_sizes, wide.config.small_kernel) == ((5, 5, 3, 3), 3)
    assert wide.grad_checkpointing
