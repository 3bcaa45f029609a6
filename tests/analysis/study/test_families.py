"""Studies of several families: which networks, at which cost, and how they are compared."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import load_model
from analysis.redrawing.kinds import draw_saved
from analysis.redrawing.saved import read_saved
from analysis.runs.decoding import made
from analysis.study import panels, record, report
from analysis.study.budget import cost, of_equal_cost
from analysis.study.design import Cell, Study, preset
from analysis.study.families import family_differences
from analysis.study.images import StudyImages
from analysis.study.jobs import JobOptions, cell_jobs
from analysis.study.result import psychometric_curves, study_table
from analysis.study.running import Outcome, cell_settings
from analysis.study.sweeping import run_study
from replknet import RepLKNetConfig, SLaKConfig, UniRepLKNetConfig
from replknet.networks import FAMILIES, family_of
from tests.analysis.study.test_running import TINY, measures

ALL = ("replknet", "unireplknet", "slak")
SMALL = replace(TINY, families=ALL, channels=(12, 24), num_seeds=1, recipe=replace(TINY.recipe, steps=2))
ONE: dict[str, Any] = {"layers": (1,), "channels": (8,), "num_classes": 2}


@pytest.mark.parametrize(
    ("config", "parameters", "macs"),
    [
        (
            RepLKNetConfig(**ONE, kernel_sizes=(3,), small_kernel=None),
            # Stem of 3x3, 3x3, 1x1 and 3x3; block: norm, 1x1, 3x3 with a bias, 1x1; 1x1 to 32 and back; norm, head.
            (216 + 16) + (72 + 16) + (64 + 16) + (72 + 16) + (16 + 80 + 80 + 80) + (16 + 320 + 272) + 16 + 18,
            (216 + 72 + 64) * 256 + (72 + 64 + 72 + 64 + 256 + 256) * 64 + 16,
        ),
        (
            UniRepLKNetConfig(**ONE, kernel_sizes=(3,)),
            # Two 3x3 of the stem with layer norms; 3x3; squeeze to 2 and back; 32 and back with 32 of GRN; norm, head.
            (112 + 8 + 296 + 16) + 80 + (18 + 24) + (288 + 32 + 264) + 16 + 18,
            108 * 256 + (288 + 72 + 256 + 256) * 64 + (16 + 16) + 16,
        ),
        (
            SLaKConfig(**ONE, kernel_sizes=(5,), strip_width=3, small_kernel=3),
            # 4x4 of the stem and its norm; two strips and a square with biases; norm, 32 and back, scale; norm, head.
            (392 + 16) + (128 + 128 + 80) + 16 + (288 + 264) + 8 + 16 + 18,
            (384 + 120 + 120 + 72 + 256 + 256) * 64 + 16,
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_costs_by_hand(config: Any, parameters: int, macs: int) -> None:
    """On images of 32 pixels: maps of 16 x 16 in the stem, of 8 x 8 after it."""
    assert cost(config, "parameters", 32) == parameters
    assert cost(config, "macs", 32) == macs


@pytest.mark.parametrize("budget", ["macs", "parameters"])
@pytest.mark.parametrize("name", ["quick", "standard"])
def test_networks_of_a_kernel_cost_the_same_and_no_widths_come_nearer(name: str, budget: str) -> None:
    study = replace(preset(name), families=ALL, budget=budget, kernels=(3, 13), num_seeds=1)
    cells = {(cell.family, cell.kernel): study.config(cell, 12) for cell in study.cells()}
    assert len(cells) == 6
    for (family, kernel), config in cells.items():
        target = cost(cells["replknet", kernel], budget, study.size)
        ours = cost(config, budget, study.size)
        assert abs(ours / target - 1) <= 0.03
        assert family_of(config).key == family
        assert config.layers == study.layers
        factors = np.array(config.channels) / study.channels
        assert np.ptp(factors) <= 1 / min(study.channels)  # one factor, but for the rounding
        if kernel == 13 and family != "replknet":
            for step in (-1, 1):  # every width one channel less or more
                channels = tuple(width + step for width in config.channels)
                assert abs(cost(replace(config, channels=channels), budget, study.size) - target) > abs(ours - target)
    assert cells["replknet", 13].channels == study.channels


def test_a_budget_that_no_widths_have_is_refused(tmp_path: Path) -> None:
    study = replace(SMALL, channels=(4, 4))
    with pytest.raises(ValueError, match=r"budget='parameters': no widths of a UniRepLKNet.* expected wider channels"):
        run_study(study, tmp_path)
    assert not any(tmp_path.iterdir())
    wide = SLaKConfig(layers=(1,), channels=(100,), kernel_sizes=(3,), strip_width=None)
    narrow = RepLKNetConfig(layers=(1,), channels=(2,), kernel_sizes=(3,), small_kernel=None)
    with pytest.raises(ValueError, match="no widths of a SLaK"):
        of_equal_cost(wide, narrow, budget="macs", size=32)


def test_a_study_of_replknets_is_what_it_was_before_there_were_others() -> None:
    """Names and complete recipes of its cells, as studies of former versions have them in their folders."""
    images = StudyImages(TINY)
    recipe = {
        "accumulate": 1, "augmentation": "flip", "autocast": "", "batch_size": 8, "cutmix": 0.0, "drop_path_rate": 0.0,
        "ema_decay": None, "gradient_checkpointing": False, "image_size": 224, "label_smoothing": 0.1,
        "layer_decay": 1.0, "learning_rate": 0.008, "max_gradient_norm": 5.0, "minimum_rate": 0.0, "mixup": 0.0,
        "rand_augment": "", "random_erasing": 0.0, "steps": 6, "sync_batch_norm": False, "warmup": 0.1,
        "weight_decay": 0.05,
    }  # fmt: skip
    former = {
        "size": 32, "layers": [1, 1], "channels": [4, 8], "data": None, "recipe": recipe, "num_train": 48,
        "num_val": 24, "train_balance": None, "texture_region": "image", "texture_scale": 1.0,
        "balances": [-1.0, 0.0, 1.0], "num_conflict": 24, "erf_size": 64, "num_erf": 2, "images": images.fingerprint,
        "cell": {"kernel": 5, "seed": 1, "shortcut": True, "small_kernel": 3},
        "config": {
            "channels": [4, 8], "drop_path_rate": 0.0, "dw_ratio": 1.0, "ffn_ratio": 4.0,
            "gradient_checkpointing": False, "in_channels": 3, "kernel_sizes": [5, 5], "layers": [1, 1],
            "norm_intermediate_features": False, "num_classes": 12, "out_indices": None, "shortcut": True,
            "small_kernel": 3,
        },
    }  # fmt: skip
    cell = TINY.cells()[3]
    assert cell.name == "k5_small3_seed1"
    assert cell_settings(TINY, cell, images) == former
    assert cell_settings(replace(TINY, families=ALL, budget="macs"), cell, images) == former
    assert made(Cell, {"kernel": 5, "seed": 1, "shortcut": True, "small_kernel": 3}) == cell


def test_a_family_has_the_cells_of_its_choices() -> None:
    study = Study(families=ALL, small_kernels=(3, 0), shortcuts=(True, False), num_seeds=1)
    names = [cell.name for cell in study.cells()]
    assert len(set(names)) == len(names) == 16 + 3 + 8
    assert [name for name in names if name.startswith("uni")] == [f"unireplknet_k{k}_seed0" for k in (3, 7, 13)]
    assert [name for name in names if "_k31" in name] == ["slak_k31_small3_seed0", "slak_k31_small0_seed0"]
    assert "k31_small0_noshortcut_seed0" in names
    assert len({cell for cell in study.cells() if cell.shortcut is False and cell.family != "replknet"}) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"families": ()}, "families=()"),
        ({"families": ("slak", "slak")}, "expected one or more different of replknet, unireplknet, slak"),
        ({"families": ("resnet",)}, "families=('resnet',)"),
        ({"budget": "time"}, "budget='time': expected one of macs, parameters"),
        ({"families": ("unireplknet",), "kernels": (3, 31)}, "a UniRepLKNet has kernels of 3, 5, 7, 9, 11, 13, 15, 17"),
        ({"families": ("slak", "unireplknet"), "kernels": (19, 31)}, "a UniRepLKNet has kernels of 3, 5, 7"),
        ({"families": ALL, "kernels": (3, 31), "until_width": 0.5}, "a UniRepLKNet has kernels of 3, 5, 7"),
    ],
)
def test_wrong_families_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Study(**changes)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Outcome], list[Outcome]]:
    """A study to which the families are added when its RepLKNets are finished."""
    directory = tmp_path_factory.mktemp("families")
    first = run_study(replace(SMALL, families=("replknet",)), directory)
    return directory, first, run_study(SMALL, directory)


def test_families_are_added_to_what_is_finished(mixed: tuple[Path, list[Outcome], list[Outcome]]) -> None:
    directory, first, outcomes = mixed
    assert [outcome.error for outcome in outcomes] == [""] * 6
    assert [outcome.reused for outcome in outcomes] == [outcome.cell.family == "replknet" for outcome in outcomes]
    results = {outcome.cell.name: outcome.result for outcome in outcomes}
    for former in first:
        assert former.result is not None
        assert measures(former.result) == measures(results[former.cell.name])  # type: ignore[arg-type]
    for family in FAMILIES:
        for name, result in results.items():
            assert result is not None
            if result.cell.family == family.key:
                loaded = load_model(str(directory / "cells" / name / "network.safetensors"))
                assert type(loaded.module) is family.network
                reference = results[f"k{result.cell.kernel}_small3_seed{result.cell.seed}"]
                assert reference is not None
                assert result.merged_parameters == pytest.approx(reference.merged_parameters, rel=0.03)
    with pytest.raises(ValueError, match="differs in budget, config"):
        run_study(replace(SMALL, budget="macs"), directory)


def test_the_report_holds_all_families(mixed: tuple[Path, list[Outcome], list[Outcome]]) -> None:
    directory, _, outcomes = mixed
    record.save_study(SMALL, "replknet study --out X", directory)
    page = report.write_report(directory).read_text()
    table = pd.read_csv(directory / "study.csv")
    assert list(table["family"]) == ["replknet"] * 2 + ["unireplknet"] * 2 + ["slak"] * 2
    assert "6 networks (RepLKNet, UniRepLKNet, SLaK) with kernels of 3, 5 pixels" in page
    assert page.count("its parameters with kernels merged are within 3 % of those of the RepLKNet") == 2
    assert page.count("<td>SLaK - UniRepLKNet</td>") == page.count("<td>UniRepLKNet - RepLKNet</td>") > 3
    for outcome in outcomes:
        own = table[table["cell"] == outcome.cell.name].iloc[0]
        assert own["widths"] == "-".join(map(str, SMALL.config(outcome.cell, 12).channels))
        assert f"<td>{own['widths']}</td>" in page
    # Every network has its place in the figures of one family.
    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    view = panels.View(record.load_study(directory), study_table(results))
    assert {name: len(own) for name, own in view.families.items()} == {"RepLKNet": 2, "UniRepLKNet": 2, "SLaK": 2}
    curves = next(panel for panel in panels.PANELS if panel.name == "curves").draw(view)
    assert [ax.get_title() for ax in curves.axes] == ["RepLKNet", "UniRepLKNet", "SLaK"]
    assert [len(ax.get_lines()) for ax in curves.axes] == [2, 2, 2]
    # Redrawn, they keep apart, too.
    names = [f"{name}, kernel {kernel}" for name in view.families for kernel in (3, 5)]
    saved = read_saved([directory])
    assert [field.model for field in saved.fields] == [curve.label for curve in psychometric_curves(results)] == names
    for kind in ("psychometric", "curves"):
        legend: Any = draw_saved(saved, kind).axes[0].get_legend()
        assert [text.get_text() for text in legend.get_texts()] == names


def test_a_job_carries_the_families(mixed: tuple[Path, list[Outcome], list[Outcome]]) -> None:
    directory, _, outcomes = mixed
    name = "slak_k5_small3_seed0"
    (job,) = cell_jobs(SMALL, [name], directory, JobOptions(executor="local"), num_workers=0, device="cpu")
    assert made(Study, job.study) == SMALL
    (result,) = (outcome.result for outcome in outcomes if outcome.cell.name == name)
    assert result is not None
    assert job() == f"{name}: accuracy {result.accuracy:.4f}"


def table_of(**values: list[list[float]]) -> pd.DataFrame:
    """Of accuracies, shape (seeds, kernels) for each family, kernels 3, 7 and so on."""
    return pd.DataFrame(
        [
            {"cell": f"{family} {kernel} {seed}", "family": family, "kernel": kernel, "seed": seed, "shortcut": True,
             "small_kernel": 3, "accuracy": value, "shape_bias": np.nan}
            for family, rows in values.items()
            for seed, row in enumerate(rows)
            for kernel, value in zip((3, 7, 13), row, strict=False)
        ]
    )  # fmt: skip


def test_families_are_compared_at_the_kernels_of_both_paired_by_seed() -> None:
    ours = [[0.5, 0.6, 0.9], [0.4, 0.6, 0.1], [0.6, 0.7, 0.5]]
    theirs = [[0.7, 0.7], [0.6, 0.7], [0.7, 0.9]]
    (found,) = family_differences(table_of(replknet=ours, slak=theirs))
    assert (found.families, found.kernels, found.measure.name) == (("RepLKNet", "SLaK"), (3, 7), "accuracy")
    means = np.mean(theirs, 1), np.mean(np.array(ours)[:, :2], 1)  # 0.7, 0.65, 0.8 and 0.55, 0.5, 0.65
    assert found.overall.difference == pytest.approx(0.15)
    assert np.isnan(found.overall.p_value)  # 0.15 of each seed
    assert "the same amount" in found.answer
    theirs[0][0] = 0.8
    (found,) = family_differences(table_of(replknet=ours, slak=theirs))
    means = np.mean(theirs, 1), np.mean(np.array(ours)[:, :2], 1)
    expected = stats.ttest_rel(*means)
    assert found.overall.p_value == pytest.approx(expected.pvalue)
    assert (found.overall.low, found.overall.high) == pytest.approx(expected.confidence_interval())
    assert found.answer == "SLaK higher"
    assert [own.difference for own in found.by_kernel] == pytest.approx([(0.3 + 0.2 + 0.1) / 3, (0.1 + 0.1 + 0.2) / 3])
    assert found.row()[:4] == [
        "accuracy (%)", "SLaK - RepLKNet", "SLaK higher", "+16.7 percentage points [+9.5, +23.8]",
    ]  # fmt: skip
    (turned,) = family_differences(table_of(replknet=theirs, slak=ours))
    assert turned.answer == "RepLKNet higher"


def test_seeds_that_lack_a_network_do_not_count() -> None:
    ours, theirs = [[0.5, 0.6], [0.4, 0.6], [0.6, 0.7]], [[0.5, 0.8], [0.3, 0.7]]
    (found,) = family_differences(table_of(replknet=ours, slak=theirs))
    assert found.overall.num_repeats == 2
    assert found.answer == "no evidence of a difference"
    (found,) = family_differences(table_of(replknet=ours, slak=theirs[:1]))
    assert found.answer == "no answer: 1 seed cannot be significant"
    assert family_differences(table_of(replknet=ours)) == []
