import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import replknet
from analysis import load_model
from analysis.images.preparing import normalize
from analysis.runs.results import ResultError
from analysis.study import running
from analysis.study.design import Cell, Study, preset
from analysis.study.images import StudyImages
from analysis.study.result import CellResult, study_table, values_by_seed
from analysis.study.running import Outcome
from analysis.study.sweeping import run_study
from analysis.training import loop
from analysis.training.loop import accuracy
from analysis.training.recipe import Recipe
from replknet import RepLKNet

TINY = Study(
    kernels=(3, 5),
    num_seeds=2,
    size=32,
    layers=(1, 1),
    channels=(4, 8),
    recipe=Recipe(steps=6, batch_size=8),
    num_train=48,
    num_val=24,
    balances=(-1.0, 0.0, 1.0),
    num_conflict=24,
    erf_size=64,
    num_erf=2,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Outcome]]:
    directory = tmp_path_factory.mktemp("study")
    return directory, run_study(TINY, directory)


def measures(result: CellResult) -> dict[str, str]:
    """Every number but times, in full precision."""
    return {name: repr(v) for name, v in result.row().items() if name not in ("seconds_per_step", "inference_ms")}


def test_every_cell_is_measured(finished: tuple[Path, list[Outcome]]) -> None:
    directory, outcomes = finished
    assert [outcome.cell.name for outcome in outcomes] == [
        "k3_small3_seed0", "k5_small3_seed0", "k3_small3_seed1", "k5_small3_seed1",
    ]  # fmt: skip
    for outcome in outcomes:
        result = outcome.result
        assert result is not None
        assert result.erf.map_size == (64, 64)
        assert result.num_conflict == 24
        assert len(result.num_shape) == 3
        assert result.conflict is not None
        assert result.conflict.num_images == 24
        assert (result.num_shape[1], result.num_texture[1]) == (result.conflict.num_shape, result.conflict.num_texture)
        assert 0 <= result.accuracy <= 1
        folder = directory / "cells" / outcome.cell.name
        assert not (folder / "checkpoint.pt").exists()
        recipe = json.loads((folder / "cell.json").read_text())
        assert recipe["recipe"]["learning_rate"] == TINY.recipe.learning_rate
        assert recipe["config"]["kernel_sizes"] == list(TINY.kernel_sizes(outcome.cell.kernel))
        assert recipe["cell"]["seed"] == outcome.cell.seed
    table = study_table([outcome.result for outcome in outcomes if outcome.result])
    assert list(table["kernel"]) == [3, 3, 5, 5]
    kernels, values = values_by_seed(table, "accuracy")
    assert kernels == [3, 5]
    assert values.shape == (2, 2)


def test_parameters_and_macs_by_hand(finished: tuple[Path, list[Outcome]]) -> None:
    results = {outcome.cell.kernel: outcome.result for outcome in finished[1]}
    assert results[3] is not None
    assert results[5] is not None
    # 16 more taps for each of the 4 + 8 channels; each is used at all of the 8 x 8 and 4 x 4 places.
    assert results[5].merged_parameters - results[3].merged_parameters == 16 * 12
    assert results[5].macs - results[3].macs == 16 * (4 * 64 + 8 * 16)


def test_finished_cells_are_read_and_new_ones_added(finished: tuple[Path, list[Outcome]]) -> None:
    directory, outcomes = finished
    more = run_study(replace(TINY, kernels=(3, 5, 7), num_seeds=1), directory)
    assert [outcome.reused for outcome in more] == [True, True, False]
    assert more[0].result is not None
    assert outcomes[0].result is not None
    assert measures(more[0].result) == measures(outcomes[0].result)


def test_a_finished_cell_of_another_study_is_never_replaced(finished: tuple[Path, list[Outcome]]) -> None:
    directory, outcomes = finished
    other = replace(TINY, recipe=replace(TINY.recipe, learning_rate=1e-3))
    with pytest.raises(ValueError, match=r"k3_small3_seed0.*differs in recipe"):
        run_study(other, directory)
    kept = CellResult.load(directory / "cells" / "k3_small3_seed0")
    assert outcomes[0].result is not None
    assert kept.weights_hash == outcomes[0].result.weights_hash


def test_an_unfinished_cell_of_another_study_is_made_anew(tmp_path: Path) -> None:
    target = tmp_path / "cells" / "k3_small3_seed0"
    target.mkdir(parents=True)
    (target / "cell.json").write_text('{"cut')
    (outcome,) = run_study(replace(TINY, kernels=(3,), num_seeds=1), tmp_path)
    assert outcome.result is not None, outcome.error


def test_untrained_networks_are_calibrated(finished: tuple[Path, list[Outcome]]) -> None:
    """Their batch norms have seen images: the receptive field is not that of the new norms' 0 and 1."""
    images = StudyImages(TINY)
    result = finished[1][1].result
    assert result is not None
    raw = running._new_network(TINY, result.cell, 12)
    calibrated = running._calibrated_copy(raw, images)
    assert all(torch.equal(p, q) for p, q in zip(raw.parameters(), calibrated.parameters(), strict=True))
    batch = normalize(torch.stack([torch.from_numpy(images.train[i][0]).permute(2, 0, 1) for i in range(48)]))
    assert isinstance(raw, RepLKNet) and isinstance(calibrated, RepLKNet)
    with torch.no_grad():
        stem = calibrated.stem[0].eval()(batch)
        expected = raw.stem[0].train()(batch)  # normalised by the batch itself: the same 48 images
    assert torch.allclose(stem, expected, atol=0.05)
    assert not np.array_equal(result.untrained_erf.mean_map, running._measure_erf(raw, images, "raw").mean_map)


def test_a_failed_cell_is_reported_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = loop.train

    def fails(model: replknet.RepLKNet, *arguments: Any, **options: Any) -> Any:
        if model.config.kernel_sizes[0] == 3:
            raise RuntimeError("out of luck")
        return train(model, *arguments, **options)

    study = replace(TINY, num_seeds=1)
    monkeypatch.setattr(running, "train", fails)
    broken, whole = run_study(study, tmp_path)
    assert broken.result is None
    assert broken.error == "RuntimeError: out of luck"
    assert "Traceback" in (tmp_path / "cells" / broken.cell.name / "error.txt").read_text()
    assert whole.result is not None
    monkeypatch.setattr(running, "train", train)
    mended, reused = run_study(study, tmp_path)
    assert mended.result is not None
    assert reused.reused
    assert not (tmp_path / "cells" / broken.cell.name / "error.txt").exists()


KILLED = """
import os, signal, sys
from analysis.study.sweeping import run_study
from analysis.training import progress as state
from tests.analysis.study.test_running import TINY
state._SECONDS_BETWEEN_CHECKPOINTS = 0.0
state._SHARE_OF_CHECKPOINTS = float("inf")
def progress(done, total, name):
    if name == "k5_small3_seed0" and done > total // 4 + 2:
        os.kill(os.getpid(), signal.SIGKILL)
run_study(TINY, sys.argv[1], progress=progress)
"""


def test_killed_in_the_sweep_it_ends_the_same(finished: tuple[Path, list[Outcome]], tmp_path: Path) -> None:
    """SIGKILL in the middle of a training of the second cell; the rest is done by a second process."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    killed = subprocess.run(command, env=environment, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (tmp_path / "cells" / "k3_small3_seed0" / "measures").is_dir()
    assert (tmp_path / "cells" / "k5_small3_seed0" / "checkpoint.pt").is_file()
    assert not (tmp_path / "cells" / "k5_small3_seed0" / "measures").exists()
    outcomes = run_study(TINY, tmp_path)
    assert [outcome.reused for outcome in outcomes] == [True, False, False, False]
    for ours, theirs in zip(outcomes, finished[1], strict=True):
        assert ours.result is not None
        assert theirs.result is not None
        assert ours.result.weights_hash == theirs.result.weights_hash
        assert ours.result.curve == theirs.result.curve
        assert measures(ours.result) == measures(theirs.result)
        assert np.array_equal(ours.result.erf.mean_map, theirs.result.erf.mean_map)
        assert np.array_equal(ours.result.conflict.logits, theirs.result.conflict.logits)  # type: ignore[union-attr, arg-type]


def test_the_network_of_a_cell_is_loaded_by_its_file(finished: tuple[Path, list[Outcome]]) -> None:
    directory, outcomes = finished
    loaded = load_model(str(directory / "cells" / "k5_small3_seed1" / "network.safetensors"))
    result = outcomes[3].result
    assert result is not None
    assert loaded.name == "k5_small3_seed1"
    assert loaded.input_size == 32
    assert loaded.classes == result.classes
    images = StudyImages(TINY)
    assert accuracy(loaded.module, images.val) == pytest.approx(result.accuracy, abs=0.05)


def test_a_damaged_cell_is_made_anew(tmp_path: Path) -> None:
    one = replace(TINY, kernels=(3,), num_seeds=1)
    run_study(one, tmp_path)
    target = tmp_path / "cells" / "k3_small3_seed0"
    (target / "erf" / "result.json").write_text("{")
    with pytest.raises(ResultError, match="unreadable"):
        CellResult.load(target)
    assert not run_study(one, tmp_path)[0].reused


def test_image_folder_study(tmp_path: Path) -> None:
    from tests.analysis.training.test_loop import make_folder

    make_folder(tmp_path / "data")
    study = replace(TINY, kernels=(3,), num_seeds=1, data=str(tmp_path / "data"), recipe=Recipe(steps=2, batch_size=4))
    (outcome,) = run_study(study, tmp_path / "out")
    result = outcome.result
    assert result is not None, outcome.error
    assert result.classes == ("cat", "dog")
    assert result.conflict is None
    assert np.isnan(result.shape_bias)
    assert result.row()["val_images"] == 6
    assert CellResult.load(tmp_path / "out" / "cells" / outcome.cell.name).balances == ()


def test_kernels_are_capped_at_the_map() -> None:
    study = preset("standard")
    assert study.kernel_sizes(31) == (31, 15, 7, 3)
    assert study.kernel_sizes(13) == (13, 13, 7, 3)
    assert study.kernel_sizes(3) == (3, 3, 3, 3)
    assert replace(study, size=96).kernel_sizes(31) == (31, 23, 11, 5)
    assert replace(study, layers=(1,), channels=(16,), size=16, texture_scale=2.0).capped_kernels((3, 7, 13)) == [13]
    assert len(study.cells()) == 12
    assert len(preset("full").cells()) == 80


def test_guidelines_are_factors() -> None:
    study = replace(TINY, kernels=(5,), small_kernels=(3, 0), shortcuts=(True, False), num_seeds=1)
    configs = [study.config(cell, 12) for cell in study.cells()]
    assert [(config.small_kernel, config.shortcut) for config in configs] == [
        (3, True), (None, True), (3, False), (None, False),
    ]  # fmt: skip
    assert {cell.name for cell in study.cells()} == {
        "k5_small3_seed0", "k5_small0_seed0", "k5_small3_noshortcut_seed0", "k5_small0_noshortcut_seed0",
    }  # fmt: skip


def test_folder_presets_train_longer() -> None:
    assert preset("standard", "photos").recipe.steps == 5 * preset("standard").recipe.steps
    assert preset("standard", "photos").recipe.augmentation == "flip-crop"
    with pytest.raises(ValueError, match="preset='fast'"):
        preset("fast")


def test_wrong_values_are_named(tmp_path: Path) -> None:
    for name, value in (
        ("kernels", ()),
        ("kernels", (3, 3)),
        ("kernels", (4,)),
        ("num_seeds", 0),
        ("balances", (1.0,)),
        ("small_kernels", (5,)),
        ("size", 4),
        ("kernels", (3.0,)),
        ("kernels", (10**20 + 1,)),
        ("small_kernels", (2,)),
        ("shortcuts", (1,)),
        ("num_train", 10**20),
        ("num_seeds", True),
        ("layers", (1, 1, 1)),
        ("channels", (8, 0)),
        ("train_balance", float("nan")),
        ("balances", (0.0, float("inf"))),
        ("erf_size", -1),
        ("erf_size", 4),
        ("erf_size", 10**20),
        ("recipe", {}),
    ):
        with pytest.raises(ValueError, match=name.rstrip("s")):
            replace(TINY, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size=100"):
        run_study(replace(TINY, recipe=Recipe(batch_size=100)), tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        run_study(replace(TINY, data=str(tmp_path / "none")), tmp_path)
    with pytest.raises(ValueError, match="device=warp: cannot be used here"):
        run_study(TINY, tmp_path, device="warp")
    with pytest.raises(ValueError, match="num_workers=-1"):
        run_study(TINY, tmp_path, num_workers=-1)
    with pytest.raises(ValueError, match="expected a multiple of 7"):
        run_study(replace(TINY, recipe=replace(TINY.recipe, accumulate=7)), tmp_path)
    with pytest.raises(ValueError, match="directory='': expected a path"):
        run_study(TINY, "")
    assert not any(tmp_path.iterdir())
    assert Cell(kernel=7, small_kernel=0, shortcut=True, seed=4).name == "k7_small0_seed4"
