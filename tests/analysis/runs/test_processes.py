import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from analysis.images.synthetic.drawing import SyntheticOptions
from analysis.images.synthetic.outlines import CLASSES
from analysis.images.synthetic.sets import SyntheticImages
from analysis.runs.processes import by_first, gather, in_turns, num_processes, rank
from analysis.training.recipe import Recipe
from tests.analysis.runs.together import fails_in_one, measure

ROOT = Path(__file__).parents[3]


def torchrun(*arguments: str | Path, **options: Any) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    return subprocess.Popen(
        list(map(str, command)), env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated images in folders; one of `damaged` is that, and 25 do not divide by batches and processes."""
    root = tmp_path_factory.mktemp("data")
    images = SyntheticImages(num_images=61, seed=1, options=SyntheticOptions(size=40))
    for index in range(61):
        pixels, label = images[index]
        parts = ["train"] if index < 36 else ["val", "damaged"]
        for part in parts:
            folder = root / part / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    for part in ("train", "val", "damaged"):
        for name in CLASSES:
            (root / part / name).mkdir(exist_ok=True)
            if not list((root / part / name).iterdir()):
                Image.fromarray(images[0][0]).save(root / part / name / "0.png")
    next((root / "damaged" / CLASSES[3]).iterdir()).write_bytes(b"broken")
    return root


def test_without_a_group_there_is_one_process() -> None:
    assert (num_processes(), rank(), gather("a")) == (1, 0, ["a"])
    assert by_first(lambda: 5) == 5
    assert list(in_turns(3, lambda item: item**2, start=1)) == [1, 4]
    with pytest.raises(ValueError, match="item 3 is bad"):
        list(in_turns(5, fails_in_one))


def test_two_processes_find_what_one_does(data: Path, tmp_path: Path) -> None:
    alone = measure(data, tmp_path)
    process = torchrun("-m", "tests.analysis.runs.together", data, tmp_path / "two.npz")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    together = np.load(tmp_path / "two.npz")
    assert together["shared"] == 10
    for name in ("erf", "rings", "logits"):
        assert np.abs(together[name] - alone[name]).max() <= 1e-12 * np.abs(alone[name]).max()
    for name in ("names", "responses", "bias_of", "best", "labels", "files", "skipped", "accuracy"):
        assert np.array_equal(together[name], alone[name]), name
    assert len(alone["skipped"]) == 1
    for name in ("plain", "photographs", "accumulated"):
        assert together[f"{name}_loss"] == pytest.approx(alone[f"{name}_loss"], rel=1e-12)
        assert np.array_equal(together[f"{name}_accuracy"], alone[f"{name}_accuracy"], equal_nan=True)
        assert np.abs(together[f"{name}_weights"] - alone[f"{name}_weights"]).max() < 1e-9


SMALL = (
    "train replknet_nano_k3 --recipe imagenet-300 --set image_size=32 --set batch_size=12 --set autocast= "
    "--set epochs=4 --set warmup_epochs=1 --max-steps 6"
)


def test_the_command_line_in_two_processes_writes_once(data: Path, tmp_path: Path) -> None:
    first = torchrun("-m", "replknet", *SMALL.split(), "--data", data, "--out", tmp_path / "two")
    printed, errors = first.communicate()
    assert first.returncode == 0, errors
    assert printed.count("6 of 12 steps") == 1
    assert "val_accuracy" in (tmp_path / "two" / "curve.csv").read_text()
    assert json.loads((tmp_path / "two" / "training.json").read_text())["processes"] == 2
    curve = pd.read_csv(tmp_path / "two" / "curve.csv")
    assert np.isfinite(curve["train_loss"]).all()
    second = torchrun("-m", "replknet", *SMALL.replace("=12", "=9").split(), "--data", data, "--out", tmp_path / "odd")
    _, errors = second.communicate()
    assert second.returncode != 0
    assert errors.count("replknet: batch_size=9: expected a multiple of 2") == 1
    assert "processes (2)" in errors
    third = torchrun("-m", "replknet", "predict", "replknet_nano_k3", data)
    _, errors = third.communicate()
    assert third.returncode != 0
    assert errors.count("replknet: WORLD_SIZE=2: predict runs in one process") == 1


def test_a_killed_process_ends_the_others_and_the_next_start_continues(data: Path, tmp_path: Path) -> None:
    command = SMALL.replace("--max-steps 6", "").replace("epochs=4 ", "epochs=300 ").split()
    process = torchrun("-m", "replknet", *command, "--data", data, "--out", tmp_path / "out")
    curve = tmp_path / "out" / "curve.csv"
    limit = time.monotonic() + 120
    while not (tmp_path / "out" / "checkpoint.pt").is_file():
        assert time.monotonic() < limit
        assert process.poll() is None
        time.sleep(0.2)
    workers = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    training = [pid for pid in workers if b"replknet" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(max(training), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "SIGKILL" in errors or "Signal 9" in errors
    state = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)
    done = state["loop"]["step"]
    assert 0 < done < 900
    again = torchrun(
        "-m", "replknet", *command, "--max-steps", str(done + 1), "--data", data, "--out", tmp_path / "out"
    )
    printed, errors = again.communicate()
    assert again.returncode == 0, errors
    assert f"{done + 1} of 900 steps" in printed
    assert pd.read_csv(curve)["step"].iloc[-1] == done + 1


def test_a_recipe_for_several_processes_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    from analysis.training import parallel

    monkeypatch.setattr(parallel, "num_processes", lambda: 4)
    check = parallel.check_division
    with pytest.raises(
        ValueError, match=r"batch_size=64: expected a multiple of 12.*processes \(4\).*accumulate \(3\)"
    ):
        check(Recipe(accumulate=3), torch.device("cpu"))
    with pytest.raises(ValueError, match="an even number of images; each of 4 pieces would have 3"):
        check(Recipe(batch_size=12, mixup=0.8), torch.device("cpu"))
    with pytest.raises(ValueError, match="sync_batch_norm=True: PyTorch synchronises batch norms on GPUs only"):
        check(Recipe(sync_batch_norm=True), torch.device("cpu"))
    check(Recipe(sync_batch_norm=True), torch.device("cuda"))
